"""Similarity alignment on five landmarks, the same as the daemon's face::align.

The template is the robust mean of the five landmarks that the detector finds on FER+ crops, so an aligned face has the
framing of a FER+ crop and the expression network sees in the field what it saw in training.
"""

from __future__ import annotations

import json
from functools import cache

import numpy as np
from PIL import Image

from .data import ROOT

TEMPLATE = ROOT / "training" / "template.json"


@cache
def template() -> np.ndarray:
    spec = json.loads(TEMPLATE.read_text())
    return np.asarray(spec["points"], np.float64) * (128 / spec["size"])


def similarity(src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    """Least-squares similarity (no reflection) that takes src to dst; a 2x3 matrix."""
    src, dst = np.asarray(src, np.float64), np.asarray(dst, np.float64)
    ms, md = src.mean(0), dst.mean(0)
    s, d = src - ms, dst - md
    norm = max((s**2).sum(), 1e-12)
    a = (s * d).sum() / norm
    b = (s[:, 0] * d[:, 1] - s[:, 1] * d[:, 0]).sum() / norm
    rot = np.array([[a, -b], [b, a]])
    return np.concatenate([rot, (md - rot @ ms)[:, None]], 1)


def warp(picture: np.ndarray, matrix: np.ndarray, size: int = 128) -> np.ndarray:
    """Draw `picture` through `matrix` into a size x size square, area-averaged where it shrinks.

    Pixel centres lie at +0.5 in both pictures. Outside the picture the border is repeated.
    """
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    over = int(np.clip(np.ceil(1.0 / max(scale, 1e-6)), 1, 8))
    n = size * over
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    grid = (np.arange(n) + 0.5) / over
    x, y = np.meshgrid(grid, grid)
    u = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2] - 0.5
    v = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2] - 0.5
    h, w = picture.shape[:2]
    u, v = np.clip(u, 0, w - 1), np.clip(v, 0, h - 1)
    u0, v0 = np.minimum(u.astype(int), max(w - 2, 0)), np.minimum(v.astype(int), max(h - 2, 0))
    u1, v1 = np.minimum(u0 + 1, w - 1), np.minimum(v0 + 1, h - 1)
    fu, fv = (u - u0)[..., None], (v - v0)[..., None]
    p = picture.reshape(h, w, -1).astype(np.float32)
    out = (p[v0, u0] * (1 - fu) + p[v0, u1] * fu) * (1 - fv) + (p[v1, u0] * (1 - fu) + p[v1, u1] * fu) * fv
    out = out.reshape(size, over, size, over, -1).mean((1, 3))
    out = np.clip(np.rint(out), 0, 255).astype(np.uint8)
    return out[..., 0] if picture.ndim == 2 else out


def align(picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The 128x128 aligned face."""
    return warp(picture, similarity(landmarks, template()))


def luminance64(face: np.ndarray) -> np.ndarray:
    """128x128 RGB (or grey) -> 64x64 float32 luminance 0..255: BT.601, then the mean of 2x2."""
    grey = np.asarray(Image.fromarray(face).convert("L"), np.float32)
    return grey.reshape(64, 2, 64, 2).mean((1, 3))


def crop64(crops: np.ndarray) -> np.ndarray:
    """FER+ crops 48x48 -> 64x64 by plain bilinear resizing, uint8 [N, 64, 64]."""
    return np.stack([np.asarray(Image.fromarray(c).resize((64, 64), Image.BILINEAR)) for c in crops])


def standardise(x: np.ndarray, eps: float = 8.0) -> np.ndarray:
    """Per-picture (x - mean) / (std + eps); the last two axes are the picture."""
    x = x.astype(np.float32)
    mean = x.mean((-2, -1), keepdims=True)
    std = x.std((-2, -1), keepdims=True)
    return (x - mean) / (std + eps)
