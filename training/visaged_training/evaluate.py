"""`evaluate NAME`: every figure that the cards and manifests carry, written to training/measured/NAME.json."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import EMOTIONS, align, data, detector, neutrality, program, yunet
from .quantize import DERL, MEASURED


def arguments(parser: argparse.ArgumentParser) -> None:
    names = ["detector", *DERL, "stress", "program", "identity", "swap", "makeup"]
    parser.add_argument(
        "what",
        choices=names,
        help="stress: derl where it gets hard, and by group; program: both derl bundles through `visaged analyze`",
    )
    data.add_data_argument(parser)
    parser.add_argument("--work", type=Path, default=data.WORK, help="folder of the float graphs (see `quantize`)")
    parser.add_argument("--bundles", type=Path, default=data.BUNDLES)
    parser.add_argument("--limit", type=int, help="detector: only so many pictures a pack (for a quick look)")
    parser.add_argument("--no-sizes", action="store_true", help="detector: leave out recall by face size")
    parser.add_argument("--sheet", type=Path, help="derl, swap, makeup: write the contact sheet (clean data only) here")
    parser.add_argument("--binary", type=Path, default=data.ROOT / "target" / "release" / "visaged", help="program: `visaged`")
    parser.add_argument("--descriptor", type=Path, help="makeup: folder `model` of @vladmandic/face-api, a judge of identity")
    parser.add_argument("--judge", type=Path, help="swap: folder `models` of npm's @vladmandic/human, whose embedding judges")


def load_measured(name: str) -> dict:
    path = MEASURED / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def store(name: str, result: dict) -> None:
    MEASURED.mkdir(exist_ok=True)
    (MEASURED / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def litert(args: argparse.Namespace, name: str, like):
    """The bundle's .tflite with the outputs of its ONNX session."""
    from .litert import Session

    return Session(args.bundles / name / "model.tflite", [o.name for o in like.get_outputs()])


# --- detector --------------------------------------------------------------------------------------------------------


def run_detector(args: argparse.Namespace) -> int:
    nets = {
        "float": yunet.session(args.work / "detector_float.onnx"),
        "int8": yunet.session(args.bundles / "detector" / "model.onnx"),
    }
    result = load_measured("detector")
    result["parity"] = {
        "threshold": detector.THRESHOLD,
        "working": detector.WORKING,
        "size": f"{detector.WIDTH}x{detector.HEIGHT}",
        "packs": detector.parity(args.data, nets["float"], nets["int8"], limit=args.limit),
    }
    print(json.dumps(result["parity"]["packs"]["all"]))
    lite = litert(args, "detector", nets["int8"])
    result["litert"] = detector.parity(args.data, nets["float"], lite, limit=args.limit)["all"]
    print(json.dumps(result["litert"]))
    result["steadiness"] = detector.steadiness(args.data, args.bundles / "detector" / "model.onnx", limit=args.limit)
    print(json.dumps(result["steadiness"]))
    if not args.no_sizes:
        result["sizes"] = detector.recall_by_size(args.data, nets)
        for row in result["sizes"]:
            print(row)
    store("detector", result)
    return 0


# --- expression ------------------------------------------------------------------------------------------------------


def through(net, faces: np.ndarray, label: str) -> dict[str, np.ndarray]:
    """Grey faces [N, 64, 64] one by one through the bundle's graph."""
    x = align.standardise(faces)
    names = [o.name for o in net.get_outputs()]
    rows = [net.run(names, {"luminance": x[i][None, None]}) for i in tqdm(range(len(x)), desc=label)]
    return {n: np.concatenate([r[k] for r in rows]) for k, n in enumerate(names)}


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    z = logits / temperature
    z = np.exp(z - z.max(1, keepdims=True))
    return z / z.sum(1, keepdims=True)


def calibration_error(p: np.ndarray, label: np.ndarray, bins: int = 15) -> float:
    top, right = p.max(1), p.argmax(1) == label
    where = np.minimum((top * bins).astype(int), bins - 1)
    return float(sum(abs(right[where == b].mean() - top[where == b].mean()) * (where == b).mean() for b in np.unique(where)))


def reliability(p: np.ndarray, label: np.ndarray, bins: int = 10) -> list[dict]:
    """By certainty of the answer: how many answers, how certain on average, how many of them right."""
    top, right = p.max(1), p.argmax(1) == label
    where = np.minimum((top * bins).astype(int), bins - 1)
    return [
        {
            "from": round(b / bins, 2),
            "pictures": int((where == b).sum()),
            "certain": round(float(top[where == b].mean()), 4),
            "right": round(float(right[where == b].mean()), 4),
        }
        for b in np.unique(where)
    ]


def fit_temperature(logits: np.ndarray, label: np.ndarray) -> float:
    grid = np.exp(np.linspace(np.log(0.4), np.log(3), 120))
    loss = [-np.log(softmax(logits, t)[np.arange(len(label)), label] + 1e-9).mean() for t in grid]
    return round(float(grid[int(np.argmin(loss))]), 3)


def scores(logits: np.ndarray, valid: data.Ferplus) -> dict:
    return program.scores(logits.argmax(1), valid)


def separation(low: np.ndarray, high: np.ndarray) -> float:
    """Probability that a value of `high` is above one of `low` (area under the curve)."""
    return neutrality.parted([low], [high])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float((10 * np.log10(255**2 / np.maximum(((a - b) ** 2).mean((1, 2)), 1e-6))).mean())


def denormalise(neutral: np.ndarray, faces: np.ndarray) -> np.ndarray:
    faces = faces.astype(np.float32)
    mean, std = faces.mean((1, 2), keepdims=True), faces.std((1, 2), keepdims=True) + 8
    return np.clip(neutral * std + mean, 0, 255)


def oval() -> np.ndarray:
    y, x = np.mgrid[:64, :64] + 0.5
    return 1 / (1 + np.exp(-(1 - ((x / 64 - 0.5) / 0.36) ** 2 - ((y / 64 - 0.55) / 0.45) ** 2) * 8))


def aligned_faces(root: Path, net, entries) -> tuple[np.ndarray, list[int]]:
    """Colour pictures through detector and template, as the daemon does; the largest face of each."""
    faces, kept = [], []
    for i, path in enumerate(entries):
        rgb = data.rgb(path)
        small, f = yunet.fit(rgb, 320, 240)
        found = yunet.detect(net, small, 0.5)
        if found:
            best = max(found, key=lambda face: face.box[2] * face.box[3])
            faces.append(align.align(rgb, best.landmarks / f))
            kept.append(i)
    return np.stack(faces), kept


def describe(values: np.ndarray) -> dict:
    """Of neutralities: how many, their mean, and the shares that read less than 0.1 and more than 0.9."""
    return {
        "pictures": len(values),
        "mean": round(float(values.mean()), 3),
        "below_tenth": round(float((values < 0.1).mean()), 3),
        "above_nine_tenths": round(float((values > 0.9).mean()), 3),
    }


def neutrality_of_ferplus(valid: data.Ferplus, energy: np.ndarray, chosen: dict) -> dict:
    of = {n: valid.strict & (valid.plurality == c) for c, n in enumerate(EMOTIONS)}
    result = {n: describe(neutrality.apply(energy[rows], chosen)) for n, rows in of.items() if rows.any()}
    k = chosen["energy_index"]
    strong = energy[valid.strict & np.isin(valid.plurality, neutrality.STRONG), k]
    return {"classes": result, "separation": round(separation(energy[of["neutral"], k], strong), 4)}


def neutrality_of_renders(root: Path, net, chosen: dict) -> dict:
    """In scenes that the scale was not made with."""
    faces = neutrality.rendered(root, seed=912)
    energy = through(net, faces.reshape(-1, 64, 64), "renders")["residue_energy"]
    shape = faces.shape[:2]
    rises = neutrality.spearman(energy[:, chosen["energy_index"]].reshape(shape))
    values = neutrality.apply(energy, chosen).reshape(shape)
    return {
        "scenes": shape[0],
        "strengths": list(neutrality.STRENGTHS),
        "mean": [round(float(v), 3) for v in values.mean(0)],
        "spearman_of_the_mean": round(float(neutrality.spearman(values.mean(0)[None])[0]), 3),
        "energy_spearman_mean": round(float(rises.mean()), 3),
        "energy_spearman_median": round(float(np.median(rises)), 3),
    }


def run_derl(args: argparse.Namespace) -> int:
    name = args.what
    exact, small = (
        yunet.session(args.work / f"{name}_float.onnx"),
        yunet.session(args.bundles / name / "model.onnx"),
    )
    valid = data.ferplus(args.data, "valid")
    faces = align.crop64(valid.images)
    a, b = through(exact, faces, "float"), through(small, faces, "int8")
    use = valid.plurality >= 0
    label = valid.plurality[use]
    temperature = fit_temperature(b["logits"][use], label)
    answer = b["logits"].argmax(1)
    confusion = np.zeros((8, 8), int)
    np.add.at(confusion, (label, answer[use]), 1)
    result = load_measured(name)
    result["ferplus_valid"] = {
        "float": scores(a["logits"], valid),
        "int8": scores(b["logits"], valid),
        "agreement": round(float((a["logits"].argmax(1) == answer).mean()), 4),
        "confusion": confusion.tolist(),
        "temperature": temperature,
        "ece": round(calibration_error(softmax(b["logits"][use], temperature), label), 4),
        "reliability": reliability(softmax(b["logits"][use], temperature), label),
        "ece_before": round(calibration_error(softmax(b["logits"][use]), label), 4),
    }
    lite = through(litert(args, name, small), faces, "tflite")
    result["litert"] = {
        "int8": scores(lite["logits"], valid),
        "agreement": round(float((lite["logits"].argmax(1) == answer).mean()), 4),
        "logits_mean_abs": round(float(np.abs(lite["logits"] - b["logits"]).mean()), 4),
    }
    changed = np.abs(denormalise(b["neutral"][:, 0], faces) - denormalise(a["neutral"][:, 0], faces)).mean()
    result["neutral_parity"] = {"mean_abs_grey_levels": round(float(changed), 3)}
    for part in ("tiny",) if name == "derl-tiny" else ("generator", "classifier", "ablation", "joint"):
        told = args.work / f"{part}.json"
        if told.exists():
            result[f"{part}_training"] = json.loads(told.read_text())

    # The whole way on colour pictures: detector bundle, template, expression bundle.
    find = yunet.session(args.bundles / "detector" / "model.onnx")
    london = data.london(args.data)
    chosen = load_measured(f"{name}_neutrality")
    shown = {"ferplus_valid": neutrality_of_ferplus(valid, b["residue_energy"], chosen)}
    shown["renders"] = neutrality_of_renders(args.data, small, chosen)
    result["london"] = {}
    keep = {}
    for kind, smile in (("neutral", False), ("smile", True)):
        entries = [e for e in london if e["smile"] == smile]
        crops, kept = aligned_faces(args.data, find, [e["path"] for e in entries])
        grey = np.stack([align.luminance64(c) for c in crops])
        out = through(small, grey, f"london {kind}")
        p = softmax(out["logits"], temperature)
        closeness = neutrality.apply(out["residue_energy"], chosen)
        held = np.array([entries[i]["validation"] for i in kept])
        wanted = int(smile)
        made = denormalise(out["neutral"][:, 0], grey)
        again = through(small, made, f"london {kind} neutralised")["logits"].argmax(1)
        result["london"][kind] = {
            "pictures": len(kept),
            "called": {EMOTIONS[c]: int((p.argmax(1) == c).sum()) for c in range(8)},
            "right": round(float((p.argmax(1) == wanted).mean()), 4),
            "right_held_out": round(float((p.argmax(1) == wanted)[held].mean()), 4),
            "neutrality_median": round(float(np.median(closeness)), 3),
            "neutrality_held_out": describe(closeness[held]),
            "neutralised_called_neutral": round(float((again == 0).mean()), 4),
        }
        keep[kind] = (grey, made, held)
        shown.setdefault("london_held_out_energy", {})[kind] = out["residue_energy"][held, chosen["energy_index"]]
    ends = shown.pop("london_held_out_energy")
    shown["london_held_out"] = {
        **{kind: result["london"][kind].pop("neutrality_held_out") for kind in ends},
        "separation": round(separation(ends["neutral"], ends["smile"]), 4),
    }
    result["neutrality"] = {**chosen, "measured": shown}
    happy = valid.strict & np.isin(valid.plurality, (1, 2))
    made = denormalise(b["neutral"][:, 0], faces)
    again = through(small, made[happy], "neutralised")["logits"].argmax(1)
    result["neutralised_ferplus"] = {
        "happy_or_surprised_called_neutral": round(float((again == 0).mean()), 4),
        "before": round(float((answer[happy] == 0).mean()), 4),
    }
    entries = [e for e in data.sfhq(args.data) if e["query"]]
    crops, kept = aligned_faces(args.data, find, [e["path"] for e in entries])
    grey = np.stack([align.luminance64(c) for c in crops])
    called = through(small, grey, "sfhq")["logits"].argmax(1)
    table: dict[str, dict[str, int]] = {}
    for i, c in zip(kept, called, strict=True):
        row = table.setdefault(entries[i]["query"], {})
        row[EMOTIONS[c]] = row.get(EMOTIONS[c], 0) + 1
    result["sfhq_queries"] = table
    store(name, result)
    if args.sheet:
        from .sheet import derl_sheet

        derl_sheet(args, small, find, keep, temperature)
    r = result["ferplus_valid"]
    print(json.dumps({k: r[k] for k in ("float", "int8", "temperature", "ece")}))
    print(json.dumps(result["london"]))
    print(json.dumps({k: result[k] for k in ("neutrality", "neutralised_ferplus", "neutral_parity", "sfhq_queries")}))
    return 0


def run_stress(args: argparse.Namespace) -> int:
    """FER+ valid here: strict majorities alone, so that what falls is the net and not the label."""
    from . import stress

    net = yunet.session(args.bundles / "derl" / "model.onnx")
    valid = data.ferplus(args.data, "valid")
    shown = np.nonzero(valid.strict)[0][:1200]
    faces = align.crop64(valid.images[shown])

    def answer(crops: np.ndarray) -> np.ndarray:
        x = align.standardise(crops)[:, None]
        return np.array([net.run(["logits"], {"luminance": f[None]})[0].argmax() for f in x])

    result = stress.measure(args.data, answer, (faces, valid.plurality[shown]))
    result["ferplus_faces"] = len(faces)
    result["london"] = london_by_group(args, answer)
    store("derl_stress", result)
    print(json.dumps(result))
    return 0


def run_program(args: argparse.Namespace) -> int:
    """The bundles through the program, each FER+ valid picture as a file: what a user gets."""
    valid = data.ferplus(args.data, "valid")
    for name in DERL:
        if (args.bundles / name).exists():
            result = program.scores(program.answers(args.binary, args.bundles / name, valid.images), valid)
            store(f"{name}_program", result)
            print(name, json.dumps(result))
    return 0


def london_by_group(args: argparse.Namespace, answer) -> dict:
    """Neutral and smile called as such, by what people said of themselves."""
    from . import stress

    marks = np.load(args.data / "london" / "landmarks.npz")
    about = {str(f)[:3]: i for i, f in enumerate(marks["files"])}
    find = yunet.session(args.bundles / "detector" / "model.onnx")
    entries = data.london(args.data)
    crops, kept = aligned_faces(args.data, find, [e["path"] for e in entries])
    right = answer(np.stack([align.luminance64(c) for c in crops])) == [int(entries[i]["smile"]) for i in kept]
    groups = []
    for i in kept:
        k = about[entries[i]["id"]]
        age = int(marks["age"][k])
        groups.append(
            {
                "gender": str(marks["gender"][k]),
                "ethnicity": str(marks["ethnicity"][k]),
                "age": "unknown" if age < 0 else "below 25" if age < 25 else "25 to 34" if age < 35 else "35 and older",
            }
        )
    return {"right": round(float(right.mean()), 4), "groups": stress.by_group(groups, right[:, None])}


def run(args: argparse.Namespace) -> int:
    if args.what == "swap":
        from . import persona

        return persona.evaluate(args)
    if args.what in ("identity", "makeup"):
        from . import portraits

        return portraits.evaluate_identity(args) if args.what == "identity" else portraits.evaluate_makeup(args)
    runs = {"detector": run_detector, "stress": run_stress, "program": run_program}
    return runs.get(args.what, run_derl)(args)
