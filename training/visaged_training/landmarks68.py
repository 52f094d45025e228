"""The 68 landmarks of a face, by the small network of face-api.js (MIT); it reads a square RGB crop.

It says where lips, eyes and brows are when make-up is painted. Nothing of it is shipped.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SIDE = 112
MEAN = (122.782, 117.001, 104.298)
JAW, BROWS, NOSE = slice(0, 17), (slice(17, 22), slice(22, 27)), slice(27, 36)
EYES, LIPS, MOUTH = (slice(36, 42), slice(42, 48)), slice(48, 60), slice(60, 68)


def read(folder: Path) -> dict[str, torch.Tensor]:
    entries = json.loads((folder / "face_landmark_68_model-weights_manifest.json").read_text())[0]["weights"]
    blob, at, weights = (folder / "face_landmark_68_model-shard1").read_bytes(), 0, {}
    for entry in entries:
        count, grid = int(np.prod(entry["shape"])), entry["quantization"]
        values = np.frombuffer(blob, np.uint8, count, at).astype(np.float32) * grid["scale"] + grid["min"]
        weights[entry["name"]] = torch.from_numpy(values.reshape(entry["shape"]).astype(np.float32))
        at += count
    if at != len(blob):
        raise ValueError(f"{folder}: {len(blob)} bytes of weights, the manifest names {at}")
    return weights


class Landmarks(nn.Module):
    """RGB [N, 3, 112, 112], 0..255 -> [N, 68, 2] in 0..1 of the crop."""

    def __init__(self, folder: Path):
        super().__init__()
        self.weights = read(folder)

    def _layer(self, x, name: str, stride: int):
        w, bias = self.weights, self.weights[f"{name}/bias"]
        if stride == 2:  # as TensorFlow pads an even side
            x = F.pad(x, (0, 1, 0, 1))
        pad = 0 if stride == 2 else 1
        if f"{name}/filters" in w:
            return F.conv2d(x, w[f"{name}/filters"].permute(3, 2, 0, 1), bias, stride, pad)
        x = F.conv2d(x, w[f"{name}/depthwise_filter"].permute(2, 3, 0, 1), None, stride, pad, groups=x.shape[1])
        return F.conv2d(x, w[f"{name}/pointwise_filter"].permute(3, 2, 0, 1), bias)

    def forward(self, x):
        x = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / 255
        for k in range(4):
            total = F.relu(self._layer(x, f"dense{k}/conv0", 2)) if k == 0 else self._layer(x, f"dense{k}/conv0", 2)
            x = total if k == 0 else F.relu(total)
            total = x
            for j in (1, 2, 3):
                total = total + self._layer(x, f"dense{k}/conv{j}", 1)
                x = F.relu(total)
        x = F.avg_pool2d(x, 7).flatten(1)
        return (x @ self.weights["fc/weights"] + self.weights["fc/bias"]).view(-1, 68, 2)


class Finder:
    """Landmarks in square pictures that hold one face."""

    def __init__(self, root: Path):
        self.net = Landmarks(root / "weights").eval()

    @torch.no_grad()
    def __call__(self, picture: np.ndarray, corner: tuple[float, float], side: float) -> np.ndarray:
        """`picture` u8 [H, W, 3]; the crop's corner and side in its pixels -> [68, 2] in its pixels."""
        scale = SIDE / side
        from . import align

        m = np.array([[scale, 0, -corner[0] * scale], [0, scale, -corner[1] * scale]])
        crop = align.warp(picture, m, SIDE)
        x = torch.from_numpy(crop.transpose(2, 0, 1).astype(np.float32))[None]
        return self.net(x)[0].numpy() * side + np.asarray(corner)
