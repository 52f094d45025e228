"""Augmentation on batches of grey faces [B, C, 64, 64], 0..255. All channels of a picture get the same treatment."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def standardise(x: torch.Tensor, like: torch.Tensor | None = None, eps: float = 8.0) -> torch.Tensor:
    """(x - mean) / (std + eps) with the statistics of `like` (default x itself)."""
    like = x if like is None else like
    mean = like.mean((2, 3), keepdim=True)
    std = like.std((2, 3), keepdim=True, correction=0)
    return (x - mean) / (std + eps)


def affine(x, angle: float, scale: float, shift: float, flip: bool = True):
    """Random similarity plus mirror; the border is repeated."""
    n = x.shape[0]
    a = (torch.rand(n) * 2 - 1) * angle
    s = 1 + (torch.rand(n) * 2 - 1) * scale
    t = (torch.rand(n, 2) * 2 - 1) * shift
    f = torch.where(torch.rand(n) < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    c, d = torch.cos(a) * s, torch.sin(a) * s
    theta = torch.stack([torch.stack([c * f, -d, t[:, 0]], 1), torch.stack([d * f, c, t[:, 1]], 1)], 1)
    grid = F.affine_grid(theta, (n, 1, x.shape[2], x.shape[3]), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def tone(x, gamma: float = 0.4, side_light: float = 0.25):
    """Random gamma, and light from one side."""
    n = x.shape[0]
    g = torch.exp((torch.rand(n, 1, 1, 1) * 2 - 1) * gamma)
    x = 255 * (x / 255).clamp(1e-4, 1) ** g
    a = torch.rand(n, 1, 1, 1) * 2 * math.pi
    line = torch.linspace(-1, 1, x.shape[3])
    ramp = torch.cos(a) * line.view(1, 1, 1, -1) + torch.sin(a) * line.view(1, 1, -1, 1)
    strength = torch.rand(n, 1, 1, 1) * side_light * (torch.rand(n, 1, 1, 1) < 0.4)
    return (x * (1 + strength * ramp)).clamp(0, 255)


def small(x, share: float = 0.2, lowest: int = 20):
    """Some pictures of a batch are seen from far: shrunk and enlarged again."""
    n = x.shape[0]
    chosen = torch.nonzero(torch.rand(n) < share).flatten()
    if len(chosen) == 0:
        return x
    x = x.clone()
    for part in chosen.chunk(3):
        size = int(torch.randint(lowest, 49, ()).item())
        low = F.interpolate(x[part], size=size, mode="bilinear", antialias=True, align_corners=False)
        x[part] = F.interpolate(low, size=x.shape[-1], mode="bilinear", align_corners=False)
    return x


def sharpen(x, share: float = 0.3, most: float = 1.5):
    """Some pictures of a batch get the edges of a sharp lens, or of a camera that sharpens."""
    n = x.shape[0]
    strength = torch.rand(n, 1, 1, 1) * most * (torch.rand(n, 1, 1, 1) < share)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return (x + strength * (x - soft)).clamp(0, 255)


def noise(x, strength: float = 6.0):
    """The same grain on every channel, in grey levels."""
    n = x.shape[0]
    level = torch.rand(n, 1, 1, 1) ** 2 * strength
    return (x + torch.randn(n, 1, x.shape[2], x.shape[3]) * level).clamp(0, 255)


def erase(x, share: float = 0.3):
    """Random rectangles of standardised pictures are replaced by a constant."""
    n, _, h, w = x.shape
    rows, columns = torch.arange(h).view(1, h, 1), torch.arange(w).view(1, 1, w)
    size = torch.randint(10, 28, (n, 2))
    y = (torch.rand(n) * (h - size[:, 0])).long().view(n, 1, 1)
    z = (torch.rand(n) * (w - size[:, 1])).long().view(n, 1, 1)
    hit = (rows >= y) & (rows < y + size[:, 0].view(n, 1, 1)) & (columns >= z) & (columns < z + size[:, 1].view(n, 1, 1))
    hit &= (torch.rand(n) < share).view(n, 1, 1)
    return torch.where(hit[:, None], torch.randn(n, 1, 1, 1), x)


def photograph(x, gamma: float = 0.4):
    """What a camera and a detector do to a face; grey levels in and out."""
    x = affine(x, 0.24, 0.15, 0.12)
    return noise(small(tone(x, gamma)))
