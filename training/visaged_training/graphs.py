"""ONNX graph work: YuNet made plain opset 17, static int8 quantisation, counting multiply-accumulates."""

from __future__ import annotations

import itertools
import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

OPSET, IR = 17, 9
# In the quantised graph these stay float: they come after the last convolution or are not worth a kernel.
QUANTISED = ["Conv", "ConvTranspose", "Relu", "MaxPool", "Resize", "Add", "Sub", "Mul", "Concat", "GlobalAveragePool", "Gemm"]


def yunet_float(source: Path) -> onnx.ModelProto:
    """The published graph (opset 11) with batch 1, constant reshape targets and readable names, as opset 17."""
    old = onnx.load(source)
    weights = {i.name: numpy_helper.to_array(i) for i in old.graph.initializer}
    nodes, used = [], {}
    count: dict[str, int] = {}

    def constant(name: str, value: np.ndarray) -> str:
        used[name] = value
        return name

    for node in old.graph.node:
        kind = node.op_type
        if kind in ("Shape", "Gather", "Unsqueeze", "Concat", "Constant"):
            continue
        count[kind] = count.get(kind, 0) + 1
        label = f"{kind.lower()}_{count[kind]}"
        if kind == "Reshape":
            channels = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
            final = node.output[0] if node.output[0].split("_")[0] in channels else None
            if final is None:
                final = next(n.output[0] for n in old.graph.node if n.input and n.input[0] == node.output[0])
            width = channels[final.split("_")[0]]
            target = constant(f"rows_of_{width}", np.array([1, -1, width], np.int64))
            nodes.append(helper.make_node("Reshape", [node.input[0], target], list(node.output), name=label))
        elif kind == "Resize":
            scales = constant("twice", np.array([1, 1, 2, 2], np.float32))
            nodes.append(
                helper.make_node(
                    "Resize",
                    [node.input[0], "", scales],
                    list(node.output),
                    name=label,
                    mode="nearest",
                    coordinate_transformation_mode="asymmetric",
                    nearest_mode="floor",
                )
            )
        else:
            inputs = [node.input[0]]
            for k, name in enumerate(node.input[1:]):
                if name in weights:
                    inputs.append(constant(f"{label}.{('weight', 'bias')[k]}", weights[name]))
                else:
                    inputs.append(name)
            copy = helper.make_node(kind, inputs, list(node.output), name=label)
            copy.attribute.extend(a for a in node.attribute if a.name not in ("ceil_mode",))
            nodes.append(copy)
    graph_in = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])
    outputs = []
    for o in old.graph.output:
        width = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}[o.name.split("_")[0]]
        outputs.append(helper.make_tensor_value_info(o.name, TensorProto.FLOAT, [1, "cells_" + o.name, width]))
    graph = helper.make_graph(nodes, "yunet_s", [graph_in], outputs, [numpy_helper.from_array(v, k) for k, v in used.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    model.producer_name = "visaged-training"
    onnx.checker.check_model(model)
    return model


class Feed(CalibrationDataReader):
    def __init__(self, name: str, batches):
        self.name, self.batches = name, iter(batches)

    def get_next(self):
        x = next(self.batches, None)
        return x if x is None or isinstance(x, dict) else {self.name: x}


def _ranges(model: onnx.ModelProto, names: list[str], batches) -> dict[str, np.ndarray]:
    """Largest magnitude of every channel of the named tensors, over the batches."""
    import onnxruntime as ort

    m = onnx.ModelProto()
    m.CopyFrom(model)
    for name in names:
        m.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    net = ort.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"])
    top: dict[str, np.ndarray] = {}
    for x in batches:
        for name, value in zip(names, net.run(names, {model.graph.input[0].name: x}), strict=True):
            peak = np.percentile(np.abs(value[0]).reshape(value.shape[1], -1), 99.99, axis=1)
            top[name] = np.maximum(top.get(name, 0), peak)
    return top


def equalise(model: onnx.ModelProto, batches) -> onnx.ModelProto:
    """Give every channel between a 1x1 convolution and the depthwise convolution behind it the same range.

    There is no activation between the two, so scaling a channel up in the first and down in the second changes nothing
    in float; the depthwise weights have a scale for each channel, so it costs nothing there either. What it buys: one
    range for the whole tensor now fits every channel.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    weights = {i.name: i for i in out.graph.initializer}
    made_by = {o: n for n in out.graph.node for o in n.output}
    links = []
    for node in out.graph.node:
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type == "Conv" and group > 1 and made_by.get(node.input[0]) is not None:
            before = made_by[node.input[0]]
            if before.op_type == "Conv":
                links.append((before, node))
    top = _ranges(model, [b.output[0] for b, _ in links], batches)
    for before, after in links:
        peak = np.maximum(top[before.output[0]], 1e-4)
        factor = (np.median(peak) / peak).clip(1e-2, 1e2).astype(np.float32)
        for node, by in ((before, factor), (after, 1 / factor)):
            w = numpy_helper.to_array(weights[node.input[1]])
            weights[node.input[1]].CopyFrom(
                numpy_helper.from_array((w * by.reshape(-1, 1, 1, 1)).astype(np.float32), node.input[1])
            )
        b = numpy_helper.to_array(weights[before.input[2]])
        weights[before.input[2]].CopyFrom(numpy_helper.from_array((b * factor).astype(np.float32), before.input[2]))
    _balance(out, batches)
    return out


def _balance(model: onnx.ModelProto, batches) -> None:
    """Across ReLU (and max pooling) into a lone 1x1 convolution: share the spread between activations and weights."""
    weights = {i.name: i for i in model.graph.initializer}
    consumers: dict[str, list] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    links = []
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        at, relu = node.output[0], None
        while len(after := consumers.get(at, [])) == 1 and after[0].op_type in ("Relu", "MaxPool"):
            at, relu = after[0].output[0], relu or after[0]
        if relu is not None and len(after) == 1 and after[0].op_type == "Conv":
            w = weights[after[0].input[1]]
            if list(w.dims)[2:] == [1, 1]:
                links.append((node, after[0], at))
    top = _ranges(model, [at for *_, at in links], batches)
    for before, after, at in links:
        w = numpy_helper.to_array(weights[after.input[1]])
        spread = np.abs(w).max((0, 2, 3))
        factor = np.sqrt(np.maximum(spread, 1e-4) / np.maximum(top[at], 1e-3))
        factor = (factor / np.exp(np.log(factor).mean())).clip(0.1, 10).astype(np.float32)
        weights[after.input[1]].CopyFrom(
            numpy_helper.from_array((w / factor.reshape(1, -1, 1, 1)).astype(np.float32), after.input[1])
        )
        for name, shape in ((before.input[1], (-1, 1, 1, 1)), (before.input[2], (-1,))):
            value = numpy_helper.to_array(weights[name]) * factor.reshape(shape)
            weights[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))


METHODS = {
    "minmax": (CalibrationMethod.MinMax, {}),
    "percentile": (CalibrationMethod.Percentile, {"CalibPercentile": 99.99}),
    "entropy": (CalibrationMethod.Entropy, {}),
}


def quantise(
    model: onnx.ModelProto,
    batches,
    method: str = "minmax",
    keep_float: tuple[str, ...] = (),
    moving: bool = False,
    fixed: dict[str, tuple[float, float]] | None = None,
    more: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """Static QDQ: per-channel symmetric s8 weights, per-tensor asymmetric u8 activations.

    A batch is the one input, or a dictionary of all. `keep_float` names nodes that stay float; `fixed` gives ranges for
    tensors whose range is known beforehand; `more` names kinds of operations that are quantised beside the usual ones.
    """
    logging.getLogger().setLevel(logging.ERROR)
    calibrate, extra = METHODS[method]
    options = {"ActivationSymmetric": False, "WeightSymmetric": True, **extra}
    if moving:
        options["CalibMovingAverage"] = True
    if fixed:
        options["TensorQuantOverrides"] = {
            name: [
                {
                    "rmin": np.array(lo, np.float32),
                    "rmax": np.array(hi, np.float32),
                    "quant_type": QuantType.QUInt8,
                }
            ]
            for name, (lo, hi) in fixed.items()
        }
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, done = (str(Path(folder) / n) for n in ("plain.onnx", "ready.onnx", "done.onnx"))
        onnx.save(model, plain)
        try:
            quant_pre_process(plain, ready, skip_symbolic_shape=True)
        except Exception:
            ready = plain
        quantize_static(
            ready,
            done,
            Feed(model.graph.input[0].name, batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=[*QUANTISED, *more],
            nodes_to_exclude=list(keep_float),
            calibrate_method=calibrate,
            extra_options=options,
        )
        out = onnx.load(done)
    out.ir_version = IR
    out.producer_name = "visaged-training"
    del out.metadata_props[:]
    out.graph.ClearField("value_info")
    onnx.checker.check_model(out)
    return out


def unshared(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every layer with weights of its own (in place): ONNX Runtime cannot turn the signs of weights that two layers share."""
    kept = {t.name: t for t in model.graph.initializer}
    used: dict[str, int] = {}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name not in kept:
                continue
            used[name] = used.get(name, 0) + 1
            if used[name] > 1:
                copy = model.graph.initializer.add()
                copy.CopyFrom(kept[name])
                copy.name = node.input[i] = f"{name}_{used[name]}"
    return model


def open_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Leave what the last convolution or sum before every graph output gives in float: takes out the pair behind it.

    These convolutions keep u8 inputs and s8 weights. What they give is no input to another one, so a grid buys nothing
    there, and costs much: it is as coarse as the largest face needs, and a sum on the edge between two steps, taken in
    another order, moves a box by a whole step.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    made_by = {o: n for n in out.graph.node for o in n.output}
    gone = []
    for output in out.graph.output:
        after, at = None, made_by[output.name]
        while at.op_type in ("Sigmoid", "Reshape", "Transpose", "Flatten"):
            after, at = at, made_by[at.input[0]]
        if at.op_type != "DequantizeLinear":
            raise ValueError(f"{output.name}: no quantised convolution behind it but {at.op_type}")
        pair = (at, made_by[at.input[0]])
        conv = made_by[pair[1].input[0]]
        if conv.op_type not in ("Conv", "Add", "Sub"):
            raise ValueError(f"{output.name}: quantised by a {conv.op_type}, not by a convolution or sum")
        if after is None:
            conv.output[0] = output.name
        else:
            after.input[0] = conv.output[0]
        gone += pair
    for node in gone:
        out.graph.node.remove(node)
    used = {name for n in out.graph.node for name in n.input}
    for unused in [i for i in out.graph.initializer if i.name not in used]:
        out.graph.initializer.remove(unused)
    onnx.checker.check_model(out)
    return out


def short(scale: float, bits: int) -> tuple[float, int]:
    """The smallest number of at most `bits` significant bits that is not below `scale`, and its odd factor."""
    fraction, exponent = np.frexp(np.float64(scale))
    whole = int(np.ceil(fraction * 2**bits))
    value = float(np.ldexp(whole, int(exponent) - bits))
    while whole % 2 == 0:
        whole //= 2
    return value, whole


def exact_sums(model: onnx.ModelProto, plain: onnx.ModelProto, bits: int = 2) -> onnx.ModelProto:
    """Choose the scales so that every convolution's sum is exact in f32, in whatever order it is taken.

    `model` is the int8 graph of `plain`. An activation's scale is rounded up to `bits` significant bits; a weight scale,
    to as many as leave every partial sum of its channel an integer below 2^24 times a power of two. Float arithmetic then
    is integer arithmetic, and every engine on every processor gives the same bits up to the outputs. Without it sums
    that differ in their last bit fall on two sides of an edge between steps, and layer after layer carries that on until
    two processors are as far apart as int8 is from float.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    tensors = {i.name: i for i in out.graph.initializer}
    weights = {i.name: numpy_helper.to_array(i) for i in plain.graph.initializer}
    made_by = {o: n for n in out.graph.node for o in n.output}

    def store(name: str, value: np.ndarray) -> None:
        tensors[name].CopyFrom(numpy_helper.from_array(value, name))

    odd: dict[str, int] = {}
    for node in out.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] not in odd:
            scale, zero = (numpy_helper.to_array(tensors[name]) for name in node.input[1:])
            value, odd[node.input[1]] = short(float(scale), bits)
            store(node.input[1], np.array(value, np.float32))
            store(node.input[2], np.array(np.rint(float(zero) * float(scale) / value), np.uint8))
    for node in out.graph.node:
        if node.op_type != "Conv":
            continue
        x, w, b = (made_by[name].input for name in node.input)
        step, zero = (numpy_helper.to_array(tensors[name]) for name in x[1:])
        reach = max(int(zero), 255 - int(zero))
        weight, bias = weights[w[0].removesuffix("_quantized")], weights[b[0].removesuffix("_quantized")]
        scales, offset = np.zeros(len(weight), np.float32), np.zeros(len(weight), np.int32)
        rounded = np.zeros(weight.shape, np.int8)
        for k, channel in enumerate(weight):
            peak = max(float(np.abs(channel).max()), 1e-12) / 127
            # Coarser than its weights ask for only where a bias is far larger than all that the weights can add to it.
            for coarser, many in itertools.product(range(24), range(8, 0, -1)):
                scale, factor = short(peak * 2**coarser, many)
                row, add = np.rint(channel / scale), np.rint(float(bias[k]) / (scale * float(step)))
                if (np.abs(row).sum() * reach + abs(add)) * odd[x[1]] * factor < 2**24:
                    break
            else:
                raise ValueError(f"{node.name}: the sums of channel {k} need more than 24 bits")
            scales[k], rounded[k], offset[k] = scale, row, add
        store(w[1], scales)
        store(w[0], rounded)
        store(b[1], scales * step)
        store(b[0], offset)
    onnx.checker.check_model(out)
    return out


def backwards(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with the input channels of every ungrouped convolution in reverse: its sums in another order."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    tensors = {i.name: list(i.dims) for i in out.graph.initializer}
    made_by = {o: n for n in out.graph.node for o in n.output}
    nodes = []
    for node in out.graph.node:
        weight = made_by[node.input[1]].input[0] if node.op_type == "Conv" else None
        if weight and all(a.i == 1 for a in node.attribute if a.name == "group"):
            order = numpy_helper.from_array(np.arange(tensors[weight][1])[::-1].copy(), f"{node.name}.order")
            out.graph.initializer.append(order)
            for k in (0, 1):
                name = f"{node.name}.backwards_{k}"
                nodes.append(helper.make_node("Gather", [node.input[k], order.name], [name], name=name, axis=1))
                node.input[k] = name
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del out.graph.node[:]
    out.graph.node.extend(kept)
    onnx.checker.check_model(out)
    return out


def macs(model: onnx.ModelProto, shape: tuple[int, ...] | None = None) -> int:
    """Multiply-accumulates of Conv and Gemm; `shape` is the first input's, where the graph leaves it open."""
    m = onnx.ModelProto()
    m.CopyFrom(model)
    for dim, n in zip(m.graph.input[0].type.tensor_type.shape.dim, shape or (), strict=shape is not None):
        dim.Clear()
        dim.dim_value = n
    inferred = shape_inference.infer_shapes(m, data_prop=True)
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*inferred.graph.value_info, *inferred.graph.output]
    }
    weights = {i.name: list(i.dims) for i in m.graph.initializer}
    shapes |= {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in m.graph.input}
    made_by = {o: n for n in m.graph.node for o in n.output}
    total = 0
    for node in m.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            name = node.input[1]
            while name not in weights:
                name = made_by[name].input[0]
            w, out = weights[name], shapes[node.output[0]]
            total += int(np.prod(out)) * (int(np.prod(w[1:])) if node.op_type == "Conv" else int(np.prod(w)) // out[-1])
    return total
