"""`quantize NAME`: float weights -> models-quantized/NAME/{model.onnx, model.tflite, weights.safetensors}."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

from . import align, data, detector, graphs, neutrality

# Pictures of a .tflite have one size. The detector's is the daemon's coarse look.
FIXED = {"detector": (1, 3, 256, 320), "derl": (1, 1, 64, 64), "derl-tiny": (1, 1, 64, 64)}  # the others have no open dimension
DERL = ("derl", "derl-tiny")
MEASURED = data.ROOT / "training" / "measured"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["detector", "derl", "derl-tiny", "identity", "swap", "makeup"])
    data.add_data_argument(parser)
    parser.add_argument("--work", type=Path, default=data.WORK, help="folder of checkpoints; float graphs go here too")
    parser.add_argument("--bundles", type=Path, default=data.BUNDLES, help="where the bundle folder goes")
    parser.add_argument(
        "--from-bundle", action="store_true", help="all but detector: read the bundle's weights.safetensors, no checkpoint needed"
    )
    parser.add_argument(
        "--fit-neutrality",
        action="store_true",
        help="derl: fit the first residue energy and its scale again (from checkpoints that is always done)",
    )
    parser.add_argument("--balance", type=float, default=0.25, help="derl: what `train` was given, for the shares of the classes")
    parser.add_argument("--calibration", choices=list(graphs.METHODS), default="minmax")
    parser.add_argument("--count", type=int, help="calibration pictures (default: 160 for the detector, 256 for derl)")
    parser.add_argument("--float-only", action="store_true", help="stop after writing WORK/NAME_float.onnx")
    parser.add_argument("--judge", type=Path, help="swap: folder `models` of npm's @vladmandic/human, which tells grown-ups")
    parser.add_argument("--seed", type=int, default=0)


def write(bundles: Path, name: str, model: onnx.ModelProto, weights: dict | None, notes: dict) -> None:
    from . import tflite  # needs what `ai-edge-litert` brings

    folder = bundles / name
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    (folder / "model.tflite").write_bytes(tflite.convert(model, FIXED.get(name)))
    if weights is not None:
        save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, folder / "weights.safetensors")
        (folder / "weights.safetensors").chmod(0o644)
    MEASURED.mkdir(exist_ok=True)
    (MEASURED / f"{name}_quantisation.json").write_text(json.dumps(notes, indent=1) + "\n")
    print(f"{folder / 'model.onnx'}: {(folder / 'model.onnx').stat().st_size} bytes, {notes['mmac']} MMAC")


def run_detector(args: argparse.Namespace) -> int:
    plain = graphs.yunet_float(args.data / "weights" / "yunet_s_dynamic.onnx")
    args.work.mkdir(parents=True, exist_ok=True)
    onnx.save(plain, args.work / "detector_float.onnx")
    if args.float_only:
        return 0
    batches = list(detector.calibration(args.data, args.seed, args.count or 160))
    even = graphs.equalise(plain, batches[:80])
    model = graphs.exact_sums(graphs.open_outputs(graphs.quantise(even, batches, args.calibration)), even)
    weights = {i.name: numpy_helper.to_array(i) for i in plain.graph.initializer if i.data_type == 1 and len(i.dims)}
    weights.pop("twice", None)
    notes = {
        "scheme": "QDQ, static, opset 17",
        "weights": "s8, symmetric, per output channel",
        "activations": "u8, asymmetric, per tensor",
        "scales": "few significant bits, so that every sum is exact in f32",
        "calibration": f"{args.calibration} over {len(batches)} pictures from SFHQ, London, Canada and the clips, faces of "
        "12 to 200 px; every eighth picture of each pack, the rest is left for measuring",
        "before": "channels between each 1x1 and depthwise convolution brought to one range; spread shared across ReLU",
        "float_parts": "what the last convolution before each output gives, sigmoid and reshape behind it",
        "mmac": round(graphs.macs(plain, (1, 3, 256, 320)) / 1e6, 1),
        "mmac_at": "320x256",
    }
    write(args.bundles, "detector", model, weights, notes)
    return 0


def derl_calibration(root: Path, count: int, seed: int) -> list[np.ndarray]:
    """FER+ training pictures (never valid), and the London training people, standardised."""
    rng = np.random.default_rng(seed)
    train = data.ferplus(root, "train")
    chosen = np.sort(rng.permutation(len(train))[: count - count // 8])
    faces = [f.astype(np.float32) for f in align.crop64(train.images[chosen])]
    marks = np.load(root / "london" / "landmarks.npz")
    held = data.london_validation(root)
    names = [(str(f), p) for f, p in zip(marks["files"], marks["yunet5"], strict=True) if str(f)[:3] not in held]
    for i in rng.permutation(len(names))[: count // 8]:
        name, points = names[i]
        faces.append(align.luminance64(align.align(data.rgb(root / "london" / name), points)))
    return [align.standardise(f)[None, None] for f in faces]


def derl_float(args: argparse.Namespace):
    """The shipped module with batch norm folded, and its weights."""
    import torch
    from safetensors.torch import load_file

    from . import classifier, nets

    module, bundle = nets.derl(args.what), args.bundles / args.what / "weights.safetensors"
    if args.from_bundle:
        nets.fold(module.eval()).load_state_dict(load_file(bundle), strict=False)
    elif args.what == "derl-tiny":
        module.load_state_dict(torch.load(args.work / "tiny.pt", weights_only=True, map_location="cpu"))
        nets.fold(module.eval())
    else:
        module.classifier.load_state_dict(torch.load(args.work / "classifier.pt", weights_only=True, map_location="cpu"))
        nets.fold(module.eval())
        module.generator = classifier.frozen_generator(args.work / "generator.pt", bundle)
    return module


def fit_prior(module, root: Path, balance: float) -> dict:
    """Takes the logit adjustment into the last bias; what was chosen, and from what (see `prior`)."""
    import torch

    from . import classifier, prior

    train_set, valid = data.ferplus(root, "train"), data.ferplus(root, "valid")
    target, keep = data.soft_labels(train_set.votes)
    share = prior.shares(target[keep], classifier.sampling(target[keep], balance))
    faces = torch.from_numpy(align.standardise(align.crop64(valid.images)))[:, None]
    with torch.no_grad():
        logits = np.concatenate([module(x)[1].numpy() for x in faces.split(256)])
        tau, tried = prior.choose(logits, valid, share)
        module.classifier.final.bias -= tau * torch.log(torch.from_numpy(share)).float()
    return {"tau": tau, "balance": balance, "shares": [round(float(s), 5) for s in share], "tried": tried}


def export_derl(module, path: Path) -> onnx.ModelProto:
    """torch -> ONNX opset 17 with node names that say where they come from."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        module,
        (torch.zeros(1, 1, 64, 64),),
        str(path),
        opset_version=graphs.OPSET,
        input_names=["luminance"],
        output_names=["neutral", "logits", "residue_energy"],
        dynamo=False,
    )
    model = onnx.load(path)
    model.ir_version = graphs.IR
    model.producer_name = "visaged-training"
    onnx.save(model, path)
    return model


def float_tail(model: onnx.ModelProto) -> tuple[str, ...]:
    """Nodes that stay float: pooling, the last layers behind it, and everything that only feeds the energies."""
    made_by = {o: n for n in model.graph.node for o in n.output}
    keep = {n.name for n in model.graph.node if n.op_type in ("GlobalAveragePool", "Gemm")}
    keep.add(made_by["neutral"].name)
    feeds: dict[str, list] = {}
    for n in model.graph.node:
        for name in n.input:
            feeds.setdefault(name, []).append(n.name)
    results = {o.name for o in model.graph.output}
    energies = {made_by["residue_energy"].name}
    for n in reversed(model.graph.node):
        if all(o not in results and feeds.get(o) and set(feeds[o]) <= energies for o in n.output):
            energies.add(n.name)
    keep |= energies
    tail = {o for n in model.graph.node if n.op_type == "GlobalAveragePool" for o in n.output}
    keep |= {n.name for n in model.graph.node if n.op_type == "Concat" and set(n.input) & tail}
    return tuple(sorted(keep))


def run_derl(args: argparse.Namespace) -> int:
    module = derl_float(args)
    if args.fit_neutrality or not args.from_bundle:
        scale = neutrality.fit_module(module, args.data)
        MEASURED.mkdir(exist_ok=True)
        (MEASURED / f"{args.what}_neutrality.json").write_text(json.dumps(scale, indent=1) + "\n")
        print(json.dumps(scale))
    if not args.from_bundle:
        adjusted = fit_prior(module, args.data, args.balance)
        (MEASURED / f"{args.what}_prior.json").write_text(json.dumps(adjusted, indent=1) + "\n")
        print(json.dumps(adjusted))
    plain = export_derl(module, args.work / f"{args.what}_float.onnx")
    if args.float_only:
        return 0
    batches = derl_calibration(args.data, args.count or 256, args.seed)
    model = graphs.quantise(plain, batches, args.calibration, keep_float=float_tail(plain))
    weights = {k: v.numpy() for k, v in module.state_dict().items()}
    notes = {
        "scheme": "QDQ, static, opset 17",
        "weights": "s8, symmetric, per output channel",
        "activations": "u8, asymmetric, per tensor",
        "calibration": f"{args.calibration} over {len(batches)} training pictures (FER+ train, London training people)",
        "float_parts": "input + delta, the residue energies, pooling and the last fully connected layer",
        "mmac": round(graphs.macs(plain, (1, 1, 64, 64)) / 1e6, 1),
        "mmac_at": "64x64",
    }
    write(args.bundles, args.what, model, weights, notes)
    return 0


def run(args: argparse.Namespace) -> int:
    if args.what in ("detector", *DERL):
        return run_detector(args) if args.what == "detector" else run_derl(args)
    from . import persona, portraits

    steps = {"identity": portraits.quantise_identity, "swap": persona.quantise, "makeup": portraits.quantise_makeup}
    return steps[args.what](args)
