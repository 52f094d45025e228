"""The generator of "Towards Open-Set Identity Preserving Face Synthesis" (Bao, Chen, Wen, Li, Hua, CVPR 2018): whose face it is
from one picture, everything else from another.

From the paper: network I's embedding says who (`identity.Encoder`, frozen), network A reads the attributes, G makes the face
from both; a face of the same person is to be reconstructed in full; D judges looks, with I in the place of C whose features are
matched. Ours: A gives a picture at every size instead of one code; a second encoder looks at the first person's picture,
because 128 numbers do not hold a stranger's face at this size of network; what is made is laid over the second picture by a
mask; exact answers from renders, rough ones from bent photographs (`exchange`); and `derl` sees to it that the expression
stays.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from . import augment, data, exchange, identity, nets
from .train import Average, Run, half, last, pace

UNIT = 64.0  # grey levels in what the nets read and give
BATCH = 12
SETTLED = 0.25  # from this share of the schedule on
WIDTHS = (16, 32, 64, 128)  # at 64, 32, 16 and 8
FINE = 8  # at 128
WHO = 128  # the embedding's length


def conv(cin: int, cout: int, k: int = 3, stride: int = 1) -> nets.ConvRelu:
    return nets.ConvRelu(cin, cout, k, stride)


class Looks(nn.Module):
    """A face [N, 3, 128, 128] (units of 64 grey levels) -> what is seen of it at 128, 64, 32, 16 and 8."""

    def __init__(self):
        super().__init__()
        a, b, c, d = WIDTHS
        self.fine = conv(3, FINE)
        self.e1 = nn.Sequential(conv(3, a, stride=2), conv(a, a))
        self.e2 = nn.Sequential(conv(a, b, stride=2), conv(b, b))
        self.e3 = nn.Sequential(conv(b, c, stride=2), conv(c, c))
        self.e4 = nn.Sequential(conv(c, d, stride=2), nets.Block(d))

    def forward(self, x):
        e1 = self.e1(x)
        e2 = self.e2(e1)
        e3 = self.e3(e2)
        return self.fine(x), e1, e2, e3, self.e4(e3)


class Meet(nn.Module):
    """One size of the decoder: what came from below, both faces at this size, and who it is, which raises or lowers each
    channel."""

    def __init__(self, below: int, channels: int, who: bool):
        super().__init__()
        self.below = nets.conv_bn(below, channels, 1)
        self.a, self.b = nets.conv_bn(channels, channels), nets.conv_bn(channels, channels, 1)
        self.first = conv(channels, channels)
        self.gain = nn.Conv2d(WHO, channels, 1) if who else None
        self.second = nets.Block(channels) if who else conv(channels, channels)
        if who:
            nn.init.normal_(self.gain.weight, 0, 0.3)
            nn.init.zeros_(self.gain.bias)

    def forward(self, below, a, b, who):
        x = self.first(F.relu(nets.up(self.below(below)) + self.a(a) + self.b(b)))
        if self.gain is not None:
            x = F.relu(x + x * self.gain(who))
        return self.second(x)


class Generator(nn.Module):
    """Faces of the person and of the looks [N, 3, 128, 128] (units of 64 grey levels), who it is [N, 128, 1, 1] of length 1 ->
    delta to the second, in the same unit."""

    def __init__(self):
        super().__init__()
        a, b, c, d = WIDTHS
        self.person, self.looks = Looks(), Looks()
        self.who = nn.Conv2d(WHO, d, 1)
        self.join_a, self.join_b = nets.conv_bn(d, d, 1), nets.conv_bn(d, d, 1)
        self.deep = nn.Sequential(nets.Block(d), nets.Block(d))
        self.m3, self.m2, self.m1 = Meet(d, c, True), Meet(c, b, True), Meet(b, a, False)
        self.r0 = nets.conv_bn(a, FINE, 1)
        self.d0 = conv(FINE, 16)
        self.face, self.cover = nn.Conv2d(16, 3, 3, padding=1), nn.Conv2d(16, 1, 3, padding=1)
        nn.init.zeros_(self.cover.weight)
        nn.init.constant_(self.cover.bias, 0.5)

    def forward(self, person, looks, who):
        return self.after(self.person(person), looks, who)

    def after(self, seen, looks, who):
        """From what was seen of the person on."""
        fine_a, *a, deep_a = seen
        fine_b, *b, deep_b = self.looks(looks)
        x = self.deep(F.relu(self.join_a(deep_a) + self.join_b(deep_b) + self.who(who)))
        x = self.m3(x, a[2], b[2], who)
        x = self.m2(x, a[1], b[1], who)
        x = self.m1(x, a[0], b[0], who)
        x = self.d0(F.relu(nets.up(self.r0(x)) + fine_a + fine_b))
        # Never quite shut: a mask that is zero learns nothing, and stays shut over whatever kind of picture it closed upon.
        return torch.sigmoid(self.cover(x)) * (self.face(x) - looks)


class Shipped(nn.Module):
    """The generator with batch norm folded: person, looks [N, 3, 128, 128] as `units` gives them, who [N, 128, 1, 1] -> what to
    add to the looks, in the same units."""

    def __init__(self, net: Generator):
        super().__init__()
        self.net = nets.fold(net.eval())
        cover = self.net.cover
        wide = nn.Conv2d(16, 3, 3, padding=1)
        with torch.no_grad():
            # One mask for all colours, written as three that are alike: the engine multiplies value by value.
            wide.weight.copy_(cover.weight.expand(3, -1, -1, -1))
            wide.bias.copy_(cover.bias.expand(3))
        self.net.cover = wide

    def forward(self, person, looks, who):
        return self.net(person, looks, who)


# --- material --------------------------------------------------------------------------------------------------------


class Material:
    """Photographs and rendered groups; masks are made when they are first wanted."""

    def __init__(self, file, watch: Watch):
        z = np.load(file)
        self.face, self.points, self.pack, self.person = (z[k] for k in ("face", "points", "pack", "person"))
        self.held = z["held"]
        self.drawn, self.drawn_points = z["drawn"], z["drawn_points"]
        self.masks: dict = {}
        opening = np.asarray([exchange.eye_opening(p) for p in self.points])
        colour = self.pack != "lfw"
        self.learn = np.nonzero(~self.held)[0]
        # Colour is rare: it comes as often as grey.
        share = np.where(colour, 0.5 / (colour & ~self.held).sum(), 0.5 / (~colour & ~self.held).sum())
        self.chance = share[self.learn] / share[self.learn].sum()
        # Who lends his face has his eyes open, or the other's could not be opened.
        giving = self.chance * (opening[self.learn] > 0.16)
        self.giving = giving / giving.sum()
        people, counts = np.unique(self.person[self.learn], return_counts=True)
        again = people[counts > 1]
        self.of_person = {p: self.learn[self.person[self.learn] == p] for p in again}
        self.again = again
        whole = np.isfinite(self.drawn_points).all((1, 2, 3, 4))
        self.groups = np.nonzero(whole)[0]
        self.who = embeddings(watch, self.face)
        self.drawn_who = embeddings(watch, self.drawn.reshape(-1, *self.face.shape[1:])).view(*self.drawn.shape[:3], -1)

    def mask(self, key, points) -> tuple[np.ndarray, np.ndarray]:
        if key not in self.masks:
            self.masks[key] = exchange.mask(points), exchange.mouth(points)
        return self.masks[key]

    def faces(self, rows) -> exchange.Faces:
        masks = [self.mask(int(i), self.points[i]) for i in rows]
        covers = (torch.from_numpy(np.stack(m))[:, None].float() / 255 for m in zip(*masks, strict=True))
        anchors = torch.from_numpy(np.stack([exchange.anchors(self.points[i]) for i in rows]))
        return exchange.Faces(planes(self.face[rows]), anchors, *covers)

    def exact(self, rng: np.random.Generator, count: int):
        """(person, looks, answer, mask, the person's embedding): rendered."""
        a, b, t, m, who = [], [], [], [], []
        people, scenes = self.drawn.shape[1:3]
        for g in rng.choice(self.groups, count):
            i, k = rng.choice(people, 2, replace=False)
            s, r = rng.choice(scenes, 2, replace=False)
            covers = [self.mask((g, j, s), self.drawn_points[g, j, s])[0] for j in (i, k)]
            a.append(self.drawn[g, i, r])
            b.append(self.drawn[g, k, s])
            t.append(self.drawn[g, i, s])
            m.append(np.maximum(*covers))
            who.append(self.drawn_who[g, i, r])
        a, b, t = (planes(np.stack(x)) for x in (a, b, t))
        cover = torch.from_numpy(np.stack(m))[:, None].float() / 255
        return a, b, cover * t + (1 - cover) * b, cover, torch.stack(who)

    def rough(self, rng: np.random.Generator, count: int):
        """The same of photographs of two people."""
        rows = rng.choice(self.learn, count, p=self.giving)
        others = rng.choice(self.learn, count, p=self.chance)
        a, b = self.faces(rows), self.faces(others)
        # On a picture without colour nobody has any.
        plain = torch.from_numpy(self.pack[others] == "lfw").view(-1, 1, 1, 1)
        lent = a._replace(picture=torch.where(plain, grey(a.picture), a.picture))
        return a.picture, b.picture, exchange.bent(lent, b), b.mask, self.who[rows]

    def same(self, rng: np.random.Generator, count: int):
        """The same of photographs of one person: two of them, or one twice."""
        rows = []
        for _ in range(count):
            if rng.random() < 0.6:
                rows.append(rng.choice(self.of_person[rng.choice(self.again)], 2, replace=False))
            else:
                rows.append(np.repeat(rng.choice(self.learn, 1, p=self.chance), 2))
        a, b = np.stack(rows).T
        b = self.faces(b)
        return planes(self.face[a]), b.picture, b.picture, b.mask, self.who[a]


@torch.no_grad()
def embeddings(watch: Watch, faces: np.ndarray) -> torch.Tensor:
    """Of faces u8 [N, 128, 128, 3], [N, 128]."""
    with half():
        return torch.cat([watch.who(last(planes(faces[k : k + 64])))[0] for k in range(0, len(faces), 64)])


def planes(faces: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(faces).permute(0, 3, 1, 2).float()


def grey(x: torch.Tensor) -> torch.Tensor:
    return (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def cast(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """White balance."""
    return (x * gain).clamp(0, 255)


def balances(count: int) -> torch.Tensor:
    """Random gains of the three colours; half of them none, or no grey picture would ever be just grey."""
    return torch.exp(torch.randn(count, 3, 1, 1) * 0.05 * (torch.rand(count, 1, 1, 1) < 0.5))


def batch(material: Material, rng: np.random.Generator, size: int):
    """(person, looks, answer, mask, who, how sure the answer is, whether it is another person) of one step, grey levels.

    Of twelve three are rendered, seven bent photographs, two of one person.
    """
    drawn, real = round(size * 3 / 12), round(size * 7 / 12)
    parts = [material.exact(rng, drawn), material.rough(rng, real), material.same(rng, size - drawn - real)]
    a, b, t, m, who = (torch.cat(x) for x in zip(*parts, strict=True))
    sure = torch.cat([torch.full((drawn,), 1.0), torch.full((real,), 0.6), torch.full((size - drawn - real,), 1.0)])
    other = torch.cat([torch.ones(drawn + real), torch.zeros(size - drawn - real)])
    # Some cameras see no colour at all.
    plain = torch.rand(size, 1, 1, 1) < 0.1
    a, b, t = (torch.where(plain, grey(x), x) for x in (a, b, t))
    # The person's picture and the other one come from two cameras; the answer is as the other.
    a = augment.noise(augment.tone(augment.affine(a, 0.12, 0.08, 0.04), 0.25), 3)
    a = cast(a, balances(size))
    together = augment.affine(torch.cat([b, t, m * 255], 1), 0.12, 0.08, 0.04)
    b, t, m = together[:, :3], together[:, 3:6], together[:, 6:] / 255
    gain = balances(size)
    return a, cast(b, gain), cast(t, gain), m, who, sure, other


# --- what judges while it learns -------------------------------------------------------------------------------------


class Watch(nn.Module):
    """The frozen networks that look at what is made: I with its features, and `derl`."""

    def __init__(self, bundles):
        super().__init__()
        self.encoder = identity.Encoder()
        self.encoder.load_state_dict(identity.kept(bundles / "identity" / "weights.safetensors"))
        self.derl = nets.fold(nets.derl("derl").eval())
        self.derl.load_state_dict(load_file(bundles / "derl" / "weights.safetensors"))
        self.float().eval().requires_grad_(False)

    def who(self, x: torch.Tensor, mix: torch.Tensor | None = None):
        """Grey levels -> (embedding of length 1 [N, 128], features at 26 and 13); `mix` is how much each colour counts."""
        e = self.encoder
        plain = grey(x) if mix is None else (x * mix).sum(1, keepdim=True)
        y = F.max_pool2d(F.relu(e.stem(augment.standardise(identity.centre(plain)))), 3, 2)
        seen = []
        for k, block in enumerate(e.blocks):
            y = block(y)
            if k in (2, 6):
                seen.append(y)
        return F.normalize(e.last(y).flatten(1).float(), dim=1), seen

    def expression(self, x: torch.Tensor) -> torch.Tensor:
        """Grey levels -> logits [N, 8]."""
        return self.derl(augment.standardise(F.avg_pool2d(grey(x), 2)))[1].float()


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def unlike(made: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor, sure: torch.Tensor) -> torch.Tensor:
    """Distance in units, within the face above all; edges count again, and so do colours."""
    weight = (0.3 + mask) * sure.view(-1, 1, 1, 1)
    off = ((made - wanted).abs() * weight).mean()
    off = off + 2 * ((made - grey(made) - wanted + grey(wanted)).abs() * weight).mean()
    for p, q, w in zip(edges(made), edges(wanted), (weight[..., 1:, :], weight[..., 1:]), strict=True):
        off = off + ((p - q).abs() * w).mean()
    return off


def losses_of(made, looks, wanted, mask, sure, other, who, watch: Watch) -> dict[str, torch.Tensor]:
    """Of what was made, in grey levels; `who` is the embedding that was to be reached."""
    # Luminance is mostly green: were it what is looked at, faces would be painted in green and its opposite.
    mix = torch.randn(len(made), 3, 1, 1).softmax(1)
    found, seen = watch.who(made, mix)
    with torch.no_grad():
        _, hoped = watch.who(wanted, mix)
        mood = watch.expression(looks[len(looks) // 2 :]).softmax(1)
    alike = sum((((p - q).float() ** 2).mean((1, 2, 3)) / (q.float() ** 2).mean((1, 2, 3)) * sure).mean()
                for p, q in zip(seen, hoped, strict=True))  # fmt: skip
    # The half of a batch that are photographs: `derl` reads little from rendered faces.
    told = F.kl_div(watch.expression(made[len(made) // 2 :]).log_softmax(1), mood, reduction="batchmean")
    return {
        "pixel": unlike(made / UNIT, wanted / UNIT, mask, sure),
        "person": ((1 - (found * who).sum(1)) * (0.3 + 0.7 * other)).mean(),
        "alike": alike,
        "mood": told,
    }


WEIGHTS = {"pixel": 4.0, "person": 5.0, "alike": 2.0, "mood": 0.5, "looks": 0.05}


# --- judging ---------------------------------------------------------------------------------------------------------


def units(x: torch.Tensor) -> torch.Tensor:
    return last((x - 128) / UNIT)


def make(net: nn.Module, a: torch.Tensor, b: torch.Tensor, who: torch.Tensor) -> torch.Tensor:
    """Grey levels in and out."""
    return (b + net(units(a), units(b), who[:, :, None, None]) * UNIT).clamp(0, 255)


@torch.no_grad()
def judge(net: nn.Module, material: Material, watch: Watch, count: int = 96, seed: int = 9) -> dict:
    """On photographs left out: nearer to the person than to the looks, expression kept, likeness to the bent answer."""
    rng = np.random.default_rng(seed)
    held = np.nonzero(material.held)[0]
    nearer, mood, off, back = [], [], [], []
    for _ in range(count // 16):
        a, b = material.faces(rng.choice(held, 16)), material.faces(rng.choice(held, 16))
        wa, wb = watch.who(a.picture)[0], watch.who(b.picture)[0]
        made = make(net, a.picture, b.picture, wa)
        wm = watch.who(made)[0]
        nearer.append(((wm * wa).sum(1) > (wm * wb).sum(1)).float())
        mood.append((watch.expression(made).argmax(1) == watch.expression(b.picture).argmax(1)).float())
        off.append(((made - exchange.bent(a, b)).abs() * a.mask).sum((1, 2, 3)) / (3 * a.mask.sum((1, 2, 3))))
        again = make(net, b.picture, b.picture, wb)
        back.append(10 * torch.log10(255**2 / ((again - b.picture) ** 2).mean((1, 2, 3)).clamp_min(0.05)))
    figures = {"nearer": nearer, "mood": mood, "off": off, "back_db": back}
    return {k: round(float(torch.cat(v).mean()), 4) for k, v in figures.items()}


# --- training --------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> int:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    watch = Watch(data.BUNDLES)
    material = Material(args.gallery, watch)
    net, critic = (m.to(memory_format=torch.channels_last) for m in (Generator(), nets.Discriminator(3)))
    peak, size = args.rate or 1.5e-3, args.batch or BATCH
    if args.weights:
        kept = {k: v.float() for k, v in nets.part(load_file(args.weights), "generator").items()}
        for name in ("net.cover.weight", "net.cover.bias"):
            kept[name] = kept[name][:1]
        a, b, _, _, who, *_ = batch(material, rng, 48)
        nets.unfold(net, nets.part(kept, "net"), units(a), units(b), who[:, :, None, None])
    average = Average(net, 0.998)
    opt = torch.optim.AdamW(net.parameters(), peak, betas=(0.9, 0.99), weight_decay=0.01)
    opt_d = torch.optim.Adam(critic.parameters(), 4e-4, betas=(0.5, 0.99))
    parts = {"net": net, "critic": critic, "opt": opt, "opt_d": opt_d}
    run = Run("swap", args, parts, {"swap": average}, lambda: judge(average.module, material, watch))
    for progress in run:
        pace(opt, progress, run.step, peak, 100)
        net.train()
        if args.weights or progress >= SETTLED:
            nets.settle(net)
        a, b, t, mask, who, sure, other = (last(x) if x.ndim == 4 else x for x in batch(material, rng, size))
        with half():
            made = b + net(units(a), units(b), who[:, :, None, None]) * UNIT
            losses = losses_of(made, b, t, mask, sure, other, who, watch)
            adversarial = progress > 0.25 and run.step % 2 == 0
            if adversarial:
                losses["looks"] = -critic(last(made / UNIT - 2)).float().mean()
            loss = sum(WEIGHTS[k] * v for k, v in losses.items())
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        opt.step()
        average.update(net)
        if adversarial:
            # What is real to it: both pictures that came in.
            with half():
                real = torch.cat([a[::2], b[1::2]])
                p, q = critic(last(real / UNIT - 2)).float(), critic(last(made.detach() / UNIT - 2)).float()
                losses["critic"] = F.relu(1 - p).mean() + F.relu(1 + q).mean()
            opt_d.zero_grad(set_to_none=True)
            losses["critic"].backward()
            opt_d.step()
        run.show(**losses)
    return run.finish(size)
