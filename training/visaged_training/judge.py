"""A face embedding that takes no part in training: `faceres` of npm's `@vladmandic/human` (MIT), a MobileNet on 224x224 RGB.

It judges what the identity generator makes. Nothing of it is shipped. The graph is a TensorFlow.js one of eleven kinds of
operations; this runs it in torch.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

SIDE = 224
LAST = "global_pooling/Mean"


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Weights by name, as they lie in `faceres.bin`."""
    group = json.loads((folder / "faceres.json").read_text())["weightsManifest"][0]
    blob, at, weights = b"".join((folder / p).read_bytes() for p in group["paths"]), 0, {}
    kinds = {"float32": np.float32, "int32": np.int32, "float16": np.float16, "uint8": np.uint8, "uint16": np.uint16}
    for entry in group["weights"]:
        grid = entry.get("quantization", {})
        kind, count = kinds[grid.get("dtype", entry["dtype"])], int(np.prod(entry["shape"]))
        values = np.frombuffer(blob, kind, count, at)
        at += values.nbytes
        if "scale" in grid:
            values = values.astype(np.float32) * grid["scale"] + grid["min"]
        kept = np.int64 if entry["dtype"] == "int32" else np.float32
        weights[entry["name"]] = torch.from_numpy(values.astype(kept).reshape(entry["shape"]))
    if at != len(blob):
        raise ValueError(f"{folder}: {len(blob)} bytes of weights, the manifest names {at}")
    return weights


def _same(x: torch.Tensor, kernel: torch.Tensor, strides: list[int]) -> torch.Tensor:
    """Padded as TensorFlow's SAME pads."""
    pads = []
    for axis in (1, 0):
        size, k, s = x.shape[2 + axis], kernel.shape[axis], strides[1 + axis]
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class Judge:
    """RGB [N, 3, 224, 224], 0..255 -> [N, 1024]."""

    def __init__(self, folder: Path):
        self.nodes = [n for n in json.loads((folder / "faceres.json").read_text())["modelTopology"]["node"] if n["op"] != "Const"]
        self.weights = read(folder)

    @torch.no_grad()
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        known = dict(self.weights)
        waiting = list(self.nodes)
        while LAST not in known:
            node = next(n for n in waiting if all(i.split(":")[0] in known for i in n.get("input", [])))
            waiting.remove(node)
            known[node["name"]] = self._run(node, x, [known[i.split(":")[0]] for i in node.get("input", [])])
        return known[LAST]

    def _run(self, node: dict, picture: torch.Tensor, inputs: list[torch.Tensor]) -> torch.Tensor:
        op, attr = node["op"], node.get("attr", {})
        if op == "Placeholder":
            return picture
        if op in ("Conv2D", "DepthwiseConv2dNative"):
            x, kernel = inputs
            strides = [int(s) for s in attr["strides"]["list"]["i"]]
            if base64.b64decode(attr["padding"]["s"]) == b"SAME":
                x = _same(x, kernel, strides)
            if op == "Conv2D":
                return F.conv2d(x, kernel.permute(3, 2, 0, 1), None, strides[1:3])
            return F.conv2d(x, kernel.permute(2, 3, 0, 1).flatten(0, 1)[:, None], None, strides[1:3], groups=x.shape[1])
        # Constants lie along the last axis there, along the second here.
        inputs = [i.view(1, -1, 1, 1) if i.ndim == 1 else i for i in inputs]
        if op == "Mean":
            return inputs[0].mean((2, 3))
        pair = {"Add": torch.add, "Mul": torch.mul, "Minimum": torch.minimum, "Maximum": torch.maximum}
        return F.relu(inputs[0]) if op == "Relu" else pair[op](*inputs)


def ages(judge: Judge, faces: np.ndarray) -> np.ndarray:
    """Of aligned faces u8 [N, 128, 128, 3], in years, as its second head guesses."""
    w = judge.weights
    hidden = F.relu(torch.from_numpy(embed(judge, faces)) @ w["feats/kernel"] + w["feats/bias"])
    return ((hidden @ w["age_pred/kernel"] + w["age_pred/bias"]).softmax(1) @ torch.arange(100.0)).numpy()


def embed(judge: Judge, faces: np.ndarray) -> np.ndarray:
    """Aligned faces u8 [N, 128, 128, 3] -> [N, 1024]; what is known of them is their deviation from the mean of many."""
    out = []
    for part in torch.from_numpy(faces).split(32):
        x = part.permute(0, 3, 1, 2).float()
        out.append(judge(F.interpolate(x, size=SIDE, mode="bilinear", align_corners=False)))
    return torch.cat(out).numpy()
