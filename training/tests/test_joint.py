import pytest

torch = pytest.importorskip("torch")

from visaged_training import joint, nets  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def scattered(module):
    """Batch norms that do something."""
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(part.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.uniform_(part.bias, -0.2, 0.2)
    torch.nn.init.normal_(module.generator.out.weight, 0, 0.1)
    return module.eval()


def test_weights_of_a_bundle_give_the_same_answers_with_batch_norm_again():
    folded = nets.fold(scattered(nets.derl("derl")))
    again = nets.derl("derl")
    x = torch.randn(8, 1, 64, 64)
    nets.unfold(again, folded.state_dict(), x)
    with torch.no_grad():
        for ours, theirs in zip(again(x[:2])[:2], folded(x[:2])[:2], strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_damped_gradient_is_a_share_of_the_whole():
    x = torch.ones(3, requires_grad=True)
    ((a, b),) = joint.damped([(x, 2 * x)], 0.25)
    assert (a == x).all() and (b == 2 * x).all()
    (a + b).sum().backward()
    assert torch.allclose(x.grad, torch.full((3,), 0.75))


def test_labels_are_softened_and_sum_to_one():
    p = joint.labels([3])
    assert p.shape == (1, 8) and p.argmax() == 3
    assert p.sum() == pytest.approx(1) and p.min() > 0
