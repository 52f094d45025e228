"""A .tflite of `tflite.convert` behind the interface of an ONNX Runtime session: NCHW in and out, names of the ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from .tflite import TO_NHWC


@dataclass
class Output:
    name: str


class Session:
    """`names`: the graph's outputs in order. Pictures smaller than the fixed size are filled up with zeros."""

    def __init__(self, source: Path | bytes, names: list[str], threads: int = 1):
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        self.net = Interpreter(model_content=content, num_threads=threads)
        self.net.allocate_tensors()
        self.names = names
        self.given = self.net.get_input_details()[0]
        self.made = self.net.get_output_details()

    def get_outputs(self) -> list[Output]:
        return [Output(n) for n in self.names]

    def run(self, wanted: list[str] | None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        (x,) = feed.values()
        x = x.transpose(TO_NHWC)
        whole = np.zeros(self.given["shape"], np.float32)
        whole[:, : x.shape[1], : x.shape[2]] = x
        self.net.set_tensor(self.given["index"], whole)
        self.net.invoke()
        found = {}
        for name, made in zip(self.names, self.made, strict=True):
            y = self.net.get_tensor(made["index"])
            found[name] = y.transpose(0, 3, 1, 2) if y.ndim == 4 else y
        return [found[n] for n in wanted or self.names]
