"""`train joint`: generator and classifier together from the bundle's weights, then the generator frozen.

The paper freezes the generator before anything reads its layers. Trained on pairs alone, it leaves expressions in real
photographs and keeps little that tells the rare emotions apart. So for the first part of the schedule three more things
move it, each with a small weight: the classifier's own loss, through its layers; a judge, the classifier and generator
of the last bundle, that should call what it made of an expressive photograph neutral, seen through a blur and a shift so
that no pattern invisible to a person will do; and the adversary that looks at single faces. Then it is frozen, as in the
paper, and the classifier goes on alone.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from . import augment, data, nets, program
from .classifier import Frozen, Photographs, crops, predict
from .train import Average, Run, device, generator_data, judge_generator, last, london_pairs, pace, weight_map

TOGETHER = 0.32  # share of the schedule before the generator is frozen
SHARE = 0.25  # how much of the classifier's gradient reaches the generator
BATCH = {"ferplus": 64, "render": 16, "london": 6}
SOFTENED = 0.1  # of a rendered or posed label's certainty goes to the other emotions
ENOUGH = 12  # expressive photographs a step that the judge of neutrality sees


def bundle_modules(path) -> tuple[nets.Derl, nets.Derl]:
    """The bundle as it is, folded and frozen, and an empty module of the same shape with batch norm."""
    folded = nets.derl("derl")
    nets.fold(folded.eval())
    folded.load_state_dict(load_file(path), strict=False)
    return folded.requires_grad_(False).eval(), nets.derl("derl")


def labels(hard: np.ndarray) -> np.ndarray:
    """One-hot, softened."""
    return (np.eye(8, dtype=np.float32)[hard] * (1 - SOFTENED) + SOFTENED / 8).astype(np.float32)


class Material(Photographs):
    """What a step is made of: FER+ with votes, rendered pairs, London pairs; each face with its neutral where known."""

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        self.valid = data.ferplus(args.data, "valid")
        self.seen = crops(self.valid.images)
        self.pairs = generator_data(args)
        real = london_pairs(args.data)
        use = ~real["validation"]
        # A smile with the person's neutral face, and the neutral face with itself.
        self.london = torch.from_numpy(
            np.concatenate([np.stack([real["face"], real["neutral"]], 1), np.stack([real["still"]] * 2, 1)])[np.tile(use, 2)]
        )
        self.london_target = torch.from_numpy(labels(np.repeat([1, 0], use.sum())))
        self.render_target = torch.from_numpy(labels(self.pairs["render_label"].numpy().astype(int)))

    def step(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Faces with their neutral ones [N, 2, 64, 64] standardised (FER+ first, twice the face), labels [N, 8]."""
        faces, votes = self.ferplus(BATCH["ferplus"])
        r = torch.randint(0, len(self.pairs["render"]), (BATCH["render"],))
        k = torch.randint(0, len(self.london), (BATCH["london"],))
        photographs = augment.affine(faces.repeat(1, 2, 1, 1), 0.24, 0.15, 0.12)
        rendered = augment.affine(self.pairs["render"][r].float(), 0.05, 0.03, 0.02)
        london = augment.affine(self.london[k].float(), 0.15, 0.08, 0.06)
        both = augment.noise(augment.small(augment.tone(torch.cat([photographs, rendered, london]))))
        both = augment.standardise(both, both[:, :1])
        return last(both), torch.cat([votes, self.render_target[r], self.london_target[k]]), faces


def damped(pairs, share: float):
    """The same layers, with a gradient that goes back at a share of its size."""
    return [tuple(t * share + t.detach() * (1 - share) for t in pair) for pair in pairs]


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -(target * F.log_softmax(logits, 1)).sum(1)


class Neutraliser:
    """The losses of the generator: known pairs, the two adversaries, and the judge of neutrality."""

    def __init__(self, judge: nets.Derl, where: torch.device):
        self.judge = judge
        self.pair, self.face = (nets.Discriminator(n).to(where, memory_format=torch.channels_last) for n in (2, 1))
        self.weights = weight_map().to(where)
        self.calm_area = (self.weights < 1).float()
        self.optimiser = torch.optim.Adam([*self.pair.parameters(), *self.face.parameters()], 4e-4, betas=(0.5, 0.99))

    def __call__(self, both, made, votes, adversarial: bool) -> tuple[torch.Tensor, dict]:
        n = BATCH["ferplus"]
        x, target = both[:, :1], both[:, 1:]
        calm = torch.nonzero(votes[:n, 0] >= 0.7).flatten()
        moved = torch.nonzero((votes[:n, 0] <= 0.2) & (votes[:n, 1:].max(1).values >= 0.6)).flatten()
        known = torch.cat([calm, torch.arange(n, len(both))])
        error = F.smooth_l1_loss(made, target, beta=0.25, reduction="none") * self.weights
        off = (made - target)[known]
        edges = off.diff(dim=3).abs().mean() + off.diff(dim=2).abs().mean()
        loss = 10 * error[known].mean() + 2 * edges + (error[moved] * (0.2 + 2.5 * self.calm_area)).mean()
        some = moved[:ENOUGH]
        blurred = F.avg_pool2d(F.pad(made[some], (1, 1, 1, 1), mode="replicate"), 3, 1) if torch.rand(()) < 0.5 else made[some]
        shifted = augment.affine(blurred, 0.1, 0.06, 0.05)
        judged = self.judge(last(shifted))[1]
        neutral = -F.log_softmax(judged, 1)[:, 0].mean()
        loss = loss + 0.25 * neutral
        if adversarial:
            fooled = self.pair(last(torch.cat([x, made], 1)[known]))
            loss = loss - 0.05 * fooled.mean() - 0.2 * self.face(last(made[moved])).mean()
        self.sets = (known, moved, calm)
        return loss, {"L1": error[known].mean().item(), "judge": neutral.item()}

    def learn(self, both, made) -> float:
        """One step of the adversaries (hinge)."""
        x, target = both[:, :1], both[:, 1:]
        known, moved, calm = self.sets
        made = made.detach()
        real_pair, fake_pair = (self.pair(last(torch.cat([x, y], 1)[known])) for y in (target, made))
        real_face, fake_face = self.face(last(x[calm])), self.face(last(made[moved]))
        loss = sum(F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in ((real_pair, fake_pair), (real_face, fake_face)))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return loss.item()


@torch.no_grad()
def judged_neutral(judge: nets.Derl, generator: nets.Generator, material: Material) -> float:
    """Share of strictly happy or surprised FER+ valid faces whose neutral face the judge calls neutral."""
    happy = material.valid.strict & np.isin(material.valid.plurality, (1, 2))
    right = []
    for x in augment.standardise(material.seen[happy][:600].float()).split(150):
        made = x + generator(last(x))[0]
        right.append(judge(last(made))[1].argmax(1) == 0)
    return round(float(torch.cat(right).float().mean()), 4)


def run(args: argparse.Namespace) -> int:
    torch.manual_seed(args.seed)
    where = device()
    material = Material(args)
    judge, net = bundle_modules(args.bundle)
    start, _, _ = (torch.cat(parts) for parts in zip(*(material.step() for _ in range(6)), strict=True))
    nets.unfold(net, load_file(args.bundle), start[:, :1])
    judge, net = judge.to(where), net.to(where, memory_format=torch.channels_last)
    g, c = net.generator, net.classifier
    losses = Neutraliser(judge, where)
    average_g, average_c = Average(g, 0.998), Average(c, 0.999)
    peak_g, peak_c = 8e-4, args.rate or 0.04
    opt_g = torch.optim.AdamW(g.parameters(), peak_g, betas=(0.5, 0.99), weight_decay=0.01)
    matrices, others = ([p for p in c.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    opt_c = torch.optim.SGD(
        [{"params": matrices, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0}], peak_c, momentum=0.9, nesterov=True
    )
    parts = {
        "g": g, "c": c, "opt_g": opt_g, "opt_c": opt_c,
        "pair": losses.pair, "face": losses.face, "opt_d": losses.optimiser,
    }  # fmt: skip

    def judgement() -> dict:
        still = Frozen(nets.fold(Average(average_g.module, 1).module).to(where), where, args.threads)
        return {
            **program.scores(predict(still, average_c.module, material.seen).argmax(1).numpy(), material.valid),
            **judge_generator(average_g.module, material.pairs),
            "judged_neutral": judged_neutral(judge, average_g.module, material),
        }

    run = Run("joint", args, parts, {"generator": average_g, "classifier": average_c}, judgement)
    frozen, batch = None, sum(BATCH.values())
    for progress in run:
        together = progress < TOGETHER
        for opt, at, peak in ((opt_c, progress, peak_c), (opt_g, progress / TOGETHER, peak_g)):
            pace(opt, min(1.0, at), run.step, peak, 300)
        if not together and frozen is None:
            g.load_state_dict(average_g.module.state_dict())
            frozen = Frozen(nets.fold(Average(g, 1).module).requires_grad_(False).to(where), where, args.threads)
        both, votes, _ = material.step()
        both, votes = both.to(where), votes.to(where)
        x = both[:, :1]
        c.train()
        if together:
            g.train()
            erased = augment.erase(x)
            delta, pairs = g(last(erased))
            made = erased + delta
            # A neutral face is wanted of what the generator saw, holes and all.
            both = torch.cat([erased, torch.where(erased == x, both[:, 1:], erased)], 1)
            loss, figures = losses(both, made, votes, adversarial=run.step > 300)
            delta, pairs = damped([(delta, delta)], SHARE)[0][0], damped(pairs, SHARE)
        else:
            erased = augment.erase(x)
            loss, figures, (delta, pairs) = 0.0, {}, frozen(erased)
        logits = c(erased, delta, pairs)
        entropy = cross_entropy(logits, votes)
        run.show(loss=entropy[: BATCH["ferplus"]].mean(), **figures)
        loss = loss + entropy.mean()
        opt_c.zero_grad(set_to_none=True)
        opt_g.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(c.parameters(), 5.0)
        opt_c.step()
        if together:
            torch.nn.utils.clip_grad_norm_(g.parameters(), 5.0)
            opt_g.step()
            if run.step % 2 == 0:
                run.show(D=losses.learn(both, made))
            average_g.update(g)
        average_c.update(c)
    return run.finish(batch, together=TOGETHER, share=SHARE)
