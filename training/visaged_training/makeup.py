"""Make-up put on and taken off: PairedCycleGAN (Chang, Lu, Yu, Finkelstein, CVPR 2018), small enough for int8 on the device.

From the paper: G puts the make-up of a reference on a face, F takes make-up off, F(G(x, y)) is to be x, and a judge of pairs
(reference, result) whose real pairs show one style on two people. Ours: both nets give a delta that is added to the face, so a
strength is a factor; and the pairs need no warping, because make-up is painted on faces whose light and layers are known
(`cosmetics`), so that the right answer is known for every face, style and reference.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import augment, cosmetics, nets
from .train import Average, Run, half, last, pace

SIDE = 128
UNIT = 64.0  # grey levels in what the nets read and give
BATCH = 16
# The reading of styles needs many faces and little arithmetic: this share of the schedule is its own, with so many faces a step.
READING, READ = 0.2, 32
SETTLED = 0.5


# Make-up goes on in this order: foundation, what lies on it, and the liner on top; a layer's place within `cosmetics.LAYERS`.
COATS = ((5,), (3, 1, 4, 0), (2,))


# The share of an aligned face that each layer of make-up covers, about, and the mean square of its mask.
AREAS = (0.011, 0.02, 0.008, 0.05, 0.013, 0.44)
ENERGIES = (0.0075, 0.0113, 0.004, 0.027, 0.0058, 0.38)


class Style(nn.Module):
    """RGB picture [N, 3, 128, 128] (units of 64 grey levels) -> code [N, 64, 1, 1] of what the face wears.

    It finds where each layer would be, and of there takes the mean of the picture: a colour is read from the pixels that show it.
    """

    def __init__(self, widths=(16, 24, 32, 48)):
        super().__init__()
        a, b, c, d = widths
        conv = nets.ConvRelu
        self.e1, self.e2 = conv(3, a, stride=2), conv(a, b, stride=2)  # 64, 32
        self.e3 = nn.Sequential(conv(b, c, stride=2), conv(c, c))  # 16
        self.e4 = nn.Sequential(conv(c, d, stride=2), conv(d, d))  # 8
        self.r3, self.d3 = conv(d, c, 1), nets.conv_bn(c, c)
        self.r2, self.d2 = conv(c, b, 1), nets.conv_bn(b, b)
        self.r1, self.d1 = conv(b, a, 1), conv(a, a)
        # Means of 2x2 of the three colours, and a one, by which a layer's share of the face is counted.
        self.small = nn.Conv2d(3, 4, 2, 2)
        self.small.weight.data = torch.eye(4, 3)[:, :, None, None].expand(4, 3, 2, 2) / 4
        self.small.bias.data = torch.tensor([0.0, 0, 0, 1])
        self.small.requires_grad_(False)
        self.where = nn.ModuleList(nn.Conv2d(a, 4, 1) for _ in AREAS)
        self.take = nn.ModuleList(nn.Conv2d(4, 96, 1, bias=k == 0) for k in range(len(AREAS)))
        for where in self.where:
            nn.init.constant_(where.bias, 0.1)
        self.gains = [1 / area for area in AREAS]
        self.more = nn.Sequential(nn.Conv2d(96, 96, 1), nn.ReLU(), nn.Conv2d(96, 64, 1), nn.ReLU())

    def forward(self, x, tell: list | None = None):
        e1 = self.e1(x)
        e2 = self.e2(e1)
        e3 = self.e3(e2)
        e4 = self.e4(e3)
        d3 = F.relu(self.d3(nets.up(self.r3(e4))) + e3)
        d2 = F.relu(self.d2(nets.up(self.r2(d3))) + e2)
        seen, small, code = self.d1(nets.up(self.r1(d2)) + e1), self.small(x), None
        for where, take, gain in zip(self.where, self.take, self.gains, strict=True):
            place = F.relu(where(seen))
            if tell is not None:
                tell.append(place)
            mean = F.adaptive_avg_pool2d(place * small, 1)
            part = take(mean if gain == 1 else mean * gain)
            code = part if code is None else code + part
        return self.more(F.relu(code))

    def fold_gains(self) -> None:
        """Into the weights behind them."""
        with torch.no_grad():
            for take, gain in zip(self.take, self.gains, strict=True):
                take.weight *= gain
        self.gains = [1.0] * len(self.gains)


class Painter(nn.Module):
    """Paints by layers: a face [N, 3, 128, 128] (units of 64 grey levels) and a code -> delta in the same unit.

    Of the face it reads where each layer goes (`where`, four copies) and the light there (`light`); of the code, each layer's
    colour times strength, and its strength (`how`). A coat is
    `face + light * sum(where * colour) - face * sum(where * strength)`.
    With `undo` there is one coat of all layers, strengths may be negative, and what painting cannot bring back is added as a
    picture.
    """

    def __init__(self, undo: bool = False, widths=(16, 32, 64, 96)):
        super().__init__()
        a, b, c, d = widths
        conv = nets.ConvRelu
        self.e1 = nn.Sequential(conv(3, a, stride=2), conv(a, a))  # 64
        self.e2 = nn.Sequential(conv(a, b, stride=2), conv(b, b))  # 32
        self.e3 = nn.Sequential(conv(b, c, stride=2), nets.Block(c))  # 16
        self.e4 = nn.Sequential(conv(c, d, stride=2), nets.Block(d))  # 8
        self.r3, self.d3 = conv(d, c, 1), nets.conv_bn(c, c)
        self.r2, self.d2 = conv(c, b, 1), nets.conv_bn(b, b)
        self.r1, self.d1 = conv(b, a, 1), nets.conv_bn(a, a)
        self.r0, self.face = conv(a, 8, 1), conv(3, 8, 1)
        self.d0 = conv(8, 16)
        self.light = nn.Conv2d(16, 3, 1)
        self.coats = ((5, 3, 1, 4, 2, 0),) if undo else COATS
        self.where, self.how, self.mix, self.hide = (nn.ModuleList() for _ in range(4))
        for coat in self.coats:
            n = 4 * len(coat)
            self.where.append(nn.Conv2d(16, n, 1))
            self.how.append(nn.Conv2d(64, n, 1))
            # Of the copies of a layer three have a colour each, the fourth hides what is below.
            self.mix.append(nn.Conv2d(n, 3, 1, bias=False))
            self.hide.append(nn.Conv2d(n, 3, 1, bias=False))
            self.mix[-1].weight.data, self.hide[-1].weight.data = self.mixing(len(coat))
            nn.init.constant_(self.where[-1].bias, 0.1)
            if not undo:
                # What is read stays what it is called.
                self.mix[-1].requires_grad_(False)
                self.hide[-1].requires_grad_(False)
        self.rest = None
        nn.init.constant_(self.light.bias, 0.8)
        if undo:
            self.rest = nn.Conv2d(16, 3, 1)
            nn.init.zeros_(self.rest.weight)
            nn.init.zeros_(self.rest.bias)

    def read(self, code) -> list[torch.Tensor]:
        """Colours and strengths, coat by coat, [N, 4 layers, 1, 1]."""
        return [how(code) for how in self.how]

    @staticmethod
    def mixing(layers: int) -> tuple[torch.Tensor, torch.Tensor]:
        """First weights of `mix` and `hide`: the three copies with a colour to the three colours, the fourth to all three."""
        colours, strength = torch.eye(3, 4), torch.tensor([0.0, 0, 0, 1]).repeat(3, 1)
        return tuple(w.repeat(1, layers)[:, :, None, None] for w in (colours, strength))

    def forward(self, face, code, tell: list | None = None):
        e1 = self.e1(face)
        e2 = self.e2(e1)
        e3 = self.e3(e2)
        e4 = self.e4(e3)
        d3 = F.relu(self.d3(nets.up(self.r3(e4))) + e3)
        d2 = F.relu(self.d2(nets.up(self.r2(d3))) + e2)
        d1 = F.relu(self.d1(nets.up(self.r1(d2))) + e1)
        seen = self.d0(nets.up(self.r0(d1)) + self.face(face))
        light, hows = F.relu(self.light(seen)), self.read(code)
        delta = None if self.rest is None else self.rest(seen)
        under = face
        for k in range(len(self.coats)):
            where = F.relu(self.where[k](seen))
            if tell is not None:
                tell.append((where, light))
            painted = where * hows[k]
            added = self.mix[k](painted) * light - self.hide[k](painted) * under
            delta = added if delta is None else delta + added
            if k + 1 < len(self.coats):
                under = face + delta
        return delta


class Makeup(nn.Module):
    """What is shipped: face and reference in grey levels -> what applying adds, what baring adds, in grey levels."""

    def __init__(self):
        super().__init__()
        self.style, self.worn = Style(), Style()
        self.apply_net, self.bare_net = Painter(), Painter(undo=True)

    def put_on(self, face, reference):
        """In units of 64 grey levels."""
        return self.apply_net(face, self.style(reference))

    def take_off(self, face):
        """In units of 64 grey levels."""
        return self.bare_net(face, self.worn(face))

    def forward(self, face, reference):
        face, reference = face / UNIT, reference / UNIT
        return self.put_on(face, reference) * UNIT, self.take_off(face) * UNIT


class Shipped(nn.Module):
    """`Makeup` with batch norm and the unit folded into its convolutions."""

    def __init__(self, net: Makeup):
        super().__init__()
        self.net = nets.fold(net.eval())
        with torch.no_grad():
            for style in (self.net.style, self.net.worn):
                style.fold_gains()
                for first in (style.e1.body, style.small):
                    first.weight /= UNIT
            for part in (self.net.apply_net, self.net.bare_net):
                for first in (part.e1[0].body, part.face.body):
                    first.weight /= UNIT
                for mix in part.mix:
                    mix.weight *= UNIT
            self.net.bare_net.rest.weight *= UNIT
            self.net.bare_net.rest.bias *= UNIT

    def forward(self, face, reference):
        return self.net.put_on(face, reference), self.net.take_off(face)


# --- material --------------------------------------------------------------------------------------------------------


def own_colour(bare, light, masks):
    """Mean colour of the skin in a light of 1, [N, 3]."""
    skin = masks[:, 5:]
    return (bare / light.clamp_min(0.15) * skin).sum((2, 3)) / skin.sum((2, 3)).clamp_min(1e-6)


def paint(bare, light, masks, style):
    """`cosmetics.paint` on batches [N, C, H, W]; masks 0..1, style [N, 6, 4]."""
    light = light / cosmetics.LIGHT_UNIT
    own, out = own_colour(bare, light, masks), bare
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
    """White balance and tone of a camera, the same for all the pictures of a row [N, 3 pictures, H, W]."""
    gain = torch.exp(torch.randn(len(x), 3, 1, 1) * 0.03)
    return augment.tone((x * gain.repeat(1, x.shape[1] // 3, 1, 1)).clamp(0, 255), 0.12, 0.2)


class Pool:
    """Faces moved at random; a few are made anew in each step, because that is dear and painting is cheap."""

    def __init__(self, material: Material, rng: np.random.Generator, size: int = 384, fresh: int = 8):
        self.material, self.rng, self.fresh, self.at = material, rng, fresh, 0
        self.faces = torch.cat([self._more(32) for _ in range(size // 32)])

    def _more(self, count: int) -> torch.Tensor:
        rows = self.rng.choice(len(self.material.chance), count, p=self.material.chance)
        return augment.affine(self.material.take(rows), 0.12, 0.08, 0.06)

    def take(self, count: int) -> torch.Tensor:
        """[count, 12, 128, 128], all different."""
        self.faces[self.at : self.at + self.fresh] = self._more(self.fresh)
        self.at = (self.at + self.fresh) % len(self.faces)
        return self.faces[torch.from_numpy(self.rng.permutation(len(self.faces))[:count])]


class Known(NamedTuple):
    """What the painters are to find on the faces of a batch: masks [N, 6, H, W], light [N, 3, H, W] (1 shows colours as they
    are), style [N, 6, 4], the skin's own colour [N, 3]."""

    masks: torch.Tensor
    light: torch.Tensor
    style: torch.Tensor
    own: torch.Tensor

    def rows(self, which: slice) -> Known:
        """Some of the faces."""
        return Known(*(part[which] for part in self))


def batch(pool: Pool, count: int):
    """(face, reference, face made up, how much is made up, what is known) of one step, in grey levels.

    One reference in ten wears nothing. What is known is of the faces, then of the references.
    """
    parts = pool.take(2 * count)
    bare, light, masks = parts[:, :3], parts[:, 3:6], parts[:, 6:] / 255
    chosen = styles(pool.rng, count, 0.1).repeat(2, 1, 1)
    made = paint(bare, light, masks, chosen)
    known = known_of(bare, light, masks, chosen)
    # The camera comes after the make-up: before it, the light that make-up shows would be none that the face shows.
    bare, made = augment.noise(colours(torch.cat([bare, made], 1)), 2.5).split(3, 1)
    return bare[:count], made[count:], made[:count], touched(masks, chosen)[:count], known


def known_of(bare, light, masks, style) -> Known:
    """What is to be found on faces painted with these styles."""
    lit = light / cosmetics.LIGHT_UNIT
    return Known(masks, lit, style, own_colour(bare, lit, masks))


def read_batch(pool: Pool, count: int):
    """(face made up, what is known) for the reading of styles."""
    parts = pool.take(count)
    bare, light, masks = parts[:, :3], parts[:, 3:6], parts[:, 6:] / 255
    chosen = styles(pool.rng, count, 0.1)
    worn = augment.noise(colours(paint(bare, light, masks, chosen)), 2.5)
    return worn, known_of(bare, light, masks, chosen)


# --- training --------------------------------------------------------------------------------------------------------


def unlike(a, b, where):
    """Square distance (Huber's for what is far off); what is made up counts more. L1 would hold every delta at zero for long."""
    return (F.smooth_l1_loss(a, b, beta=0.5, reduction="none") * (1 + 4 * where)).mean()


def copies_of(known: Known, undo: bool = False):
    """What the painters are to read: (where [N, 6, 4, H, W], how [N, 6, 4]), in the order of `cosmetics.LAYERS`."""
    strength = known.style[:, :, 3:]
    unit = torch.tensor([UNIT] * 5 + [1.0]).view(6, 1)
    how = torch.cat([known.style[:, :, :3] * strength / unit, strength], 2)
    # Foundation is a tint: its colour is the skin's, which is read where it goes.
    tinted = torch.ones(len(strength), 6, 4)
    if not undo:
        tinted[:, 5, :3] = known.own / UNIT
    return known.masks[:, :, None] * tinted[:, :, :, None, None], how


def unlike_masks(where, masks, layers):
    """How far four copies of each layer's place [N, 4 layers, H, W] are from its masks, as a share of what is in them."""
    off = ((where - masks.flatten(1, 2)) ** 2).mean((0, 2, 3)).unflatten(0, (-1, 4)).mean(1)
    return (off / torch.tensor([ENERGIES[layer] for layer in layers])).sum() / len(ENERGIES)


def unlike_places(known: Known, coats, told, undo: bool):
    """How far the painters are from where the layers go, and from the light there."""
    wanted, _ = copies_of(known, undo)
    lit = known.masks[:, :5].amax(1, keepdim=True)
    off = sum(unlike_masks(where, wanted[:, list(coat)], coat) for coat, (where, _) in zip(coats, told, strict=True))
    return off + 3 * (lit * (told[0][1] - known.light) ** 2).mean()


def unlike_found(known: Known, places):
    """How far the reading of styles is from where the layers are."""
    masks = F.avg_pool2d(known.masks, 2)[:, :, None].expand(-1, -1, 4, -1, -1)
    return unlike_masks(torch.cat(places, 1), masks, range(len(AREAS)))


def unlike_style(known: Known, coats, hows):
    """How far colours and strengths are from those that a face wears.

    A weak strong colour and a strong weak one look alike: what counts first is what they make of the wearer's skin.
    """
    _, wanted = copies_of(known)
    told = torch.cat([how.flatten(1).unflatten(1, (-1, 4)) for how in hows], 1)
    order = [layer for coat in coats for layer in coat]
    off = told - wanted[:, order]
    skin = torch.stack([torch.ones_like(known.own) if layer == 5 else known.own / UNIT for layer in order], 1)
    shown = off[:, :, :3] - off[:, :, 3:] * skin
    return sum(F.smooth_l1_loss(x, torch.zeros_like(x), beta=0.2) * share for x, share in ((shown, 1.0), (off, 0.3)))


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
        applied = net(x, y)[0]
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


def read_styles(net: Makeup, pool: Pool) -> dict:
    """The losses of a step in which only the reading of styles learns."""
    worn, known = read_batch(pool, READ)
    places = []
    code = net.style(last(worn / UNIT), places)
    style = unlike_style(known, net.apply_net.coats, net.apply_net.read(code))
    return {"style": style, "found": unlike_found(known, places)}


def paint_faces(net: Makeup, pool: Pool, size: int):
    """(the losses of a step in which both painters learn, its references, the right answers, what G made), in units."""
    x, y, target, where, both = batch(pool, size)
    x, y, target, where = (last(t) for t in (x, y, target, where))
    x, y, target = x / UNIT, y / UNIT, target / UNIT
    places, places_bare, found, found_bare = [], [], [], []
    code = net.style(last(torch.cat([target, y])), found)
    applied = x + net.apply_net(x, code[size:], places)
    # F learns on made-up faces, on faces without make-up, which it is to leave alone, and on what G made.
    part = size // 4
    before = last(torch.cat([x[:part], applied[part : 2 * part], target[2 * part :]]))
    area = torch.cat([torch.zeros_like(where[:part]), where[part:]])
    bared = before + net.bare_net(before, net.worn(before, found_bare), places_bare)
    coats, known = net.apply_net.coats, both.rows(slice(size))
    style = unlike_style(both, coats, net.apply_net.read(code))
    off = unlike_found(both, found) + unlike_found(known, found_bare)
    place = unlike_places(known, coats, places, False) + unlike_places(known, net.bare_net.coats, places_bare, True)
    losses = {"G": unlike(applied, target, where), "F": unlike(bared, x, area), "place": place, "style": style, "found": off}
    return losses, y, target, applied


def train(args: argparse.Namespace) -> int:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    material = Material(args.layers)
    net = Makeup()
    judge_of_style = nets.Discriminator(6)
    if args.weights:
        net.load_state_dict(torch.load(args.weights, weights_only=True))
    net, judge_of_style = (m.to(memory_format=torch.channels_last) for m in (net, judge_of_style))
    average = Average(net, 0.998)
    peak, size = args.rate or 2e-3, args.batch or BATCH
    opt = torch.optim.AdamW((p for p in net.parameters() if p.requires_grad), peak, betas=(0.9, 0.99), weight_decay=0.01)
    opt_d = torch.optim.Adam(judge_of_style.parameters(), 4e-4, betas=(0.5, 0.99))
    parts = {"net": net, "judge": judge_of_style, "opt": opt, "opt_d": opt_d}

    def judged() -> dict:
        return judge(average.module, material)

    run = Run("makeup", args, parts, {"makeup": average}, judged, {"reading": not args.weights})
    pool = Pool(material, rng)

    def descend(loss) -> None:
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        opt.step()
        average.update(net)

    for progress in run:
        pace(opt, progress, run.step, peak, 100)
        net.train()
        if args.weights or progress >= SETTLED:
            nets.settle(net)
        if run.more["reading"] and progress >= READING:
            # F reads what it is to take off as G reads what it is to put on.
            net.worn.load_state_dict(net.style.state_dict())
            average.module.worn.load_state_dict(average.module.style.state_dict())
            run.more["reading"] = False
        if run.more["reading"]:
            with half():
                losses = read_styles(net, pool)
            descend(losses["style"] + losses["found"])
        else:
            with half():
                losses, y, target, applied = paint_faces(net, pool, size)
            weight = 1 - 0.9 * progress
            loss = 40 * (losses["G"] + losses["F"]) + weight * (
                20 * losses["place"] + 12 * losses["style"] + 10 * losses["found"]
            )
            adversarial = progress > 0.6 and run.step % 3 == 0
            if adversarial:
                loss = loss - 0.03 * judge_of_style(last(torch.cat([y, applied], 1))).mean()
            descend(loss)
            if adversarial:
                real, fake = (judge_of_style(last(torch.cat([y, z], 1))) for z in (target, applied.detach()))
                losses["D"] = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
                opt_d.zero_grad(set_to_none=True)
                losses["D"].backward()
                opt_d.step()
        run.show(**losses)
    return run.finish(size)
