"""Pictures with a known answer to "this person, as that one looks": what the identity generator learns from.

Rendered people have the exact answer (`gallery`). For two photographs a rough one is made: the first face bent onto the second
by their landmarks (thin-plate spline: Bookstein, "Principal warps", 1989), its coarse light and colour taken from the second,
inside the second's face only. It has the first person's brows, eyes, nose, lips and skin in the second's place, pose and light;
what is wrong in it, the losses on identity, expression and looks are to mend.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter

from .landmarks68 import EYES, JAW, MOUTH

SIDE = 128
_OVER = 3
# Points that no warp moves.
_RIM = np.array([[x, y] for x in (0, 64, 128) for y in (0, 64, 128) if (x, y) != (64, 64)], np.float32)


def forehead(points: np.ndarray) -> np.ndarray:
    """Where the forehead ends, above the brows [10, 2]."""
    unit = np.linalg.norm(points[EYES[0]].mean(0) - points[EYES[1]].mean(0))
    up = points[27] - points[8]
    return points[17:27] + up / max(np.linalg.norm(up), 1e-6) * 0.4 * unit


def _filled(outline: np.ndarray, blur_px: float) -> np.ndarray:
    picture = Image.new("L", (SIDE * _OVER, SIDE * _OVER))
    ImageDraw.Draw(picture).polygon([(float(x) * _OVER, float(y) * _OVER) for x, y in outline], fill=255)
    picture = picture.filter(ImageFilter.GaussianBlur(blur_px * _OVER))
    return np.asarray(picture.resize((SIDE, SIDE), Image.BOX))


def mask(points: np.ndarray) -> np.ndarray:
    """The face, soft at its border, u8 [128, 128]."""
    outline = np.concatenate([points[JAW], forehead(points)[::-1]])
    return _filled(outline.mean(0) + 0.97 * (outline - outline.mean(0)), 3.0)


def mouth(points: np.ndarray) -> np.ndarray:
    """What an open mouth shows, u8 [128, 128]."""
    return _filled(points[MOUTH], 0.7)


def eye_opening(points: np.ndarray) -> float:
    """Height of the eyes against their width."""
    tall = [np.linalg.norm(p[[1, 2]] - p[[5, 4]], axis=1).mean() / np.linalg.norm(p[0] - p[3]) for p in (points[e] for e in EYES)]
    return float(min(tall))


def anchors(points: np.ndarray) -> np.ndarray:
    """What a warp is made of: landmarks, forehead, rim [86, 2]."""
    return np.concatenate([points, forehead(points), _RIM]).astype(np.float32)


def _bend(r2: torch.Tensor) -> torch.Tensor:
    return r2 * torch.log(r2.clamp_min(1e-6))


def spline(to: torch.Tensor, come: torch.Tensor, cells: int = 16, soft: float = 0.02) -> torch.Tensor:
    """Sampling grids [N, 128, 128, 2] for `grid_sample` that bring what lies at `come` [N, K, 2] to `to`, both in pixels.

    `soft` lets the surface miss the points a little: landmarks are not exact.
    """
    n, k, _ = to.shape
    to, come = to.double() / 64 - 1, come.double() / 64 - 1
    bend = _bend(torch.cdist(to, to) ** 2) + soft * torch.eye(k, dtype=torch.float64)
    flat = torch.cat([torch.ones(n, k, 1, dtype=torch.float64), to], 2)
    top = torch.cat([bend, flat], 2)
    low = torch.cat([flat.transpose(1, 2), torch.zeros(n, 3, 3, dtype=torch.float64)], 2)
    wanted = torch.cat([come - to, torch.zeros(n, 3, 2, dtype=torch.float64)], 1)
    weights = torch.linalg.solve(torch.cat([top, low], 1), wanted)
    line = (torch.arange(cells, dtype=torch.float64) + 0.5) * 2 / cells - 1
    at = torch.stack(torch.meshgrid(line, line, indexing="xy"), 2).view(1, -1, 2)
    basis = torch.cat([_bend(torch.cdist(at.expand(n, -1, -1), to) ** 2), torch.ones(n, cells**2, 1, dtype=torch.float64),
                       at.expand(n, -1, -1)], 2)  # fmt: skip
    moved = (basis @ weights).view(n, cells, cells, 2).permute(0, 3, 1, 2).float()
    moved = F.interpolate(moved, size=SIDE, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    return F.affine_grid(torch.eye(2, 3)[None], (1, 1, SIDE, SIDE), align_corners=False) + moved


def coarse(x: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """What is left of a picture [N, C, 128, 128] inside a region without its detail."""
    line = torch.tensor([1.0, 4, 6, 4, 1]) / 16

    def low(y):
        y, c = F.avg_pool2d(y, 8), y.shape[1]
        for _ in range(2):
            y = F.conv2d(y, line.view(1, 1, 1, 5).expand(c, 1, 1, 5), padding=(0, 2), groups=c)
            y = F.conv2d(y, line.view(1, 1, 5, 1).expand(c, 1, 5, 1), padding=(2, 0), groups=c)
        return y

    kept = low(x * where) / low(where).clamp_min(0.02)
    return F.interpolate(kept, size=SIDE, mode="bilinear", align_corners=False)


class Faces(NamedTuple):
    """Photographs of a batch: grey levels f32 [N, 3, 128, 128], anchors [N, 86, 2], masks of face and mouth 0..1 [N, 1, 128,
    128]."""

    picture: torch.Tensor
    anchors: torch.Tensor
    mask: torch.Tensor
    mouth: torch.Tensor


def bent(a: Faces, b: Faces) -> torch.Tensor:
    """Each first person as the second looks, roughly, in grey levels."""
    moved = F.grid_sample(a.picture, spline(b.anchors, a.anchors), padding_mode="border", align_corners=False)
    gain = ((coarse(b.picture, b.mask) + 8) / (coarse(moved, b.mask) + 8)).clamp(0.3, 3.0)
    inside = b.mask * (1 - b.mouth)
    return inside * (moved * gain).clamp(0, 255) + (1 - inside) * b.picture
