import numpy as np
import pytest

torch = pytest.importorskip("torch")

from visaged_training import cosmetics, identity, makeup, portraits, yunet  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def untrained():
    net = makeup.Makeup().eval()
    torch.nn.init.normal_(net.bare_net.rest.weight, 0, 0.1)
    return net


def test_a_reference_without_make_up_changes_nothing():
    net, face = makeup.Makeup().eval(), torch.rand(1, 3, 128, 128) * 255
    for how in net.apply_net.how:
        torch.nn.init.zeros_(how.weight)
        torch.nn.init.zeros_(how.bias)
    assert net(face, face)[0].abs().max() == 0


def test_layers_that_are_found_exactly_paint_exactly():
    """Coats as the painter puts them on, with the true masks, light and style, are the painting of `cosmetics`."""
    rng = np.random.default_rng(4)
    torch.manual_seed(4)
    bare, light = torch.rand(1, 3, 16, 16) * 200 + 20, torch.rand(1, 3, 16, 16) * 100 + 60
    masks = torch.rand(1, 6, 16, 16)
    style = torch.from_numpy(cosmetics.style(rng))[None]
    style[:, :, 3] = 0.5
    wanted = makeup.paint(bare, light, masks, style)
    lit = light / cosmetics.LIGHT_UNIT
    known = makeup.Known(masks, lit, style, makeup.own_colour(bare, lit, masks))
    where, how = makeup.copies_of(known)
    coats = [[[5], [3], [1], [4], [2], [0]], makeup.COATS]
    painter = makeup.Painter()
    off = []
    for order in coats:
        under = bare / makeup.UNIT
        for coat in order:
            layers = (where[:, list(coat)] * how[:, list(coat), :, None, None]).flatten(1, 2)
            mix, hide = painter.mixing(len(coat))
            under = under + torch.conv2d(layers, mix) * lit - torch.conv2d(layers, hide) * under
        off.append((under * makeup.UNIT - wanted).abs().mean())
    assert off[0] < 1e-3
    # Layers of one coat that lie on each other are the only thing that three coats for six layers cost.
    assert off[1] > 1e-3


def test_what_is_shipped_gives_what_was_trained():
    net = untrained()
    face, reference = torch.rand(2, 1, 3, 128, 128) * 255
    with torch.no_grad():
        wanted = net(face, reference)
        given = makeup.Shipped(net)(face, reference)
    for a, b in zip(wanted, given, strict=True):
        assert a.abs().max() > 1
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-3)


def test_cost_is_within_the_budgets():
    from visaged_training import nets

    face = torch.zeros(1, 3, 128, 128)
    net = untrained()
    code = torch.zeros(1, 64, 1, 1)
    assert nets.count_macs(net.style, face) + nets.count_macs(net.apply_net, face, code) < 160e6
    assert nets.count_macs(net.worn, face) + nets.count_macs(net.bare_net, face, code) < 160e6
    assert nets.count_macs(identity.Encoder().eval(), torch.zeros(1, 1, 112, 112)) < 700e6


def example(rng):
    face, light = rng.uniform(20, 235, (16, 16, 3)), rng.uniform(40, 200, (16, 16, 3))
    masks = rng.uniform(0, 1, (16, 16, 6)).astype(np.float32)
    return face.astype(np.float32), light.astype(np.float32), masks


def test_both_ways_of_painting_give_the_same_picture():
    rng = np.random.default_rng(1)
    face, light, masks = example(rng)
    style = cosmetics.style(rng)
    style[:, 3] = 0.5
    one = cosmetics.paint(face, light, masks, style)
    rows = [torch.from_numpy(x.transpose(2, 0, 1))[None] for x in (face, light, masks)]
    many = makeup.paint(*rows, torch.from_numpy(style)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(one - face).max() > 5
    assert np.abs(one - many).max() < 1e-2


def test_an_empty_style_changes_nothing_and_nothing_changes_outside_the_masks():
    rng = np.random.default_rng(2)
    face, light, masks = example(rng)
    style = cosmetics.style(rng)
    masks[:8] = 0
    style[:, 3] = 0.8
    assert np.array_equal(cosmetics.paint(face, light, masks, style)[:8], face[:8])
    style[:, 3] = 0
    assert np.array_equal(cosmetics.paint(face, light, masks, style), face)


def test_colour_difference_agrees_with_published_pairs():
    # Sharma, Wu, Dalal, "The CIEDE2000 color-difference formula", table 1, pairs 1, 7, 13, 17, 25.
    pairs = np.array(
        [
            [50, 2.6772, -79.7751, 50, 0, -82.7485],
            [50, 0, 0, 50, -1, 2],
            [50, 2.5, 0, 50, 0, -2.5],
            [50, 2.5, 0, 73, 25, -18],
            [60.2574, -34.0099, 36.2677, 60.4626, -34.1751, 39.4387],
        ]
    )
    expected = [2.0425, 2.3669, 4.3065, 27.1492, 1.2644]
    assert np.allclose(portraits.ciede2000(pairs[:, :3], pairs[:, 3:]), expected, atol=1e-4)


def test_exported_graphs_agree_with_torch_and_hold_nothing_but_plain_layers(tmp_path):
    encoder = identity.Encoder().eval()
    x = torch.randn(1, 1, identity.SIDE, identity.SIDE)
    graph = portraits.export(encoder, "identity", tmp_path, x)
    assert {n.op_type for n in graph.graph.node} <= {"Conv", "Relu", "MaxPool", "Add", "Flatten", "Reshape", "Constant"}
    given = yunet.session(graph.SerializeToString()).run(None, {"face": x.numpy()})[0]
    assert np.allclose(given, encoder(x).detach().numpy(), rtol=1e-3, atol=1e-3)


def test_a_short_cut_that_halves_starts_as_the_mean_of_four():
    block = identity.Block(4, 8, True, True)
    x = torch.rand(1, 4, 6, 6)
    short = block.short(x)
    assert torch.allclose(short[:, :4], torch.nn.functional.avg_pool2d(x, 2))
    assert short[:, 4:].abs().max() == 0


def test_verification_of_perfect_and_of_random_embeddings():
    rng = np.random.default_rng(3)
    person = np.repeat(np.arange(60), 4)
    centres = rng.normal(size=(60, 128))
    perfect = identity.verification(centres[person] + rng.normal(size=(240, 128)) * 0.05, person)
    assert perfect["accuracy"] > 0.99 and perfect["tar_at_far_1e3"] == 1
    chance = identity.verification(rng.normal(size=(240, 128)), person)
    assert 0.4 < chance["accuracy"] < 0.6 and chance["tar_at_far_1e3"] < 0.02


def test_those_who_judge_are_lfw_people_of_whom_no_picture_teaches():
    pack = np.array(["lfw"] * 40 + ["sfhq"] * 5)
    person = np.concatenate([np.repeat(np.arange(20), 2), np.full(5, -1)])
    held = identity.split(pack, person)
    assert 0 < held.sum() < 40 and not held[40:].any()
    assert not set(person[held]) & set(person[~held])
