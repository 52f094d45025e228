"""Make-up put on and taken off: PairedCycleGAN (Chang, Lu, Yu, Finkelstein, CVPR 2018), small enough for int8 on the device.

From the paper: G puts the make-up of a reference on a face, F takes make-up off, F(G(x, y)) is to be x, and a judge of pairs
(reference, result) whose real pairs show one style on two people. Ours: both nets give a delta that is added to the face, so a
strength is a factor; and the pairs need no warping, because make-up is painted on faces whose light and layers are known
(`cosmetics`), so that the right answer is known for every face, style and reference.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from . import augment, cosmetics, nets
from .train import Average, Clock, last, rate, save

SIDE = 128
UNIT = 64.0  # grey levels in what the nets read and give
BATCH = 16


class Changer(nn.Module):
    """One or two RGB pictures [N, 3, 128, 128] in units of 64 grey levels -> delta [N, 3, 128, 128] in the same unit.

    The face that is changed joins again at full size, where lines and edges are made.
    """

    def __init__(self, pictures: int, widths=(16, 32, 64, 96)):
        super().__init__()
        a, b, c, d = widths
        conv = nets.ConvRelu
        self.e1 = nn.Sequential(conv(3 * pictures, a, stride=2), conv(a, a))  # 64
        self.e2 = nn.Sequential(conv(a, b, stride=2), conv(b, b))  # 32
        self.e3 = nn.Sequential(conv(b, c, stride=2), nets.Block(c))  # 16
        self.e4 = nn.Sequential(conv(c, d, stride=2), nets.Block(d))  # 8
        self.r3, self.d3 = conv(d, c, 1), nets.conv_bn(c, c)
        self.r2, self.d2 = conv(c, b, 1), nets.conv_bn(b, b)
        self.r1, self.d1 = conv(b, a, 1), nets.conv_bn(a, a)
        self.r0, self.face = conv(a, 12, 1), conv(3, 12, 1)
        self.d0 = conv(12, 12)
        self.out = nn.Conv2d(12, 3, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, face, reference=None):
        e1 = self.e1(face if reference is None else torch.cat([face, reference], 1))
        e2 = self.e2(e1)
        e3 = self.e3(e2)
        e4 = self.e4(e3)
        d3 = F.relu(self.d3(nets.up(self.r3(e4))) + e3)
        d2 = F.relu(self.d2(nets.up(self.r2(d3))) + e2)
        d1 = F.relu(self.d1(nets.up(self.r1(d2))) + e1)
        return self.out(self.d0(nets.up(self.r0(d1)) + self.face(face)))


class Makeup(nn.Module):
    """What is shipped: face and reference in grey levels -> what applying adds, what baring adds, in grey levels."""

    def __init__(self):
        super().__init__()
        self.apply_net, self.bare_net = Changer(2), Changer(1)

    def forward(self, face, reference):
        face, reference = face / UNIT, reference / UNIT
        return self.apply_net(face, reference) * UNIT, self.bare_net(face) * UNIT


class Shipped(nn.Module):
    """`Makeup` with batch norm and the unit folded into its convolutions."""

    def __init__(self, net: Makeup):
        super().__init__()
        self.apply_net, self.bare_net = nets.fold(net.eval()).apply_net, net.bare_net
        with torch.no_grad():
            for part in (self.apply_net, self.bare_net):
                for first in (part.e1[0].body, part.face.body):
                    first.weight /= UNIT
                part.out.weight *= UNIT
                part.out.bias *= UNIT

    def forward(self, face, reference):
        return self.apply_net(face, reference), self.bare_net(face)


# --- material --------------------------------------------------------------------------------------------------------


def paint(bare, light, masks, style):
    """`cosmetics.paint` on batches [N, C, H, W]; masks 0..1, style [N, 6, 4]."""
    light = light / cosmetics.LIGHT_UNIT
    skin = masks[:, 5:]
    own = (bare / light.clamp_min(0.15) * skin).sum((2, 3)) / skin.sum((2, 3)).clamp_min(1e-6)
    out = bare
    for k in cosmetics.ORDER:
        share = masks[:, k : k + 1] * style[:, k, 3].view(-1, 1, 1, 1)
        colour = own * style[:, k, :3] if k == 5 else style[:, k, :3]
        out = out * (1 - share) + share * colour[:, :, None, None] * light
    return out.clamp(0, 255)


def touched(masks, style):
    """How much of each pixel is made up, [N, 1, H, W] in 0..1."""
    return (masks * style[:, :, 3].view(-1, 6, 1, 1)).amax(1, keepdim=True)


class Material:
    """Faces that learn and faces that judge: every tenth MakeHuman person, every seventh VALID head, held-out London people."""

    def __init__(self, file):
        z = np.load(file)
        pack, person = z["pack"], z["person"]
        self.held = ((pack == "makehuman") & (person % 10 == 3)) | ((pack == "valid") & (person % 7 == 3))
        self.real = np.isin(pack, ("sfhq", "london", "canada"))
        self.real_held = pack == "london_held"
        self.pack, self.person = pack, person
        self.all = [torch.from_numpy(z[k]).permute(0, 3, 1, 2) for k in ("bare", "light", "masks")]
        renders = np.isin(pack, ("makehuman", "valid")) & ~self.held
        self.chance = np.where(renders, 0.6 / renders.sum(), np.where(self.real, 0.4 / self.real.sum(), 0.0))
        self.chance /= self.chance.sum()

    def take(self, rows) -> torch.Tensor:
        """[N, 12, 128, 128] f32: bare, light, masks (all 0..255)."""
        rows = torch.as_tensor(rows)
        return torch.cat([t[rows].float() for t in self.all], 1)


def styles(rng: np.random.Generator, count: int, none: float) -> torch.Tensor:
    """Random styles; a share of them empty."""
    out = np.stack([cosmetics.style(rng) for _ in range(count)])
    out[rng.random(count) < none, :, 3] = 0
    return torch.from_numpy(out)


def colours(x):
    """White balance and tone of a camera."""
    gain = torch.exp(torch.randn(len(x), 3, 1, 1) * 0.06)
    return augment.tone((x * gain).clamp(0, 255), 0.25, 0.2)


class Pool:
    """Faces moved and lit at random; a few are made anew in each step, because that is dear and painting is cheap."""

    def __init__(self, material: Material, rng: np.random.Generator, size: int = 384, fresh: int = 8):
        self.material, self.rng, self.fresh, self.at = material, rng, fresh, 0
        self.faces = torch.cat([self._more(32) for _ in range(size // 32)])

    def _more(self, count: int) -> torch.Tensor:
        rows = self.rng.choice(len(self.material.chance), count, p=self.material.chance)
        parts = augment.affine(self.material.take(rows), 0.12, 0.08, 0.06)
        parts[:, :3] = augment.noise(colours(parts[:, :3]), 5)
        return parts

    def take(self, count: int) -> torch.Tensor:
        """[count, 12, 128, 128], all different."""
        self.faces[self.at : self.at + self.fresh] = self._more(self.fresh)
        self.at = (self.at + self.fresh) % len(self.faces)
        return self.faces[torch.from_numpy(self.rng.permutation(len(self.faces))[:count])]


def batch(pool: Pool, count: int):
    """(face, reference, face made up, how much is made up) of one step, grey levels; a reference in ten wears nothing."""
    parts = pool.take(2 * count)
    bare, light, masks = parts[:, :3], parts[:, 3:6], parts[:, 6:] / 255
    chosen = styles(pool.rng, count, 0.1).repeat(2, 1, 1)
    made = paint(bare, light, masks, chosen)
    return bare[:count], made[count:], made[:count], touched(masks, chosen)[:count]


# --- training --------------------------------------------------------------------------------------------------------


def unlike(a, b, where):
    """Square distance (Huber's for what is far off); what is made up counts more. L1 would hold every delta at zero for long."""
    return (F.smooth_l1_loss(a, b, beta=0.5, reduction="none") * (1 + 4 * where)).mean()


def changed(a, b, where) -> torch.Tensor:
    """Mean difference of each row outside a region, in grey levels."""
    outside = 1 - where
    return ((a - b).abs() * outside).sum((1, 2, 3)) / (3 * outside.sum((1, 2, 3))).clamp_min(1)


def psnr_in(a, b, where) -> torch.Tensor:
    """Decibels of each row inside a soft region, over 0..255."""
    error = ((a - b) ** 2 * where).sum((1, 2, 3)) / (3 * where.sum((1, 2, 3))).clamp_min(1)
    return 10 * torch.log10(255**2 / error.clamp_min(0.05))


@torch.no_grad()
def judge(net: Makeup, material: Material, count: int = 128, seed: int = 9) -> dict:
    """On rendered people who took no part: gain over leaving the face alone, and what changes where nothing should."""
    net.eval()
    rng = np.random.default_rng(seed)
    held = np.nonzero(material.held)[0]
    rows = rng.choice(held, 2 * count)
    chosen = styles(rng, count, 0)
    figures: dict[str, list] = {}

    def tell(name, values):
        figures.setdefault(name, []).append(values)

    for k in range(0, count, 16):
        parts = material.take(np.concatenate([rows[k : k + 16], rows[count + k : count + k + 16]]))
        bare, light, masks = parts[:, :3], parts[:, 3:6], parts[:, 6:] / 255
        style = chosen[k : k + 16].repeat(2, 1, 1)
        made = paint(bare, light, masks, style)
        n = len(bare) // 2
        x, y, target = bare[:n], made[n:], made[:n]
        where = (touched(masks, style)[:n] > 0.1).float()
        applied, _ = net(x, y)
        applied = (x + applied).clamp(0, 255)
        _, bared = net(target, y)
        bared = (target + bared).clamp(0, 255)
        _, again = net(applied, y)
        _, still = net(x, y)
        everywhere = torch.ones_like(where)
        copy = psnr_in(x, target, where)
        tell("apply_gain_db", psnr_in(applied, target, where) - copy)
        tell("bare_gain_db", psnr_in(bared, x, where) - copy)
        tell("apply_outside", changed(applied, x, where))
        tell("bare_outside", changed(bared, target, where))
        tell("back_db", psnr_in((applied + again).clamp(0, 255), x, everywhere))
        tell("bare_stays_db", psnr_in((x + still).clamp(0, 255), x, everywhere))
    return {k: round(float(torch.cat(v).mean()), 3) for k, v in figures.items()}


def train(args: argparse.Namespace) -> int:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    material = Material(args.layers)
    net = Makeup()
    judge_of_style = nets.Discriminator(6)
    if args.weights:
        raise SystemExit("makeup: going on from a bundle is not supported; keep the checkpoint and use --resume")
    net, judge_of_style = (m.to(memory_format=torch.channels_last) for m in (net, judge_of_style))
    average = Average(net, 0.998)
    peak, size = args.rate or 2e-3, args.batch or BATCH
    opt = torch.optim.AdamW(net.parameters(), peak, betas=(0.9, 0.99), weight_decay=0.01)
    opt_d = torch.optim.Adam(judge_of_style.parameters(), 4e-4, betas=(0.5, 0.99))
    parts = {"net": net, "judge": judge_of_style, "average": average.module, "opt": opt, "opt_d": opt_d}
    checkpoint, step, spent = args.out / "makeup.ckpt", 0, 0.0
    if args.resume and checkpoint.exists():
        s = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(s[name])
        average.steps = step = s["step"]
        spent = s["spent"]
    clock, saved, shown = Clock(args.minutes, spent), time.time(), {}
    pool = Pool(material, rng)

    def keep() -> dict:
        save(checkpoint, {**{k: v.state_dict() for k, v in parts.items()}, "step": step, "spent": clock.spent()})
        save(args.out / "makeup.pt", average.module.state_dict())
        return judge(average.module, material)

    bar = tqdm(total=1000, desc="makeup", bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}", mininterval=20)
    while (progress := clock.progress()) < 1:
        for group in opt.param_groups:
            group["lr"] = rate(progress, step, peak, 100)
        x, y, target, where = (last(t) for t in batch(pool, size))
        x, y, target = x / UNIT, y / UNIT, target / UNIT
        net.train()
        applied = x + net.apply_net(x, y)
        # F learns on made-up faces, on faces without make-up, which it is to leave alone, and on what G made.
        part = size // 4
        before = last(torch.cat([x[:part], applied[part : 2 * part], target[2 * part :]]))
        after, area = x, torch.cat([torch.zeros_like(where[:part]), where[part:]])
        bared = before + net.bare_net(before)
        loss_g, loss_f = unlike(applied, target, where), unlike(bared, after, area)
        loss = 40 * (loss_g + loss_f)
        adversarial = progress > 0.6 and step % 3 == 0
        if adversarial:
            loss = loss - 0.03 * judge_of_style(last(torch.cat([y, applied], 1))).mean()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        opt.step()
        if adversarial:
            real, fake = (judge_of_style(last(torch.cat([y, z], 1))) for z in (target, applied.detach()))
            loss_d = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
            opt_d.zero_grad(set_to_none=True)
            loss_d.backward()
            opt_d.step()
            shown["D"] = round(loss_d.item(), 2)
        average.update(net)
        step += 1
        for name, value in (("G", loss_g), ("F", loss_f)):
            shown[name] = round(shown.get(name, value.item()) * 0.98 + 0.02 * value.item(), 4)
        if time.time() - saved > args.save_every:
            saved = time.time()
            told = {"minute": round(clock.spent() / 60, 1), "step": step, **shown, **keep()}
            print(json.dumps(told), flush=True)
        bar.n = int(1000 * progress)
        bar.set_postfix(step=step, **shown, refresh=False)
        bar.update(0)
    bar.close()
    result = {**keep(), "steps": step, "pictures": step * size}
    (args.out / "makeup.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result))
    return 0
