"""The .tflite is the ONNX graph over again: LiteRT's outputs are ONNX Runtime's but for roundings."""

import numpy as np
import onnx
import pytest

pytest.importorskip("ai_edge_litert")
from ai_edge_litert.interpreter import Interpreter  # noqa: E402

from visaged_training import data, engine_graphs, graphs, qdq, tflite  # noqa: E402


def litert(content: bytes, x: np.ndarray) -> list[np.ndarray]:
    """Outputs in the graph's order, pictures as NCHW, int8 as the numbers it stands for."""
    net = Interpreter(model_content=content, num_threads=1)
    net.allocate_tensors()
    given = net.get_input_details()[0]
    x = np.ascontiguousarray(x.transpose(tflite.TO_NHWC)) if x.ndim == 4 else x
    if given["dtype"] == np.int8:
        scale, zero = given["quantization"]
        x = np.clip(np.rint(x / scale) + zero, -128, 127).astype(np.int8)
    net.set_tensor(given["index"], x)
    net.invoke()
    results = []
    for out in net.get_output_details():
        y = net.get_tensor(out["index"])
        if out["dtype"] == np.int8:
            scale, zero = out["quantization"]
            y = ((y.astype(np.float32) - zero) * scale).astype(np.float32)
        results.append(y.transpose(0, 3, 1, 2) if y.ndim == 4 else y)
    return results


@pytest.mark.parametrize("edges", [False, True], ids=["float edges", "int8 edges"])
@pytest.mark.parametrize("name", ["mb64", "ct128", "c3x3", "dw"])
def test_speed_graphs_are_the_same_network(name, edges):
    g = next(g for g in engine_graphs.speed() if g.name == name)
    rng = np.random.default_rng(4)
    model = graphs.quantise(g.float_model(), [g.feed(rng)["x"] for _ in range(2)])
    feed = g.feed(rng)
    expected = qdq.session(model).run(None, feed)[0]
    (result,) = litert(tflite.convert(model, int8_edges=edges), feed["x"])
    step = np.diff(np.unique(expected)).min()
    off = np.abs(result - expected) / step
    # LiteRT rounds additions its own way and brings what it concatenates to one scale first.
    assert off.max() < 8
    assert off.mean() < 1


@pytest.mark.parametrize(
    ("name", "shape"), [("derl", (1, 1, 64, 64)), ("derl-tiny", (1, 1, 64, 64)), ("detector", (1, 3, 256, 320))]
)
def test_bundles_are_the_same_network(name, shape):
    model = onnx.load(data.BUNDLES / name / "model.onnx")
    low, high = (0, 255) if name == "detector" else (-2, 2)
    x = np.random.default_rng(5).uniform(low, high, shape).astype(np.float32)
    expected = qdq.session(model).run(None, {model.graph.input[0].name: x})
    results = litert(tflite.convert(model, shape), x)
    assert [r.shape for r in results] == [e.shape for e in expected]
    for result, wanted in zip(results, expected, strict=True):
        assert np.abs(result - wanted).mean() < 0.02 * max(np.abs(wanted).max(), 1)


def test_what_cannot_be_written_is_named():
    g = qdq.Graph("softmax", 1)
    g.output(g.same("Softmax", g.input(4, 3, 3)))
    model, _ = g.qdq_model()
    with pytest.raises(tflite.Unsupported, match="Softmax"):
        tflite.convert(model)
