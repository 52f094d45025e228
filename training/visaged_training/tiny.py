"""`train tiny`: the small network for boards without dot products, taught by the `derl` bundle.

It learns from the same faces as the large one. Its generator learns what the large one made of each (so it needs no
adversary), and is frozen half-way; its classifier learns from the votes and from the large one's probabilities, in equal
parts. The teacher looks once, at each face as it is and in the mirror; the pupil sees it as a poor camera would.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tqdm import tqdm

from . import augment, data, nets, program
from .classifier import Faces, crops
from .train import Average, Run, device, last, pace, psnr, weight_map

FROZEN = 0.5  # of the schedule, from where on the generator stays as it is
TRUST = 0.5  # in the teacher's probabilities; the rest goes to the votes


@torch.no_grad()
def teach(teacher: nets.Derl, faces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Faces u8 [N, 1, 64, 64] -> faces with their neutral ones u8 [N, 2, 64, 64], probabilities [N, 8]."""
    both, sure = [], []
    for x in tqdm(faces.split(128), desc="teacher", mininterval=10):
        seen = last(augment.standardise(x.float()))
        neutral, logits, _ = teacher(seen)
        mirrored = teacher(seen.flip(3))[1]
        both.append(torch.cat([x, grey(neutral, x).round().to(torch.uint8)], 1))
        sure.append((logits.softmax(1) + mirrored.softmax(1)) / 2)
    return torch.cat(both), torch.cat(sure)


def grey(standardised: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Back to the grey levels of the faces that were standardised."""
    mean, spread = like.float().mean((2, 3), keepdim=True), like.float().std((2, 3), keepdim=True, correction=0) + 8
    return (standardised * spread + mean).clamp(0, 255)


class Lessons(Faces):
    """The faces of `train classifier`, each with the teacher's neutral face and its probabilities."""

    def __init__(self, args: argparse.Namespace, teacher: nets.Derl):
        super().__init__(args)
        self.faces, sure = teach(teacher, self.faces)
        self.target = (1 - TRUST) * self.target + TRUST * sure
        self.smiling, self.calm, self.frontal = (teach(teacher, faces)[0] for faces in (self.smiling, self.calm, self.frontal))

    def step(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Standardised faces with their neutral ones [N, 2, 64, 64], labels [N, 8]."""
        both, target = self.draw(count)
        both = augment.photograph(augment.sharpen(both))
        return last(augment.standardise(both, both[:, :1])), target


def judge(net: nets.Derl, seen: torch.Tensor, taught: torch.Tensor, valid: data.Ferplus) -> dict:
    """The classifier's scores, and how near its neutral faces come to the teacher's; `copy` is the picture as it is."""
    net.eval()
    with torch.no_grad():
        parts = [net(augment.standardise(x.float()))[:2] for x in seen.split(192)]
    made, want = grey(torch.cat([neutral for neutral, _ in parts]), seen), taught[:, 1:].float()
    scores = program.scores(torch.cat([logits for _, logits in parts]).argmax(1).numpy(), valid)
    return {**scores, "neutral_db": round(psnr(made, want), 2), "copy_db": round(psnr(seen.float(), want), 2)}


def train(args: argparse.Namespace) -> int:
    torch.manual_seed(args.seed)
    where = device()
    teacher = nets.fold(nets.derl("derl").eval())
    teacher.load_state_dict(load_file(args.bundle), strict=False)
    lessons, valid = Lessons(args, teacher), data.ferplus(args.data, "valid")
    seen = crops(valid.images)
    taught, _ = teach(teacher, seen)
    net = nets.derl("derl-tiny").to(where, memory_format=torch.channels_last)
    g, c = net.generator, net.classifier
    average = Average(net, 0.999)
    batch, peak = args.batch or 64, args.rate or 0.1
    opt_g = torch.optim.AdamW(g.parameters(), 3e-3, betas=(0.5, 0.99), weight_decay=0.01)
    opt_c = torch.optim.SGD(c.parameters(), peak, momentum=0.9, nesterov=True, weight_decay=1e-4)
    weights, parts = weight_map().to(where), {"net": net, "opt_g": opt_g, "opt_c": opt_c}
    run, frozen = Run("tiny", args, parts, {"tiny": average}, lambda: judge(average.module, seen, taught, valid)), False
    for progress in run:
        for opt, at, height in ((opt_c, progress, peak), (opt_g, min(1.0, progress / FROZEN), 3e-3)):
            pace(opt, at, run.step, height, 300)
        if progress >= FROZEN and not frozen:
            g.load_state_dict(average.module.generator.state_dict())
            g.requires_grad_(False)
            frozen = True
        both, votes = lessons.step(batch)
        both, votes = both.to(where), votes.to(where)
        x = augment.erase(both[:, :1])
        net.train()
        g.train(not frozen)
        delta, pairs = g(last(x))
        # Of what was erased nothing is wanted.
        error = F.smooth_l1_loss(delta, both[:, 1:] - both[:, :1], beta=0.25, reduction="none") * weights * (x == both[:, :1])
        logits = c(x, delta.detach(), [tuple(t.detach() for t in pair) for pair in pairs])
        entropy = -(votes * F.log_softmax(logits, 1)).sum(1).mean()
        loss = entropy if frozen else entropy + 10 * error.mean()
        for opt in (opt_g, opt_c):
            opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        opt_c.step()
        if not frozen:
            opt_g.step()
        average.update(net)
        run.show(loss=entropy, error=error.mean())
    return run.finish(batch)
