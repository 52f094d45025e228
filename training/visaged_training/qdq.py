"""Small graphs written node by node, as float ONNX and as QDQ int8 ONNX, from one description.

The quantiser of ONNX Runtime gives one form of QDQ. An engine meets others (float biases, an activation with or without a pair in
front of it, outputs that stay float), so here each tensor says itself how it is quantised.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .graphs import IR, OPSET


@dataclass
class Weight:
    """A constant of a node. `axis` is the one with a scale for each index; None: one scale; `how` says what stands in the graph:
    `s8` or `int32` behind a DequantizeLinear, `pair` (float, QuantizeLinear, DequantizeLinear) or `float`."""

    value: np.ndarray
    how: str
    axis: int | None = None
    of: str | None = None  # int32: the weights whose scale times that of the node's input is the unit
    zero_point: bool = True


@dataclass
class Node:
    kind: str
    inputs: list[str]
    output: str
    attributes: dict


@dataclass
class Tensor:
    shape: tuple[int, ...]
    quantised: bool = True


@dataclass
class Graph:
    """A graph under construction. Tensor names are letters with a number, in the order in which they were made."""

    name: str
    seed: int
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)
    inputs: dict[str, tuple[float, float]] = field(default_factory=dict)  # range of the values
    outputs: list[str] = field(default_factory=list)
    macs: int = 0

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)

    def input(self, *shape: int, low: float | None = None, high: float | None = None) -> str:
        """A tensor [1, *shape] with values in a range that holds 0; drawn where it is not given."""
        name = f"x{len(self.inputs)}" if self.inputs else "x"
        low = -self.rng.uniform(0.2, 2.5) if low is None else low
        high = self.rng.uniform(0.2, 2.5) if high is None else high
        self.inputs[name] = (low, high)
        self.tensors[name] = Tensor((1, *shape))
        return name

    def node(self, kind: str, inputs: list[str], shape: tuple[int, ...], quantised: bool = True, **attributes) -> str:
        output = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(Node(kind, inputs, output, attributes))
        self.tensors[output] = Tensor(tuple(shape), quantised)
        return output

    def constant(self, value, how: str = "float", **rest) -> str:
        name = f"k{len(self.weights)}"
        self.weights[name] = Weight(np.asarray(value), how, **rest)
        return name

    def output(self, *names: str) -> Graph:
        self.outputs.extend(names)
        return self

    # --- layers ----------------------------------------------------------------------------------------------------

    def _filters(self, shape: tuple[int, ...], fan_in: int, axis: int) -> np.ndarray:
        w = self.rng.normal(0, np.sqrt(2 / fan_in), shape)
        spread = [1] * len(shape)
        spread[axis] = shape[axis]
        return (w * self.rng.uniform(0.4, 1.6, spread)).astype(np.float32)

    def _biased(self, w: np.ndarray, axis: int, count: int, weights: str, bias: str) -> list[str]:
        weight = self.constant(w, "pair" if weights == "pair" else "s8", axis=None if weights == "per_tensor" else axis)
        if bias == "none":
            return [weight]
        b = self.rng.normal(0, 0.2, count).astype(np.float32)
        how = "float" if bias == "float" else "int32"
        return [weight, self.constant(b, how, of=weight, axis=0, zero_point=bias != "int32_bare")]

    def conv(
        self, x: str, channels: int, kernel: int | tuple[int, int] = 3, stride=1, pads=None, dilation=1, group=1,
        quantised=True, weights="per_channel", bias="int32", auto_pad: str | None = None,
    ) -> str:  # fmt: skip
        """Convolution; `pads` as ONNX orders them (top, left, bottom, right), by default those that keep the size at stride 1."""
        _, cin, rows, columns = self.tensors[x].shape
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        sy, sx = (stride, stride) if isinstance(stride, int) else stride
        reach = (dilation * (kh - 1) + 1, dilation * (kw - 1) + 1)
        attributes = {"kernel_shape": [kh, kw], "strides": [sy, sx], "dilations": [dilation] * 2, "group": group}
        if auto_pad:
            attributes["auto_pad"] = auto_pad
            oh, ow = -(-rows // sy), -(-columns // sx)
        else:
            pads = pads or [reach[0] // 2, reach[1] // 2] * 2
            attributes["pads"] = pads
            oh, ow = (rows + pads[0] + pads[2] - reach[0]) // sy + 1, (columns + pads[1] + pads[3] - reach[1]) // sx + 1
        w = self._filters((channels, cin // group, kh, kw), cin // group * kh * kw, 0)
        self.macs += oh * ow * w.size
        extra = self._biased(w, 0, channels, weights, bias)
        return self.node("Conv", [x, *extra], (1, channels, oh, ow), quantised, **attributes)

    def depthwise(self, x: str, kernel: int = 3, times: int = 1, **rest) -> str:
        channels = self.tensors[x].shape[1]
        return self.conv(x, channels * times, kernel, group=channels, **rest)

    def transposed(self, x: str, channels: int, kernel=2, stride=2, pad=0, quantised=True, bias="int32", output_padding=0) -> str:
        _, cin, rows, columns = self.tensors[x].shape
        w = self._filters((cin, channels, kernel, kernel), cin * kernel * kernel // (stride * stride), 1)
        self.macs += rows * columns * w.size
        extra = self._biased(w, 1, channels, "per_channel", bias)
        size = [stride * (n - 1) + kernel - 2 * pad + output_padding for n in (rows, columns)]
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        if output_padding:
            attributes["output_padding"] = [output_padding] * 2
        return self.node("ConvTranspose", [x, *extra], (1, channels, *size), quantised, **attributes)

    def same(self, kind: str, *inputs: str, quantised=True, **attributes) -> str:
        """A node whose output has the first input's shape."""
        return self.node(kind, list(inputs), self.tensors[inputs[0]].shape, quantised, **attributes)

    def relu(self, x: str, quantised=True) -> str:
        return self.same("Relu", x, quantised=quantised)

    def clip(self, x: str, low: float, high: float, quantised=True) -> str:
        bounds = [self.constant(np.float32(v)) for v in (low, high)]
        return self.same("Clip", x, *bounds, quantised=quantised)

    def concat(self, *inputs: str) -> str:
        shape = list(self.tensors[inputs[0]].shape)
        shape[1] = sum(self.tensors[x].shape[1] for x in inputs)
        return self.node("Concat", list(inputs), tuple(shape), axis=1)

    def resize(self, x: str, mode: str, coordinates: str, **rest) -> str:
        """Twice the rows and columns."""
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        n, c, h, w = self.tensors[x].shape
        shape = (n, c, 2 * h, 2 * w)
        return self.node("Resize", [x, "", scales], shape, mode=mode, coordinate_transformation_mode=coordinates, **rest)

    def pool(self, kind: str, x: str, kernel: int, stride: int, pads=(0, 0, 0, 0), **rest) -> str:
        n, c, h, w = self.tensors[x].shape
        oh, ow = (h + pads[0] + pads[2] - kernel) // stride + 1, (w + pads[1] + pads[3] - kernel) // stride + 1
        shape = (n, c, oh, ow)
        return self.node(kind, [x], shape, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=list(pads), **rest)

    def flatten(self, x: str) -> str:
        return self.node("Flatten", [x], (1, int(np.prod(self.tensors[x].shape))), axis=1)

    def gemm(self, x: str, outputs: int, transposed_weights=True, bias="int32", quantised=True) -> str:
        inputs = self.tensors[x].shape[1]
        axis = 0 if transposed_weights else 1
        shape = (outputs, inputs) if transposed_weights else (inputs, outputs)
        extra = self._biased(self._filters(shape, inputs, axis), axis, outputs, "per_channel", bias)
        self.macs += inputs * outputs
        return self.node("Gemm", [x, *extra], (1, outputs), quantised, transB=int(transposed_weights))

    def matmul(self, x: str, outputs: int, quantised=False) -> str:
        inputs = self.tensors[x].shape[1]
        w = self.constant(self._filters((inputs, outputs), inputs, 1), "s8", axis=1)
        self.macs += inputs * outputs
        return self.node("MatMul", [x, w], (1, outputs), quantised)

    # --- models ----------------------------------------------------------------------------------------------------

    def feed(self, rng: np.random.Generator, beyond: float = 1.0) -> dict[str, np.ndarray]:
        """Uniform values over the range of each input, stretched by `beyond`."""
        return {
            name: rng.uniform(low * beyond, high * beyond, self.tensors[name].shape).astype(np.float32)
            for name, (low, high) in self.inputs.items()
        }

    def float_model(self, every_tensor: bool = False) -> onnx.ModelProto:
        nodes = [helper.make_node(n.kind, n.inputs, [n.output], name=n.output, **n.attributes) for n in self.nodes]
        constants = [numpy_helper.from_array(w.value, name) for name, w in self.weights.items()]
        outputs = [n.output for n in self.nodes] if every_tensor else self.outputs
        return self._model(nodes, constants, outputs)

    def ranges(self) -> dict[str, tuple[float, float]]:
        """What each tensor reaches on random inputs, 0 included."""
        net = session(self.float_model(every_tensor=True))
        rng = np.random.default_rng(self.seed + 1)
        reach = dict(self.inputs)
        for _ in range(4):
            values = net.run(None, self.feed(rng))
            for node, value in zip(self.nodes, values, strict=True):
                low, high = reach.get(node.output, (0.0, 0.0))
                reach[node.output] = (min(low, float(value.min())), max(high, float(value.max())))
        return reach

    def qdq_model(self) -> tuple[onnx.ModelProto, dict[str, float]]:
        """The quantised graph, and the step of each quantised tensor."""
        writer = _Writer(self, {name: u8(*span) for name, span in self.ranges().items()})
        for name in self.inputs:
            writer.pair(name, name)
        for node in self.nodes:
            writer.write(node)
        outputs = [writer.seen_as[name] for name in self.outputs]
        for given, wanted in zip(outputs, self.outputs, strict=True):
            rename(writer.nodes, given, wanted)
        steps = {name: float(scale) for name, (scale, _) in writer.steps.items() if self.tensors[name].quantised}
        return self._model(writer.nodes, writer.constants, self.outputs), steps

    def _model(self, nodes, constants, outputs) -> onnx.ModelProto:
        def info(name):
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, self.tensors[name].shape)

        graph = helper.make_graph(nodes, self.name, [info(n) for n in self.inputs], [info(n) for n in outputs], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
        model.producer_name = "visaged-training"
        onnx.checker.check_model(model, full_check=True)
        return model


class _Writer:
    def __init__(self, graph: Graph, steps: dict[str, tuple[np.float32, int]]):
        self.graph, self.steps = graph, steps
        self.nodes, self.constants = [], []
        self.seen_as: dict[str, str] = {}  # tensor -> what its consumers read
        self.unit: dict[str, np.ndarray] = {}  # weights -> scale

    def store(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def add(self, kind: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def pair(self, name: str, made: str) -> None:
        scale, zero_point = self.steps[name]
        how = [
            self.store(f"{name}.scale", np.array(scale, np.float32)),
            self.store(f"{name}.zero", np.array(zero_point, np.uint8)),
        ]
        self.add("QuantizeLinear", [made, *how], f"{name}.q")
        self.seen_as[name] = self.add("DequantizeLinear", [f"{name}.q", *how], f"{name}.dq")

    def weight(self, name: str, unit_of_input: float) -> str:
        w = self.graph.weights[name]
        if w.how == "float":
            return self.store(name, w.value)
        axis = {} if w.axis is None else {"axis": w.axis}
        if w.how == "int32":
            scale = np.float32(unit_of_input) * self.unit[w.of]
            axis = axis if scale.ndim else {}
            value = np.rint(w.value / scale.astype(np.float64)).astype(np.int32)
            zero = np.zeros(scale.shape, np.int32)
        else:
            scale, value = s8(w.value, w.axis)
            zero = np.zeros(scale.shape, np.int8)
            self.unit[name] = scale
        how = [self.store(f"{name}.scale", scale)]
        if w.zero_point:
            how.append(self.store(f"{name}.zero", zero))
        if w.how == "pair":
            given = self.add("QuantizeLinear", [self.store(name, w.value), *how], f"{name}.q", **axis)
        else:
            given = self.store(f"{name}.q", value)
        return self.add("DequantizeLinear", [given, *how], f"{name}.dq", **axis)

    def write(self, node: Node) -> None:
        inputs = []
        for name in node.inputs:
            if name in self.graph.weights:
                inputs.append(self.weight(name, self.steps[node.inputs[0]][0]))
            else:
                inputs.append(self.seen_as.get(name, name))
        made = f"{node.output}.float" if self.graph.tensors[node.output].quantised else node.output
        self.add(node.kind, inputs, made, **node.attributes)
        if self.graph.tensors[node.output].quantised:
            self.pair(node.output, made)
        else:
            self.seen_as[node.output] = made


def without_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float network in a quantised graph: weights as floats, pairs on activations left out, but for the ReLU in them."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    g = out.graph
    values = {i.name: numpy_helper.to_array(i) for i in g.initializer}
    made_by = {o: n for n in g.node for o in n.output}
    nodes, stands_for, used = [], {}, {}
    for node in g.node:
        inputs = [stands_for.get(n, n) for n in node.input]
        if node.op_type == "DequantizeLinear" and node.input[0] in values:
            value, scale = (values[n] for n in node.input[:2])
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % max(value.ndim, 1)
            spread = [-1 if i == axis else 1 for i in range(value.ndim)] if scale.size > 1 else []
            used[node.output[0]] = (value * scale.reshape(spread)).astype(np.float32)
        elif node.op_type == "DequantizeLinear":
            stands_for[node.output[0]] = inputs[0]
        elif node.op_type == "QuantizeLinear":
            zero = values[node.input[2]]
            maker = made_by.get(node.input[0])
            # The saturation at the zero-point is the ReLU that the quantiser took out; what only picks values has it behind it.
            if zero == np.iinfo(zero.dtype).min and maker and maker.op_type not in ("Relu", "MaxPool", "Resize", "Concat"):
                nodes.append(helper.make_node("Relu", inputs[:1], [node.output[0]], name=f"{node.name}.relu"))
                inputs[0] = node.output[0]
            stands_for[node.output[0]] = inputs[0]
        else:
            copy = helper.make_node(node.op_type, inputs, list(node.output), name=node.name)
            copy.attribute.extend(node.attribute)
            nodes.append(copy)
            used.update({n: values[n] for n in inputs if n in values})
    for output in g.output:
        if output.name in stands_for:
            nodes.append(helper.make_node("Identity", [stands_for[output.name]], [output.name], name=f"{output.name}.out"))
    for old, new in ((g.node, nodes), (g.initializer, [numpy_helper.from_array(v, k) for k, v in used.items()])):
        del old[:]
        old.extend(new)
    onnx.checker.check_model(out, full_check=True)
    return out


def rename(nodes, old: str, new: str) -> None:
    if old == new:
        return
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [new if n == old else n for n in names]


def u8(low: float, high: float) -> tuple[np.float32, int]:
    """Scale and zero-point that hold a range."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max(high - low, 1e-6) / 255)
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))


def s8(w: np.ndarray, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric: scales and integers in -127..127."""
    rest = None if axis is None else tuple(i for i in range(w.ndim) if i != axis)
    scale = (np.maximum(np.abs(w).max(axis=rest), 1e-6) / 127).astype(np.float32)
    spread = scale if axis is None else scale.reshape([-1 if i == axis else 1 for i in range(w.ndim)])
    return scale, np.clip(np.rint(w / spread), -127, 127).astype(np.int8)


def session(model: onnx.ModelProto, exact: bool = True, optimised: bool = False):
    """ONNX Runtime on one thread.

    Unoptimised it computes as the graph is written, in float between the pairs. Optimised it computes in integers; `exact`
    keeps it from the instructions that saturate the sum of two products.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
