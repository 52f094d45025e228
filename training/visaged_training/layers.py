"""The convolutions of a graph as lines of text, from which `scripts/mca-int8` estimates a network's time."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import onnx
from onnx import helper, shape_inference


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="an ONNX graph")
    parser.add_argument("--size", default="", metavar="WxH", help="size of the input, where the graph leaves it open")


def run(args: argparse.Namespace) -> int:
    size = tuple(int(n) for n in args.size.split("x")) if args.size else None
    try:
        lines = list(layers(onnx.load(args.model), size))
    except ValueError as error:
        print(f"layers: {args.model}: {error}", file=sys.stderr)
        return 1
    print("# kind kernel stride in_channels out_channels out_h out_w")
    print("\n".join(lines))
    return 0


def layers(model: onnx.ModelProto, size: tuple[int, int] | None = None):
    """A line for each convolution with a square kernel, in the graph's order; others are refused by a ValueError."""
    if size is not None:
        for dim, value in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], (size[1], size[0]), strict=True):
            dim.dim_value = value
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        (_, inputs, *_), (_, outputs, rows, columns) = shapes[node.input[0]], shapes[node.output[0]]
        if not rows or not columns:
            raise ValueError(f"the size of {node.output[0]} is open: give --size")
        kernel, stride, group = attributes["kernel_shape"], attributes.get("strides", [1, 1]), attributes.get("group", 1)
        if kernel[0] != kernel[1] or stride[0] != stride[1] or group not in (1, inputs):
            raise ValueError(f"{node.name} is neither square and dense nor square and depthwise")
        kind = "depthwise" if group == inputs == outputs else "dense"
        yield f"{kind} {kernel[0]} {stride[0]} {inputs} {outputs} {rows} {columns}"
