"""The identity generator: its material, its nets, its place in the bundle."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from visaged_training import data, exchange, nets, persona, swap  # noqa: E402

needs_bundles = pytest.mark.skipif(not (data.BUNDLES / "identity" / "weights.safetensors").exists(), reason="no bundle")


def landmarks(seed: int = 0, shake: float = 1.5) -> np.ndarray:
    """68 points about where an aligned face has them."""
    angle = np.linspace(np.pi, 0, 17)
    jaw = np.stack([64 - 52 * np.cos(np.pi - angle), 62 + 58 * np.sin(angle)], 1)
    rows = [jaw]
    for left in (24, 72):
        rows.append(np.stack([np.linspace(left, left + 30, 5), np.full(5, 36.0)], 1))
    rows.append(np.stack([np.full(4, 64.0), np.linspace(46, 70, 4)], 1))
    rows.append(np.stack([np.linspace(56, 72, 5), np.full(5, 76.0)], 1))
    for x in (40.5, 87.5):
        turn = np.linspace(np.pi, -np.pi, 7)[:6]
        rows.append(np.stack([x + 8 * np.cos(turn), 50 - 4 * np.sin(turn)], 1))
    for wide, high, count in ((20, 8, 12), (15, 3, 8)):
        turn = np.linspace(np.pi, -np.pi, count + 1)[:count]
        rows.append(np.stack([64 + wide * np.cos(turn), 97 - high * np.sin(turn)], 1))
    points = np.concatenate(rows)
    return points + np.random.default_rng(seed).normal(0, shake, points.shape)


def faces(seed: int) -> exchange.Faces:
    points = landmarks(seed)
    torch.manual_seed(seed)
    small = torch.rand(1, 3, 8, 8) * 255
    picture = torch.nn.functional.interpolate(small, size=128, mode="bilinear", align_corners=False)
    masks = (torch.from_numpy(m(points).copy())[None, None].float() / 255 for m in (exchange.mask, exchange.mouth))
    return exchange.Faces(picture, torch.from_numpy(exchange.anchors(points))[None], *masks)


def test_a_spline_brings_points_to_points():
    to, come = (torch.from_numpy(exchange.anchors(landmarks(k)))[None] for k in (1, 2))
    grid = exchange.spline(to, come)
    # A picture that says where it is.
    line = torch.arange(128) + 0.5
    where = torch.stack(torch.meshgrid(line, line, indexing="xy"))[None]
    moved = torch.nn.functional.grid_sample(where, grid, padding_mode="border", align_corners=False)[0]
    at = to[0].clamp(1, 126)
    inside = ((to[0] > 4) & (to[0] < 124)).all(1)
    found = moved[:, at[:, 1].long(), at[:, 0].long()].T
    assert (found - come[0])[inside].abs().mean() < 1.5
    assert (to[0] - come[0])[inside].abs().mean() > 1.2


def test_a_bent_face_changes_nothing_outside_the_face_and_takes_its_light_from_the_other():
    a, b = faces(1), faces(2)
    bent = exchange.bent(a, b)
    outside = (b.mask == 0).expand(-1, 3, -1, -1)
    assert torch.equal(bent[outside], b.picture[outside])
    dark = b._replace(picture=b.picture * 0.5)
    inside = (b.mask > 0.99).expand(-1, 3, -1, -1)
    assert exchange.bent(a, dark)[inside].mean() < 0.7 * bent[inside].mean()


def test_both_halves_stay_within_the_budget_of_700_mmac():
    net, face = swap.Generator().eval(), torch.zeros(1, 3, 128, 128)
    generator = nets.count_macs(net, face, face, torch.zeros(1, swap.WHO, 1, 1))
    from visaged_training import identity

    encoder = nets.count_macs(identity.Encoder(), torch.zeros(1, 1, identity.SIDE, identity.SIDE))
    assert generator + encoder < 700e6


def test_what_is_shipped_gives_what_was_trained():
    torch.manual_seed(1)
    net = swap.Generator().eval()
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    a, b = torch.rand(2, 1, 3, 128, 128) * 255
    who = torch.nn.functional.normalize(torch.randn(1, swap.WHO, 1, 1), dim=1)
    with torch.no_grad():
        wanted = net(swap.units(a), swap.units(b), who)
        found = swap.Shipped(net)(swap.units(a), swap.units(b), who)
    assert wanted.abs().max() > 0.1
    assert (wanted - found).abs().max() < 1e-3


def test_settled_norms_give_in_training_what_they_give_afterwards():
    net = nets.ConvRelu(3, 4)
    x = torch.rand(2, 3, 8, 8)
    net.train()
    nets.settle(net)
    first = net(x)
    net.eval()
    assert torch.equal(first, net(x))
    assert net.body[1].weight.requires_grad


def test_a_turned_head_is_measured_in_degrees():
    rng = np.random.default_rng(3)
    model = rng.normal(0, 1, (68, 3))
    yaw = np.radians(20)
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    seen = [(model @ m.T)[:, :2] * [30, -30] + 64 for m in (np.eye(3), turn)]
    rest, turned = persona.turned(np.stack(seen), model)
    assert np.allclose(rest, 0, atol=1e-6)
    assert abs(abs(turned[0]) - 20) < 1e-6 and abs(turned[1]) < 1e-6


@needs_bundles
def test_a_generator_is_added_to_an_encoder_that_keeps_its_bytes_and_replaces_the_one_before():
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    def doubler(factor: float) -> "onnx.ModelProto":
        tensor = helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])
        shapes = {"person": [1, 3, 128, 128], "attributes": [1, 3, 128, 128], "who": [1, swap.WHO, 1, 1]}
        ins = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
        out = helper.make_tensor_value_info("change", TensorProto.FLOAT, [1, 3, 128, 128])
        node = helper.make_node("Mul", ["person", "factor"], ["change"], name="mul")
        graph = helper.make_graph([node], "g", ins, [out], [tensor])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    encoder = onnx.load(data.BUNDLES / "identity" / "model.onnx")
    once = persona.joined(encoder, doubler(2.0))
    twice = persona.joined(once, doubler(3.0))
    assert [o.name for o in twice.graph.output] == ["embedding", "change"]
    kept = {t.name: t.SerializeToString() for t in twice.graph.initializer}
    mine = [t for t in encoder.graph.initializer if not t.name.startswith(persona.PREFIX)]
    assert all(kept[t.name] == t.SerializeToString() for t in mine)
    factors = [t for t in twice.graph.initializer if t.name.startswith(persona.PREFIX)]
    assert len(factors) == 1 and onnx.numpy_helper.to_array(factors[0]) == 3.0
