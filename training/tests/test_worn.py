"""What rendered people wear: in its place, and the same on the neutral face."""

import numpy as np
import pytest

from visaged_training import data, synth, worn

pytestmark = pytest.mark.skipif(not (data.default_root() / "makehuman").exists(), reason="data packs are not there")


def drawn(number: int, **wears: str) -> tuple[np.ndarray, np.ndarray]:
    """Picture in grey, and the five landmarks on it."""
    rng = np.random.default_rng([1, number])
    head, _ = synth.person(data.default_root(), "makehuman", number, rng)
    view = {**synth.scene(rng), "yaw": 0.0, "pitch": 0.0, "roll": 0.0}
    head = worn.dressed(head, np.random.default_rng(5), **wears)
    shape = head.shape({})
    return synth.grey(synth.render(head, view, shape)), synth.project(head, view, head.landmarks(shape))[:, :2]


@pytest.mark.parametrize("kind", worn.GLASSES)
def test_glasses_lie_about_the_eyes_and_leave_the_mouth(kind):
    bare, marks = drawn(3)
    changed = np.abs(drawn(3, glasses=kind)[0] - bare) > 4
    eyes, mouth = marks[:2, 1].mean(), marks[3:, 1].mean()
    assert changed[int(eyes) - 20 : int(eyes) + 25].sum() > 100
    assert not changed[int(mouth) - 5 :].any()


@pytest.mark.parametrize("kind", worn.BEARDS)
def test_a_beard_grows_below_the_nose_and_not_on_the_lips(kind):
    bare, marks = drawn(3)
    changed = np.abs(drawn(3, beard=kind)[0] - bare) > 4
    x, y = marks[3:].mean(0).astype(int)
    assert not changed[: int(marks[:2, 1].mean())].any()
    assert changed[int(marks[2, 1]) :].sum() > 60
    assert changed[y - 1 : y + 2, x - 6 : x + 7].mean() < 0.3


def test_the_neutral_face_wears_what_the_other_does():
    root = data.default_root()
    plain, dressed = (synth.scene_pairs(root, "makehuman", 7, 2, 1, share) for share in (0.0, 1.0))
    assert (dressed[0] != plain[0]).any() and (dressed[1] != plain[1]).any()
    # The first pair is the neutral face with itself.
    assert (dressed[0][0] == dressed[1][0]).all()
    assert (dressed[2] == plain[2]).all()
