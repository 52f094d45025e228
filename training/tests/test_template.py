import numpy as np

from visaged_training import align
from visaged_training.template import robust_mean, symmetric


def test_template_is_symmetric_and_inside_the_crop():
    points = align.template()
    assert points.shape == (5, 2)
    mirror = points[[1, 0, 2, 4, 3]] * [-1, 1] + [128, 0]
    assert np.allclose(points, mirror, atol=2e-3)
    assert (points > 20).all() and (points < 108).all()
    assert points[0, 0] < points[2, 0] < points[1, 0]  # image order: left eye, nose, right eye
    assert points[0, 1] < points[2, 1] < points[3, 1]  # eyes above nose above mouth


def test_robust_mean_forgets_outliers():
    rng = np.random.default_rng(0)
    samples = align.template() + rng.normal(0, 1, (200, 5, 2))
    samples[:20] += 60
    assert np.abs(robust_mean(samples) - align.template()).max() < 0.5


def test_symmetric_averages_with_the_mirror_image():
    points = align.template() + [2.0, 0.0]
    assert np.allclose(symmetric(points), align.template(), atol=2e-3)


def test_similarity_recovers_turn_scale_and_shift():
    a, s, t = 0.3, 1.7, np.array([5.0, -3.0])
    turn = s * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    moved = align.template() @ turn.T + t
    m = align.similarity(align.template(), moved)
    assert np.allclose(m[:, :2], turn) and np.allclose(m[:, 2], t)


def test_alignment_brings_landmarks_to_the_template():
    rng = np.random.default_rng(1)
    picture = np.full((300, 300, 3), 40, np.uint8)
    points = align.template() * 1.5 + [40, 60]
    for x, y in points:
        picture[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] = 255
    face = align.align(picture, points + rng.normal(0, 0.01, (5, 2)))
    assert face.shape == (128, 128, 3)
    for x, y in align.template():
        assert face[int(y), int(x)].min() > 150


def test_luminance_is_area_averaged():
    face = np.zeros((128, 128, 3), np.uint8)
    face[::2] = 200
    assert np.allclose(align.luminance64(face), 100)


def test_standardised_picture_has_no_offset():
    x = np.random.default_rng(2).uniform(0, 255, (3, 64, 64))
    z = align.standardise(x)
    assert np.abs(z.mean((1, 2))).max() < 1e-4
    assert (z.std((1, 2)) < 1).all()
    assert np.isfinite(align.standardise(np.zeros((64, 64)))).all()
