"""A QDQ ONNX graph written as an int8 .tflite: the same integers, the same scales, activations shifted from u8 to s8.

Two quantisations of one network would be two networks; this way LiteRT computes what every other engine does. Pictures are
NHWC here, as LiteRT wants them. A node whose inputs and output are quantised becomes an int8 operator; every other one is
float, with DEQUANTIZE in front. Needs the schema that `ai-edge-litert` brings.
"""

from __future__ import annotations

from dataclasses import dataclass

import flatbuffers
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import helper, numpy_helper, shape_inference

KINDS = schema.TensorType
OPS = schema.BuiltinOperator
TO_NHWC = (0, 2, 3, 1)
# The oldest version of each operator that takes int8 (and what else is used of it here).
VERSIONS = {
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEQUANTIZE": 2,
    "FULLY_CONNECTED": 4,
    "MAX_POOL_2D": 2,
    "MEAN": 2,
    "MUL": 2,
    "PAD": 2,
    "QUANTIZE": 2,
    "RESIZE_BILINEAR": 3,
    "RESIZE_NEAREST_NEIGHBOR": 3,
    "SUB": 2,
    "TRANSPOSE_CONV": 3,
}


# What LiteRT's LOGISTIC gives on integers: 256ths, as s8.
LOGISTIC_STEP = (1 / 256, -128)


class Unsupported(Exception):
    """What the graph holds that is not written here."""


@dataclass
class Value:
    """A tensor of the .tflite: its index, shape, and the ONNX shape it stands for."""

    index: int
    shape: tuple[int, ...]
    nhwc: bool
    step: tuple[float, int] | None  # scale and zero-point as s8; None: float


@dataclass
class Constant:
    """Weights: integers with scales along `axis` of the ONNX shape, or floats."""

    value: np.ndarray
    scale: np.ndarray | None = None
    axis: int = 0

    def floats(self) -> np.ndarray:
        if self.scale is None:
            return self.value
        spread = [-1 if i == self.axis else 1 for i in range(self.value.ndim)] if self.scale.size > 1 else []
        return (self.value * self.scale.reshape(spread)).astype(np.float32)


def convert(model: onnx.ModelProto, shape: tuple[int, ...] | None = None, int8_edges: bool = False) -> bytes:
    """The .tflite of `model` with its one input fixed to `shape`; `int8_edges`: inputs and outputs are int8, not float."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    if shape:
        for dim, n in zip(fixed.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = n
        for output in fixed.graph.output:
            output.type.tensor_type.ClearField("shape")
    return _Converter(shape_inference.infer_shapes(fixed, data_prop=True), int8_edges).run()


class _Converter:
    def __init__(self, model: onnx.ModelProto, int8_edges: bool):
        g = model.graph
        self.graph, self.int8_edges = g, int8_edges
        self.shapes = {
            v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in [*g.value_info, *g.input, *g.output]
        }
        self.constants = {i.name: Constant(numpy_helper.to_array(i)) for i in g.initializer}
        self.consumers: dict[str, list] = {}
        for node in g.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.values: dict[str, Value] = {}
        self.tensors, self.operators, self.codes = [], [], []
        self.buffers = [schema.BufferT()]
        self.derived: dict[tuple, Value] = {}

    def run(self) -> bytes:
        sources = [i.name for i in self.graph.input]
        for source in sources:
            step = self.step_of(source)
            if step is None:
                raise Unsupported(f"input {source} goes into something else than one QuantizeLinear")
            self.values[source] = self.tensor(source, self.shapes[source], step if self.int8_edges else None)
        first = [self.values[source].index for source in sources]
        for node in self.graph.node:
            self.node(node)
        outputs = []
        for output in self.graph.output:
            value = self.values[output.name]
            outputs.append(value if self.int8_edges else self.as_float(value))
        return self.pack(first, [v.index for v in outputs])

    # --- tensors ---------------------------------------------------------------------------------------------------

    def tensor(self, name: str, shape, step=None, nhwc: bool | None = None, kind: int | None = None) -> Value:
        """`shape` in ONNX order; rank 4 is a picture unless told otherwise."""
        nhwc = len(shape) == 4 if nhwc is None else nhwc
        own = tuple(shape[i] for i in TO_NHWC) if nhwc else tuple(shape)
        t = schema.TensorT(shape=list(own), type=kind if kind is not None else KINDS.INT8 if step else KINDS.FLOAT32)
        t.name, t.buffer = name, 0
        if step:
            t.quantization = schema.QuantizationParametersT(scale=[step[0]], zeroPoint=[step[1]])
        self.tensors.append(t)
        return Value(len(self.tensors) - 1, tuple(shape), nhwc, step)

    def data(self, name: str, array: np.ndarray, scale=None, axis: int = 0) -> int:
        """A constant as it stands in the file; its index."""
        array = np.ascontiguousarray(array)
        kind = {"float32": KINDS.FLOAT32, "int8": KINDS.INT8, "int32": KINDS.INT32}[array.dtype.name]
        t = schema.TensorT(shape=list(array.shape), type=kind, buffer=len(self.buffers))
        t.name = name
        if scale is not None:
            scale = np.atleast_1d(scale)
            t.quantization = schema.QuantizationParametersT(
                scale=[float(s) for s in scale], zeroPoint=[0] * len(scale), quantizedDimension=axis
            )
        self.buffers.append(schema.BufferT(data=np.frombuffer(array.tobytes(), np.uint8)))
        self.tensors.append(t)
        return len(self.tensors) - 1

    def emit(self, kind: str, inputs: list[int], output: Value, options=None) -> Value:
        code = getattr(OPS, kind)
        known = [c.builtinCode for c in self.codes]
        if code not in known:
            op = schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=VERSIONS.get(kind, 1))
            self.codes.append(op)
            known.append(code)
        op = schema.OperatorT(opcodeIndex=known.index(code), inputs=inputs, outputs=[output.index])
        if options is not None:
            op.builtinOptions = options
            op.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.operators.append(op)
        return output

    def derive(self, key: str, value: Value, make) -> Value:
        found = self.derived.get((key, value.index))
        if found is None:
            found = self.derived[key, value.index] = make()
        return found

    def as_float(self, value: Value) -> Value:
        if value.step is None:
            return value
        return self.derive("float", value, lambda: self.emit("DEQUANTIZE", [value.index], self.like(value, None)))

    def as_step(self, value: Value, step) -> Value:
        if value.step == step:
            return value
        return self.derive(f"{step}", value, lambda: self.emit("QUANTIZE", [value.index], self.like(value, step)))

    def like(self, value: Value, step) -> Value:
        return self.tensor(f"t{len(self.tensors)}", value.shape, step, value.nhwc)

    def step_of(self, name: str):
        """Scale and zero-point where all that reads a tensor is one QuantizeLinear."""
        after = self.consumers.get(name, [])
        if len(after) != 1 or after[0].op_type != "QuantizeLinear" or any(o.name == name for o in self.graph.output):
            return None
        return self.quantiser(after[0])

    def quantiser(self, node) -> tuple[float, int]:
        scale, zero = (self.constants[n].value for n in node.input[1:3])
        shift = 128 if zero.dtype == np.uint8 else 0
        return float(scale), int(zero) - shift

    def pack(self, inputs: list[int], outputs: list[int]) -> bytes:
        graph = schema.SubGraphT(tensors=self.tensors, inputs=inputs, outputs=outputs, operators=self.operators)
        graph.name = "main"
        model = schema.ModelT(version=3, operatorCodes=self.codes, subgraphs=[graph], buffers=self.buffers)
        model.description = "visaged-training"
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    # --- nodes -----------------------------------------------------------------------------------------------------

    def node(self, node) -> None:
        if node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            scale = self.constants[node.input[1]].value
            value = self.constants[node.input[0]].value
            self.constants[node.output[0]] = Constant(value, scale, axis % max(value.ndim, 1))
        elif node.op_type == "QuantizeLinear":
            self.values[node.output[0]] = self.as_step(self.values[node.input[0]], self.quantiser(node))
        elif node.op_type == "DequantizeLinear":
            self.values[node.output[0]] = self.values[node.input[0]]
        else:
            self.layer(node)

    def layer(self, node) -> None:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        inputs = [self.values[n] for n in node.input if n in self.values]
        constants = [self.constants[n] for n in node.input if n in self.constants]
        name = node.output[0]
        step = self.step_of(name) if all(v.step for v in inputs) else None
        shape = self.shapes[name]
        write = getattr(self, "op_" + node.op_type.lower(), None)
        if write is None:
            raise Unsupported(f"{node.op_type} {node.name}")
        if node.op_type in ("Transpose", "Reshape", "Flatten"):
            self.values[name] = write(node, inputs[0], shape, attributes)
            return
        if step is None:
            inputs = [self.as_float(v) for v in inputs]
        self.values[name] = write(node, inputs, constants, lambda **k: self.tensor(name, shape, step, **k), attributes)

    def parameters(self, weight: Constant, order: tuple[int, ...], bias: Constant | None, of: Value) -> list[int]:
        """Weights in LiteRT's order, and the bias, as integers behind an int8 input, else as floats."""
        w = weight.value if of.step else weight.floats()
        out = [self.data("weights", w.transpose(order), weight.scale if of.step else None, order.index(weight.axis))]
        if not of.step:
            return [*out, self.data("bias", bias.floats())] if bias else out
        # LiteRT's convolution on integers insists on a bias.
        bias = bias or Constant(np.zeros(len(weight.scale), np.int32))
        unit = (np.float32(of.step[0]) * weight.scale).astype(np.float32)
        value = bias.value if bias.value.dtype == np.int32 else np.rint(bias.value / unit.astype(np.float64)).astype(np.int32)
        return [*out, self.data("bias", value, unit)]

    def padded(self, x: Value, reach, strides, pads) -> tuple[Value, int]:
        """The input and the padding mode that give ONNX's pads (top, left, bottom, right)."""
        size = x.shape[2:]
        same = []
        for n, k, s in zip(size, reach, strides, strict=True):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            same.append((total // 2, total - total // 2))
        if not any(pads):
            return x, schema.Padding.VALID
        if [same[0][0], same[1][0], same[0][1], same[1][1]] == list(pads):
            return x, schema.Padding.SAME
        n, c, h, w = x.shape
        out = self.tensor("padded", (n, c, h + pads[0] + pads[2], w + pads[1] + pads[3]), x.step)
        around = np.array([[0, 0], [pads[0], pads[2]], [pads[1], pads[3]], [0, 0]], np.int32)
        return self.emit("PAD", [x.index, self.data("pads", around)], out, schema.PadOptionsT()), schema.Padding.VALID

    def op_conv(self, node, inputs, constants, output, a) -> Value:
        (x,), weight, bias = inputs, constants[0], constants[1] if len(constants) > 1 else None
        strides, dilations = a.get("strides", [1, 1]), a.get("dilations", [1, 1])
        cout, per_group, *kernel = weight.value.shape
        reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        at, padding = self.padded(x, reach, strides, a.get("pads", [0] * 4))
        rest = {
            "padding": padding, "strideH": strides[0], "strideW": strides[1],
            "dilationHFactor": dilations[0], "dilationWFactor": dilations[1],
        }  # fmt: skip
        group = a.get("group", 1)
        if group > 1 and group == x.shape[1]:
            parameters = self.parameters(weight, (1, 2, 3, 0), bias, x)
            options = schema.DepthwiseConv2DOptionsT(depthMultiplier=cout // group, **rest)
            return self.emit("DEPTHWISE_CONV_2D", [at.index, *parameters], output(), options)
        parameters = self.parameters(weight, (0, 2, 3, 1), bias, x)
        return self.emit("CONV_2D", [at.index, *parameters], output(), schema.Conv2DOptionsT(**rest))

    def op_convtranspose(self, node, inputs, constants, output, a) -> Value:
        (x,), weight, bias = inputs, constants[0], constants[1] if len(constants) > 1 else None
        if a.get("group", 1) != 1 or any(a.get("output_padding", [])):
            raise Unsupported(f"ConvTranspose {node.name} with groups or output padding")
        strides, pads, kernel = a.get("strides", [1, 1]), a.get("pads", [0] * 4), weight.value.shape[2:]
        if any(pads) and any(k - s != 2 * p for k, s, p in zip(kernel * 2, strides * 2, pads, strict=True)):
            raise Unsupported(f"ConvTranspose {node.name} with pads {pads}")
        parameters = self.parameters(weight, (1, 2, 3, 0), bias, x)
        out = output()
        size = self.data("size", np.array([out.shape[i] for i in TO_NHWC], np.int32))
        padding = schema.Padding.SAME if any(pads) else schema.Padding.VALID
        options = schema.TransposeConvOptionsT(padding=padding, strideH=strides[0], strideW=strides[1])
        return self.emit("TRANSPOSE_CONV", [size, parameters[0], x.index, *parameters[1:]], out, options)

    def arithmetic(self, kind: str, options, node, inputs, constants, output) -> Value:
        operands = [v.index for v in inputs]
        if constants:
            value = constants[0].floats().astype(np.float32)
            if value.ndim == 4:
                value = value.transpose(TO_NHWC)
            if inputs[0].step:
                raise Unsupported(f"{node.op_type} {node.name} of an int8 tensor and a constant")
            operands.insert(0 if node.input[0] in self.constants else 1, self.data("constant", value))
        nhwc = inputs[0].nhwc
        return self.emit(kind, operands, output(nhwc=nhwc), options)

    def op_add(self, node, inputs, constants, output, a) -> Value:
        return self.arithmetic("ADD", schema.AddOptionsT(), node, inputs, constants, output)

    def op_sub(self, node, inputs, constants, output, a) -> Value:
        return self.arithmetic("SUB", schema.SubOptionsT(), node, inputs, constants, output)

    def op_mul(self, node, inputs, constants, output, a) -> Value:
        return self.arithmetic("MUL", schema.MulOptionsT(), node, inputs, constants, output)

    def same(self, kind: str, inputs, output, options=None) -> Value:
        return self.emit(kind, [inputs[0].index], output(nhwc=inputs[0].nhwc), options)

    def op_abs(self, node, inputs, constants, output, a) -> Value:
        inputs = [self.as_float(v) for v in inputs]
        return self.same("ABS", inputs, output, schema.AbsOptionsT())

    def op_relu(self, node, inputs, constants, output, a) -> Value:
        return self.same("RELU", inputs, output)

    def op_sigmoid(self, node, inputs, constants, output, a) -> Value:
        if inputs[0].step and self.step_of(node.output[0]) != LOGISTIC_STEP:
            raise Unsupported(f"int8 Sigmoid {node.name}: LiteRT gives 256ths, from 0, and nothing else")
        return self.same("LOGISTIC", inputs, output)

    def op_concat(self, node, inputs, constants, output, a) -> Value:
        # LiteRT concatenates only what has one scale.
        out = output()
        inputs = [self.as_step(v, out.step) for v in inputs] if out.step else inputs
        axis = TO_NHWC.index(a["axis"]) if out.nhwc else a["axis"]
        return self.emit("CONCATENATION", [v.index for v in inputs], out, schema.ConcatenationOptionsT(axis=axis))

    def requantised(self, node, x: Value, output, make) -> Value:
        """An operator that keeps its input's scale, and another one behind it where the graph says so."""
        out = output()
        if out.step == x.step:
            return make(out)
        return self.as_step(make(self.tensor(node.output[0] + ".kept", out.shape, x.step)), out.step)

    def op_resize(self, node, inputs, constants, output, a) -> Value:
        (x,), mode, how = inputs, a["mode"].decode(), a["coordinate_transformation_mode"].decode()
        size = [self.shapes[node.output[0]][i] for i in (2, 3)]
        if mode == "nearest" and (how, a.get("nearest_mode")) == ("asymmetric", b"floor"):
            kind, options = "RESIZE_NEAREST_NEIGHBOR", schema.ResizeNearestNeighborOptionsT()
        elif mode == "linear":
            kind = "RESIZE_BILINEAR"
            options = schema.ResizeBilinearOptionsT(alignCorners=how == "align_corners", halfPixelCenters=how == "half_pixel")
        else:
            raise Unsupported(f"Resize {node.name}: {mode}, {how}")
        index = self.data("size", np.array(size, np.int32))
        return self.requantised(node, x, output, lambda out: self.emit(kind, [x.index, index], out, options))

    def pooling(self, kind: str, node, inputs, output, a) -> Value:
        (x,), kernel, strides, pads = inputs, a["kernel_shape"], a.get("strides", [1, 1]), a.get("pads", [0] * 4)
        at, padding = self.padded(x, kernel, strides, pads)
        # The padding is real zeros, which no maximum notices where the grid begins at 0.
        if at is not x and not (kind == "MAX_POOL_2D" and x.step and x.step[1] == -128):
            raise Unsupported(f"{node.op_type} {node.name} with pads {pads}")
        options = schema.Pool2DOptionsT(
            padding=padding, strideH=strides[0], strideW=strides[1], filterHeight=kernel[0], filterWidth=kernel[1]
        )
        return self.requantised(node, at, output, lambda out: self.emit(kind, [at.index], out, options))

    def op_maxpool(self, node, inputs, constants, output, a) -> Value:
        return self.pooling("MAX_POOL_2D", node, inputs, output, a)

    def op_averagepool(self, node, inputs, constants, output, a) -> Value:
        return self.pooling("AVERAGE_POOL_2D", node, inputs, output, a)

    def mean(self, x: Value, axes: list[int], keep: bool, output) -> Value:
        axes = sorted(TO_NHWC.index(i % 4) for i in axes) if x.nhwc else axes
        index = self.data("axes", np.array(axes, np.int32))
        return self.emit("MEAN", [x.index, index], output(), schema.ReducerOptionsT(keepDims=bool(keep)))

    def op_reducemean(self, node, inputs, constants, output, a) -> Value:
        return self.mean(inputs[0], a["axes"], a.get("keepdims", 1), output)

    def op_globalaveragepool(self, node, inputs, constants, output, a) -> Value:
        return self.mean(inputs[0], [2, 3], True, output)

    def op_gemm(self, node, inputs, constants, output, a) -> Value:
        (x,), weight, bias = inputs, constants[0], constants[1] if len(constants) > 1 else None
        order = (0, 1) if a.get("transB", 0) else (1, 0)
        parameters = self.parameters(weight, order, bias, x)
        return self.emit("FULLY_CONNECTED", [x.index, *parameters], output(), schema.FullyConnectedOptionsT())

    # Shapes: an int8 tensor stays int8.

    def op_transpose(self, node, x: Value, shape, a) -> Value:
        if not x.nhwc or tuple(a["perm"]) != TO_NHWC:
            raise Unsupported(f"Transpose {node.name} other than from NCHW to NHWC")
        return Value(x.index, shape, False, x.step)

    def op_reshape(self, node, x: Value, shape, a) -> Value:
        if x.nhwc and x.shape[2] * x.shape[3] != 1:
            raise Unsupported(f"{node.op_type} {node.name} of a picture")
        out = self.tensor(node.output[0], shape, x.step, nhwc=False)
        index = self.data("shape", np.array(shape, np.int32))
        return self.emit("RESHAPE", [x.index, index], out, schema.ReshapeOptionsT(newShape=list(shape)))

    op_flatten = op_reshape
