"""`train NAME`: on CPU or CUDA; schedules run by the clock, checkpoints every few minutes."""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tqdm import tqdm

from . import align, augment, data, nets
from .moved import Mover


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["generator", "classifier", "ablation", "joint", "tiny", "identity", "swap", "makeup"])
    data.add_data_argument(parser)
    parser.add_argument("--pairs", type=Path, default=data.WORK / "pairs.npz", help="rendered pairs made by `synth`")
    parser.add_argument(
        "--flows", type=Path, default=data.WORK / "flows.npz", help="expressions for real faces, made by `synth --flows`"
    )
    parser.add_argument("--out", type=Path, default=data.WORK, help="folder for checkpoints and logs")
    parser.add_argument(
        "--generator", type=Path, help="classifier: generator weights (default OUT/generator.pt, else those of the bundle)"
    )
    parser.add_argument(
        "--recogniser",
        type=Path,
        default=data.BUNDLES / "identity" / "weights.safetensors",
        help="classifier: weights of the `identity` bundle, whose first blocks it starts from",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=14,
        help="length of the whole schedule, in time of the processor (of the wall with a GPU)",
    )
    parser.add_argument("--batch", type=int, default=0, help="pictures a step (default 48 or 64)")
    parser.add_argument("--rate", type=float, default=0.0, help="peak learning rate (default 1.5e-3, 0.07 or 0.04)")
    parser.add_argument(
        "--bundle",
        type=Path,
        default=data.BUNDLES / "derl" / "weights.safetensors",
        help="joint: the weights it starts from; tiny: its teacher; classifier: the generator, where there is no checkpoint",
    )
    parser.add_argument("--from-bundle", action="store_true", help="generator: go on from the bundle's weights")
    parser.add_argument("--faces", type=Path, default=data.WORK / "identity_faces.npz", help="identity: made by `faces`")
    parser.add_argument("--descriptor", type=Path, help="identity: folder `model` of @vladmandic/face-api, its first weights")
    parser.add_argument("--weights", type=Path, help="identity: weights.safetensors of a bundle to go on from; makeup: makeup.pt")
    parser.add_argument("--layers", type=Path, default=data.WORK / "cosmetics.npz", help="makeup: made by `cosmetics`")
    parser.add_argument("--gallery", type=Path, default=data.WORK / "gallery.npz", help="swap: made by `gallery`")
    parser.add_argument("--balance", type=float, default=0.25, help="classifier: 0 = classes as they come, 1 = all equal")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=float, default=120, help="seconds between checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def half() -> torch.autocast:
    """A forward pass in bfloat16, where the device multiplies in it; weights and losses stay in single precision."""
    where = device().type
    able = torch.cuda.is_bf16_supported() if where == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(where, torch.bfloat16, enabled=able)


class Average:
    """Exponential moving average of a module."""

    def __init__(self, module: torch.nn.Module, limit: float):
        self.module, self.limit, self.steps = copy.deepcopy(module).eval(), limit, 0

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        self.steps += 1
        keep = min(self.limit, self.steps / (self.steps + 20))
        for mine, theirs in zip(self.module.state_dict().values(), module.state_dict().values(), strict=True):
            if mine.dtype.is_floating_point:
                mine.mul_(keep).add_(theirs, alpha=1 - keep)
            else:
                mine.copy_(theirs)


class Clock:
    """Progress from 0 to 1 by time, over interruptions.

    Time is that of the processor over the threads, so that other work on the machine makes no schedule shorter; where a GPU does
    the work it is the wall's.
    """

    def __init__(self, minutes: float, spent: float = 0.0):
        self.now = time.time if torch.cuda.is_available() else lambda: time.process_time() / torch.get_num_threads()
        self.total, self.start = minutes * 60, self.now() - spent

    def spent(self) -> float:
        return self.now() - self.start

    def progress(self) -> float:
        return min(1.0, self.spent() / self.total)


def save(path: Path, state: dict) -> None:
    """Write beside, then rename: a checkpoint is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    torch.save(state, beside)
    os.replace(beside, path)


def rate(progress: float, step: int, peak: float, warm: int) -> float:
    return peak * min(1.0, (step + 1) / warm) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * progress)))


def pace(optimiser: torch.optim.Optimizer, progress: float, step: int, peak: float, warm: int) -> None:
    """Sets the learning rate of this step."""
    for group in optimiser.param_groups:
        group["lr"] = rate(progress, step, peak, warm)


class Run:
    """The steps of one schedule: `for progress in run:`. It goes on from its checkpoint with `--resume`, saves and judges every
    few minutes, and shows running means of what `show` is told.

    `parts` are what a checkpoint holds; each of `averages` is written beside it as OUT/KEY.pt; `judge` gives the figures of a
    checkpoint, `more` is kept in it too.
    """

    def __init__(self, name: str, args, parts: dict, averages: dict[str, Average], judge, more: dict | None = None):
        self.name, self.args, self.averages, self.judge, self.more = name, args, averages, judge, more or {}
        self.parts = {**parts, **{f"average {key}": average.module for key, average in averages.items()}}
        self.checkpoint, self.step, self.shown, spent = args.out / f"{name}.ckpt", 0, {}, 0.0
        if args.resume and self.checkpoint.exists():
            s = torch.load(self.checkpoint, weights_only=True)
            for key, part in self.parts.items():
                part.load_state_dict(s[key])
            self.step, spent, self.more = s["step"], s["spent"], s["more"]
            for average in averages.values():
                average.steps = self.step
        self.clock = Clock(args.minutes, spent)

    def __iter__(self):
        form = "{l_bar}{bar}| {elapsed}<{remaining} {postfix}"
        saved = time.time()
        with tqdm(total=1000, desc=self.name, bar_format=form, mininterval=20) as bar:
            while (progress := self.clock.progress()) < 1:
                yield progress
                self.step += 1
                if time.time() - saved > self.args.save_every:
                    saved = time.time()
                    self.keep()
                    told = {"minute": round(self.clock.spent() / 60, 1), "step": self.step, **self.shown, **self.judge()}
                    print(json.dumps(told), flush=True)
                bar.n = int(1000 * progress)
                bar.set_postfix(step=self.step, **self.shown, refresh=False)
                bar.update(0)

    def show(self, **values: torch.Tensor | float) -> None:
        for name, value in values.items():
            value = float(value.detach()) if torch.is_tensor(value) else value
            self.shown[name] = round(self.shown.get(name, value) + 0.02 * (value - self.shown.get(name, value)), 4)

    def keep(self) -> None:
        state = {key: part.state_dict() for key, part in self.parts.items()}
        save(self.checkpoint, {**state, "step": self.step, "spent": self.clock.spent(), "more": self.more})
        for key, average in self.averages.items():
            save(self.args.out / f"{key}.pt", average.module.state_dict())

    def finish(self, batch: int, **more) -> int:
        """Keeps the end, and writes what is measured of it to OUT/NAME.json."""
        self.keep()
        result = {**self.judge(), "steps": self.step, "pictures": self.step * batch, **more}
        (self.args.out / f"{self.name}.json").write_text(json.dumps(result, indent=1))
        print(json.dumps(result))
        return 0


# --- generator -------------------------------------------------------------------------------------------------------


def london_pairs(root: Path) -> dict[str, np.ndarray]:
    """Aligned (smile, neutral) luminance of each person. The neutral face is laid on the smile by eyes and nose."""
    marks = np.load(root / "london" / "landmarks.npz")
    at = {str(f): p for f, p in zip(marks["files"], marks["yunet5"], strict=True)}
    faces, neutrals, still, validation = [], [], [], []
    held = data.london_validation(root)
    for person in data.london_people(root):
        smile, neutral = (data.rgb(root / "london" / f"{person}_{k}.jpg") for k in ("smile", "neutral"))
        ps, pn = at[f"{person}_smile.jpg"], at[f"{person}_neutral.jpg"]
        m = align.similarity(ps, align.template())
        seen = ps[:3] @ m[:, :2].T + m[:, 2]
        faces.append(align.luminance64(align.warp(smile, m)))
        neutrals.append(align.luminance64(align.warp(neutral, align.similarity(pn[:3], seen))))
        still.append(align.luminance64(align.align(neutral, pn)))
        validation.append(person in held)
    return {
        "face": np.stack(faces),
        "neutral": np.stack(neutrals),
        "still": np.stack(still),
        "validation": np.asarray(validation),
    }


def canada_faces(root: Path) -> np.ndarray:
    """Aligned luminance of each person, all calm."""
    marks = np.load(root / "canada" / "landmarks.npz")
    pictures = (data.rgb(root / "canada" / str(f)) for f in marks["files"])
    return np.stack([align.luminance64(align.align(rgb, p)) for rgb, p in zip(pictures, marks["yunet5"], strict=True)])


def generator_data(args) -> dict[str, torch.Tensor]:
    pairs = np.load(args.pairs)
    # Unseen identities judge: every tenth rendered person, every seventh VALID head.
    held = np.where(pairs["rig"] == 1, pairs["person"] % 7 == 3, pairs["person"] % 10 == 3)
    pair = np.stack([pairs["face"], pairs["neutral"]], 1)
    out = {"render": pair[~held], "render_label": pairs["label"][~held]}
    some = np.nonzero(held & (pairs["label"] != 0))[0][:800]
    out["render_valid"] = pair[some]
    out["still_valid"] = pair[np.nonzero(held & (pairs["label"] == 0))[0][:200]]
    real = london_pairs(args.data)
    london = np.stack([real["face"], real["neutral"]], 1)
    out["london"] = london[~real["validation"]]
    out["london_valid"] = london[real["validation"]]
    train = data.ferplus(args.data, "train")
    faces = align.crop64(train.images)
    share = train.votes[:, :8] / np.maximum(train.votes.sum(1, keepdims=True), 1)
    calm = faces[share[:, 0] >= 0.7]
    out["calm"] = np.concatenate([calm, *[canada_faces(args.data)] * 4, *[real["still"][~real["validation"]]] * 4])[:, None]
    out["moved"] = faces[(share[:, 0] <= 0.2) & (share[:, 1:8].max(1) >= 0.6)][:, None]
    return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in out.items()}


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """In decibels, over grey levels 0..255 (mean over pictures)."""
    return float((10 * torch.log10(255**2 / ((a - b) ** 2).mean((1, 2, 3)).clamp_min(1e-6))).mean())


@torch.no_grad()
def neutralise(generator: nets.Generator, faces: torch.Tensor) -> torch.Tensor:
    """Grey levels in, grey levels out."""
    out = []
    for x in faces.float().split(128):
        mean, std = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True, correction=0) + 8
        delta, _ = generator(last((x - mean) / std))
        out.append((x + delta * std).clamp(0, 255))
    return torch.cat(out)


def judge_generator(generator: nets.Generator, d: dict) -> dict:
    generator.eval()
    mask = nets.face_mask()
    result = {}
    for name in ("render_valid", "still_valid", "london_valid"):
        x, y = d[name][:, :1].float(), d[name][:, 1:].float()
        made = neutralise(generator, x)
        result[name] = {
            "psnr": round(psnr(made * mask, y * mask), 3),
            "psnr_copy": round(psnr(x * mask, y * mask), 3),
            "l1": round(float(((made - y).abs() * mask).sum() / mask.sum() / len(x)), 3),
            "l1_copy": round(float(((x - y).abs() * mask).sum() / mask.sum() / len(x)), 3),
            "nearer": round(
                float((((made - y).abs() * mask).sum((1, 2, 3)) < ((x - y).abs() * mask).sum((1, 2, 3))).float().mean()), 3
            ),
        }
    return result


def weight_map() -> torch.Tensor:
    """Where expression lives: mouth and eyes count more."""
    mouth, eyes = nets.mouth_and_eyes()
    w = 0.6 + 0.4 * nets.face_mask()[0, 0] + 2.0 * mouth + 1.2 * eyes
    return (w / w.mean())[None, None].float()


def train_generator(args) -> int:
    torch.manual_seed(args.seed)
    where = device()
    d = generator_data(args)
    print({k: len(v) for k, v in d.items()}, flush=True)
    g = nets.Generator()
    if args.from_bundle:
        start = torch.cat([d[kind][:96, :1] for kind in ("render", "calm", "moved")]).float()
        weights = load_file(args.bundle)
        nets.unfold(g, nets.part(weights, "generator"), augment.standardise(start))
    g = g.to(where, memory_format=torch.channels_last)
    pair_judge, face_judge = (nets.Discriminator(n).to(where, memory_format=torch.channels_last) for n in (2, 1))
    average = Average(g, 0.998)
    peak = args.rate or 1.5e-3
    opt = torch.optim.AdamW(g.parameters(), peak, betas=(0.5, 0.99), weight_decay=0.01)
    opt_d = torch.optim.Adam([*pair_judge.parameters(), *face_judge.parameters()], 4e-4, betas=(0.5, 0.99))
    batch = args.batch or 48
    mover = Mover(args.flows)
    n_render, n_london, n_lent, n_calm = batch // 4, batch // 8, batch // 4, batch // 8
    n_moved = batch - n_render - n_london - n_lent - n_calm
    weights = weight_map().to(where)
    calm_area = (weights < 1).float()

    def pick(name, n):
        return d[name][torch.randint(0, len(d[name]), (n,))].float()

    parts = {"g": g, "pair": pair_judge, "face": face_judge, "opt": opt, "opt_d": opt_d}
    run = Run("generator", args, parts, {"generator": average}, lambda: judge_generator(average.module, d))
    for progress in run:
        pace(opt, progress, run.step, peak, 100)
        rendered = augment.affine(pick("render", n_render), 0.05, 0.03, 0.02)
        real = augment.affine(pick("london", n_london), 0.15, 0.08, 0.06)
        lent = augment.affine(mover(pick("calm", n_lent)), 0.15, 0.1, 0.08)
        calm = augment.affine(pick("calm", n_calm).repeat(1, 2, 1, 1), 0.12, 0.08, 0.06)
        moved = augment.affine(pick("moved", n_moved).repeat(1, 2, 1, 1), 0.12, 0.08, 0.06)
        pairs = torch.cat([rendered, real, lent, calm, moved])
        pairs = augment.noise(augment.small(augment.tone(pairs)))
        pairs = last(augment.standardise(pairs, pairs[:, :1]).to(where))
        x, target = pairs[:, :1], pairs[:, 1:]
        n_known = n_render + n_london + n_lent + n_calm
        g.train()
        delta, _ = g(last(x))
        made = x + delta
        # Huber, not plain L1: most pixels must not change, and L1 would hold every delta at zero for long.
        error = F.smooth_l1_loss(made, target, beta=0.25, reduction="none") * weights
        known = (made - target)[:n_known]
        edges = known.diff(dim=3).abs().mean() + known.diff(dim=2).abs().mean()
        # Faces without a known neutral: keep what is not expression, and let the judge of single faces do the rest.
        loss = 10 * error[:n_known].mean() + 2 * edges + (error[n_known:] * (0.2 + 2.5 * calm_area)).mean()
        adversarial = progress > 0.1
        if adversarial:
            fooled = pair_judge(last(torch.cat([x, made], 1)[:n_known]))
            natural = face_judge(last(made[n_known:]))
            loss = loss - 0.05 * fooled.mean() - 0.2 * natural.mean()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(g.parameters(), 5.0)
        opt.step()
        if adversarial or run.step % 4 == 0:
            fake = made.detach()
            real_pair = pair_judge(last(torch.cat([x, target], 1)[:n_known]))
            fake_pair = pair_judge(last(torch.cat([x, fake], 1)[:n_known]))
            real_face = face_judge(last(x[n_known - n_calm : n_known]))
            fake_face = face_judge(last(fake[n_known:]))
            loss_d = F.relu(1 - real_pair).mean() + F.relu(1 + fake_pair).mean()
            loss_d = loss_d + F.relu(1 - real_face).mean() + F.relu(1 + fake_face).mean()
            opt_d.zero_grad(set_to_none=True)
            loss_d.backward()
            opt_d.step()
            run.show(D=loss_d)
        average.update(g)
        run.show(L1=error[:n_known].mean())
    return run.finish(batch)


def keep_freed_memory() -> None:
    """glibc gives large blocks back to the kernel at once, and clearing new pages costs a tenth of a step."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((-3, 1 << 30), (-1, (1 << 31) - 1)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(option, value)


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    from . import classifier, identity, joint, makeup, swap, tiny

    steps = {
        "generator": train_generator,
        "classifier": classifier.train,
        "ablation": classifier.ablation,
        "joint": joint.run,
        "tiny": tiny.train,
        "identity": identity.train,
        "swap": swap.train,
        "makeup": makeup.train,
    }
    return steps[args.what](args)
