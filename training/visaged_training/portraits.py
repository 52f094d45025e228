"""The bundles `identity` and `makeup`: from checkpoint to int8, and what is measured of them.

Figures of identity come from LFW people who took no part in training; those of make-up from rendered people who took no part,
where the right answer is known, and from London people who took no part.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import onnx
import torch
from safetensors.torch import load_file

from . import align, augment, descriptor, graphs, identity, makeup
from .quantize import MEASURED, write

NAMES = {"identity": (["face"], ["embedding"]), "makeup": (["face", "reference"], ["applied", "bare"])}


def export(module, name: str, work, *inputs) -> onnx.ModelProto:
    """torch -> ONNX opset 17, in WORK/NAME_float.onnx."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{name}_float.onnx"
    ins, outs = NAMES[name]
    torch.onnx.export(
        module.eval(), inputs, str(path), opset_version=graphs.OPSET, input_names=ins, output_names=outs, dynamo=False
    )
    model = graphs.unshared(onnx.load(path))
    model.ir_version = graphs.IR
    model.producer_name = "visaged-training"
    onnx.save(model, path)
    return model


def halved(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In half precision: what the repository keeps. Quantising starts from it, so that it gives the same bytes again."""
    return {k: v.half() if v.dtype.is_floating_point else v for k, v in weights.items()}


def encoder(args: argparse.Namespace) -> identity.Encoder:
    net = identity.Encoder()
    if args.from_bundle:
        net.load_state_dict(identity.kept(args.bundles / "identity" / "weights.safetensors"))
    else:
        net.load_state_dict(halved(torch.load(args.work / "identity.pt", weights_only=True)))
    return net.eval()


def changers(args: argparse.Namespace) -> makeup.Shipped:
    if args.from_bundle:
        net = makeup.Shipped(makeup.Makeup())
        net.load_state_dict(load_file(args.bundles / "makeup" / "weights.safetensors"))
        return net.eval()
    net = makeup.Makeup()
    net.load_state_dict(torch.load(args.work / "makeup.pt", weights_only=True))
    shipped = makeup.Shipped(net)
    shipped.load_state_dict(halved(shipped.state_dict()))
    return shipped.eval()


def standardised(faces: np.ndarray) -> np.ndarray:
    """What the encoder reads of u8 [N, 128, 128], f32 [N, 1, 112, 112]."""
    return augment.standardise(identity.centre(torch.from_numpy(faces)[:, None].float())).numpy()


def notes(calibration: str, model: onnx.ModelProto, size: str, float_parts: str) -> dict:
    return {
        "scheme": "QDQ, static, opset 17",
        "weights": "s8, symmetric, per output channel",
        "activations": "u8, asymmetric, per tensor",
        "calibration": calibration,
        "float_parts": float_parts,
        "mmac": round(graphs.macs(model) / 1e6, 1),
        "mmac_at": size,
    }


def quantise_identity(args: argparse.Namespace) -> int:
    net = encoder(args)
    plain = export(net, "identity", args.work, torch.zeros(1, 1, identity.SIDE, identity.SIDE))
    if args.float_only:
        return 0
    z = np.load(args.work / "identity_faces.npz")
    rng = np.random.default_rng(args.seed)
    learnt = np.nonzero(~identity.split(z["pack"], z["person"]))[0]
    chosen = np.sort(rng.choice(learnt, args.count or 256, replace=False))
    batches = list(standardised(z["face"][chosen])[:, None])
    model = graphs.open_outputs(graphs.quantise(plain, batches, args.calibration))
    weights = {k: v.numpy() for k, v in halved(net.state_dict()).items()}
    before = args.bundles / "identity" / "weights.safetensors"
    if before.exists():
        # A generator's weights stay; `quantize swap --from-bundle` puts it back into the graph.
        weights |= {k: v.numpy() for k, v in load_file(before).items() if k.startswith("generator.")}
    text = notes(f"{args.calibration} over {len(batches)} training faces", plain, "112x112", "what the last convolution gives")
    write(args.bundles, "identity", model, weights, text)
    return 0


def quantise_makeup(args: argparse.Namespace) -> int:
    net = changers(args)
    blank = torch.zeros(1, 3, makeup.SIDE, makeup.SIDE)
    plain = export(net, "makeup", args.work, blank, blank)
    if args.float_only:
        return 0
    material, rng = makeup.Material(args.work / "cosmetics.npz"), np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)
    batches, count, pool = [], args.count or 128, makeup.Pool(material, rng, 128)
    while len(batches) < count:
        x, y, target, *_ = makeup.batch(pool, 8)
        # Both nets see faces with and without make-up.
        for k in range(8):
            face = x[k] if k % 2 else target[k]
            batches.append({"face": face[None].numpy(), "reference": y[k][None].numpy()})
    fixed = {"face": (0.0, 255.0), "reference": (0.0, 255.0)}
    model = graphs.open_outputs(graphs.quantise(plain, batches[:count], args.calibration, fixed=fixed))
    weights = {k: v.numpy() for k, v in halved(net.state_dict()).items()}
    calibration = f"{args.calibration} over {count} training faces"
    text = notes(calibration, plain, "128x128, both nets", "what the last convolution of each net gives")
    write(args.bundles, "makeup", model, weights, text)
    return 0


# --- what is measured of identity --------------------------------------------------------------------------------------


def store(name: str, result: dict) -> None:
    MEASURED.mkdir(exist_ok=True)
    (MEASURED / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def embeddings(net, faces: np.ndarray) -> np.ndarray:
    from .yunet import blanks

    rest = blanks(net, "face")
    return np.concatenate([net.run(["embedding"], {**rest, "face": x[None]})[0] for x in standardised(faces)])


def evaluate_identity(args: argparse.Namespace) -> int:
    from .yunet import session

    z = np.load(args.work / "identity_faces.npz")
    held = identity.split(z["pack"], z["person"])
    faces, person = z["face"][held], z["person"][held]
    result = {}
    for kind, path in (("float", args.work / "identity_float.onnx"), ("int8", args.bundles / "identity" / "model.onnx")):
        e = embeddings(session(path), faces)
        result[kind] = identity.verification(e, person)
        result[f"{kind}_embedding"] = e
    a, b = (identity.unit(result.pop(f"{k}_embedding")) for k in ("float", "int8"))
    result["cosine_float_int8"] = round(float((a * b).sum(1).mean()), 4)
    centred = z["target"] - z["target"][~held].mean(0)
    result["descriptor"] = identity.verification(centred[held], person)
    result["learnt_from"] = {str(k): int(n) for k, n in zip(*np.unique(z["pack"][~held], return_counts=True), strict=True)}
    trained = args.work / "identity.json"
    if trained.exists():
        result["training"] = {k: v for k, v in json.loads(trained.read_text()).items() if k in ("steps", "pictures")}
    store("identity", result)
    return 0


# --- what is measured of make-up ---------------------------------------------------------------------------------------


def lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB 0..255 [..., 3] -> CIE L*a*b* (D65)."""
    c = rgb / 255
    c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    m = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
    xyz = c @ m.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def ciede2000(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Colour difference of L*a*b* values (Sharma, Wu, Dalal 2005; all weights one)."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(p, -1, 0), np.moveaxis(q, -1, 0)
    c = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 0.5 * (1 - np.sqrt(c**7 / (c**7 + 25.0**7)))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    grey = c1 * c2 == 0
    dh = np.where(grey, 0, (h2 - h1 + 180) % 360 - 180)
    dl, dc = l2 - l1, c2 - c1
    dbig = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(dh) / 2)
    light, c = (l1 + l2) / 2, (c1 + c2) / 2
    both = h1 + h2
    around = (both + np.where(both < 360, 360, -360)) / 2
    h = np.where(grey, both, np.where(np.abs(h1 - h2) <= 180, both / 2, around))
    t = 1 - 0.17 * np.cos(np.radians(h - 30)) + 0.24 * np.cos(np.radians(2 * h))
    t += 0.32 * np.cos(np.radians(3 * h + 6)) - 0.20 * np.cos(np.radians(4 * h - 63))
    turn = 60 * np.exp(-(((h - 275) / 25) ** 2))
    rc = np.sqrt(c**7 / (c**7 + 25.0**7))
    off = (light - 50) ** 2
    sl, sc, sh = 1 + 0.015 * off / np.sqrt(20 + off), 1 + 0.045 * c, 1 + 0.015 * c * t
    mixed = -np.sin(np.radians(turn)) * 2 * rc * (dc / sc) * (dbig / sh)
    return np.sqrt((dl / sl) ** 2 + (dc / sc) ** 2 + (dbig / sh) ** 2 + mixed)


class Nets:
    """A makeup graph in ONNX Runtime, on pictures [N, 3, 128, 128] in grey levels."""

    def __init__(self, path):
        from .yunet import session

        self.net = session(path)

    def __call__(self, face: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = zip(face.split(1), reference.split(1), strict=True)
        rows = [self.net.run(None, {"face": f.numpy(), "reference": r.numpy()}) for f, r in pairs]
        applied, bare = (torch.from_numpy(np.concatenate([r[k] for r in rows])) for k in (0, 1))
        return (face + applied).clamp(0, 255), (face + bare).clamp(0, 255)


def mean_colour(x: torch.Tensor, where: torch.Tensor) -> np.ndarray:
    """Mean colour of each row inside a soft region, [N, 3]."""
    return ((x * where).sum((2, 3)) / where.sum((2, 3)).clamp_min(1e-6)).numpy()


GROUPS = ("AIAN", "Asian", "Black", "Hispanic", "MENA", "NHPI", "White")


def groups_of(material: makeup.Material, root) -> np.ndarray:
    """The ancestry that VALID gives its heads; empty for all else."""
    names = [p.stem.removeprefix("X_").split("_")[0] for p in sorted((root / "valid").glob("*.npz"))]
    out = np.full(len(material.pack), "", object)
    rows = material.pack == "valid"
    out[rows] = [names[k] for k in material.person[rows]]
    return out


def on_renders(nets_of: dict, material: makeup.Material, root, count: int, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    held = np.nonzero(material.held)[0]
    rows = rng.choice(held, 2 * count)
    chosen = makeup.styles(rng, count, 0)
    parts = material.take(rows)
    bare, light, masks = parts[:, :3], parts[:, 3:6], parts[:, 6:] / 255
    made = makeup.paint(bare, light, masks, chosen.repeat(2, 1, 1))
    x, y, target, m = bare[:count], made[count:], made[:count], masks[:count]
    where = (makeup.touched(m, chosen) > 0.1).float()
    whole = torch.ones_like(where)
    copy = makeup.psnr_in(x, target, where)
    group = groups_of(material, root)[rows[:count]]
    result = {"faces": count, "people": int(len(np.unique(material.person[held] + 1000 * (material.pack[held] == "valid"))))}
    seen = {}
    for kind, net in nets_of.items():
        applied, still = net(x, y)
        _, bared = net(target, y)
        _, back = net(applied, y)
        seen[kind] = (applied, bared)
        colour = {}
        for layer, k in (("lips", 0), ("shadow", 1)):
            worn = (chosen[:, k, 3] > 0) & (m[:, k].sum((1, 2)) > 15)
            region = m[worn, k : k + 1]
            d = ciede2000(*(lab(mean_colour(z[worn], region)) for z in (applied, target)))
            without = ciede2000(*(lab(mean_colour(z[worn], region)) for z in (x, target)))
            colour[layer] = {"mean": round(float(d.mean()), 2), "of_the_bare_face": round(float(without.mean()), 2)}
        skin = (m[:, 5:] > 0.5).float()
        shift = ciede2000(*(lab(mean_colour(z, skin)) for z in (applied, target)))
        result[kind] = {
            "apply_gain_db": round(float((makeup.psnr_in(applied, target, where) - copy).mean()), 2),
            "bare_gain_db": round(float((makeup.psnr_in(bared, x, where) - copy).mean()), 2),
            "apply_outside": round(float(makeup.changed(applied, x, where).mean()), 3),
            "bare_outside": round(float(makeup.changed(bared, target, where).mean()), 3),
            "back_db": round(float(makeup.psnr_in(back, x, whole).mean()), 2),
            "bare_stays_db": round(float(makeup.psnr_in(still, x, whole).mean()), 2),
            "ciede2000": colour,
            "skin_shift_by_group": {g: round(float(shift[group == g].mean()), 2) for g in GROUPS if (group == g).any()},
        }
    if len(seen) == 2:
        both = zip(("apply", "bare"), *seen.values(), strict=True)
        result["float_int8_db"] = {n: round(float(makeup.psnr_in(p, q, whole).mean()), 2) for n, p, q in both}
    return result


def on_photographs(net: Nets, material: makeup.Material, folder, count: int, seed: int) -> dict:
    """London people who took no part: identity kept, and faces without painted make-up left alone."""
    rng = np.random.default_rng(seed)
    rows = np.nonzero(material.real_held)[0]
    sources = rng.choice(rows, count)
    references = rng.choice(np.nonzero(material.held)[0], count)
    parts = material.take(np.concatenate([sources, references]))
    chosen = makeup.styles(rng, count, 0)
    made = makeup.paint(parts[:, :3], parts[:, 3:6], parts[:, 6:] / 255, chosen.repeat(2, 1, 1))
    x, y = parts[:count, :3], made[count:]
    applied, still = net(x, y)
    result = {"faces": count, "bare_stays_db": round(float(makeup.psnr_in(still, x, torch.ones_like(x[:, :1])).mean()), 2)}
    if folder:
        teacher = descriptor.Descriptor(folder)

        def describe(z):
            # The aligned face, enlarged to where the descriptor expects its points.
            to_chip = align.similarity(align.template(), descriptor.TEMPLATE)
            chips = [align.warp(p.permute(1, 2, 0).numpy(), to_chip, descriptor.SIZE) for p in z]
            with torch.no_grad():
                return teacher(torch.from_numpy(np.stack(chips).transpose(0, 3, 1, 2).astype(np.float32))).numpy()

        torch.manual_seed(seed)
        plain, changed, shaken = describe(x), describe(applied), describe(augment.affine(x, 0.05, 0.04, 0.03, flip=False))
        # Distances as the descriptor's makers use them: below about 0.6 is one person.
        result["distance_made_up"] = round(float(np.linalg.norm(plain - changed, axis=1).mean()), 3)
        result["distance_crop_jitter"] = round(float(np.linalg.norm(plain - shaken, axis=1).mean()), 3)
        result["one_person"] = round(float((np.linalg.norm(plain - changed, axis=1) < 0.6).mean()), 4)
        near, far = ((identity.unit(plain) * identity.unit(v)).sum(1).mean() for v in (changed, shaken))
        result["similarity_of_jitters"] = round(float(near / far), 4)
    return result


def evaluate_makeup(args: argparse.Namespace) -> int:
    material = makeup.Material(args.work / "cosmetics.npz")
    both = {"float": Nets(args.work / "makeup_float.onnx"), "int8": Nets(args.bundles / "makeup" / "model.onnx")}
    result = {"renders": on_renders(both, material, args.data, args.limit or 400, 41)}
    result["photographs"] = on_photographs(both["int8"], material, args.descriptor, 120, 42)
    trained = args.work / "makeup.json"
    if trained.exists():
        result["training"] = {k: v for k, v in json.loads(trained.read_text()).items() if k in ("steps", "pictures")}
    kinds, counts = np.unique(material.pack, return_counts=True)
    result["faces"] = {str(k): int(n) for k, n in zip(kinds, counts, strict=True)}
    store("makeup", result)
    if args.sheet:
        makeup_sheet(both["int8"], material, args.sheet)
    return 0


def makeup_sheet(net: Nets, material: makeup.Material, path, columns: int = 9) -> None:
    """From clean data only. References across, faces down; at the right each face after F took off what G put on."""
    from PIL import Image

    rng = np.random.default_rng(5)
    pick = lambda rows, n: rng.permutation(np.nonzero(rows)[0])[:n]  # noqa: E731
    pack = material.pack
    drawn = (pick(material.held & (pack == kind), n) for kind, n in (("valid", 4), ("makehuman", 2)))
    refs = np.concatenate([*drawn, pick(pack == "sfhq", 3)])
    faces = np.concatenate([pick(material.real_held, 4), pick(material.pack == "sfhq", 3), pick(material.held, 2)])
    parts = material.take(refs)
    styles = makeup.styles(rng, columns, 0)
    styles[:, 0, 3] = styles[:, 0, 3].clamp_min(0.7)
    styles[:, 1, 3] = styles[:, 1, 3].clamp_min(0.5)
    made = makeup.paint(parts[:, :3], parts[:, 3:6], parts[:, 6:] / 255, styles)
    blank = torch.full((1, 3, 128, 128), 255.0)
    rows = [torch.cat([blank, made, blank])]
    for x in material.take(faces)[:, :3]:
        x = x[None].repeat(columns, 1, 1, 1)
        applied, _ = net(x, made)
        _, off = net(applied[:1], made[:1])
        rows.append(torch.cat([x[:1], applied, off]))
    grid = torch.cat([torch.cat(list(r), 2) for r in rows], 1).permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.rint(grid), 0, 255).astype(np.uint8)).save(path, quality=88)
