"""The networks: de-expression generator, its discriminators, and the classifier on the generator's layers.

Method: De-expression Residue Learning (CVPR 2018). Only operations that quantise well: convolution, ReLU, addition,
concatenation, nearest resize, global average pool, fully connected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from . import align

SIZE = 64


@dataclass(frozen=True)
class Shape:
    """Channels: of the generator at 32, 16, 8, 4 and at its end, of the classifier along the picture and of its delta."""

    widths: tuple[int, int, int, int] = (24, 32, 64, 96)
    fine: int = 8
    trunk: tuple[int, int, int, int] = (32, 64, 128, 192)
    told: int = 8


SHAPES = {"derl": Shape(), "derl-tiny": Shape((8, 12, 24, 32), 4, (12, 20, 40, 64), 4)}


def conv_bn(cin: int, cout: int, k: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, k, stride, k // 2, bias=False), nn.BatchNorm2d(cout))


class ConvRelu(nn.Module):
    def __init__(self, cin: int, cout: int, k: int = 3, stride: int = 1):
        super().__init__()
        self.body = conv_bn(cin, cout, k, stride)

    def forward(self, x):
        return F.relu(self.body(x))


class Block(nn.Module):
    """Two convolutions and a short cut."""

    def __init__(self, channels: int):
        super().__init__()
        self.a, self.b = conv_bn(channels, channels), conv_bn(channels, channels)

    def forward(self, x):
        return F.relu(x + self.b(F.relu(self.a(x))))


def up(x):
    return F.interpolate(x, scale_factor=2, mode="nearest")


def face_mask(size: int = SIZE) -> torch.Tensor:
    """Soft ellipse over the face in template framing, [1, 1, size, size]."""
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    r = ((x / size - 0.5) / 0.36) ** 2 + ((y / size - 0.55) / 0.45) ** 2
    return torch.sigmoid((1 - r) * 8)[None, None]


def mouth_and_eyes(size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft spots over the mouth and over both eyes with their brows in template framing, [size, size] each."""
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    points = align.template() * (size / 128)

    def bump(cx, cy, sx, sy):
        return torch.exp(-(((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2))

    mouth = bump(points[3:, 0].mean(), points[3:, 1].mean() + 1, 12, 7)
    left, right = (bump(eye[0], eye[1] - 2, 8, 6) for eye in points[:2])
    return mouth.float(), (left + right).float()


class Generator(nn.Module):
    """Any expression -> neutral: input plus a delta. Encoder and decoder meet at four equal sizes."""

    def __init__(self, shape: Shape = SHAPES["derl"]):
        super().__init__()
        a, b, c, d = shape.widths
        self.stem = ConvRelu(1, a, stride=2)
        self.e1 = ConvRelu(a, a)  # 32
        self.e2 = nn.Sequential(ConvRelu(a, b, stride=2), ConvRelu(b, b))  # 16
        self.e3 = nn.Sequential(ConvRelu(b, c, stride=2), ConvRelu(c, c))  # 8
        self.e4 = ConvRelu(c, d, stride=2)  # 4
        self.d4 = ConvRelu(d, d)
        self.r3, self.d3 = ConvRelu(d, c, 1), conv_bn(c, c)
        self.r2, self.d2 = ConvRelu(c, b, 1), conv_bn(b, b)
        self.r1, self.d1 = ConvRelu(b, a, 1), conv_bn(a, a)
        self.r0 = ConvRelu(a, shape.fine, 1)
        self.d0 = ConvRelu(shape.fine, shape.fine)
        self.out = nn.Conv2d(shape.fine, 1, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x):
        """Delta, and the pairs (encoder, decoder) from 32 down to 4."""
        e1 = self.e1(self.stem(x))
        e2 = self.e2(e1)
        e3 = self.e3(e2)
        e4 = self.e4(e3)
        d4 = self.d4(e4)
        d3 = F.relu(self.d3(up(self.r3(d4))) + e3)
        d2 = F.relu(self.d2(up(self.r2(d3))) + e2)
        d1 = F.relu(self.d1(up(self.r1(d2))) + e1)
        delta = self.out(self.d0(up(self.r0(d1))))
        return delta, ((e1, d1), (e2, d2), (e3, d3), (e4, d4))


class Discriminator(nn.Module):
    """Patches: real or made. Two channels (input, candidate) for pairs, one channel for single faces."""

    def __init__(self, channels: int):
        super().__init__()

        def layer(cin, cout):
            return nn.utils.spectral_norm(nn.Conv2d(cin, cout, 4, 2, 1))

        self.a, self.b, self.c = layer(channels, 24), layer(24, 48), layer(48, 96)
        self.d = nn.utils.spectral_norm(nn.Conv2d(96, 1, 3, padding=1))

    def forward(self, x):
        for conv in (self.a, self.b, self.c):
            x = F.leaky_relu(conv(x), 0.2)
        return self.d(x)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """The faster layout for training; nothing to do in a graph that is being exported."""
    return x if torch.onnx.is_in_onnx_export() else x.contiguous(memory_format=torch.channels_last)


class Halve(nn.Module):
    """Two convolutions and a short cut to half the size; the short cut is a mean of 2x2, written as a convolution."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.a, self.b = conv_bn(cin, cout, stride=2), conv_bn(cout, cout)
        self.short = nn.Conv2d(cin, cout, 2, 2, bias=False)
        with torch.no_grad():
            self.short.weight.zero_()
            self.short.weight[range(cin), range(cin)] = 0.25

    def forward(self, x):
        return F.relu(self.short(x) + self.b(F.relu(self.a(x))))


class Join(nn.Module):
    """Adds what a pair of equal-size generator layers tells; begins by adding nothing."""

    def __init__(self, told: int, channels: int):
        super().__init__()
        self.body = conv_bn(told, channels, 1)
        nn.init.zeros_(self.body[1].weight)

    def forward(self, x, told):
        return F.relu(x + self.body(_channels_last(torch.cat(told, 1))))


class Classifier(nn.Module):
    """Reads the picture, and at every size what the generator took out of it there.

    The first blocks of a recogniser follow the picture from 64 to 4; at 32, 16, 8 and 4 the generator's equal-size layers
    join it, as the paper's local nets read them, and at 32 the delta too: the pair of picture and neutral face.
    """

    def __init__(self, shape: Shape = SHAPES["derl"], classes: int = 8, drop: float = 0.3):
        super().__init__()
        a, b, c, d = shape.widths
        p, q, r, s = shape.trunk
        self.stem = conv_bn(1, p, 5)  # 64
        self.delta = ConvRelu(1, shape.told, stride=2)  # 32
        self.join1, self.block1 = Join(2 * a + shape.told, p), Block(p)
        self.halve2, self.join2, self.block2 = Halve(p, q), Join(2 * b, q), Block(q)  # 16
        self.halve3, self.join3 = Halve(q, r), Join(2 * c, r)  # 8
        self.halve4, self.join4, self.last = ConvRelu(r, s, stride=2), Join(2 * d, s), ConvRelu(s, s)  # 4
        self.drop = nn.Dropout(drop)
        self.final = nn.Linear(s, classes)

    def forward(self, x, delta, pairs):
        """Standardised pictures and deltas [N, 1, 64, 64], the generator's pairs -> logits [N, classes]."""
        x = self.stem(_channels_last(x))
        # The same either way: one costs less in training, the other keeps a bit more in int8.
        x = F.relu(F.max_pool2d(x, 3, 2, 1)) if self.training else F.max_pool2d(F.relu(x), 3, 2, 1)
        x = self.block1(self.join1(x, (*pairs[0], self.delta(_channels_last(delta)))))
        x = self.block2(self.join2(self.halve2(x), pairs[1]))
        x = self.join3(self.halve3(x), pairs[2])
        x = self.last(self.join4(self.halve4(x), pairs[3]))
        return self.final(self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class Derl(nn.Module):
    """What is shipped: standardised luminance -> neutral face, logits, residue energies."""

    def __init__(self, generator: Generator, classifier: Classifier):
        super().__init__()
        self.generator, self.classifier = generator, classifier
        # How much a place counts in the first energy: the face, until `neutrality.fit` has found what tells expression.
        mask = face_mask()
        self.register_buffer("weight", mask / mask.mean())

    def forward(self, x):
        delta, pairs = self.generator(x)
        logits = self.classifier(x, delta, pairs)
        energy = [(delta.abs() * self.weight).mean((2, 3))]
        energy += [(d - e).abs().mean((2, 3)).mean(1, keepdim=True) for e, d in pairs]
        return x + delta, logits, torch.cat(energy, 1)

    def residues(self, x):
        """What the first energy weighs: the delta's mean magnitude in the cells of an 8x8 grid, [N, 64]."""
        return F.avg_pool2d(self.generator(x)[0].abs(), 8).flatten(1)

    def read_with(self, weights) -> None:
        """Takes over weights for `residues`, in their order."""
        grid = torch.as_tensor(weights, dtype=torch.float32).reshape(1, 1, 8, 8)
        self.weight.copy_(F.interpolate(grid * 64, scale_factor=8, mode="nearest"))


def derl(name: str) -> Derl:
    """The bundle's network, untrained."""
    return Derl(Generator(SHAPES[name]), Classifier(SHAPES[name]))


def count_macs(module: nn.Module, *inputs) -> int:
    """Multiply-accumulates of convolutions and fully connected layers, for these inputs."""
    total, hooks = 0, []

    def hook(layer, _, output):
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += output.numel() // output.shape[0] * layer.weight[0].numel()
        else:
            total += layer.weight.numel()

    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            hooks.append(layer.register_forward_hook(hook))
    training = module.training
    module.eval()
    with torch.no_grad():
        module(*inputs)
    module.train(training)
    for h in hooks:
        h.remove()
    return total


def fold(module: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution before it (in place)."""
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential) and len(child) == 2 and isinstance(child[1], nn.BatchNorm2d):
            folded = torch.nn.utils.fusion.fuse_conv_bn_eval(child[0].eval(), child[1].eval())
            setattr(module, name, folded)
        else:
            fold(child)
    return module


def settle(module: nn.Module) -> None:
    """Normalisation by what was seen so far, in training as afterwards.

    Batches of few pictures of several kinds are normalised each in its own way, and a deep net comes to lean on that: what it
    gives for a picture alone is then another thing.
    """
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()


def part(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The weights of one part of a module, by their names within it."""
    return {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}


def unfold(module: nn.Module, weights: dict[str, torch.Tensor], *batch) -> None:
    """Weights without batch norm back into a module with it; `batch`, its inputs, gives each layer its statistics.

    In eval mode the module then gives what the weights gave. Layers without weights among them stay as they are.
    """
    handles = []
    for path, part in module.named_modules():
        pair = list(part.children()) if isinstance(part, nn.Sequential) else []
        if f"{path}.weight" not in weights:
            continue
        if len(pair) == 2 and isinstance(pair[1], nn.BatchNorm2d):
            pair[0].weight.data.copy_(weights[f"{path}.weight"])
            bias = weights[f"{path}.bias"]

            def settle(norm, inputs, bias=bias):
                mean, var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), correction=0)
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(var)
                norm.weight.data.copy_((var + norm.eps).sqrt())
                norm.bias.data.copy_(mean + bias)

            handles.append(pair[1].register_forward_pre_hook(settle))
        elif isinstance(part, (nn.Conv2d, nn.Linear)):
            part.weight.data.copy_(weights[f"{path}.weight"])
            if part.bias is not None:
                part.bias.data.copy_(weights[f"{path}.bias"])
    module.eval()
    with torch.no_grad():
        module(*batch)
    for handle in handles:
        handle.remove()
