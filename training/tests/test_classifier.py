"""What the classifier begins with, and what its ablation hides."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from visaged_training import classifier, identity, nets, tiny  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_the_stem_sees_a_small_face_as_the_recogniser_sees_it_enlarged():
    filters, small = torch.randn(3, 1, 7, 7), torch.randn(1, 1, 12, 12)
    large = F.interpolate(small, scale_factor=2, mode="nearest")
    # The middle of a 7x7 window on each of the four pixels that a small one became.
    whole = F.conv2d(large, filters, padding=3)
    want = F.avg_pool2d(whole, 2)
    have = F.conv2d(small, classifier.stem(filters), padding=2)
    assert torch.allclose(have[:, :, 2:-2, 2:-2], want[:, :, 2:-2, 2:-2], atol=1e-4)


def test_the_recognisers_blocks_fit_and_are_in_use_from_the_start():
    weights = classifier.recogniser(identity.Encoder().state_dict())
    c, g = nets.Classifier(), nets.Generator().eval()
    ours = {k.replace(".0.weight", ".weight"): v.shape for k, v in c.state_dict().items()}
    for name, value in weights.items():
        if name.endswith(".weight"):
            assert ours[name] == value.shape, name
    x = torch.randn(8, 1, 64, 64)
    with torch.no_grad():
        told = g(x)
        nets.unfold(c, weights, x, *told)
        first = F.relu(c.eval().stem(x))
        want = F.relu(F.conv2d(x, weights["stem.weight"], weights["stem.bias"], padding=2))
    assert torch.allclose(first, want, atol=1e-3)


def test_the_ablation_hides_the_one_and_leaves_the_other():
    net = nets.Generator().eval()
    torch.nn.init.normal_(net.out.weight, 0, 0.1)
    frozen = classifier.Frozen(nets.fold(net), torch.device("cpu"), 1)
    x = torch.randn(2, 1, 64, 64)
    seen, delta, pairs = classifier.shown(x, frozen, "picture")
    assert not seen.any() and delta.any() and all(t.any() for pair in pairs for t in pair)
    seen, delta, pairs = classifier.shown(x, frozen, "residue")
    assert seen.equal(x) and not delta.any() and not any(t.any() for pair in pairs for t in pair)


def test_order_of_pooling_in_training_changes_nothing():
    c = nets.Classifier(drop=0.0)
    for norm in (m for m in c.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.eval().requires_grad_(False)
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        told = nets.Generator().eval()(x)
        before = c.eval()(x, *told)
        c.training = True  # of the whole only: its layers stay as they are
        assert torch.allclose(before, c(x, *told), atol=1e-6)


def test_a_teacher_that_changes_nothing_gives_the_face_back():
    faces = torch.randint(0, 256, (3, 1, 64, 64), dtype=torch.uint8)
    both, sure = tiny.teach(nets.fold(nets.derl("derl").eval()), faces)
    assert both.dtype == torch.uint8 and both.shape == (3, 2, 64, 64)
    assert (both[:, :1].int() - both[:, 1:].int()).abs().max() <= 1
    assert torch.allclose(sure.sum(1), torch.ones(3))
