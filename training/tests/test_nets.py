import numpy as np
import pytest

torch = pytest.importorskip("torch")

from visaged_training import augment, graphs, nets, quantize, yunet  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_untrained_generator_gives_the_picture_back():
    x = torch.randn(2, 1, 64, 64)
    delta, pairs = nets.Generator().eval()(x)
    assert delta.abs().max() == 0
    assert [tuple(e.shape) == tuple(d.shape) for e, d in pairs] == [True] * 4
    assert [e.shape[-1] for e, _ in pairs] == [32, 16, 8, 4]


@pytest.mark.parametrize(("name", "budget"), [("derl", 120e6), ("derl-tiny", 15e6)])
def test_cost_is_within_the_budget(name, budget):
    assert nets.count_macs(nets.derl(name), torch.zeros(1, 1, 64, 64)) < budget


def test_the_first_energy_is_the_weighted_sum_of_the_residues():
    module = nets.derl("derl").eval()
    torch.nn.init.normal_(module.generator.out.weight, 0, 0.1)
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        residues = module.residues(x)
        weights = torch.randn(64)
        module.read_with(weights)
        energy = module(x)[2]
    assert torch.allclose(energy[:, 0], residues @ weights, rtol=1e-3, atol=1e-4)


def test_folding_changes_nothing():
    g = nets.Generator()
    g.train()
    for _ in range(3):
        g(torch.randn(8, 1, 64, 64) * 2 + 1)
    g.eval()
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        before = g(x)[1][0][1]
        nets.fold(g)
        after = g(x)[1][0][1]
    assert torch.allclose(before, after, atol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in g.modules())


def test_export_and_int8_follow_torch(tmp_path):
    module = nets.derl("derl")
    torch.nn.init.normal_(module.generator.out.weight, 0, 0.1)
    module.train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(16, 1, 64, 64))
    nets.fold(module.eval())
    model = quantize.export_derl(module, tmp_path / "derl.onnx")
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        want = [t.numpy() for t in module(x)]
    have = yunet.session(model.SerializeToString()).run(None, {"luminance": x.numpy()})
    for a, b in zip(want, have, strict=True):
        assert np.allclose(a, b, atol=1e-3)
    feed = [np.random.default_rng(i).normal(0, 1, (1, 1, 64, 64)).astype(np.float32) for i in range(6)]
    int8 = graphs.quantise(model, [*feed, x.numpy()], keep_float=quantize.float_tail(model))
    got = yunet.session(int8.SerializeToString()).run(None, {"luminance": x.numpy()})
    assert [g.shape for g in got] == [(1, 1, 64, 64), (1, 8), (1, 5)]
    assert np.abs(got[0] - want[0]).mean() < 0.1
    assert np.abs(got[2] - want[2]).max() < 0.2 * np.abs(want[2]).max() + 0.05


def test_augmentation_keeps_shape_and_range():
    x = torch.rand(12, 2, 64, 64) * 255
    y = augment.noise(augment.small(augment.tone(augment.affine(x, 0.2, 0.1, 0.1)), share=1.0))
    assert y.shape == x.shape and y.min() >= 0 and y.max() <= 255
    z = augment.erase(augment.standardise(y[:, :1]), share=1.0)
    assert torch.isfinite(z).all()


def test_standardise_equals_numpy():
    from visaged_training import align

    x = np.random.default_rng(3).uniform(0, 255, (2, 64, 64)).astype(np.float32)
    a = augment.standardise(torch.from_numpy(x)[:, None])[:, 0].numpy()
    assert np.allclose(a, align.standardise(x), atol=1e-4)


def test_generator_learns_a_handful_of_pairs():
    """Faces with and without a bright bar where the mouth would be: twenty seconds of one core at most."""
    rng = np.random.default_rng(0)
    calm = torch.from_numpy(rng.normal(0, 0.3, (8, 1, 64, 64)).astype(np.float32))
    moved = calm.clone()
    moved[:, :, 44:50, 22:42] += 1.5
    g = nets.Generator(nets.Shape(widths=(8, 16, 16, 16)))
    opt = torch.optim.AdamW(g.parameters(), 4e-3)
    first = float((moved - calm).abs().mean())
    for _ in range(60):
        delta, _ = g(moved)
        loss = torch.nn.functional.smooth_l1_loss(moved + delta, calm, beta=0.25)
        opt.zero_grad()
        loss.backward()
        opt.step()
    g.eval()
    g.train()
    with torch.no_grad():
        assert float((moved + g(moved)[0] - calm).abs().mean()) < 0.6 * first


def test_classifier_learns_a_handful_of_faces():
    x = torch.randn(16, 1, 64, 64)
    y = torch.arange(16) % 8
    g, c = nets.Generator().eval(), nets.Classifier(drop=0.0)
    with torch.no_grad():
        told = g(x)
    opt = torch.optim.Adam(c.parameters(), 3e-3)
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(c(x, *told), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    assert float(loss.detach()) < 0.7
