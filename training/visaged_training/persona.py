"""The generator's half of the bundle `identity`: from checkpoint to int8, the avatars, and what is measured of it.

All figures are of people who took no part in training: LFW's, London's and SFHQ's that were held out. Who is nearer to whom is
said by an embedding that took no part either (`judge`), the expression by the `derl` bundle, landmarks and pose by the 68
landmarks.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import compose
from PIL import Image
from safetensors.torch import load_file

from . import exchange, graphs, identity, judge, swap
from .quantize import MEASURED, write

INPUTS, OUTPUTS = ["person", "attributes", "who"], ["change"]
AVATARS = 8
PREFIX = "generator."


# --- from checkpoint to bundle ---------------------------------------------------------------------------------------


def shipped(args: argparse.Namespace) -> swap.Shipped:
    net = swap.Shipped(swap.Generator())
    if args.from_bundle:
        weights = load_file(args.bundles / "identity" / "weights.safetensors")
        net.load_state_dict({k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)})
        return net.float().eval()
    plain = swap.Generator()
    plain.load_state_dict(torch.load(args.work / "swap.pt", weights_only=True))
    net = swap.Shipped(plain)
    net.load_state_dict({k: v.half() for k, v in net.state_dict().items()})
    return net.eval()


def export(net: swap.Shipped, path) -> onnx.ModelProto:
    face, who = torch.zeros(1, 3, 128, 128), torch.zeros(1, swap.WHO, 1, 1)
    torch.onnx.export(net, (face, face, who), str(path), opset_version=graphs.OPSET, input_names=INPUTS,
                      output_names=OUTPUTS, dynamo=False)  # fmt: skip
    model = onnx.load(path)
    model.ir_version = graphs.IR
    return model


def joined(encoder: onnx.ModelProto, generator: onnx.ModelProto) -> onnx.ModelProto:
    """One graph of two that share nothing; the encoder's keeps every byte of its tensors."""
    generator = compose.add_prefix(generator, PREFIX, rename_inputs=False, rename_outputs=False)
    # An answer that an earlier run put in is taken out first.
    out = onnx.ModelProto()
    out.CopyFrom(encoder)
    mine = [n for n in out.graph.node if not n.name.startswith(PREFIX)]
    kept = [t for t in out.graph.initializer if not t.name.startswith(PREFIX)]
    for field, values in (("node", mine), ("initializer", kept)):
        out.graph.ClearField(field)
        getattr(out.graph, field).extend(values)
    for field, names in (("input", INPUTS), ("output", OUTPUTS)):
        values = [v for v in getattr(out.graph, field) if v.name not in names]
        out.graph.ClearField(field)
        getattr(out.graph, field).extend([*values, *getattr(generator.graph, field)])
    out.graph.node.extend(generator.graph.node)
    out.graph.initializer.extend(generator.graph.initializer)
    onnx.checker.check_model(out)
    return out


def quantise(args: argparse.Namespace) -> int:
    """Adds generator and avatars to the bundle, whose encoder stays as it is."""
    from . import data

    folder = args.bundles / "identity"
    net = shipped(args)
    args.work.mkdir(parents=True, exist_ok=True)
    plain = export(net, args.work / "swap_float.onnx")
    if args.float_only:
        return 0
    z = np.load(args.work / "gallery.npz")
    watch = swap.Watch(data.BUNDLES)
    rng, count = np.random.default_rng(args.seed), args.count or 96
    learn = np.nonzero(~z["held"])[0]
    colour = learn[z["pack"][learn] != "lfw"]
    # Half of each pair in colour, which most users have and most photographs here lack.
    pick = lambda: int(rng.choice(colour if rng.random() < 0.5 else learn))  # noqa: E731
    batches = []
    for _ in range(count):
        a, b = (swap.planes(z["face"][[pick()]]) for _ in range(2))
        with torch.no_grad():
            who = watch.who(a)[0][:, :, None, None]
        batches.append({"person": units(a).numpy(), "attributes": units(b).numpy(), "who": who.numpy()})
    # A grey level is a step.
    ends = (-128 / swap.UNIT, 127 / swap.UNIT)
    # LiteRT's sigmoid gives 256ths.
    masks = {n.output[0]: (0.0, 255 / 256) for n in plain.graph.node if n.op_type == "Sigmoid"}
    fixed = {"person": ends, "attributes": ends, **masks}
    model = graphs.quantise(plain, batches, args.calibration, fixed=fixed, more=("Sigmoid",))
    encoder = onnx.load(folder / "model.onnx")
    notes = json.loads((MEASURED / "identity_quantisation.json").read_text())
    notes |= {
        "generator_mmac": round(graphs.macs(plain) / 1e6, 1),
        "generator_calibration": f"{args.calibration} over {count} pairs of training faces",
    }
    weights = {k: v.numpy() for k, v in load_file(folder / "weights.safetensors").items() if not k.startswith(PREFIX)}
    weights |= {PREFIX + k: v.half().numpy() for k, v in net.state_dict().items()}
    if not (args.from_bundle and (folder / "avatars.png").exists()):
        avatars(z, args.judge, watch).save(folder / "avatars.png", optimize=True)
    write(args.bundles, "identity", joined(encoder, model), weights, notes)
    return 0


def avatars(z, folder, watch: swap.Watch) -> Image.Image:
    """Synthetic people (SFHQ) side by side: grown-up by the judge's word, calm by `derl`'s, seen from the front, as unlike as
    can be."""
    rows = np.nonzero((z["pack"] == "sfhq") & ~z["held"])[0]
    age = judge.ages(judge.Judge(folder), z["face"][rows])
    points = z["points"][rows]
    middle = (points[:, 27:31, 0].mean(1) - (points[:, 36, 0] + points[:, 45, 0]) / 2) / (points[:, 45, 0] - points[:, 36, 0])
    open_eyes = np.asarray([exchange.eye_opening(p) for p in points])
    faces = swap.planes(z["face"][rows])
    with torch.no_grad():
        mood = torch.cat([watch.expression(f).softmax(1) for f in faces.split(32)]).numpy()
        who = torch.cat([watch.who(f)[0] for f in faces.split(32)]).numpy()
    sharp = (faces[..., 1:] - faces[..., :-1]).abs().mean((1, 2, 3)).numpy()
    fit = (
        (age > 22)
        & (age < 65)
        & (np.abs(middle) < 0.06)
        & (open_eyes > 0.25)
        & (mood[:, 0] > 0.6)
        & (sharp > np.median(sharp) * 0.7)
    )
    fit = np.nonzero(fit)[0]
    chosen = [int(fit[(who[fit] @ who[fit].mean(0)).argmax()])]
    while len(chosen) < min(AVATARS, len(fit)):
        nearest = (who[fit] @ who[chosen].T).max(1)
        chosen.append(int(fit[nearest.argmin()]))
    return Image.fromarray(np.concatenate(list(z["face"][rows[chosen]]), 1))


def units(x: torch.Tensor) -> torch.Tensor:
    """Grey levels as the generator reads them; rows one after the other, whatever the layout was."""
    return ((x - 128) / swap.UNIT).contiguous()


# --- what is measured ------------------------------------------------------------------------------------------------


class Net:
    """A generator's graph in ONNX Runtime, on pictures [N, 3, 128, 128] in grey levels and embeddings of length 1."""

    def __init__(self, path):
        from .yunet import blanks, session

        self.net = session(path)
        self.rest = blanks(self.net, *INPUTS)

    def __call__(self, person: torch.Tensor, looks: torch.Tensor, who: torch.Tensor) -> torch.Tensor:
        rows = zip(units(person).split(1), units(looks).split(1), who.split(1), strict=True)
        change = [
            self.net.run(OUTPUTS, {**self.rest, "person": p.numpy(), "attributes": b.numpy(), "who": w[..., None, None].numpy()})[
                0
            ]
            for p, b, w in rows
        ]
        return (looks + torch.from_numpy(np.concatenate(change)) * swap.UNIT).clamp(0, 255)


def bytes_of(x: torch.Tensor) -> np.ndarray:
    """Grey levels [N, 3, 128, 128] -> u8 [N, 128, 128, 3]."""
    return x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def five(points: np.ndarray) -> np.ndarray:
    """Eyes, nose tip and mouth corners of 68 landmarks, [N, 5, 2]."""
    return np.stack([points[:, 36:42].mean(1), points[:, 42:48].mean(1), points[:, 30], points[:, 48], points[:, 54]], 1)


def head(root) -> np.ndarray:
    """68 landmarks of a mean head at rest (ICT), centred, [68, 3]."""
    from . import ict

    points = ict.marks(root)
    return points - points.mean(0)


def turned(points: np.ndarray, model: np.ndarray) -> np.ndarray:
    """Yaw, pitch and roll in degrees of a head of which 68 landmarks [N, 68, 2] are seen from far (weak perspective)."""
    out = []
    # Brows, eyes, nose: what no expression moves much.
    rigid = np.r_[27:48]
    base = model[rigid] - model[rigid].mean(0)
    for p in points[:, rigid]:
        flat = (p - p.mean(0)) * [1, -1]
        rows = np.linalg.lstsq(base, flat, rcond=None)[0].T
        u, _, v = np.linalg.svd(rows, full_matrices=False)
        a, b = u @ v
        c = np.cross(a, b)
        out.append([np.arcsin(np.clip(-c[0], -1, 1)), np.arctan2(c[1], c[2]), np.arctan2(a[1], a[0])])
    return np.degrees(np.asarray(out))


def share(x: np.ndarray) -> float:
    return round(float(np.mean(x)), 4)


class Bench:
    """Pairs of people who took no part, and those who judge what is made of them."""

    def __init__(self, args: argparse.Namespace, watch: swap.Watch, count: int, seed: int):
        from .landmarks68 import Finder

        z = np.load(args.work / "gallery.npz")
        self.face, self.points, self.pack, self.person = (z[k] for k in ("face", "points", "pack", "person"))
        self.held = np.nonzero(z["held"])[0]
        self.judge, self.watch, self.finder = judge.Judge(args.judge), watch, Finder(args.data)
        self.head = head(args.data)
        rng = np.random.default_rng(seed)
        opening = np.asarray([exchange.eye_opening(p) for p in self.points[self.held]])
        seeing = self.held[opening > 0.16]
        self.a, self.b = rng.choice(seeing, count), rng.choice(self.held, count)
        other = self.person[self.a] != self.person[self.b]
        self.a, self.b = self.a[other], self.b[other]
        told = judge.embed(self.judge, self.face[self.held])
        self.mean = told.mean(0)
        self.known = identity.unit(told - self.mean)
        self.limit = identity.verification(told - self.mean, self.person[self.held])

    def told(self, faces: np.ndarray) -> np.ndarray:
        return identity.unit(judge.embed(self.judge, faces) - self.mean)

    @torch.no_grad()
    def who(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.watch.who(part)[0] for part in x.split(32)])

    @torch.no_grad()
    def mood(self, x: torch.Tensor) -> np.ndarray:
        return torch.cat([self.watch.expression(part).argmax(1) for part in x.split(32)]).numpy()

    def landmarks(self, faces: np.ndarray) -> np.ndarray:
        return np.stack([self.finder(f, (-8.0, -2.0), 144.0) for f in faces])

    def kept(self, made: torch.Tensor, looks: torch.Tensor) -> dict:
        """What is left of the looks: pose, places, expression."""
        seen, wanted = self.landmarks(bytes_of(made)), self.landmarks(bytes_of(looks))
        eyes = np.linalg.norm(five(wanted)[:, 0] - five(wanted)[:, 1], axis=1)
        off = np.linalg.norm(five(seen) - five(wanted), axis=2).mean(1) / eyes
        turn = np.abs(turned(seen, self.head) - turned(wanted, self.head))[:, :2].max(1)
        return {
            "landmarks_off": share(off),
            "landmarks_within_4_percent": share(off <= 0.04),
            "pose_off_degrees": share(turn),
            "pose_within_5_degrees": share(turn <= 5),
            "expression_agrees": share(self.mood(made) == self.mood(looks)),
        }

    def exchanged(self, net: Net) -> tuple[dict, torch.Tensor]:
        """Pairs of strangers."""
        a, b = swap.planes(self.face[self.a]), swap.planes(self.face[self.b])
        made = net(a, b, self.who(a))
        told, ta, tb = self.told(bytes_of(made)), self.told(self.face[self.a]), self.told(self.face[self.b])
        near = (told * ta).sum(1) > (told * tb).sum(1)
        kinds = {k: share(near[self.pack[self.a] == k]) for k in np.unique(self.pack[self.a])}
        figures = {
            "pairs": len(near),
            "nearer_to_the_person": share(near),
            "by_pack": {str(k): v for k, v in kinds.items()},
            "one_person_at_far_1e2": share((told * ta).sum(1) >= self.limit["threshold_far_1e2"]),
            **self.kept(made, b),
        }
        return figures, made

    def retrieved(self, net: Net, people: int = 100, seed: int = 6) -> dict:
        """Whether the person is the first of 100 whom the judge names, from other photographs of them."""
        rng = np.random.default_rng(seed)
        names, counts = np.unique(self.person[self.held], return_counts=True)
        chosen = rng.permutation(names[counts > 1])[:people]
        shots = [rng.permutation(self.held[self.person[self.held] == p])[:2] for p in chosen]
        shown, known = (np.asarray([s[k] for s in shots]) for k in (0, 1))
        looks = rng.choice(self.held, len(chosen))
        a, b = swap.planes(self.face[shown]), swap.planes(self.face[looks])
        gallery_of = self.told(self.face[known])
        right = np.arange(len(chosen))
        made = self.told(bytes_of(net(a, b, self.who(a))))
        plain = self.told(self.face[shown])
        return {
            "people": len(chosen),
            "rank_1": share((made @ gallery_of.T).argmax(1) == right),
            "rank_1_of_the_photograph_itself": share((plain @ gallery_of.T).argmax(1) == right),
        }

    def returned(self, net: Net) -> dict:
        """One picture in and out, for both."""
        b = swap.planes(self.face[self.b])
        made = net(b, b, self.who(b))
        masks = torch.from_numpy(np.stack([exchange.mask(self.points[i]) for i in self.b]))[:, None].float() / 255
        error = ((made - b) ** 2 * masks).sum((1, 2, 3)) / (3 * masks.sum((1, 2, 3)))
        whole = ((made - b) ** 2).mean((1, 2, 3))
        decibels = [10 * torch.log10(255**2 / e.clamp_min(0.05)).numpy() for e in (whole, error)]
        return {"psnr_db": share(decibels[0]), "psnr_in_the_face_db": share(decibels[1])}

    def hidden(self, net: Net, standing_in: np.ndarray, seed: int = 8) -> dict:
        """Avatars in the place of people: whether the judge still knows who it was."""
        rng = np.random.default_rng(seed)
        pick = rng.integers(0, len(standing_in), len(self.b))
        a, b = swap.planes(standing_in[pick]), swap.planes(self.face[self.b])
        made = net(a, b, self.who(a))
        told, before = self.told(bytes_of(made)), self.told(self.face[self.b])
        twice = net(a, made, self.who(a))
        plain = np.stack([alone(f) for f in bytes_of(twice)])
        return {
            "faces": len(pick),
            "known_again_at_far_1e2": share((told * before).sum(1) >= self.limit["threshold_far_1e2"]),
            "known_again_as_sent": share((self.told(plain) * before).sum(1) >= self.limit["threshold_far_1e2"]),
            "expression_agrees_as_sent": share(self.mood(twice) == self.mood(b)),
            **self.kept(made, b),
        }


def alone(face: np.ndarray) -> np.ndarray:
    """A face as the daemon sends an avatar: all around it in one tone."""
    y, x = np.mgrid[:128, :128] + 0.5
    radius = np.hypot((x - 64) / 60.2, (y - 66.6) / 60.4)
    t = np.clip((1 - radius) / (1 - 0.82), 0, 1)
    weight = (t * t * (3 - 2 * t))[..., None]
    mean = (face * weight).sum((0, 1)) / weight.sum()
    return np.rint(mean + weight * (face - mean)).astype(np.uint8)


@torch.no_grad()
def walked(net: swap.Shipped, bench: Bench, pairs: int = 24, steps: int = 9) -> dict:
    """From one person to another in the generator's code: how even the steps are, by network I."""
    shares = []
    g = net.net
    for k in range(pairs):
        a, b, looks = (swap.planes(bench.face[[i]]) for i in (bench.a[k], bench.a[-1 - k], bench.b[k]))
        wa, wb = bench.who(a), bench.who(b)
        ends = [g.person(units(x)) for x in (a, b)]
        seen = []
        for t in np.linspace(0, 1, steps):
            code = [p * (1 - t) + q * t for p, q in zip(*ends, strict=True)]
            who = F.normalize(wa * (1 - t) + wb * t, dim=1)
            made = looks + g.after(code, units(looks), who[:, :, None, None]) * swap.UNIT
            seen.append(bench.who(made.clamp(0, 255))[0].numpy())
        step = np.linalg.norm(np.diff(np.stack(seen), axis=0), axis=1)
        shares.append(step.max() / step.sum())
    return {"walks": pairs, "steps": steps - 1, "largest_step_share": share(np.asarray(shares))}


def evaluate(args: argparse.Namespace) -> int:
    from . import data

    watch = swap.Watch(data.BUNDLES)
    bench = Bench(args, watch, args.limit or 300, 7)
    nets = {"float": Net(args.work / "swap_float.onnx"), "int8": Net(args.bundles / "identity" / "model.onnx")}
    result: dict = {
        "judge": {k: bench.limit[k] for k in ("accuracy", "tar_at_far_1e2", "threshold_far_1e2", "people", "pictures")}
    }
    made = {}
    standing_in = np.asarray(Image.open(args.bundles / "identity" / "avatars.png"))
    standing_in = np.stack(np.split(standing_in, standing_in.shape[1] // 128, 1))
    for kind, net in nets.items():
        figures, made[kind] = bench.exchanged(net)
        result[kind] = {"exchanged": figures, "retrieved": bench.retrieved(net), "returned": bench.returned(net)}
        result[kind]["avatars"] = bench.hidden(net, standing_in)
    error = ((made["float"] - made["int8"]) ** 2).mean((1, 2, 3)).clamp_min(0.05)
    result["float_int8_db"] = share(10 * torch.log10(255**2 / error).numpy())
    a, b = (exchange_faces(bench, rows) for rows in (bench.a, bench.b))
    bent = exchange.bent(a, b)
    told, ta, tb = (bench.told(x) for x in (bytes_of(bent), bench.face[bench.a], bench.face[bench.b]))
    result["bent"] = {"nearer_to_the_person": share((told * ta).sum(1) > (told * tb).sum(1)), **bench.kept(bent, b.picture)}
    args.from_bundle = True
    result["walk"] = walked(shipped(args), bench)
    trained = args.work / "swap.json"
    if trained.exists():
        result["training"] = {k: v for k, v in json.loads(trained.read_text()).items() if k in ("steps", "pictures")}
    z = np.load(args.work / "gallery.npz")
    kinds, counts = np.unique(z["pack"][~z["held"]], return_counts=True)
    learnt = {str(k): int(n) for k, n in zip(kinds, counts, strict=True)}
    result["learnt_from"] = learnt | {"rendered": int(np.prod(z["drawn"].shape[:3]))}
    MEASURED.mkdir(exist_ok=True)
    (MEASURED / "swap.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    if args.sheet:
        sheet(nets["int8"], shipped(args), bench, standing_in, args.sheet)
    return 0


def exchange_faces(bench: Bench, rows: np.ndarray) -> exchange.Faces:
    masks = [(exchange.mask(bench.points[i]), exchange.mouth(bench.points[i])) for i in rows]
    covers = (torch.from_numpy(np.stack(m))[:, None].float() / 255 for m in zip(*masks, strict=True))
    anchors = torch.from_numpy(np.stack([exchange.anchors(bench.points[i]) for i in rows]))
    return exchange.Faces(swap.planes(bench.face[rows]), anchors, *covers)


@torch.no_grad()
def sheet(net: Net, float_net: swap.Shipped, bench: Bench, standing_in: np.ndarray, path, columns: int = 7) -> None:
    """Of synthetic grown-ups alone: people down, looks across; below, a walk from one person to another, and avatars."""
    rng = np.random.default_rng(3)
    clean = bench.held[bench.pack[bench.held] == "sfhq"]
    pick = rng.permutation(clean[judge.ages(bench.judge, bench.face[clean]) > 22])
    people, looks = pick[:4], pick[4 : 4 + columns]
    blank = np.full((1, 128, 128, 3), 255, np.uint8)
    rows = [np.concatenate([blank, bench.face[looks]])]
    b = swap.planes(bench.face[looks])
    for i in people:
        a = swap.planes(bench.face[[i]]).repeat(columns, 1, 1, 1)
        rows.append(np.concatenate([bench.face[[i]], bytes_of(net(a, b, bench.who(a)))]))
    g = float_net.net
    ends = [swap.planes(bench.face[[i]]) for i in people[:2]]
    codes, who = [g.person(units(x)) for x in ends], [bench.who(x) for x in ends]
    walk = []
    for t in np.linspace(0, 1, columns):
        code = [p * (1 - t) + q * t for p, q in zip(*codes, strict=True)]
        at = F.normalize(who[0] * (1 - t) + who[1] * t, dim=1)[:, :, None, None]
        walk.append(bytes_of((b[:1] + g.after(code, units(b[:1]), at) * swap.UNIT).clamp(0, 255)))
    rows.append(np.concatenate([bench.face[looks[:1]], *walk]))
    for k in range(2):
        a = swap.planes(standing_in[[k]]).repeat(columns, 1, 1, 1)
        rows.append(np.concatenate([standing_in[[k]], bytes_of(net(a, b, bench.who(a)))]))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([np.concatenate(list(r), 1) for r in rows], 0)).save(path, quality=88)
