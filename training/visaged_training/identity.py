"""The identity encoder: a face's embedding, small enough for int8 on the device.

Network I of "Towards Open-Set Identity Preserving Face Synthesis" (CVPR 2018) starts from a recogniser, as the paper advises:
the first eleven residual blocks of dlib's descriptor, its stem summed to luminance, with a last layer of its own. It learns to
give the descriptor's answer from one grey aligned face (mean squared error), to tell the faces of a batch apart (InfoNCE) and,
as in the paper, to name the people of the training set (softmax, with an angular margin).
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm import tqdm

from . import align, augment, data, descriptor
from .train import Average, Run, last, pace

SIDE = 112  # the centre of the 128x128 aligned face
EPS = 8.0
KEPT = 11  # blocks of the descriptor
WIDTH = 256
# Every so many of LFW's people stay out of training; they judge.
HELD_EVERY = 9


class Block(nn.Module):
    """Two convolutions and a short cut; where it halves, the short cut is a mean of 2x2, written as a convolution."""

    def __init__(self, cin: int, cout: int, down: bool, even: bool):
        super().__init__()
        # The descriptor lacks a row and a column for the last window of an even side; a fourth row and column in front give it
        # one with the same padding on every side.
        self.wide = down and even
        self.a = nn.Conv2d(cin, cout, 4 if self.wide else 3, 2 if down else 1, 0 if down and not even else 1)
        self.b = nn.Conv2d(cout, cout, 3, 1, 1)
        self.short = nn.Conv2d(cin, cout, 2, 2, bias=False) if down else None
        if down:
            with torch.no_grad():
                self.short.weight.zero_()
                self.short.weight[range(cin), range(cin)] = 0.25

    def forward(self, x):
        y = self.b(F.relu(self.a(x)))
        return F.relu((x if self.short is None else self.short(x)) + y)

    def take(self, first: torch.Tensor, bias: torch.Tensor) -> None:
        """The descriptor's 3x3 filters for the first convolution."""
        self.a.weight.data = F.pad(first, (1, 0, 1, 0)) if self.wide else first
        self.a.bias.data = bias


class Encoder(nn.Module):
    """Standardised luminance [N, 1, 112, 112] -> embedding [N, 128], not normalised."""

    def __init__(self):
        super().__init__()
        self.stem, blocks, cin, side = nn.Conv2d(1, 32, 7, 2), [], 32, 26
        for name in descriptor.BLOCKS[:KEPT]:
            cout, down = int(name[4:].split("_")[0]), "down" in name
            blocks.append(Block(cin, cout, down, side % 2 == 0))
            side = side // 2 if down else side
            cin = cout
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Conv2d(WIDTH, 128, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2)
        for block in self.blocks:
            x = block(x)
        return self.last(x).flatten(1)

    def start_from(self, folder: Path) -> None:
        """Takes over the descriptor's weights; the stem's input is standardised instead of divided by 255."""
        weights = descriptor.read(folder)
        filters, bias = descriptor.convolution(weights, "conv32_down")
        self.stem.weight.data, self.stem.bias.data = filters.sum(1, keepdim=True) * 0.22, bias
        for block, name in zip(self.blocks, descriptor.BLOCKS, strict=False):
            block.take(*descriptor.convolution(weights, f"{name}/conv1"))
            block.b.weight.data, block.b.bias.data = descriptor.convolution(weights, f"{name}/conv2")


def kept(path: Path) -> dict[str, torch.Tensor]:
    """The encoder's weights in a bundle, which may hold a generator's beside them."""
    from safetensors.torch import load_file

    return {k: v for k, v in load_file(path).items() if not k.startswith("generator.")}


# --- data ------------------------------------------------------------------------------------------------------------


def held_people(names: np.ndarray) -> np.ndarray:
    """The LFW people that judge, from all names: every ninth, counted over the sorted names."""
    return np.unique(names)[4::HELD_EVERY]


def pictures(root: Path, ferplus_every: int):
    """(pack, person or -1, picture u8 [H, W] or [H, W, 3], five points) of every face that teaches or judges."""
    lfw = np.load(root / "lfw_grey" / "lfw_grey.npz")
    _, person = np.unique(lfw["identity"], return_inverse=True)
    for i, points in enumerate(lfw["kps5"]):
        blob = lfw["jpeg"][lfw["start"][i] : lfw["start"][i + 1]]
        yield "lfw", int(person[i]), np.asarray(data.decode(blob)), points.astype(np.float64)
    for entry in json.loads((root / "sfhq" / "index.json").read_text()):
        yield "sfhq", -1, data.rgb(root / "sfhq" / entry["file"]), np.asarray(entry["kps5"], np.float64)
    for pack in ("london", "canada"):
        marks = np.load(root / pack / "landmarks.npz")
        for name, points in zip(marks["files"], marks["yunet5"], strict=True):
            yield pack, -1, data.rgb(root / pack / str(name)), points.astype(np.float64)
    # FER+ crops lie in the template already.
    for image in data.ferplus(root, "train").images[::ferplus_every]:
        big = np.asarray(Image.fromarray(image).resize((128, 128), Image.BICUBIC))
        yield "ferplus", -1, big, align.template()


def grey(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).convert("L"))


def aligned(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Luminance of the aligned face, u8 [128, 128]."""
    return grey(align.align(picture, points))


def chip(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """What the descriptor reads, f32 [3, 150, 150]."""
    face = align.warp(picture, align.similarity(points, descriptor.TEMPLATE), descriptor.SIZE)
    face = np.repeat(face[..., None], 3, 2) if face.ndim == 2 else face
    return np.ascontiguousarray(face.transpose(2, 0, 1).astype(np.float32))


def answers(chips: np.ndarray, mirrored: bool, net) -> np.ndarray:
    """The descriptor's answer, where wanted the mean of a face's and its mirror image's."""
    both = np.concatenate([chips, chips[..., ::-1]]) if mirrored else chips
    out = net.run(None, {"x": np.ascontiguousarray(both)})[0]
    return (out[: len(chips)] + out[-len(chips) :]) / 2


def exported(module: nn.Module, shape: tuple[int, ...], threads: int):
    """The module in ONNX Runtime, batch open."""
    from .yunet import session

    blob = io.BytesIO()
    axes = {"x": {0: "n"}, "y": {0: "n"}}
    torch.onnx.export(
        module.eval(), (torch.zeros(2, *shape),), blob, opset_version=17, input_names=["x"], output_names=["y"],
        dynamic_axes=axes, dynamo=False,
    )  # fmt: skip
    return session(blob.getvalue(), threads)


def faces_arguments(parser: argparse.ArgumentParser) -> None:
    data.add_data_argument(parser)
    parser.add_argument("--descriptor", type=Path, required=True, help="folder `model` of the npm package @vladmandic/face-api")
    parser.add_argument("--out", type=Path, default=data.WORK / "identity_faces.npz")
    parser.add_argument("--ferplus-every", type=int, default=4, help="take every so many of the FER+ train crops")
    parser.add_argument("--threads", type=int, default=1)


def prepare(args: argparse.Namespace) -> int:
    """Aligned luminance of every face with what the descriptor says of it, as one .npz."""
    net = exported(descriptor.Descriptor(args.descriptor), (3, descriptor.SIZE, descriptor.SIZE), args.threads)
    packs, people, faces, targets, waiting = [], [], [], [], []

    def ask():
        # Small and blurred crops are not worth a second look.
        targets.append(answers(np.stack(waiting), packs[-1] != "ferplus", net))
        waiting.clear()

    for pack, person, picture, points in tqdm(pictures(args.data, args.ferplus_every), desc="faces", mininterval=10):
        if waiting and packs[-1] != pack:
            ask()
        packs.append(pack)
        people.append(person)
        faces.append(aligned(picture, points))
        waiting.append(chip(picture, points))
        if len(waiting) == 32:
            ask()
    if waiting:
        ask()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(args.out, pack=np.asarray(packs), person=np.asarray(people), face=np.stack(faces), target=np.concatenate(targets))
    print(f"{len(faces)} faces -> {args.out}")
    return 0


def split(pack: np.ndarray, person: np.ndarray) -> np.ndarray:
    """True for what judges: LFW people held out, and nothing else."""
    return (pack == "lfw") & np.isin(person, held_people(person[person >= 0]))


# --- verification ----------------------------------------------------------------------------------------------------


def pairs(person: np.ndarray, count: int = 3000, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Index pairs of one person and of two, `count` each (fewer where there are not as many)."""
    rng = np.random.default_rng(seed)
    a, b = np.triu_indices(len(person), 1)
    same = person[a] == person[b]
    out = []
    for rows in (np.nonzero(same)[0], np.nonzero(~same)[0]):
        # No person with many pictures may speak for all: pairs are drawn by person first.
        if same[rows[0]]:
            weight = 1 / np.bincount(person)[person[a[rows]]] ** 2.0
            rows = rng.choice(rows, min(count, len(rows)), replace=False, p=weight / weight.sum())
        else:
            rows = rng.choice(rows, count, replace=False)
        out.append(np.stack([a[rows], b[rows]], 1))
    return out[0], out[1]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)


def verification(embedding: np.ndarray, person: np.ndarray, folds: int = 10) -> dict:
    """Accuracy over ten folds, each at the threshold that is best on the other nine; true accepts at 1e-2 and 1e-3.

    The false-match rates count every pair of two people, not the drawn ones alone: 1e-3 of 3,000 would be three pairs.
    """
    e = unit(embedding)
    same, different = pairs(person)
    s, d = ((e[p[:, 0]] * e[p[:, 1]]).sum(1) for p in (same, different))
    rng = np.random.default_rng(0)
    fold_s, fold_d = rng.integers(0, folds, len(s)), rng.integers(0, folds, len(d))
    right = []
    for k in range(folds):
        a, b = s[fold_s != k], d[fold_d != k]
        grid = np.unique(np.concatenate([a, b]))[::7]
        accuracy = (a[None] >= grid[:, None]).mean(1) + (b[None] < grid[:, None]).mean(1)
        t = grid[accuracy.argmax()]
        right.append(((s[fold_s == k] >= t).mean() + (d[fold_d == k] < t).mean()) / 2)
    everybody = e @ e.T
    other = everybody[(person[:, None] != person[None]) & np.triu(np.ones(everybody.shape, bool), 1)]
    t2, t3 = np.quantile(other, 1 - 1e-2), np.quantile(other, 1 - 1e-3)
    return {
        "people": int(len(np.unique(person))),
        "pictures": int(len(person)),
        "pairs": [int(len(s)), int(len(d))],
        "accuracy": round(float(np.mean(right)), 4),
        "tar_at_far_1e2": round(float((s >= t2).mean()), 4),
        "tar_at_far_1e3": round(float((s >= t3).mean()), 4),
        "threshold_far_1e2": round(float(t2), 4),
        "threshold_far_1e3": round(float(t3), 4),
    }


# --- training --------------------------------------------------------------------------------------------------------


def centre(x: torch.Tensor) -> torch.Tensor:
    """The centre that the encoder reads."""
    off = (x.shape[-1] - SIDE) // 2
    return x[..., off : off + SIDE, off : off + SIDE]


def distort(x: torch.Tensor) -> torch.Tensor:
    """What a camera and a detector do, on [N, 1, 128, 128] grey levels."""
    x = augment.affine(x, 0.12, 0.08, 0.05)
    x = augment.noise(augment.small(augment.tone(x, 0.35), 0.3, 24), 10)
    return augment.standardise(centre(x))


class Margin(nn.Module):
    """Softmax over the training people with an additive angular margin on the true one."""

    def __init__(self, people: int, scale: float = 24.0, margin: float = 0.2):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(people, 128) * 0.05)
        self.scale, self.margin = scale, margin

    def forward(self, x: torch.Tensor, person: torch.Tensor) -> torch.Tensor:
        cosine = F.normalize(x, dim=1) @ F.normalize(self.weight, dim=1).T
        mine = F.one_hot(person, len(self.weight)).to(x.dtype)
        return F.cross_entropy((cosine - self.margin * mine) * self.scale, person)


@torch.no_grad()
def embed(net: nn.Module, faces: torch.Tensor) -> np.ndarray:
    """Faces u8 [N, 128, 128] -> [N, 128]."""
    net.eval()
    out = []
    for part in faces.split(128):
        x = augment.standardise(centre(part[:, None].float()))
        out.append(net(last(x)))
    return torch.cat(out).numpy()


def train(args: argparse.Namespace) -> int:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    z = np.load(args.faces)
    held = split(z["pack"], z["person"])
    faces, person = torch.from_numpy(z["face"]), z["person"]
    mean, std = z["target"][~held].mean(0), z["target"][~held].std()
    target = torch.from_numpy(((z["target"] - mean) / std).astype(np.float32))
    use = np.nonzero(~held)[0]
    _, named = np.unique(person[use], return_inverse=True)  # -1, the unnamed, becomes 0
    number = torch.full((len(person),), -1)
    number[use] = torch.from_numpy(named) - 1
    # Named faces come more often: they alone tell what one person may look like.
    chance = np.where(z["pack"][use] == "lfw", 3.0, np.where(z["pack"][use] == "ferplus", 1.0, 2.0))
    chance /= chance.sum()
    net, margin = Encoder(), Margin(int(named.max()))
    if args.weights:
        net.load_state_dict(kept(args.weights))
    else:
        net.start_from(args.descriptor)
    net = net.to(memory_format=torch.channels_last)
    average = Average(net, 0.999)
    peak = args.rate or 6e-4
    opt = torch.optim.AdamW([*net.parameters(), *margin.parameters()], peak, weight_decay=0.02)
    parts = {"net": net, "margin": margin, "opt": opt}
    judges = torch.from_numpy(np.nonzero(held)[0])

    def judged() -> dict:
        return verification(embed(average.module, faces[judges]), person[held])

    teacher = verification(z["target"][held] - mean, person[held])
    print(json.dumps({"faces": len(use), "people": int(named.max()), "descriptor": teacher}), flush=True)
    run, size = Run("identity", args, parts, {"identity": average}, judged), args.batch or 64
    for progress in run:
        pace(opt, progress, run.step, peak, 200)
        chosen = torch.from_numpy(rng.choice(use, size, p=chance))
        net.train()
        out = net(last(distort(faces[chosen][:, None].float())))
        wanted, who = target[chosen], number[chosen]
        distance = F.mse_loss(out, wanted)
        alike = F.normalize(out, dim=1) @ F.normalize(wanted, dim=1).T * 12
        apart = F.cross_entropy(alike, torch.arange(len(out)))
        known = who >= 0
        naming = margin(out[known], who[known])
        loss = distance + 0.1 * apart + 0.05 * naming
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        opt.step()
        average.update(net)
        run.show(distance=distance, apart=apart, naming=naming)
    return run.finish(size)
