"""The scale from residue energy to neutrality, without torch or data packs."""

import numpy as np

from visaged_training import neutrality


def kinds(shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Residues [N, 64] of one kind: two cells tell expression and kind, a third one the kind alone."""
    rng = np.random.default_rng(seed)
    sides = rng.uniform(0, 0.1, (2, 200, 64))
    sides[:, :, 3] += shift
    for cell in (43, 44):
        sides[1, :, cell] += rng.uniform(0.05, 0.15, 200)
        sides[:, :, cell] += 0.3 * shift
    return sides[0], sides[1]


def test_the_fit_reads_expression_in_every_kind_and_not_what_only_tells_the_kinds_apart():
    made = {"blurred": kinds(0.0, 0), "sharp": kinds(1.0, 1)}
    found = neutrality.fit({k: v[0] for k, v in made.items()}, {k: v[1] for k, v in made.items()})
    grid = found["weights"].reshape(8, 8)
    assert grid[5, 3] > 0 > grid[0, 3]
    assert np.allclose(grid, grid[:, ::-1])
    scale = {"energy_index": 0, "floor": found["floor"], "ceiling": found["ceiling"]}
    for seed, shift in ((2, 0.0), (3, 1.0)):
        neutral, strong = (neutrality.apply((s @ found["weights"])[:, None], scale) for s in kinds(shift, seed))
        assert np.median(neutral) > 0.9 and np.median(strong) < 0.3


def test_regression_finds_a_known_boundary():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (4000, 2))
    y = (rng.random(4000) < 1 / (1 + np.exp(-(2 * x[:, 0] - x[:, 1] - 3)))).astype(float)
    w, offset = neutrality.regress(x, y, np.full(4000, 1 / 4000), 1e-6)
    assert np.allclose(w, [2, -1], atol=0.2) and abs(offset + 3) < 0.4


def test_a_kind_with_many_faces_counts_no_more_than_one_with_few():
    low, high = [np.array([0.0]), np.array([2.0] * 99)], [np.array([1.0])]
    assert neutrality.parted(low, high) == 0.5


def test_equal_energies_part_nothing():
    assert neutrality.parted([np.zeros(7)], [np.zeros(9)]) == 0.5


def test_spearman_knows_rising_falling_flat_and_ties():
    rows = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [5, 5, 5, 5], [0, 0, 1, 1]], float)
    found = neutrality.spearman(rows)
    assert np.allclose(found[:3], [1, -1, 0])
    assert 0.85 < found[3] < 0.95
