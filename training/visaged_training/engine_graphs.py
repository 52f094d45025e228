"""`engine-graphs`: graphs that the int8 engine is tested and timed on.

`layers/`: one small graph for every layer that the engine takes, with an input and what ONNX Runtime gives for it.
`speed/`: larger ones of the kinds that the networks are made of, to compare engines. Weights and inputs are random, with
fixed seeds.

`layers/index.json` names each graph with its inputs and outputs; `step` is the step of an output's grid, null where it is
float. `layers/NAME.f32` holds the inputs and then the outputs in that order, little-endian floats.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx

from . import data, graphs, qdq
from .qdq import Graph, session


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder that layers/ and speed/ are written to")
    parser.add_argument("--only", choices=["layers", "speed"], help="one of the two")
    parser.add_argument("--without-float", action="store_true", help="leave the float graphs of layers out")


# --- layers ----------------------------------------------------------------------------------------------------------


def convolutions():
    def one(name, cin, cout, rows, columns, **rest):
        g = Graph(name, len(name) * 31 + cin)
        yield g.output(g.conv(g.input(cin, rows, columns), cout, **rest))

    yield from one("conv1x1", 13, 21, 5, 7, kernel=1)
    yield from one("conv1x1_wide", 40, 35, 4, 5, kernel=1)
    yield from one("conv1x1_stride2", 8, 16, 7, 6, kernel=1, stride=2)
    yield from one("conv3x3", 6, 12, 7, 9)
    yield from one("conv3x3_rgb", 3, 16, 9, 10, stride=2)
    yield from one("conv3x3_grey", 1, 18, 8, 7)
    yield from one("conv3x3_wide", 24, 33, 5, 6)
    yield from one("conv3x3_stride2", 5, 9, 8, 11, stride=2)
    yield from one("conv3x3_stride2x1", 5, 9, 8, 6, stride=(2, 1))
    yield from one("conv3x3_no_pads", 6, 10, 7, 8, pads=[0, 0, 0, 0])
    yield from one("conv3x3_pads_differ", 6, 11, 6, 7, stride=2, pads=[0, 1, 2, 0])
    yield from one("conv3x3_same_upper", 4, 8, 6, 7, stride=2, auto_pad="SAME_UPPER")
    yield from one("conv3x3_dilation2", 5, 10, 9, 8, dilation=2)
    yield from one("conv5x5", 4, 9, 8, 7, kernel=5)
    yield from one("conv5x5_stride2", 7, 8, 9, 9, kernel=5, stride=2)
    yield from one("conv1x3", 6, 9, 6, 7, kernel=(1, 3))
    yield from one("conv3x3_groups2", 8, 14, 6, 7, group=2)
    yield from one("conv3x3_groups3", 15, 9, 6, 5, group=3)
    yield from one("conv1x1_groups4", 16, 24, 4, 5, kernel=1, group=4)
    yield from one("conv3x3_bias_float", 6, 10, 6, 6, bias="float")
    yield from one("conv3x3_bias_none", 6, 10, 6, 6, bias="none")
    yield from one("conv3x3_bias_no_zero_point", 6, 10, 6, 6, bias="int32_bare")
    yield from one("conv3x3_float_out", 6, 10, 6, 6, quantised=False)
    yield from one("conv1x1_float_out_bias_float", 9, 17, 5, 6, kernel=1, quantised=False, bias="float")
    yield from one("conv3x3_per_tensor", 6, 10, 6, 6, weights="per_tensor")
    yield from one("conv3x3_weights_pair", 6, 10, 6, 6, weights="pair")
    for name, low, high in (("zero_point_0", 0.0, 1.7), ("zero_point_255", -1.3, 0.0), ("zero_point_low", -0.02, 2.0)):
        g = Graph(f"conv3x3_{name}", 17)
        yield g.output(g.conv(g.input(6, 6, 7, low=low, high=high), 10))
    # A 1x1 picture and one with more columns than a register tile holds.
    yield from one("conv3x3_one_pixel", 12, 10, 1, 1)
    yield from one("conv3x3_long_rows", 4, 6, 3, 37)


def depthwise():
    def one(name, channels, rows, columns, **rest):
        g = Graph(name, len(name) * 37 + channels)
        yield g.output(g.depthwise(g.input(channels, rows, columns), **rest))

    yield from one("depthwise3x3", 19, 7, 6)
    yield from one("depthwise3x3_wide", 48, 4, 5)
    yield from one("depthwise3x3_stride2", 21, 8, 7, stride=2)
    yield from one("depthwise3x3_stride2_pads_differ", 16, 7, 6, stride=2, pads=[0, 0, 1, 1])
    yield from one("depthwise3x3_dilation2", 9, 8, 7, dilation=2)
    yield from one("depthwise3x3_float_out", 10, 6, 7, quantised=False, bias="float")
    yield from one("depthwise3x3_times2", 10, 6, 7, times=2)
    yield from one("depthwise5x5", 18, 7, 8, kernel=5)
    yield from one("depthwise5x5_stride2", 17, 9, 8, kernel=5, stride=2)


def upsampling():
    def transposed(name, cin, cout, **rest):
        g = Graph(name, len(name) * 41 + cin)
        yield g.output(g.transposed(g.input(cin, 5, 6), cout, **rest))

    yield from transposed("transposed2x2", 11, 9)
    yield from transposed("transposed2x2_wide", 24, 20)
    yield from transposed("transposed4x4", 7, 10, kernel=4, pad=1)
    yield from transposed("transposed3x3", 7, 10, kernel=3, pad=1, output_padding=1)
    yield from transposed("transposed2x2_float_out", 8, 5, quantised=False, bias="float")
    for name, mode, coordinates, rest in (
        ("nearest", "nearest", "asymmetric", {"nearest_mode": "floor"}),
        ("nearest_half_pixel", "nearest", "half_pixel", {}),
        ("linear_half_pixel", "linear", "half_pixel", {}),
        ("linear_asymmetric", "linear", "asymmetric", {}),
        ("linear_align_corners", "linear", "align_corners", {}),
    ):
        g = Graph(f"resize_{name}", 5)
        yield g.output(g.resize(g.input(9, 4, 5), mode, coordinates, **rest))
    for mode in ("DCR", "CRD"):
        g = Graph(f"depth_to_space_{mode.lower()}", 6)
        x = g.input(20, 3, 4)
        yield g.output(g.node("DepthToSpace", [x], (1, 5, 6, 8), blocksize=2, mode=mode))


def elementwise():
    for kind in ("Add", "Sub", "Mul"):
        g = Graph(kind.lower(), 7)
        yield g.output(g.same(kind, g.input(11, 5, 6, low=-1.0, high=0.6), g.input(11, 5, 6, low=-0.3, high=2.9)))
    g = Graph("add_relu", 8)
    a, b = g.input(11, 5, 6), g.input(11, 5, 6)
    yield g.output(g.relu(g.same("Add", a, b, quantised=False)))
    g = Graph("add_itself", 9)
    x = g.input(11, 5, 6)
    yield g.output(g.same("Add", x, x))
    g = Graph("mul_per_channel", 10)
    yield g.output(g.same("Mul", g.input(13, 5, 4), g.input(13, 1, 1, low=0.0, high=1.0)))
    g = Graph("concat", 11)
    yield g.output(g.concat(g.input(5, 4, 6, low=-0.5, high=0.5), g.input(9, 4, 6, low=-3.0, high=1.0), g.input(2, 4, 6)))
    g = Graph("concat_of_convolutions", 12)
    x = g.input(6, 5, 6)
    yield g.output(g.concat(g.conv(x, 7), g.conv(x, 16, 1)))


def activations():
    """Each both behind a convolution with no pair between the two, and by itself between pairs."""

    def hard_swish_in_parts(g, x, quantised=True):
        gate = g.same("HardSigmoid", x, quantised=False, alpha=1 / 6, beta=0.5)
        return g.same("Mul", x, gate, quantised=quantised)

    def slopes(g, x, shape):
        return g.same("PRelu", x, g.constant(g.rng.uniform(-0.2, 0.5, shape).astype(np.float32)))

    kinds = {
        "relu": lambda g, x: g.relu(x),
        "relu6": lambda g, x: g.clip(x, 0, 6),
        "clip": lambda g, x: g.clip(x, -0.7, 0.9),
        "leaky_relu": lambda g, x: g.same("LeakyRelu", x, alpha=0.1),
        "prelu": lambda g, x: slopes(g, x, (g.tensors[x].shape[1], 1, 1)),
        "prelu_one_slope": lambda g, x: slopes(g, x, (1, 1, 1)),
        "hard_swish": lambda g, x: g.same("HardSwish", x),
        "hard_swish_in_parts": hard_swish_in_parts,
        "hard_sigmoid": lambda g, x: g.same("HardSigmoid", x, alpha=1 / 6, beta=0.5),
        "sigmoid": lambda g, x: g.same("Sigmoid", x),
        "tanh": lambda g, x: g.same("Tanh", x),
    }
    for i, (name, activation) in enumerate(kinds.items()):
        g = Graph(f"conv_{name}", 50 + i)
        yield g.output(activation(g, g.conv(g.input(6, 5, 6, low=-3.0, high=4.0), 18, quantised=False)))
        g = Graph(name, 80 + i)
        yield g.output(activation(g, g.input(10, 4, 5, low=-5.0, high=7.0)))
    g = Graph("depthwise_relu6", 100)
    yield g.output(g.clip(g.depthwise(g.input(17, 6, 5, low=-9.0, high=9.0), quantised=False), 0, 6))


def pooling():
    average = {"average_pool": {}, "average_pool_with_pads": {"count_include_pad": 1}}
    for name, rest in average.items():
        g = Graph(name, 13)
        yield g.output(g.pool("AveragePool", g.input(18, 7, 6), 3, 2, (1, 1, 1, 1), **rest))
    g = Graph("average_pool2x2", 13)
    yield g.output(g.pool("AveragePool", g.input(9, 6, 8), 2, 2))
    g = Graph("max_pool2x2", 14)
    yield g.output(g.pool("MaxPool", g.input(19, 6, 8), 2, 2))
    g = Graph("max_pool3x3_stride2", 14)
    yield g.output(g.pool("MaxPool", g.input(10, 7, 8), 3, 2, (1, 1, 1, 1)))
    g = Graph("global_average_pool", 15)
    yield g.output(g.node("GlobalAveragePool", [g.input(21, 7, 6)], (1, 21, 1, 1)))
    for keep in (0, 1):
        g = Graph("reduce_mean" + ("_kept" if keep else ""), 16)
        x = g.input(21, 7, 6)
        yield g.output(g.node("ReduceMean", [x], (1, 21, 1, 1) if keep else (1, 21), axes=[2, 3], keepdims=keep))


def linear():
    for name, rest in {
        "gemm": {}, "gemm_straight": {"transposed_weights": False}, "gemm_float_out": {"quantised": False, "bias": "float"}
    }.items():  # fmt: skip
        g = Graph(name, 18)
        yield g.output(g.gemm(g.flatten(g.input(7, 3, 4)), 19, **rest))
    g = Graph("matmul_add", 19)
    y = g.matmul(g.flatten(g.input(6, 3, 4)), 18)
    yield g.output(g.same("Add", y, g.constant(g.rng.normal(0, 0.3, 18).astype(np.float32))))
    g = Graph("pool_gemm", 20)
    y = g.node("GlobalAveragePool", [g.conv(g.input(5, 6, 6), 20)], (1, 20, 1, 1))
    yield g.output(g.gemm(g.flatten(y), 8))


def blocks():
    g = Graph("block_inverted_residual", 21)
    x = g.input(12, 6, 7)
    y = g.relu(g.conv(x, 30, 1, quantised=False))
    y = g.relu(g.depthwise(y, quantised=False))
    yield g.output(g.same("Add", x, g.conv(y, 12, 1)))
    g = Graph("block_squeeze_excite", 22)
    x = g.input(18, 6, 5)
    y = g.node("GlobalAveragePool", [x], (1, 18, 1, 1))
    y = g.relu(g.conv(y, 8, 1, quantised=False))
    y = g.same("HardSigmoid", g.conv(y, 18, 1, quantised=False), alpha=1 / 6, beta=0.5)
    yield g.output(g.same("Mul", x, y))
    g = Graph("block_u_net", 23)
    x = g.input(3, 8, 10)
    skip = g.relu(g.conv(x, 10, quantised=False))
    y = g.relu(g.conv(skip, 18, stride=2, quantised=False))
    y = g.concat(g.resize(y, "nearest", "asymmetric", nearest_mode="floor"), skip)
    yield g.output(g.conv(y, 4, quantised=False))
    g = Graph("block_two_outputs", 24)
    y = g.relu(g.conv(g.input(3, 8, 9), 12, stride=2, quantised=False))
    yield g.output(y, g.same("Sigmoid", g.conv(y, 4, 1), quantised=False))
    # Softmax stays float: what comes before and behind it are two pieces.
    g = Graph("block_float_middle", 25)
    y = g.same("Softmax", g.conv(g.input(5, 6, 6), 9), axis=1)
    yield g.output(g.conv(y, 7))


def layers():
    for group in (convolutions, depthwise, upsampling, elementwise, activations, pooling, linear, blocks):
        yield from group()


# One of them also for LiteRT, so that what calls LiteRT has a test.
WITH_TFLITE = "block_inverted_residual"


def write_layers(out: Path, with_float: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    index = []
    for g in layers():
        model, steps = g.qdq_model()
        if with_float:
            onnx.save(g.float_model(), out / f"{g.name}.float.onnx")
        onnx.save(model, out / f"{g.name}.onnx")
        if g.name == WITH_TFLITE:
            from . import tflite  # needs the schema that ai-edge-litert brings

            (out / f"{g.name}.tflite").write_bytes(tflite.convert(model))
        # A tenth beyond the range: the input's quantiser has to saturate.
        feed = g.feed(np.random.default_rng(g.seed + 2), beyond=1.1)
        results = session(model).run(None, feed)
        check(g, feed, results, session(model, optimised=True).run(None, feed), steps)
        values = [*feed.values(), *results]
        np.concatenate([v.ravel() for v in values]).astype("<f4").tofile(out / f"{g.name}.f32")
        outputs = [{"name": n, "shape": list(v.shape), "step": steps.get(n)} for n, v in zip(g.outputs, results, strict=True)]
        inputs = [{"name": n, "shape": list(v.shape)} for n, v in feed.items()]
        index.append({"name": g.name, "inputs": inputs, "outputs": outputs})
    rows = ",\n".join(json.dumps(entry) for entry in index)
    (out / "index.json").write_text(f"[\n{rows}\n]\n")
    size = sum(f.stat().st_size for f in out.iterdir())
    print(f"{out}: {len(index)} graphs, {size} bytes")


def check(g: Graph, feed, results, integer, steps) -> None:
    """The stored results say something, and ONNX Runtime's own integer kernels agree with them."""
    for name, stored, other in zip(g.outputs, results, integer, strict=True):
        levels = len(np.unique(stored))
        assert levels > min(12, stored.size // 2), f"{g.name}: {name} takes only {levels} values"
        step = steps.get(name) or np.abs(stored).max() * 1e-4
        worst = np.abs(stored - other).max() / step
        assert worst < 1.01, f"{g.name}: {name} differs by {worst} steps between ONNX Runtime's ways"


# --- speed -----------------------------------------------------------------------------------------------------------


def encoder_decoder(name: str, size: int, transposed: bool = False) -> Graph:
    """Like a MobileNet: depthwise and 1x1 layers, two residuals, a skip connection, and one level up again."""
    g = Graph(name, 0)

    def block(x, channels, stride=1):
        return g.relu(g.conv(g.relu(g.depthwise(x, stride=stride)), channels, 1))

    x = g.relu(g.conv(g.input(3, size, size, low=-1.0, high=1.0), 16))
    x = block(x, 32, stride=2)
    x = g.relu(g.same("Add", x, g.conv(x, 32)))
    skip = block(x, 64)
    x = block(skip, 128, stride=2)
    x = g.relu(g.same("Add", x, g.conv(g.relu(g.depthwise(x)), 128, 1)))
    x = g.relu(g.conv(x, 64, 1))
    x = g.transposed(x, 64) if transposed else g.resize(x, "nearest", "asymmetric", nearest_mode="floor")
    return g.output(g.conv(g.relu(g.conv(g.concat(x, skip), 32, 1)), 4))


def stack(name: str, channels: int, size: int, kernel: int = 3, depthwise: bool = False) -> Graph:
    """Four layers of one kind."""
    g = Graph(name, 0)
    x = g.input(channels, size, size, low=-1.0, high=1.0)
    for _ in range(4):
        x = g.relu(g.depthwise(x, kernel) if depthwise else g.conv(x, channels, kernel))
    return g.output(x)


def speed():
    yield encoder_decoder("mb128", 128)
    yield encoder_decoder("mb64", 64)
    yield encoder_decoder("ct128", 128, transposed=True)
    yield stack("c3x3", 32, 64)
    yield stack("c3x3_64", 64, 32)
    yield stack("dw", 128, 64, depthwise=True)
    yield stack("pw", 128, 32, kernel=1)


def bundles():
    """Name, graph and input shape of every network that is shipped; the detector at the sizes that it runs at."""
    for path in sorted(data.BUNDLES.glob("*/model.onnx")):
        model, name = onnx.load(path), path.parent.name
        (source,) = model.graph.input
        dims = source.type.tensor_type.shape.dim
        if all(d.dim_value for d in dims):
            yield name, model, tuple(d.dim_value for d in dims)
        else:
            for width, height in ((320, 256), (640, 480)):
                yield f"{name}_{width}x{height}", model, (1, dims[1].dim_value, height, width)


def write_speed(out: Path) -> None:
    from . import tflite

    out.mkdir(parents=True, exist_ok=True)
    index = []

    def write(name: str, plain: onnx.ModelProto, model: onnx.ModelProto, shape: tuple[int, ...], macs: int) -> None:
        onnx.save(plain, out / f"{name}.float.onnx")
        onnx.save(model, out / f"{name}.onnx")
        for edges in (False, True):
            content = tflite.convert(model, shape, int8_edges=edges)
            (out / (f"{name}.int8_edges.tflite" if edges else f"{name}.tflite")).write_bytes(content)
        low, high = input_range(model)
        index.append({"name": name, "input": list(shape), "range": [low, high], "macs": macs})
        print(f"{name}: {macs / 1e6:.1f} MMAC")

    for g in speed():
        plain = g.float_model()
        rng = np.random.default_rng(1)
        model = graphs.quantise(plain, [g.feed(rng)["x"] for _ in range(8)])
        write(g.name, plain, model, g.tensors["x"].shape, g.macs)
    for name, model, shape in bundles():
        plain = qdq.without_pairs(model)
        write(name, plain, model, shape, graphs.macs(plain, shape))
    (out / "index.json").write_text(json.dumps(index, indent=1) + "\n")


def input_range(model: onnx.ModelProto) -> tuple[float, float]:
    """What the quantiser of the input can hold."""
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    first = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == model.graph.input[0].name)
    scale, zero = (float(constants[n]) for n in first.input[1:3])
    return (0 - zero) * scale, (255 - zero) * scale


def run(args: argparse.Namespace) -> int:
    if args.only != "speed":
        write_layers(args.out / "layers", not args.without_float)
    if args.only != "layers":
        write_speed(args.out / "speed")
    return 0
