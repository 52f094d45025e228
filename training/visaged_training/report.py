"""`report NAME|all`: manifest.toml and CARD.md from training/measured/*.json. No figure is typed by hand."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from . import EMOTIONS, data, manifest
from .quantize import MEASURED

RUN = "python -m visaged_training"
# Of the bundles. The last number grows with the weights, the graph or the figures; the others are those of the daemon.
VERSIONS = {"detector": "0.1.1", "derl": "0.1.3", "derl-tiny": "0.1.0", "identity": "0.1.1", "makeup": "0.1.0"}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=[*VERSIONS, "all"])
    parser.add_argument("--bundles", type=Path, default=data.BUNDLES)


def measured(name: str) -> dict:
    path = MEASURED / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def percent(x: float, digits: int = 1) -> str:
    return f"{100 * x:.{digits}f} %"


def table(head: list[str], rows: list[list]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows])


NOT_FOR = """## What it must not be used for

- Reading emotions of people at work or in education, but for medical or safety reasons: Article 5(1)(f) of the EU AI
  Act forbids it, and the daemon refuses such a deployment.
- Judging anyone: hiring, insurance, policing, border control, credit, exams. A facial expression is not a feeling, and
  the labels here are what strangers said about a picture.
- Watching people who were not told. Article 50(3) demands that people exposed to emotion recognition know it.
- Finding out who someone is."""


def detector_documents(folder: Path) -> tuple[dict, str]:
    m, q = measured("detector"), measured("detector_quantisation")
    parity = m["parity"]
    packs, steady, lite = parity["packs"], m["steadiness"], m.get("litert")
    tflite = "A `model.tflite` is not part of this version of the bundle."
    if lite:
        tflite = f"""`model.tflite` holds the same integers and scales for pictures of 320x256: in LiteRT, measured as above,
{percent(lite["found"], 2)} of the float net's faces are found, landmarks {lite["landmarks_median_px"]} px apart in the median."""
    evaluate = f"{RUN} evaluate detector"
    outputs = []
    for kind, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        outputs += [{"name": f"{kind}_{s}", "shape": [1, 0, width]} for s in (8, 16, 32)]
    document = {
        "schema": 1,
        "name": "detector",
        "version": VERSIONS["detector"],
        "task": "face-detection",
        "licence": "Apache-2.0",
        "detection": {"threshold": parity["working"], "nms_iou": 0.3},
        "quantisation": q,
        "files": manifest.files(folder),
        "inputs": [
            {
                "name": "input", "shape": [1, 3, 0, 0], "dtype": "f32", "layout": "NCHW", "colour": "bgr",
                "normalisation": "none",
            }
        ],
        "outputs": outputs,
        "accuracy": [
            {
                "dataset": name,
                "protocol": f"faces of the float net (score >= {parity['threshold']}) at {parity['size']}, found by int8 "
                f"(score >= {parity['working']}) at IoU 0.5",
                "metric": "share found",
                "float": 1.0,
                "int8": r["found"],
                "landmarks_median_px": r["landmarks_median_px"],
                "command": evaluate,
            }
            for name, r in packs.items()
        ],
        "provenance": [
            {
                "source": "ShiqiYu/libfacedetection.train @ 0047ac24afb1, onnx/yunet_s_dynamic.onnx (trained on WIDER FACE)",
                "licence": "Apache-2.0",
                "use": "float weights",
            },
            {"source": "SFHQ", "licence": "MIT", "use": "calibration, measurement"},
            {"source": "webmorphR.stim London and Canada", "licence": "CC BY 4.0", "use": "calibration, measurement"},
            {"source": "intel-iot-devkit/sample-videos", "licence": "CC BY 4.0", "use": "calibration, measurement"},
        ],
    }  # fmt: skip
    rows = [
        [
            name, r.get("pictures", ""), r["faces"], percent(r["found"], 2), percent(r["found_same"], 2),
            r["landmarks_median_px"], r.get("landmarks_p95_px", ""), r.get("only_int8", ""), r.get("only_float", ""),
        ]
        for name, r in packs.items()
    ]  # fmt: skip
    sizes = [[r["face_px"], r["seen_at"], r["faces"], percent(r["float"]), percent(r["int8"])] for r in m.get("sizes", [])]
    at = {(r["face_px"], r["seen_at"]): r["int8"] for r in m.get("sizes", [])}
    small = ""
    if (24, "640x480") in at:
        enough = min((size for size, seen in at if seen == "320x240" and at[size, seen] >= 0.9), default=64)
        small = f"""
A face 24 px wide in a 640x480 frame is found {percent(at[24, "640x480"])} of the time when the frame is seen at
640x480, {percent(at[24, "480x360"])} at 480x360 and {percent(at[24, "320x240"])} at 320x240. So small faces need the
full 640x480; 320x240 is enough for faces from about {enough} px up.
"""
    card = f"""# detector

Finds faces and five landmarks (eyes, nose tip, mouth corners) in a picture of any size. YuNet (yunet_s), quantised to
int8 by this project. {q["mmac"]} MMAC at {q["mmac_at"]}.

## Purpose and limits

The first step of the daemon: where are faces, and how must they be turned for the other networks. It was trained by its
authors on WIDER FACE; very dark, strongly turned (beyond about 60 degrees) or half covered faces are often missed.

Input `input`: f32 [1, 3, H, W], BGR, 0..255, H and W multiples of 32 (pad with 0). Outputs for strides 8, 16, 32: `cls`,
`obj`, `bbox`, `kps`. Score = sqrt(cls * obj); working threshold {parity["working"]}, non-maximum suppression at IoU 0.3.

## Int8 against float, at {parity["size"]}

A face counts when the float net scores it {parity["threshold"]} or more. `found`: the int8 net, working at
{parity["working"]}, has it at IoU 0.5. `same threshold`: both work at {parity["threshold"]}. Landmark distances in pixels
of the {parity["size"]} picture, mean over the five points. `only int8` / `only float`: faces at {parity["working"]}
that the other does not have. Pictures used for calibration are left out.

{table(["pack", "pictures", "faces", "found", "same threshold", "landmarks median", "95th percentile", "only int8", "only float"], rows)}

The outputs come from convolutions whose results stay in float, and the scales are chosen so that every sum is exact in
f32: processors and engines that add in another order give the same face. With all sums taken backwards, over {steady["faces"]} faces,
boxes move by up to {steady["box_worst_px"]} px (99th percentile {steady["box_p99_px"]}), landmarks by up to
{steady["landmarks_worst_px"]} px ({steady["landmarks_p99_px"]}), and {steady["alone"]} faces are found by one alone.

## Recall by face size

A face of the given width (box of the float net) in a 640x480 frame, the frame seen at three scales; IoU 0.5,
threshold {parity["working"]}. Faces from SFHQ, London, Canada and the clips, shrunk by area averaging.
{small}
{table(["face width px", "seen at", "faces", "float", "int8"], sizes)}

## Quantisation

{q["scheme"]}. Weights {q["weights"]}; activations {q["activations"]}; scales of {q["scales"]}; {q["calibration"]}. Beforehand: {q["before"]}.
Float: {q["float_parts"]}. {tflite}

## Data and licences

Weights: ShiqiYu/libfacedetection.train, Apache-2.0. Calibration and measurement: SFHQ (MIT), London and Canada sets of
webmorphR.stim (CC BY 4.0), Intel sample videos (CC BY 4.0). `weights.safetensors` holds the float weights.

{NOT_FOR}

## Made by

`{RUN} quantize detector`, `{evaluate}`, `{RUN} report detector`.
"""
    return document, card


def curve_tables(stress: dict) -> str:
    """One table for each thing that makes a picture harder."""
    parts = []
    for kind, steps in stress["renders"].items():
        real = stress["ferplus_valid"].get(kind)
        rows = [[step, percent(right), *([percent(real[step])] if real else [])] for step, right in steps.items()]
        parts.append(table([kind, "renders", *(["FER+ valid"] if real else [])], rows))
    return "\n\n".join(parts)


def group_table(groups: dict) -> str:
    rows = [[f"{kind}: {n}", g["faces"], percent(g["right"])] for kind, found in groups.items() for n, g in found.items()]
    return table(["group", "faces", "right"], rows)


def behind(groups: dict, mean: float, fewest: int = 20) -> str:
    """The groups more than five points below the mean, of at least so many faces."""
    low = [
        f"{kind} {n} ({percent(g['right'])})"
        for kind, found in groups.items()
        for n, g in found.items()
        if g["faces"] >= fewest and g["right"] < mean - 0.05
    ]
    return ("More than five points below it: " + ", ".join(low) + ".") if low else "No group is more than five points below it."


def wearing_table(wearing: dict) -> str:
    if not wearing:
        return ""
    rows = [[kind, r["faces"], percent(r["right"]), percent(r["right_without"])] for kind, r in wearing.items()]
    return f"""{table(["rendered people wearing", "faces", "right", "the same without"], rows)}

"""


def stress_section(stress: dict) -> str:
    if not stress:
        return ""
    london = stress["london"]
    return f"""
## Where it gets hard

Rendered faces: {stress["people"]["makehuman"]} MakeHuman people that no training saw and new scenes of the {stress["people"]["valid"]} VALID heads (36 of which it did
see), all eight emotions of each at full strength. {percent(stress["right"])} of {stress["faces"]} are called what the rig was told to show; the rigs' disgust, fear and
contempt are crude, so read the fall and not the height. FER+ valid: {stress["ferplus_faces"]} pictures with a strict majority, made harder the same way. A face
of w pixels is shrunk to it and enlarged again; blur is the standard deviation of a Gaussian in pixels of the 64x64 crop; light is the share of a well-lit
picture's, made up for by gain, with shot noise and read noise (`visaged_training/stress.py` has the numbers).

{curve_tables(stress)}

{wearing_table(stress.get("wearing", {}))}Recall on the renders: {", ".join(f"{n} {percent(r, 0)}" for n, r in stress["recall"].items())}.

### By group

Renders. {behind(stress["groups"], stress["right"])}

{group_table(stress["groups"])}

London, neutral and smile, all people (70 of the 82 were in the training): {percent(london["right"])} right. {behind(london["groups"], london["right"])}
Groups below 20 pictures say little.

{group_table(london["groups"])}
"""


METHOD = {
    "derl": """A generator (encoder-decoder, output = input + delta) was trained as a conditional GAN on pairs of an expressive and a
neutral face, then frozen. The classifier follows the picture with the first blocks of a face recogniser; at each of the sizes 32, 16, 8 and 4 the
generator's equal-size encoder and decoder layers join it, and at 32 the delta. The paper reads these pairs of layers alone: see Ablation.""",
    "derl-tiny": """The network of `derl`, narrower: for boards whose processor has no dot products. Same inputs and outputs.""",
}


MADE_BY = {
    "derl": ", ".join(
        f"`{RUN} {step}`"
        for step in (
            "synth",
            "train generator",
            "train classifier",
            "quantize derl",
            "evaluate derl",
            "evaluate stress",
            "evaluate program",
            "report derl",
        )
    )
    + ".",
    "derl-tiny": ", ".join(f"`{RUN} {step} derl-tiny`" for step in ("quantize", "evaluate", "report"))
    + f" after `{RUN} train tiny`.",
}


def neutral_table(rows: list[list]) -> str:
    if not rows:
        return ""
    return f"""Against the true neutral face, inside the face oval, grey levels 0..255. `copy` is what leaving the picture as it is would score. `nearer`:
share of faces whose result is nearer to the true neutral than the input was.

{table(["set", "PSNR dB", "copy", "L1", "copy", "nearer"], rows)}

"""


TINY_TRAINING = """Taught by the `derl` bundle (`train tiny`), {pictures} pictures shown: the generator learns the neutral faces that the large one makes, and
is frozen half-way; the classifier learns from the votes and from the large network's probabilities, in equal parts. Its neutral faces of FER+ valid are
{neutral_db} dB from the teacher's, the pictures as they are {copy_db} dB. One thread, float32."""


def training_text(m: dict, name: str) -> str:
    gen, took, joint = m.get("generator_training", {}), m.get("classifier_training", {}), m.get("joint_training")
    if name == "derl-tiny":
        text = TINY_TRAINING.format(**m["tiny_training"])
    else:
        text = f"""Generator alone: {gen.get("pictures", "?")} pictures shown (rendered pairs of MakeHuman, VALID and ICT heads, London pairs, calm photographs moved
as rendered heads move, FER+ faces without a known neutral) after those of the bundle before, then frozen. Classifier on it: {took.get("pictures", "?")} pictures, from the first blocks of the recogniser in the `identity` bundle; soft vote labels (single
votes dropped), rare classes shown more often, two posed faces of London or Canada in 64, moving average of the weights. One thread, float32."""
    adjusted = measured(f"{name}_prior")
    if adjusted:
        plain, taken = (next(t for t in adjusted["tried"] if t["tau"] == tau) for tau in (0, adjusted["tau"]))
        text += f"""
Logits are adjusted for the classes' shares in training (logit adjustment, tau {adjusted["tau"]}, the largest that costs at most 0.6 points on FER+ valid):
plurality {percent(plain["plurality"], 2)} -> {percent(taken["plurality"], 2)}, mean recall {percent(plain["mean_recall"], 2)} -> {percent(taken["mean_recall"], 2)} (float)."""
    if not joint:
        return text
    return f"""{text}
Then both together (`train joint`), {joint["pictures"]} pictures: for the first {percent(joint["together"], 0)} of the time the generator also follows the classifier's loss (at
{joint["share"]} of its gradient), and a judge, the network of the bundle before, that is to call its neutral faces neutral through blur and shift; rendered
and London expressions are labels too. Then the generator is frozen, as in the paper, and the classifier goes on alone.
The judge calls {percent(joint["judged_neutral"])} of the neutralised faces of strictly happy or surprised FER+ valid pictures neutral; it took part in the training, so
the shipped network's own answer above counts for more."""


def reliability_plot(rows: list[dict], width: int = 50) -> str:
    """One line a bin: a bar as long as the share that is right, and a mark where the certainty is."""
    if not rows:
        return ""
    lines = []
    for r in rows:
        bar = ["#" if i < round(r["right"] * width) else "." for i in range(width + 1)]
        bar[round(r["certain"] * width)] = "|"
        told = f"{percent(r['right']):>7} right of {r['pictures']:>4}, certain {percent(r['certain'])}"
        lines.append(f"{r['from']:.1f}  {''.join(bar)}  {told}")
    plot = "\n".join(lines)
    return f"""### Calibration, int8

By the probability of the answer, from the value on the left up: the bar is the share that is right, `|` is the mean probability.

```
{plot}
```

"""


def ablation_section(found: dict | None) -> str:
    if not found:
        return ""
    rows = [
        [kind, r["pictures"], percent(r["plurality"], 2), percent(r["strict"], 2), percent(r["mean_recall"], 2)]
        for kind, r in found.items()
        if isinstance(r, dict)
    ]
    return f"""
## Ablation

What the classifier sees of the frozen generator and the picture, each in float after {found["minutes"]:g} minutes of one core (`train ablation`), a fraction of
the shipped network's training; FER+ valid.

{table(["sees", "pictures shown", "plurality", "strict", "mean recall"], rows)}

Beside the picture the residues are worth {100 * (found["both"]["plurality"] - found["picture alone"]["plurality"]):+.2f} points after this little training, from one run each; what they
are worth after the whole of it was not measured. Alone they read from a trunk whose first weights were made for pictures.
"""


def through_the_program(name: str) -> str:
    found = measured(f"{name}_program")
    if not found:
        return ""
    return f"""
Through `visaged analyze --crops`, each picture as a file: plurality {percent(found["plurality"], 2)}, strict {percent(found["strict"], 2)}, mean recall {percent(found["mean_recall"], 2)}."""


def derl_documents(folder: Path) -> tuple[dict, str]:
    name = folder.name
    m, q = measured(name), measured(f"{name}_quantisation")
    fer, neutrality = m["ferplus_valid"], m["neutrality"]
    evaluate = f"{RUN} evaluate {name}"
    protocol = {
        "plurality": "FER+ valid, 48x48 crops resized to 64x64, label with most votes; ties, unknown, not-a-face dropped",
        "strict": "FER+ valid, the label has more than half of all votes",
        "mean_recall": "FER+ valid, plurality labels, mean over the eight classes",
    }
    accuracy = [
        {
            "dataset": "FER+ valid", "protocol": text, "metric": metric, "float": fer["float"][metric],
            "int8": fer["int8"][metric], "command": evaluate,
        }
        for metric, text in protocol.items()
    ]  # fmt: skip
    london = m["london"]
    for kind, r in london.items():
        accuracy.append(
            {
                "dataset": "London", "protocol": f"{kind} pictures through detector and alignment, all people",
                "metric": "share called " + ("happiness" if kind == "smile" else "neutral"), "int8": r["right"],
                "command": evaluate,
            }
        )  # fmt: skip
    document = {
        "schema": 1,
        "name": name,
        "version": VERSIONS[name],
        "task": "expression",
        "licence": "MIT OR Apache-2.0",
        "labels": list(EMOTIONS),
        "temperature": fer["temperature"],
        "neutrality": {k: neutrality[k] for k in ("energy_index", "floor", "ceiling")},
        "quantisation": q,
        "files": manifest.files(folder),
        "inputs": [
            {
                "name": "luminance", "shape": [1, 1, 64, 64], "dtype": "f32", "layout": "NCHW", "colour": "luminance",
                "normalisation": "per-image", "eps": 8.0,
            }
        ],
        "outputs": [
            {"name": "neutral", "shape": [1, 1, 64, 64]},
            {"name": "logits", "shape": [1, 8]},
            {"name": "residue_energy", "shape": [1, 5]},
        ],
        "accuracy": accuracy,
        "provenance": [
            {
                "source": "FER+ labels (crowd-emotion @ 95c07555f685) on FER-2013 pictures", "licence": "MIT (labels); pictures not redistributed",
                "use": "classifier training, neutral and expressive faces for the generator, calibration, neutrality; valid: choice and measurement",
            },
            {"source": "MakeHuman heads", "licence": "CC0-1.0", "use": "rendered pairs for the generator"},
            {"source": "VALID avatars @ c4719df7a2b6", "licence": "MIT", "use": "rendered pairs for the generator"},
            {"source": "ICT-FaceKit @ da5f95a607f5", "licence": "MIT", "use": "rendered pairs and expressions for the generator"},
            {"source": "webmorphR.stim London and Canada", "licence": "CC BY 4.0", "use": "pairs and neutral faces (12 people held out), calibration, neutrality, measurement"},
            {"source": "SFHQ", "licence": "MIT", "use": "measurement"},
            {"source": "the `identity` bundle (see its card: dlib's descriptor, LFW, FER+, SFHQ, London, Canada)", "licence": "MIT", "use": "first weights of the classifier"},
        ],
    }  # fmt: skip
    recall = [[n, percent(fer["float"]["recall"][n]), percent(fer["int8"]["recall"][n])] for n in EMOTIONS]
    confusion = [[n, *row] for n, row in zip(EMOTIONS, fer["confusion"], strict=True)]
    gen = m.get("joint_training") or m.get("generator_training", {})
    names = {
        "render_valid": "renders, unseen people, expressive",
        "still_valid": "renders, unseen people, neutral",
        "london_valid": "London, held-out people, smile",
    }
    generator = [
        [names[k], gen[k]["psnr"], gen[k]["psnr_copy"], gen[k]["l1"], gen[k]["l1_copy"], percent(gen[k]["nearer"])]
        for k in names
        if k in gen
    ]
    calls = [
        [kind, r["pictures"], percent(r["right"]), percent(r["right_held_out"]),
         ", ".join(f"{n} {c}" for n, c in r["called"].items() if c), r["neutrality_median"], percent(r["neutralised_called_neutral"])]
        for kind, r in london.items()
    ]  # fmt: skip
    queries = [
        [k, ", ".join(f"{n} {c}" for n, c in sorted(v.items(), key=lambda t: -t[1]))] for k, v in m["sfhq_queries"].items()
    ]
    measured_on = neutrality["measured"]
    kind_names = {
        "ferplus": "FER+ train ({} neutral, {} happy or surprised)",
        "photographs": "London people of the training ({} at rest, {} smiling)",
        "renders": "renders ({} neutral, {} expressive)",
    }
    kinds = ", ".join(kind_names[k].format(*n) for k, n in neutrality["faces"].items())
    renders = measured_on["renders"]
    closeness = [
        [label, r["pictures"], r["mean"], percent(r["below_tenth"]), percent(r["above_nine_tenths"])]
        for label, r in [
            *((f"FER+ valid, {n}", r) for n, r in measured_on["ferplus_valid"]["classes"].items()),
            *((f"London, held-out people, {k}", measured_on["london_held_out"][k]) for k in ("neutral", "smile")),
        ]
    ]
    lite = m["litert"]
    card = f"""# {name}

Takes the expression out of a face and reads the emotion from the face and from what was taken: De-expression Residue Learning (CVPR 2018).
{q["mmac"]} MMAC in all.

## Purpose and limits

Input `luminance` [1, 1, 64, 64]: BT.601 luminance of the aligned 128x128 face, area-averaged to 64x64, then
(x - mean) / (std + 8) over the picture. Outputs: `neutral`, the face without expression in the same units; `logits` for
{", ".join(EMOTIONS)}; `residue_energy`, how much was taken out: a weighted mean of
the delta (see Neutrality), then one value for each pair of equal-size layers (32, 16, 8, 4).

{METHOD[name]} The labels are votes of strangers on pictures found on the web, mostly posed or public faces.
The rare classes (disgust, fear, contempt) are weak: see the recall. Faces turned by more than about 35 degrees, smaller
than 24 px, covered, or of young children are outside of what was measured.

## FER+ valid

| metric | float | int8 |
|---|---|---|
| plurality ({fer["int8"]["pictures"]["plurality"]} pictures; ties, unknown, not-a-face dropped) | {percent(fer["float"]["plurality"], 2)} | {percent(fer["int8"]["plurality"], 2)} |
| strict majority ({fer["int8"]["pictures"]["strict"]} pictures) | {percent(fer["float"]["strict"], 2)} | {percent(fer["int8"]["strict"], 2)} |
| mean recall over eight classes | {percent(fer["float"]["mean_recall"], 2)} | {percent(fer["int8"]["mean_recall"], 2)} |

Float and int8 give the same answer on {percent(fer["agreement"], 2)} of the pictures. No flips or ensembles at test time. The model
and the temperature were chosen on this set; no other set was looked at. Expected calibration error (15 bins)
{fer["ece"]} with temperature {fer["temperature"]} ({fer["ece_before"]} without).{through_the_program(name)}

{reliability_plot(fer.get("reliability", []))}### Recall by class

{table(["class", "float", "int8"], recall)}

### Confusion, int8 (rows: label, columns: answer)

{table(["", *EMOTIONS], confusion)}

## The neutral face

{neutral_table(generator)}Int8 changes the neutral face by {m["neutral_parity"]["mean_abs_grey_levels"]} grey levels on average. Of strictly happy or surprised FER+ valid faces,
{percent(m["neutralised_ferplus"]["happy_or_surprised_called_neutral"])} are called neutral after neutralising
({percent(m["neutralised_ferplus"]["before"])} before).

### Neutrality

`neutrality` = clamp((ceiling - e) / (ceiling - floor), 0, 1) with e = residue_energy[{neutrality["energy_index"]}], floor {neutrality["floor"]}, ceiling
{neutrality["ceiling"]}. The energy weighs places of the delta, some below zero, so that it tells neutral from expressive faces
of three kinds of training data alike: {kinds}.
Ridge {neutrality["ridge"]} and the scale come from people left out in turn (of whom it parts {percent(neutrality["separation_left_out"])}): at the floor at least half
of the neutral faces of each kind read 1; the ceiling is the mean over the kinds of the expressive ones' medians. Measured on
others (FER+ valid: labels with more than half of all votes):

{table(["faces", "count", "mean neutrality", "below 0.1", "above 0.9"], closeness)}

An expressive face has more residue than a neutral one {percent(measured_on["ferplus_valid"]["separation"])} of the time on FER+ valid (happy or surprised) and
{percent(measured_on["london_held_out"]["separation"])} on held-out London people (smiles). In {renders["scenes"]} rendered scenes, other than those of the scale, with one expression growing from 0 to 1 in
{len(renders["strengths"])} steps, faces read {", ".join(str(v) for v in renders["mean"])} on the mean (Spearman with the strength
{renders["spearman_of_the_mean"]}); scene by scene the energy's Spearman is {renders["energy_spearman_median"]} in the median, {renders["energy_spearman_mean"]} on the mean. Where the generator leaves an
expression in the face, as it does with many smiles of FER+, neutrality is too high: no scale can mend that.

## Outside FER+: the whole way on colour pictures

London (studio portraits), through the int8 detector, alignment and the int8 net. Held out: 12 people that generator and classifier never saw (the
recogniser whose blocks the classifier began with did, without knowing an expression).

{table(["pictures", "count", "right", "right, held out", "called", "median neutrality", "neutralised, called neutral"], calls)}

SFHQ pictures by the (loose) text they were searched with:

{table(["text", "called"], queries)}
{stress_section(measured("derl_stress")) if name == "derl" else ""}{ablation_section(m.get("ablation_training"))}
## Training

{training_text(m, name)}

## Quantisation

{q["scheme"]}. Weights {q["weights"]}; activations {q["activations"]}; {q["calibration"]}. Float: {q["float_parts"]}.
`model.tflite` holds the same integers and scales: in LiteRT {percent(lite["int8"]["plurality"], 2)} (plurality), the same answer as ONNX Runtime on {percent(lite["agreement"], 2)} of the
pictures, logits {lite["logits_mean_abs"]} apart on average. `weights.safetensors` holds the float weights: quantising again needs no training.

## Data and licences

{table(["source", "licence", "use"], [[p["source"], p["licence"], p["use"]] for p in document["provenance"]])}

{NOT_FOR}

## Made by

{MADE_BY[name]}
"""
    return document, card


def run(args: argparse.Namespace) -> int:
    from . import cards, report

    def portrait(name, make):
        notes = measured(f"{name}_quantisation")
        return lambda folder: make(folder, VERSIONS[name], measured(name), notes, report)

    makers = {
        "detector": detector_documents,
        "derl": derl_documents,
        "derl-tiny": derl_documents,
        "identity": portrait("identity", cards.identity_documents),
        "makeup": portrait("makeup", cards.makeup_documents),
    }
    for name, make in makers.items():
        folder = args.bundles / name
        if args.what in (name, "all") and folder.exists():
            document, card = make(folder)
            (folder / "manifest.toml").write_text(manifest.dumps(document))
            (folder / "CARD.md").write_text(card)
            wrong = manifest.check(folder)
            print("\n".join(wrong) or f"{folder}: manifest.toml and CARD.md written")
            if wrong:
                return 1
    return 0
