"""The layer graphs that the engine's tests read: complete, and what ONNX Runtime still says."""

import json

import numpy as np
import onnx
import pytest

from visaged_training import data, engine_graphs, graphs, qdq

FOLDER = data.ROOT / "tests" / "data" / "nn" / "layers"
INDEX = {entry["name"]: entry for entry in json.loads((FOLDER / "index.json").read_text())}


def stored(entry):
    values, at, parts = np.fromfile(FOLDER / f"{entry['name']}.f32", "<f4"), 0, []
    for tensor in [*entry["inputs"], *entry["outputs"]]:
        count = int(np.prod(tensor["shape"]))
        parts.append(values[at : at + count].reshape(tensor["shape"]))
        at += count
    assert at == len(values)
    return parts[: len(entry["inputs"])], parts[len(entry["inputs"]) :]


@pytest.mark.parametrize("optimised", [False, True], ids=["as written", "in integers"])
@pytest.mark.parametrize("name", INDEX)
def test_stored_outputs_are_within_one_step_of_onnx_runtime(name, optimised):
    entry = INDEX[name]
    inputs, outputs = stored(entry)
    model = onnx.load(FOLDER / f"{name}.onnx")
    results = qdq.session(model, optimised=optimised).run(
        None, {i.name: v for i, v in zip(model.graph.input, inputs, strict=True)}
    )
    for tensor, expected, result in zip(entry["outputs"], outputs, results, strict=True):
        step = tensor["step"] or np.abs(expected).max() * 1e-4
        assert np.abs(expected - result).max() < 1.01 * step


def test_every_layer_has_its_stored_graph_and_the_generator_gives_the_same_weights():
    made = {g.name: g for g in engine_graphs.layers()}
    assert list(made) == list(INDEX)
    assert {f.stem for f in FOLDER.glob("*.onnx")} == set(made)
    for name, g in made.items():
        fresh, _ = g.qdq_model()
        old = onnx.load(FOLDER / f"{name}.onnx")
        assert [n.op_type for n in fresh.graph.node] == [n.op_type for n in old.graph.node], name
        weights = {i.name: i.raw_data for i in old.graph.initializer}
        for i in fresh.graph.initializer:
            if i.data_type == onnx.TensorProto.INT8:
                assert weights[i.name] == i.raw_data, f"{name}: {i.name}"


def test_a_tensors_grid_holds_its_range_and_zero_exactly():
    for low, high in [(-1.0, 3.0), (0.0, 2.0), (-0.7, 0.0), (0.5, 1.0), (0.0, 0.0)]:
        scale, zero = qdq.u8(low, high)
        assert 0 <= zero <= 255
        assert (0 - zero) * scale <= min(low, 0) + scale
        assert (255 - zero) * scale >= max(high, 0) - scale


def test_float_and_quantised_graphs_agree_but_for_quantisation():
    g = next(g for g in engine_graphs.layers() if g.name == "block_u_net")
    feed = g.feed(np.random.default_rng(3))
    model, _ = g.qdq_model()
    plain, quantised = (qdq.session(m).run(None, feed)[0] for m in (g.float_model(), model))
    assert np.abs(plain - quantised).max() < 0.1 * np.abs(plain).max()
    assert np.abs(plain - quantised).max() > 0


@pytest.mark.parametrize("name", ["block_u_net", "block_inverted_residual", "depthwise_relu6"])
def test_a_graph_without_its_pairs_is_the_float_graph_but_for_rounded_weights(name):
    g = next(g for g in engine_graphs.layers() if g.name == name)
    model, _ = g.qdq_model()
    bare = qdq.without_pairs(model)
    assert not [n for n in bare.graph.node if "uantize" in n.op_type]
    feed = g.feed(np.random.default_rng(3))
    plain, result = (qdq.session(m).run(None, feed)[0] for m in (g.float_model(), bare))
    assert np.abs(plain - result).max() < 0.03 * np.abs(plain).max()


def test_the_relu_that_a_quantiser_took_out_is_back_in_the_float_graph():
    g = next(g for g in engine_graphs.speed() if g.name == "mb64")
    rng = np.random.default_rng(1)
    model = graphs.quantise(g.float_model(), [g.feed(rng)["x"] for _ in range(2)])
    assert not [n for n in model.graph.node if n.op_type == "Relu"]
    bare = qdq.without_pairs(model)
    count = sum(n.op_type == "Relu" for n in g.float_model().graph.node)
    assert sum(n.op_type == "Relu" for n in bare.graph.node) == count
    feed = g.feed(rng)
    plain, result = (qdq.session(m).run(None, feed)[0] for m in (g.float_model(), bare))
    assert np.abs(plain - result).mean() < 0.01 * np.abs(plain).max()
