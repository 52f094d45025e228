"""`train classifier`: on the frozen generator, from the first blocks of the recogniser in the `identity` bundle.

Photographs of FER+ with the votes of ten people as soft labels, and a few posed faces of London and Canada, so that a sharp
studio portrait is no stranger. The generator is frozen, as in De-expression Residue Learning; that the classifier also sees the
picture, and knows faces before it learns emotions, is ours.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from . import align, augment, data, nets, program
from .train import Average, Run, canada_faces, device, last, london_pairs, pace
from .yunet import session

POSED = 2  # of the pictures of a step
# Smiling and calm London people, calm Canadians. One set smiles no more often than not, lest its look stand for a smile.
SHARES = (0.42, 0.42, 0.16)
SOFTENED = 0.2  # of a posed face's certainty goes to the other emotions
# Where the recogniser's blocks go.
TAKEN = {"block1": "blocks.0", "halve2": "blocks.3", "block2": "blocks.4", "halve3": "blocks.7"}


def stem(filters: torch.Tensor) -> torch.Tensor:
    """7x7 filters with stride 2 on a 128x128 face, for the same face at 64x64 with stride 1: 5x5.

    The small face stands for itself enlarged, each pixel four times; the filter is laid on it in the four ways that have
    its middle on the pixel.
    """
    wide = sum(F.pad(filters, (i, 1 - i, j, 1 - j)) for i in (0, 1) for j in (0, 1)) / 4  # 8x8, from 2p - 3 to 2p + 4
    return F.avg_pool2d(F.pad(wide, (1, 1, 1, 1)), 2) * 4


def recogniser(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """First weights of the classifier from those of the `identity` bundle."""
    out = {"stem.weight": stem(weights["stem.weight"]), "stem.bias": weights["stem.bias"]}
    for ours, theirs in TAKEN.items():
        for name, value in weights.items():
            if name.startswith(f"{theirs}."):
                rest = name.removeprefix(theirs)
                # A halving block of an even side has a fourth row and column in front.
                out[ours + rest] = value[..., 1:, 1:] if rest == ".a.weight" and value.shape[-1] == 4 else value
    return out


class Frozen:
    """The frozen generator as a source of deltas and layer pairs. On a CPU it runs in ONNX Runtime, twice as fast as in torch."""

    def __init__(self, generator: nets.Generator, where: torch.device, threads: int):
        self.generator, self.where, self.net = generator, where, None
        if where.type == "cpu":

            class Told(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.generator = generator

                def forward(self, x):
                    delta, pairs = self.generator(x)
                    return [delta, *(t for pair in pairs for t in pair)]

            names = ["delta", *(f"{side}{k}" for k in range(4) for side in "ed")]
            blob = io.BytesIO()
            torch.onnx.export(
                Told().eval(),
                (torch.zeros(2, 1, nets.SIZE, nets.SIZE),),
                blob,
                opset_version=17,
                input_names=["x"],
                output_names=names,
                dynamic_axes={n: {0: "n"} for n in ["x", *names]},
                dynamo=False,
            )
            self.net = session(blob.getvalue(), threads)

    @torch.no_grad()
    def __call__(self, x: torch.Tensor):
        if self.net is None:
            return self.generator(last(x.to(self.where)))
        delta, *out = [torch.from_numpy(t) for t in self.net.run(None, {"x": x.contiguous().numpy()})]
        return delta, list(zip(out[::2], out[1::2], strict=True))


def shown(x: torch.Tensor, frozen: Frozen, without: str | None = None):
    """What the classifier reads of standardised faces; for the ablation without the picture, or without the residues."""
    delta, pairs = frozen(x)
    x = x.to(frozen.where)
    if without == "picture":
        x = torch.zeros_like(x)
    elif without == "residue":
        delta, pairs = torch.zeros_like(delta), [tuple(torch.zeros_like(t) for t in pair) for pair in pairs]
    return x, delta, pairs


@torch.no_grad()
def predict(frozen: Frozen, classifier: nets.Classifier, faces: torch.Tensor, without: str | None = None) -> torch.Tensor:
    """Logits for grey faces [N, 1, 64, 64] in grey levels."""
    classifier.eval()
    return torch.cat([classifier(*shown(augment.standardise(x), frozen, without)).cpu() for x in faces.float().split(192)])


def sampling(target: np.ndarray, balance: float) -> np.ndarray:
    """Probability of each picture: rare classes come up more often, by `balance`."""
    winner = target.argmax(1)
    count = np.bincount(winner, minlength=8)
    p = (count[winner] / count.sum()) ** -balance
    return p / p.sum()


def frozen_generator(checkpoint: Path, bundle: Path) -> nets.Generator:
    """From a checkpoint, or as the bundle has it; batch norm folded."""
    g = nets.Generator()
    if checkpoint.exists():
        g.load_state_dict(torch.load(checkpoint, weights_only=True, map_location="cpu"))
        return nets.fold(g.eval()).requires_grad_(False)
    nets.fold(g.eval())
    g.load_state_dict(nets.part(load_file(bundle), "generator"))
    return g.requires_grad_(False)


class Photographs:
    """FER+ train with its votes, rare classes more often."""

    def __init__(self, args: argparse.Namespace):
        self.rng = np.random.default_rng(args.seed)
        train = data.ferplus(args.data, "train")
        target, keep = data.soft_labels(train.votes)
        self.faces, self.target = crops(train.images[keep]), torch.from_numpy(target[keep])
        self.chance = sampling(target[keep], args.balance)
        self.order, self.at = self.rng.permutation(0), 0

    def ferplus(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Grey levels [N, C, 64, 64], votes [N, 8]."""
        if self.at + count > len(self.order):
            self.order, self.at = self.rng.choice(len(self.faces), len(self.faces), p=self.chance), 0
        chosen = torch.from_numpy(self.order[self.at : self.at + count])
        self.at += count
        return self.faces[chosen].float(), self.target[chosen]


class Faces(Photographs):
    """Photographs with votes, most of a step, and posed faces; as a camera would show them, standardised."""

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        self.smiling, self.calm, self.frontal = posed(args.data)

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Grey levels [N, C, 64, 64], labels [N, 8]."""
        faces, votes = self.ferplus(count - POSED)
        kind = torch.multinomial(torch.tensor(SHARES), POSED, replacement=True)
        pools, label = (self.smiling, self.calm, self.frontal), (kind == 0).long()
        stills = [pool[torch.randint(0, len(pool), ())] for pool in (pools[k] for k in kind)]
        sure = F.one_hot(label, 8) * (1 - SOFTENED) + SOFTENED / 8
        return torch.cat([faces, torch.stack(stills).float()]), torch.cat([votes, sure])

    def step(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Standardised [N, 1, 64, 64], labels [N, 8]."""
        faces, labels = self.draw(count)
        return augment.erase(augment.standardise(augment.photograph(augment.sharpen(faces)))), labels


def crops(images: np.ndarray) -> torch.Tensor:
    """FER+ pictures [N, 48, 48] -> [N, 1, 64, 64]."""
    return torch.from_numpy(align.crop64(images))[:, None]


def posed(root: Path) -> tuple[torch.Tensor, ...]:
    """London people of the training smiling and calm, and calm Canadians, each u8 [N, 1, 64, 64]."""
    real = london_pairs(root)
    use = ~real["validation"]
    return tuple(torch.from_numpy(f)[:, None] for f in (real["face"][use], real["still"][use], canada_faces(root)))


def ablation(args: argparse.Namespace) -> int:
    """The same schedule, a third of the time each: picture and residues, and each of the two alone."""
    result = {"minutes": args.minutes / 3}
    for kind, without in (("both", None), ("residue alone", "picture"), ("picture alone", "residue")):
        each = argparse.Namespace(**{**vars(args), "minutes": args.minutes / 3, "out": args.out / f"ablation_{without}"})
        train(each, without)
        result[kind] = json.loads((each.out / "classifier.json").read_text())
    (args.out / "ablation.json").write_text(json.dumps(result, indent=1))
    return 0


def train(args: argparse.Namespace, without: str | None = None) -> int:
    torch.manual_seed(args.seed)
    where = device()
    material, valid = Faces(args), data.ferplus(args.data, "valid")
    seen = crops(valid.images)
    g = frozen_generator(args.generator or args.out / "generator.pt", args.bundle).to(where)
    g = Frozen(g, where, args.threads)
    c = nets.Classifier()
    batch, peak = args.batch or 64, args.rate or 0.05
    first, _ = material.step(4 * batch)
    nets.unfold(c, recogniser(load_file(args.recogniser)), *shown(first, g, without))
    c = c.to(where, memory_format=torch.channels_last)
    average = Average(c, 0.999)
    matrices, others = ([p for p in c.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    opt = torch.optim.SGD(
        [{"params": matrices, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0}], peak, momentum=0.9, nesterov=True
    )

    def judgement() -> dict:
        return program.scores(predict(g, average.module, seen, without).argmax(1).numpy(), valid)

    run = Run("classifier", args, {"c": c, "opt": opt}, {"classifier": average}, judgement)
    for progress in run:
        pace(opt, progress, run.step, peak, 300)
        x, votes = material.step(batch)
        c.train()
        logits = c(*shown(x, g, without))
        loss = -(votes.to(where) * F.log_softmax(logits, 1)).sum(1).mean()
        run.show(loss=loss)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(c.parameters(), 5.0)
        opt.step()
        average.update(c)
    return run.finish(batch)
