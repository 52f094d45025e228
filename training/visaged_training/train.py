"""`train NAME`: on CPU or CUDA; schedules run by the clock, checkpoints every few minutes."""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from . import EMOTIONS, align, augment, data, nets


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["generator", "classifier", "joint", "identity", "makeup"])
    data.add_data_argument(parser)
    parser.add_argument("--pairs", type=Path, default=data.WORK / "pairs.npz", help="rendered pairs made by `synth`")
    parser.add_argument("--out", type=Path, default=data.WORK, help="folder for checkpoints and logs")
    parser.add_argument("--generator", type=Path, help="classifier: generator weights (default OUT/generator.pt)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=14,
        help="length of the whole schedule, in time of the processor (of the wall with a GPU)",
    )
    parser.add_argument("--batch", type=int, default=0, help="pictures a step (default 48 or 64)")
    parser.add_argument("--rate", type=float, default=0.0, help="peak learning rate (default 1.5e-3, 0.07 or 0.04)")
    parser.add_argument(
        "--bundle", type=Path, default=data.BUNDLES / "derl" / "weights.safetensors", help="joint: the weights it starts from"
    )
    parser.add_argument("--faces", type=Path, default=data.WORK / "identity_faces.npz", help="identity: made by `faces`")
    parser.add_argument("--descriptor", type=Path, help="identity: folder `model` of @vladmandic/face-api, its first weights")
    parser.add_argument("--weights", type=Path, help="identity, makeup: weights.safetensors of a bundle to go on from")
    parser.add_argument("--layers", type=Path, default=data.WORK / "cosmetics.npz", help="makeup: made by `cosmetics`")
    parser.add_argument("--balance", type=float, default=0.25, help="classifier: 0 = classes as they come, 1 = all equal")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=float, default=120, help="seconds between checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


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


def generator_data(args) -> dict[str, torch.Tensor]:
    pairs = np.load(args.pairs)
    # Unseen identities judge: every tenth rendered person, every seventh VALID head.
    held = np.where(pairs["rig"] == 0, pairs["person"] % 10 == 3, pairs["person"] % 7 == 3)
    pair = np.stack([pairs["face"], pairs["neutral"]], 1)
    out = {"render": pair[~held], "render_label": pairs["label"][~held]}
    some = np.nonzero(held & (pairs["label"] != 0))[0][:800]
    out["render_valid"] = pair[some]
    out["still_valid"] = pair[np.nonzero(held & (pairs["label"] == 0))[0][:200]]
    real = london_pairs(args.data)
    london = np.stack([real["face"], real["neutral"]], 1)
    out["london"] = london[~real["validation"]]
    out["london_valid"] = london[real["validation"]]
    marks = np.load(args.data / "canada" / "landmarks.npz")
    canada = [
        align.luminance64(align.align(data.rgb(args.data / "canada" / str(f)), p))
        for f, p in zip(marks["files"], marks["yunet5"], strict=True)
    ]
    train = data.ferplus(args.data, "train")
    faces = align.crop64(train.images)
    share = train.votes[:, :8] / np.maximum(train.votes.sum(1, keepdims=True), 1)
    calm = faces[share[:, 0] >= 0.7]
    out["calm"] = np.concatenate([calm, *[np.stack(canada)] * 4, *[real["still"][~real["validation"]]] * 4])[:, None]
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
    g = nets.Generator().to(where, memory_format=torch.channels_last)
    pair_judge, face_judge = (nets.Discriminator(n).to(where, memory_format=torch.channels_last) for n in (2, 1))
    average = Average(g, 0.998)
    peak = args.rate or 1.5e-3
    opt = torch.optim.AdamW(g.parameters(), peak, betas=(0.5, 0.99), weight_decay=0.01)
    opt_d = torch.optim.Adam([*pair_judge.parameters(), *face_judge.parameters()], 4e-4, betas=(0.5, 0.99))
    batch = args.batch or 48
    n_render, n_london = batch // 2, batch // 8
    n_calm, n_moved = batch // 6, batch - batch // 2 - batch // 8 - batch // 6
    weights = weight_map().to(where)
    calm_area = (weights < 1).float()
    checkpoint, step, spent = args.out / "generator.ckpt", 0, 0.0
    if args.resume and checkpoint.exists():
        s = torch.load(checkpoint, weights_only=True)
        g.load_state_dict(s["g"])
        pair_judge.load_state_dict(s["pair"])
        face_judge.load_state_dict(s["face"])
        average.module.load_state_dict(s["average"])
        opt.load_state_dict(s["opt"])
        opt_d.load_state_dict(s["opt_d"])
        average.steps = step = s["step"]
        spent = s["spent"]
    clock, saved, shown = Clock(args.minutes, spent), time.time(), {}
    bar = tqdm(total=1000, desc="generator", bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}", mininterval=10)

    def pick(name, n):
        return d[name][torch.randint(0, len(d[name]), (n,))].float()

    def state():
        return {
            "g": g.state_dict(), "pair": pair_judge.state_dict(), "face": face_judge.state_dict(),
            "average": average.module.state_dict(), "opt": opt.state_dict(), "opt_d": opt_d.state_dict(),
            "step": step, "spent": clock.spent(),
        }  # fmt: skip

    while (progress := clock.progress()) < 1:
        for group in opt.param_groups:
            group["lr"] = rate(progress, step, peak, 100)
        rendered = augment.affine(pick("render", n_render), 0.05, 0.03, 0.02)
        real = augment.affine(pick("london", n_london), 0.15, 0.08, 0.06)
        calm = augment.affine(pick("calm", n_calm).repeat(1, 2, 1, 1), 0.12, 0.08, 0.06)
        moved = augment.affine(pick("moved", n_moved).repeat(1, 2, 1, 1), 0.12, 0.08, 0.06)
        pairs = torch.cat([rendered, real, calm, moved])
        pairs = augment.noise(augment.small(augment.tone(pairs)))
        pairs = last(augment.standardise(pairs, pairs[:, :1]).to(where))
        x, target = pairs[:, :1], pairs[:, 1:]
        n_known = n_render + n_london + n_calm
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
        if adversarial or step % 4 == 0:
            fake = made.detach()
            real_pair = pair_judge(last(torch.cat([x, target], 1)[:n_known]))
            fake_pair = pair_judge(last(torch.cat([x, fake], 1)[:n_known]))
            real_face = face_judge(last(x[n_render + n_london : n_known]))
            fake_face = face_judge(last(fake[n_known:]))
            loss_d = F.relu(1 - real_pair).mean() + F.relu(1 + fake_pair).mean()
            loss_d = loss_d + F.relu(1 - real_face).mean() + F.relu(1 + fake_face).mean()
            opt_d.zero_grad(set_to_none=True)
            loss_d.backward()
            opt_d.step()
            shown["D"] = round(loss_d.item(), 2)
        average.update(g)
        step += 1
        shown["L1"] = round(error[:n_known].mean().item(), 3)
        if time.time() - saved > args.save_every:
            saved = time.time()
            save(checkpoint, state())
            save(args.out / "generator.pt", average.module.state_dict())
            r = judge_generator(average.module, d)
            print(json.dumps({"minute": round(clock.spent() / 60, 1), "step": step, **shown, **r}), flush=True)
        bar.n = int(1000 * progress)
        bar.set_postfix(step=step, **shown, refresh=False)
        bar.update(0)
    bar.close()
    save(checkpoint, state())
    save(args.out / "generator.pt", average.module.state_dict())
    result = judge_generator(average.module, d)
    result["steps"], result["pictures"] = step, step * batch
    (args.out / "generator.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result))
    return 0


class Frozen:
    """The frozen generator as a source of layer pairs. On a CPU it runs in ONNX Runtime, twice as fast as in torch."""

    def __init__(self, generator: nets.Generator, where: torch.device, threads: int):
        self.generator, self.where, self.net = generator, where, None
        if where.type == "cpu":
            import io

            from .yunet import session

            class Pairs(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.generator = generator

                def forward(self, x):
                    return [t for pair in self.generator(x)[1] for t in pair]

            names = [f"{side}{k}" for k in range(4) for side in "ed"]
            blob = io.BytesIO()
            torch.onnx.export(
                Pairs().eval(),
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
            return self.generator(last(x.to(self.where)))[1]
        out = [torch.from_numpy(t) for t in self.net.run(None, {"x": x.contiguous().numpy()})]
        return list(zip(out[::2], out[1::2], strict=True))


# --- classifier ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict(frozen: Frozen, classifier: nets.Classifier, faces: torch.Tensor) -> torch.Tensor:
    """Logits for grey faces [N, 1, 64, 64] in grey levels."""
    classifier.eval()
    out = [classifier(frozen(augment.standardise(x))) for x in faces.float().split(192)]
    return torch.cat(out).cpu()


def judge_classifier(logits: torch.Tensor, valid: data.Ferplus) -> dict:
    use = valid.plurality >= 0
    answer = logits.argmax(1).numpy()
    right = answer == valid.plurality
    recall = [float(right[valid.plurality == c].mean()) for c in range(8)]
    return {
        "plurality": round(float(right[use].mean()), 4),
        "strict": round(float(right[valid.strict].mean()), 4),
        "mean_recall": round(float(np.mean(recall)), 4),
        "recall": {n: round(r, 3) for n, r in zip(EMOTIONS, recall, strict=True)},
    }


def sampling(target: np.ndarray, balance: float) -> np.ndarray:
    """Probability of each picture: rare classes come up more often, by `balance`."""
    winner = target.argmax(1)
    count = np.bincount(winner, minlength=8)
    p = (count[winner] / count.sum()) ** -balance
    return p / p.sum()


def train_classifier(args) -> int:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    where = device()
    train, valid = data.ferplus(args.data, "train"), data.ferplus(args.data, "valid")
    target, keep = data.soft_labels(train.votes)
    faces = torch.from_numpy(align.crop64(train.images[keep]))[:, None]
    target = torch.from_numpy(target[keep])
    chance = sampling(target.numpy(), args.balance)
    seen = torch.from_numpy(align.crop64(valid.images))[:, None]
    g = nets.Generator()
    g.load_state_dict(torch.load(args.generator or args.out / "generator.pt", weights_only=True))
    g = Frozen(nets.fold(g.eval()).requires_grad_(False).to(where), where, args.threads)
    c = nets.Classifier().to(where, memory_format=torch.channels_last)
    average = Average(c, 0.998)
    peak, batch = args.rate or 0.07, args.batch or 64
    matrices = [p for p in c.parameters() if p.ndim > 1]
    others = [p for p in c.parameters() if p.ndim <= 1]
    opt = torch.optim.SGD(
        [{"params": matrices, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0}],
        peak,
        momentum=0.9,
        nesterov=True,
    )
    checkpoint, step, spent = args.out / "classifier.ckpt", 0, 0.0
    if args.resume and checkpoint.exists():
        s = torch.load(checkpoint, weights_only=True)
        c.load_state_dict(s["c"])
        average.module.load_state_dict(s["average"])
        opt.load_state_dict(s["opt"])
        average.steps = step = s["step"]
        spent = s["spent"]
    clock, saved, shown = Clock(args.minutes, spent), time.time(), 0.0
    bar = tqdm(total=1000, desc="classifier", bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}", mininterval=10)
    order, at = None, 0

    def state():
        return {
            "c": c.state_dict(), "average": average.module.state_dict(), "opt": opt.state_dict(), "step": step,
            "spent": clock.spent(),
        }  # fmt: skip

    while (progress := clock.progress()) < 1:
        for group in opt.param_groups:
            group["lr"] = rate(progress, step, peak, 300)
        if order is None or at + batch > len(order):
            order, at = rng.choice(len(faces), len(faces), p=chance), 0
        chosen = torch.from_numpy(order[at : at + batch])
        at += batch
        x = augment.erase(augment.standardise(augment.photograph(faces[chosen].float())))
        y = target[chosen].to(where)
        c.train()
        logits, heads = c(g(x), auxiliary=True)
        loss = -(y * F.log_softmax(logits, 1)).sum(1).mean()
        shown += 0.02 * (loss.item() - shown) if shown else loss.item()
        for head, share in zip(heads, (0.4, 0.2, 0.1, 0.1), strict=True):
            loss = loss - share * (y * F.log_softmax(head, 1)).sum(1).mean()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(c.parameters(), 5.0)
        opt.step()
        average.update(c)
        step += 1
        if time.time() - saved > args.save_every:
            saved = time.time()
            save(checkpoint, state())
            save(args.out / "classifier.pt", average.module.state_dict())
            r = judge_classifier(predict(g, average.module, seen), valid)
            r = {"minute": round(clock.spent() / 60, 1), "step": step, "pictures": step * batch, "loss": round(shown, 3), **r}
            print(json.dumps(r), flush=True)
        bar.n = int(1000 * progress)
        bar.set_postfix(step=step, loss=round(shown, 3), refresh=False)
        bar.update(0)
    bar.close()
    save(checkpoint, state())
    save(args.out / "classifier.pt", average.module.state_dict())
    result = judge_classifier(predict(g, average.module, seen), valid)
    result["steps"], result["pictures"] = step, step * batch
    (args.out / "classifier.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result))
    return 0


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what in ("joint", "identity", "makeup"):
        from . import identity, joint, makeup

        return {"joint": joint.run, "identity": identity.train, "makeup": makeup.train}[args.what](args)
    return train_generator(args) if args.what == "generator" else train_classifier(args)
