"""dlib's face descriptor (a ResNet with 29 convolutions, 150x150 RGB -> 128), as npm's `@vladmandic/face-api` ships it.

It is the teacher of the identity encoder and gives it its first weights. Nothing of it is shipped.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SIZE = 150
MEAN = (122.782, 117.001, 104.298)
# Where dlib's five-point template has the landmarks in its chip, in the order of this project.
TEMPLATE = np.array([[47.5, 44.9], [100.5, 45.0], [74.4, 73.5], [51.4, 98.6], [96.2, 98.9]])
BLOCKS = (
    "conv32_1", "conv32_2", "conv32_3", "conv64_down", "conv64_1", "conv64_2", "conv64_3", "conv128_down", "conv128_1",
    "conv128_2", "conv256_down", "conv256_1", "conv256_2", "conv256_down_out",
)  # fmt: skip


def read(folder: Path) -> dict[str, np.ndarray]:
    """Weights by name: uint8 with scale and minimum, in the order of the manifest. `folder` is the package's `model`."""
    entries = json.loads((folder / "face_recognition_model-weights_manifest.json").read_text())[0]["weights"]
    blob, at, weights = (folder / "face_recognition_model.bin").read_bytes(), 0, {}
    for entry in entries:
        count, grid = int(np.prod(entry["shape"])), entry.get("quantization")
        if grid:
            values = np.frombuffer(blob, np.uint8, count, at).astype(np.float32) * grid["scale"] + grid["min"]
            at += count
        else:
            values = np.frombuffer(blob, np.float32, count, at)
            at += 4 * count
        weights[entry["name"]] = values.reshape(entry["shape"]).astype(np.float32)
    if at != len(blob):
        raise ValueError(f"{folder}: {len(blob)} bytes of weights, the manifest names {at}")
    return weights


def convolution(weights: dict[str, np.ndarray], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Filters [out, in, h, w] and bias of one layer, its affine scale folded in."""
    scale, shift = weights[f"{name}/scale/weights"], weights[f"{name}/scale/biases"]
    filters = weights[f"{name}/conv/filters"].transpose(3, 2, 0, 1) * scale[:, None, None, None]
    return torch.from_numpy(filters.copy()), torch.from_numpy(weights[f"{name}/conv/bias"] * scale + shift)


class Block(nn.Module):
    def __init__(self, cin: int, cout: int, down: bool):
        super().__init__()
        self.a = nn.Conv2d(cin, cout, 3, 2 if down else 1, 0 if down else 1)
        self.b = nn.Conv2d(cout, cout, 3, 1, 1)
        self.down = down

    def forward(self, x):
        y = self.b(F.relu(self.a(x)))
        if self.down:
            x = F.avg_pool2d(x, 2, 2)
            h, w = max(x.shape[2], y.shape[2]), max(x.shape[3], y.shape[3])
            y = F.pad(y, (0, w - y.shape[3], 0, h - y.shape[2]))
            x = F.pad(x, (0, w - x.shape[3], 0, h - x.shape[2], 0, y.shape[1] - x.shape[1]))
        return F.relu(x + y)


class Descriptor(nn.Module):
    """RGB [N, 3, 150, 150], 0..255 -> [N, 128]; two pictures of one person are closer than about 0.6."""

    def __init__(self, folder: Path):
        super().__init__()
        weights = read(folder)
        self.stem, blocks, cin = nn.Conv2d(3, 32, 7, 2), [], 32
        for name in BLOCKS:
            cout = int(name[4:].split("_")[0])
            blocks.append(Block(cin, cout, "down" in name))
            cin = cout
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Linear(256, 128, bias=False)
        for layer, name in ((self.stem, "conv32_down"), *self._pairs()):
            layer.weight.data, layer.bias.data = convolution(weights, name)
        self.last.weight.data = torch.from_numpy(weights["fc"].T.copy())
        self.requires_grad_(False).eval()

    def _pairs(self):
        for block, name in zip(self.blocks, BLOCKS, strict=True):
            yield block.a, f"{name}/conv1"
            yield block.b, f"{name}/conv2"

    def forward(self, x):
        x = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / 255
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2)
        for block in self.blocks:
            x = block(x)
        return self.last(x.mean((2, 3)))
