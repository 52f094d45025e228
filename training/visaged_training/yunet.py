"""YuNet through ONNX Runtime: decode and non-maximum suppression, as the daemon does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

STRIDES = (8, 16, 32)
OUTPUTS = [f"{kind}_{s}" for kind in ("cls", "obj", "bbox", "kps") for s in STRIDES]


@dataclass
class Face:
    score: float
    box: np.ndarray  # x, y, width, height
    landmarks: np.ndarray  # [5, 2]


def session(model: Path | bytes, threads: int = 1, float_sums: bool = False) -> ort.InferenceSession:
    """`float_sums`: an int8 graph word for word, convolutions over dequantised values, rounded after each."""
    options = ort.SessionOptions()
    if float_sums:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Without this, x86 processors that lack VNNI add u8 x s8 products in 16 bits and saturate: not what the graph says.
    options.add_session_config_entry("session.x64quantprecision", "1")
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def blanks(net: ort.InferenceSession, *given: str) -> dict[str, np.ndarray]:
    """Zeros for every other input than those given: of a graph of several networks, what one of them does not read."""
    return {i.name: np.zeros(i.shape, np.float32) for i in net.get_inputs() if i.name not in given}


def blob(rgb: np.ndarray) -> np.ndarray:
    """RGB picture -> f32 [1, 3, H, W], BGR 0..255, padded with 0 to multiples of 32."""
    h, w = rgb.shape[:2]
    x = np.zeros((-(-h // 32) * 32, -(-w // 32) * 32, 3), np.float32)
    x[:h, :w] = rgb[:, :, ::-1]
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None])


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    w = max(0.0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    inter = w * h
    return float(inter / max(a[2] * a[3] + b[2] * b[3] - inter, 1e-9))


def decode(outputs: dict[str, np.ndarray], width: int, threshold: float, nms: float = 0.3) -> list[Face]:
    found = []
    for s in STRIDES:
        cls, obj = outputs[f"cls_{s}"].ravel(), outputs[f"obj_{s}"].ravel()
        score = np.sqrt(np.clip(cls, 0, 1) * np.clip(obj, 0, 1))
        boxes = outputs[f"bbox_{s}"].reshape(-1, 4)
        points = outputs[f"kps_{s}"].reshape(-1, 5, 2)
        columns = width // s
        for i in np.nonzero(score >= threshold)[0]:
            origin = np.array([i % columns, i // columns], np.float32) * s
            centre = origin + boxes[i, :2] * s
            size = np.exp(boxes[i, 2:]) * s
            found.append(Face(float(score[i]), np.concatenate([centre - size / 2, size]), points[i] * s + origin))
    found.sort(key=lambda f: -f.score)
    kept: list[Face] = []
    for face in found:
        if all(overlap(face.box, k.box) < nms for k in kept):
            kept.append(face)
    return kept


def detect(net: ort.InferenceSession, rgb: np.ndarray, threshold: float = 0.6, nms: float = 0.3) -> list[Face]:
    x = blob(rgb)
    names = [o.name for o in net.get_outputs()]
    outputs = dict(zip(names, net.run(None, {"input": x}), strict=True))
    return decode(outputs, x.shape[3], threshold, nms)


def fit(rgb: np.ndarray, width: int, height: int) -> tuple[np.ndarray, float]:
    """Scale a picture so that it fits into width x height (box filter), and the factor used."""
    h, w = rgb.shape[:2]
    f = min(width / w, height / h)
    size = (max(1, round(w * f)), max(1, round(h * f)))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.BOX if f < 1 else Image.BILINEAR)), f
