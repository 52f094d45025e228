"""Expressions of rendered heads on real faces."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from visaged_training import data, moved  # noqa: E402

ROOT = data.default_root()
FACE = torch.from_numpy(np.random.default_rng(2).uniform(40, 200, (4, 1, 8, 8)).astype(np.float32))
FACE = torch.nn.functional.interpolate(FACE, size=64, mode="bilinear", align_corners=False)


def bank(tmp_path, flow=0.0, ratio=1.0, inside=0.0, cover=0.0):
    plane = np.ones((1, 64, 64), np.float16)
    offsets = np.ones((1, 64, 64, 2), np.float16) * np.float16(flow)
    path = tmp_path / "flows.npz"
    np.savez(path, flow=offsets, ratio=plane * ratio, inside=plane * inside, cover=plane * cover)
    return moved.Mover(path)


def test_what_is_known_everywhere_alike_is_alike_in_between():
    at = np.random.default_rng(1).uniform(8, 56, (300, 2))
    field = moved.spread(at, np.tile(np.float32([1.5, -2.0]), (300, 1)))
    assert np.abs(field[12:52, 12:52] - [1.5, -2.0]).max() < 0.05


def test_no_expression_leaves_the_face_as_it_is(tmp_path):
    out = bank(tmp_path)(FACE)
    assert out.shape == (4, 2, 64, 64)
    assert (out[:, :1] - FACE).abs().max() < 0.05 and out[:, 1:].equal(FACE)


def test_a_flow_moves_the_expressive_face_alone(tmp_path):
    torch.manual_seed(0)
    out = bank(tmp_path, flow=2.0)(FACE)
    assert (out[:, :1] - FACE).abs().mean() > 1 and out[:, 1:].equal(FACE)


def test_an_open_mouth_is_as_bright_as_the_face_it_is_laid_into(tmp_path):
    torch.manual_seed(0)
    mover = bank(tmp_path, inside=0.5, cover=1.0)
    made = torch.cat([mover(FACE)[:, :1] for _ in range(8)])
    mean = ((FACE * mover.oval).sum((1, 2, 3)) / mover.oval.sum()).repeat(8)
    covered = (made.flatten(1).std(1) < 1e-3) & ((made[:, 0, 0, 0] - mean / 2).abs() < 0.5)
    kept = (made - FACE.repeat(8, 1, 1, 1)).abs().amax((1, 2, 3)) < 0.05  # weak expressions show no teeth
    assert covered.any() and kept.any() and (covered | kept).all()


@pytest.mark.skipif(not (ROOT / "ict").exists(), reason="data packs are not here")
def test_an_expression_of_a_head_moves_its_skin_and_shows_a_mouth_where_one_is():
    parts = dict(zip(moved.PARTS, moved.flow(ROOT, 3, 1), strict=True))
    assert parts["flow"].shape == (64, 64, 2) and all(parts[k].shape == (64, 64) for k in moved.PARTS[1:])
    far = np.hypot(*parts["flow"].transpose(2, 0, 1))
    assert 0.3 < far.max() < 16
    mouths = sum(moved.flow(ROOT, n, 1)[3].max() > 0.5 for n in range(6))
    assert 1 <= mouths <= 6
    assert parts["cover"][:30].max() < 0.05, "no mouth above the nose"
