"""Makes qdq.onnx, a small network quantised like the bundles (QDQ, u8 activations, s8 weights per channel), and what ONNX
Runtime gives for it: `qdq.f32` holds the input [1, 3, 32, 32], then the outputs `a` [1, 24, 8, 8] and `b` [1, 16, 16, 16],
little-endian floats. Run with onnx and onnxruntime installed."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

here = Path(__file__).parent
rng = np.random.default_rng(1)
nodes, weights = [], []


def conv(x, out, cin, cout, k, group=1, stride=1, relu=False):
    w = rng.normal(0, 1.2 / np.sqrt(cin // group * k * k), (cout, cin // group, k, k)).astype(np.float32)
    w *= rng.uniform(0.2, 2, (cout, 1, 1, 1)).astype(np.float32)
    weights.append(numpy_helper.from_array(w, f"{out}.w"))
    weights.append(numpy_helper.from_array(rng.normal(0, 0.2, cout).astype(np.float32), f"{out}.b"))
    name = f"{out}.conv" if relu else out
    pads = [k // 2] * 4
    nodes.append(helper.make_node("Conv", [x, f"{out}.w", f"{out}.b"], [name], name=name, pads=pads, group=group, strides=[stride] * 2))
    if relu:
        nodes.append(helper.make_node("Relu", [name], [out], name=out))
    return out


x = conv("x", "c1", 3, 16, 3, stride=2, relu=True)
d = conv(x, "c2", 16, 16, 3, group=16)
e = conv(d, "c3", 16, 24, 1, relu=True)
nodes.append(helper.make_node("MaxPool", [e], ["p"], name="p", kernel_shape=[2, 2], strides=[2, 2]))
f = conv("p", "c4", 24, 24, 3)
nodes.append(helper.make_node("Sigmoid", [f], ["a"], name="a"))
g = conv("p", "c5", 24, 16, 1, relu=True)
weights.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
nodes.append(helper.make_node("Resize", [g, "", "scales"], ["u"], name="u", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"))
nodes.append(helper.make_node("Add", ["u", x], ["b"], name="b"))
shape = lambda n, s: helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
graph = helper.make_graph(nodes, "qdq", [shape("x", [1, 3, 32, 32])], [shape("a", [1, 24, 8, 8]), shape("b", [1, 16, 16, 16])], weights)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
float_model = here / "float.onnx"
onnx.save(model, float_model)


class Reader(CalibrationDataReader):
    def __init__(self):
        self.batches = iter([{"x": rng.normal(0, 1, (1, 3, 32, 32)).astype(np.float32)} for _ in range(8)])

    def get_next(self):
        return next(self.batches, None)


quantize_static(float_model, here / "qdq.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
float_model.unlink()
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
session = ort.InferenceSession(here / "qdq.onnx", options, providers=["CPUExecutionProvider"])
x = rng.normal(0, 1, (1, 3, 32, 32)).astype(np.float32)
np.concatenate([x.ravel(), *(y.ravel() for y in session.run(["a", "b"], {"x": x}))]).astype("<f4").tofile(here / "qdq.f32")
