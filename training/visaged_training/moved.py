"""Real faces with rendered expressions, so that a photograph has an expressive partner with a known answer: itself.

A calm photograph is moved as the skin of a rendered head moves, shaded as that skin is shaded anew (an expression ratio
image: Liu, Shan, Zhang, "Expressive expression mapping with ratio images", 2001), and what the head's open mouth shows is
laid into it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from . import ict, nets, synth
from .align import similarity, template

SIDE = 64
PARTS = ("flow", "ratio", "inside", "cover")
FACE = 6706  # the first vertices of the model: the narrow face


def soft(planes: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of [C, SIDE, SIDE]."""
    reach = int(np.ceil(3 * sigma))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    line = line / line.sum()
    planes = F.conv2d(planes[:, None], line.view(1, 1, 1, -1), padding=(0, reach))
    return F.conv2d(planes, line.view(1, 1, -1, 1), padding=(reach, 0))[:, 0]


def spread(at: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values known at scattered points [N, 2] of the crop, for every pixel of it: [SIDE, SIDE, C]; the further the smoother."""
    inside = (at > 0).all(1) & (at < SIDE).all(1)
    cell = at[inside].astype(int)
    total = np.zeros((values.shape[1] + 1, SIDE, SIDE), np.float32)
    for plane, what in zip(total, [*values[inside].T, 1.0], strict=True):
        np.add.at(plane, (cell[:, 1], cell[:, 0]), what)
    result, left = np.zeros((SIDE, SIDE, values.shape[1]), np.float32), np.ones((SIDE, SIDE, 1), np.float32)
    for sigma in (0.8, 2.0, 6.0, 14.0):
        *sums, known = soft(torch.from_numpy(total), sigma).numpy()
        share = np.clip(known / 0.05, 0, 1)[..., None] * left
        result += share * np.stack(sums, 2) / np.maximum(known, 1e-6)[..., None]
        left = left - share
    return result


class Silhouette:
    """A head in black with the inside of its mouth in white."""

    def __init__(self, head):
        self._head = head

    def __getattr__(self, name):
        return getattr(self._head, name)

    def parts(self, v: np.ndarray):
        parts = self._head.parts(v)
        for part, white in zip(parts, self._head.is_mouth, strict=True):
            part.texture, part.shine = np.full((2, 2, 4), (*(255 * white,) * 3, 255), np.uint8), 0.0
        return [part for part in parts if not part.alpha]


def flow(root: Path, number: int, seed: int) -> tuple[np.ndarray, ...]:
    """One expression of one head: where each pixel comes from (offsets in crop pixels [SIDE, SIDE, 2]), how its light changes,
    the head's own brightness (1 is the mean of the face), and how much of it is the inside of a mouth.
    """
    rng = np.random.default_rng([seed, 17, number])
    head = ict.Ict(root, rng)
    view = synth.scene(rng)
    view["yaw"], view["pitch"] = 0.5 * view["yaw"], 0.5 * view["pitch"]
    even = {**view, "ambient": np.ones(3), "key": np.zeros(3), "fill": np.zeros(3), "background": 0 * view["background"]}
    calm = head.shape({})
    weights, _ = synth.expression(rng, ict.EXPRESSIONS)
    shape = head.shape(weights, int(rng.integers(2)))
    at = synth.points(head, view, calm, "ict")
    m = np.diag([0.5, 0.5]) @ similarity(at, template())
    before, after = (synth.project(head, view, v)[:FACE, :2] @ m[:, :2].T + m[:, 2] for v in (calm, shape))
    still, picture, mouth = (
        synth.aligned(synth.grey(synth.render(drawn, light, v)), at).astype(np.float32)
        for drawn, light, v in ((head, view, calm), (head, view, shape), (Silhouette(head), even, shape))
    )
    offsets = spread(after, (before - after).astype(np.float32))
    mouth = np.clip(mouth / 200, 0, 1)
    ratio = (picture + 12) / (warp(still, offsets) + 12)
    ratio = np.where(mouth > 0.05, 1, np.clip(ratio, 0.6, 1.5))
    oval = nets.face_mask()[0, 0].numpy()
    mean = (picture * oval).sum() / oval.sum()
    inside = np.clip(picture / max(mean, 20.0), 0, 1.35)
    smooth = 1 + soft(torch.from_numpy(ratio[None].astype(np.float32)) - 1, 0.8)[0].numpy()
    return offsets, smooth, inside, mouth


def warp(picture: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The picture [SIDE, SIDE] with each pixel from where the offsets say."""
    out = F.grid_sample(
        torch.from_numpy(picture)[None, None], still_grid() + torch.from_numpy(offsets)[None] * 2 / SIDE,
        padding_mode="border", align_corners=False,
    )  # fmt: skip
    return out[0, 0].numpy()


def still_grid() -> torch.Tensor:
    return F.affine_grid(torch.eye(2, 3)[None], (1, 1, SIDE, SIDE), align_corners=False)


def bank(root: Path, count: int, seed: int) -> dict[str, np.ndarray]:
    """`count` expressions: flow f16 [N, 64, 64, 2] in crop pixels; ratio, inside and cover f16 [N, 64, 64]."""
    parts = [flow(root, i, seed) for i in tqdm(range(count), desc="flows", mininterval=10)]
    return {k: np.stack(v).astype(np.float16) for k, v in zip(PARTS, zip(*parts, strict=True), strict=True)}


class Mover:
    """Puts expressions of a bank on calm faces."""

    def __init__(self, path: Path):
        if not path.exists():
            raise SystemExit(f"{path} is missing: `python -m visaged_training synth --flows 1000` makes it")
        held = np.load(path)
        self.bank = [torch.from_numpy(held[k]) for k in PARTS]
        self.oval, self.still = nets.face_mask(), still_grid()

    def __call__(self, calm: torch.Tensor) -> torch.Tensor:
        """Grey faces [N, 1, 64, 64] -> (with an expression, as they were) [N, 2, 64, 64]."""
        n = len(calm)
        k, flip = torch.randint(0, len(self.bank[0]), (n,)), torch.rand(n) < 0.5
        # There are two sides to a face, and not everyone smiles as widely as a rig.
        offsets, ratio, inside, cover = (
            torch.where(flip.view(-1, *[1] * (t.ndim - 1)), t[k].flip(2), t[k]).float() for t in self.bank
        )
        offsets[flip] *= torch.tensor([-1.0, 1.0])
        size = 0.6 + 0.5 * torch.rand(n, 1, 1, 1)
        moved = F.grid_sample(calm, self.still + size * offsets * 2 / SIDE, padding_mode="border", align_corners=False)
        moved = moved * (1 + size * (ratio[:, None] - 1))
        mean = (calm * self.oval).sum((2, 3), keepdim=True) / self.oval.sum()
        cover = cover[:, None] * (size > 0.8)
        return torch.cat([(moved * (1 - cover) + inside[:, None] * mean * cover).clamp(0, 255), calm], 1)
