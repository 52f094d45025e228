"""Static int8 of a small graph against float, and the detector's equalisation, without torch."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from visaged_training import data, graphs, yunet


def small_graph(spread: float = 1.0) -> onnx.ModelProto:
    """1x1 convolution, depthwise 3x3, ReLU, 1x1 convolution; channel ranges differ by `spread`."""
    rng = np.random.default_rng(0)
    scale = np.geomspace(1, spread, 8).astype(np.float32)
    w = {
        "a.weight": rng.normal(0, 1, (8, 3, 1, 1)).astype(np.float32) * scale.reshape(-1, 1, 1, 1),
        "a.bias": rng.normal(0, 0.1, 8).astype(np.float32) * scale,
        "b.weight": rng.normal(0, 0.4, (8, 1, 3, 3)).astype(np.float32) / scale.reshape(-1, 1, 1, 1),
        "b.bias": np.zeros(8, np.float32),
        "c.weight": rng.normal(0, 0.4, (4, 8, 1, 1)).astype(np.float32),
        "c.bias": np.zeros(4, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "a.weight", "a.bias"], ["a"], name="a", kernel_shape=[1, 1]),
        helper.make_node("Conv", ["a", "b.weight", "b.bias"], ["b"], name="b", kernel_shape=[3, 3], pads=[1] * 4, group=8),
        helper.make_node("Relu", ["b"], ["r"], name="r"),
        helper.make_node("Conv", ["r", "c.weight", "c.bias"], ["out"], name="c", kernel_shape=[1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 4, 16, 16])],
        [numpy_helper.from_array(v, k) for k, v in w.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=graphs.IR)


def batches(n=12):
    rng = np.random.default_rng(1)
    return [rng.normal(0, 1, (1, 3, 16, 16)).astype(np.float32) for _ in range(n)]


def answer(model, x):
    return yunet.session(model.SerializeToString()).run(None, {"input": x})[0]


def relative_error(model, quantised):
    want = [answer(model, x) for x in batches()]
    have = [answer(quantised, x) for x in batches()]
    return float(np.mean([np.abs(a - b).mean() for a, b in zip(want, have, strict=True)]) / np.mean(np.abs(want)))


def test_int8_follows_float():
    model = small_graph()
    assert relative_error(model, graphs.quantise(model, batches())) < 0.03


def test_weights_are_per_channel_s8_and_activations_u8():
    q = graphs.quantise(small_graph(), batches())
    values = {i.name: numpy_helper.to_array(i) for i in q.graph.initializer}
    feeds = [n for n in q.graph.node if n.op_type == "QuantizeLinear"]
    assert feeds and all(values[n.input[2]].dtype == np.uint8 for n in feeds)
    weights = [v for k, v in values.items() if k.endswith("weight_quantized")]
    assert len(weights) == 3 and all(w.dtype == np.int8 for w in weights)
    scales = [v for k, v in values.items() if k.endswith("weight_scale")]
    assert all(s.ndim == 1 for s in scales)


def test_equalising_keeps_float_and_helps_int8():
    model = small_graph(spread=200.0)
    even = graphs.equalise(model, batches())
    x = batches()[0]
    assert np.allclose(answer(model, x), answer(even, x), rtol=1e-3, atol=1e-3)
    assert relative_error(model, graphs.quantise(even, batches())) < relative_error(model, graphs.quantise(model, batches()))


def test_open_outputs_are_in_float_and_nearer_to_float():
    model = small_graph()
    closed = graphs.quantise(model, batches())
    opened = graphs.open_outputs(closed)
    kinds = [n.op_type for n in opened.graph.node]
    assert kinds.count("QuantizeLinear") == [n.op_type for n in closed.graph.node].count("QuantizeLinear") - 1
    assert next(n for n in opened.graph.node if "out" in n.output).op_type == "Conv"
    values = np.unique(np.concatenate([answer(opened, x).ravel() for x in batches()]))
    assert len(values) > 256
    assert relative_error(model, opened) < relative_error(model, closed)


def test_exact_sums_are_the_same_in_any_order_and_near_to_float():
    model = small_graph(spread=200.0)
    plain = graphs.open_outputs(graphs.quantise(model, batches()))
    exact = graphs.exact_sums(plain, model)
    assert relative_error(model, exact) < 2 * relative_error(model, plain)

    def parted(graph):
        pair = [yunet.session(g.SerializeToString(), float_sums=True) for g in (graph, graphs.backwards(graph))]
        a, b = ([net.run(None, {"input": x})[0] for x in batches(40)] for net in pair)
        return sum(int((p != q).sum()) for p, q in zip(a, b, strict=True))

    assert parted(exact) == 0
    assert parted(plain) > 0


def test_a_short_scale_is_never_below_what_it_rounds():
    for scale in np.random.default_rng(0).uniform(1e-6, 10, 1000):
        value, odd = graphs.short(scale, 3)
        assert scale <= value <= 1.25 * scale and odd in (1, 3, 5, 7)
        assert np.log2(value / odd).is_integer()


@pytest.mark.skipif(not (data.BUNDLES / "detector").exists(), reason="no bundle")
def test_the_detector_answers_the_same_whatever_the_order_of_its_sums():
    graph = onnx.load(data.BUNDLES / "detector" / "model.onnx")
    one, other = (yunet.session(g.SerializeToString(), float_sums=True) for g in (graph, graphs.backwards(graph)))
    for seed in range(3):
        x = np.random.default_rng(seed).uniform(0, 255, (1, 3, 96, 128)).astype(np.float32)
        for a, b in zip(one.run(yunet.OUTPUTS, {"input": x}), other.run(yunet.OUTPUTS, {"input": x}), strict=True):
            assert np.array_equal(a, b)


def test_open_outputs_refuses_a_graph_without_a_quantised_convolution_there():
    with pytest.raises(ValueError, match="out: no quantised convolution"):
        graphs.open_outputs(small_graph())


@pytest.mark.skipif(not (data.BUNDLES / "detector").exists(), reason="no bundle")
def test_every_output_of_the_detector_comes_from_a_convolution_in_float():
    graph = onnx.load(data.BUNDLES / "detector" / "model.onnx").graph
    made_by = {o: n for n in graph.node for o in n.output}
    for name in yunet.OUTPUTS:
        node = made_by[name]
        while node.op_type in ("Sigmoid", "Reshape", "Transpose"):
            node = made_by[node.input[0]]
        assert node.op_type == "Conv", name
        assert all(made_by[i].op_type == "DequantizeLinear" for i in node.input), name


def test_macs_are_counted():
    assert graphs.macs(small_graph(), (1, 3, 16, 16)) == 256 * (8 * 3 + 8 * 9 + 4 * 8)


@pytest.mark.skipif(not (data.BUNDLES / "detector").exists(), reason="no bundle")
@pytest.mark.parametrize("size", [(256, 320), (480, 640), (96, 64)])
def test_detector_takes_any_multiple_of_32(size):
    net = yunet.session(data.BUNDLES / "detector" / "model.onnx")
    x = np.random.default_rng(0).uniform(0, 255, (1, 3, *size)).astype(np.float32)
    out = dict(zip([o.name for o in net.get_outputs()], net.run(None, {"input": x}), strict=True))
    assert set(out) == set(yunet.OUTPUTS)
    for s in yunet.STRIDES:
        cells = size[0] // s * (size[1] // s)
        assert out[f"cls_{s}"].shape == (1, cells, 1)
        assert out[f"kps_{s}"].shape == (1, cells, 10)
    assert all(np.isfinite(v).all() for v in out.values())


ROOT = data.default_root()


@pytest.mark.skipif(not (ROOT / "weights").exists(), reason="data packs are not here")
def test_rewritten_detector_is_the_published_one():
    source = ROOT / "weights" / "yunet_s_dynamic.onnx"
    old, new = yunet.session(source), yunet.session(graphs.yunet_float(source).SerializeToString())
    x = np.random.default_rng(0).uniform(0, 255, (1, 3, 64, 96)).astype(np.float32)
    a = dict(zip([o.name for o in old.get_outputs()], old.run(None, {"input": x}), strict=True))
    b = dict(zip([o.name for o in new.get_outputs()], new.run(None, {"input": x}), strict=True))
    assert all(np.allclose(a[k], b[k], atol=1e-5) for k in a)


@pytest.mark.skipif(not (ROOT / "sfhq").exists(), reason="data packs are not here")
def test_detector_finds_faces():
    net = yunet.session(data.BUNDLES / "detector" / "model.onnx")
    for entry in data.sfhq(ROOT)[1:6]:
        faces = yunet.detect(net, yunet.fit(data.rgb(entry["path"]), 320, 240)[0], 0.5)
        assert len(faces) == 1
        eye_l, eye_r, nose, mouth_l, mouth_r = faces[0].landmarks
        assert eye_l[0] < nose[0] < eye_r[0] and eye_l[1] < nose[1] < mouth_l[1]
