import numpy as np
import pytest

from visaged_training import data, stress

ROOT = data.default_root()
FACES = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)


def test_nothing_changes_where_nothing_is_asked_for():
    assert (stress.far(FACES, 60) == FACES).all()
    assert (stress.blurred(FACES, 0) == FACES).all()


def test_detail_goes_away_from_step_to_step():
    for change, steps in ((stress.far, stress.WIDTHS_PX), (stress.blurred, stress.BLURS_PX)):
        detail = [np.abs(np.diff(change(FACES, s).astype(float), axis=2)).mean() for s in steps]
        assert all(a >= b for a, b in zip(detail, detail[1:], strict=False)) and detail[-1] < detail[0] / 4


def test_less_light_is_more_noise_and_the_same_picture_on_average():
    flat = np.full((2, 64, 64), 100, np.uint8)
    seen = [stress.dim(flat, light, np.random.default_rng(1)).astype(float) for light in stress.LIGHTS]
    noise = [s.std() for s in seen]
    assert all(a < b for a, b in zip(noise, noise[1:], strict=False)) and noise[0] < 3
    assert all(abs(s.mean() - 100) < 2 for s in seen)


def test_accuracy_of_a_group_counts_its_people_alone():
    groups = stress.by_group([{"sex": "a"}, {"sex": "b"}, {"sex": "a"}], np.array([[1, 0], [1, 1], [0, 0]]))
    assert groups == {"sex": {"a": {"faces": 4, "right": 0.25}, "b": {"faces": 2, "right": 1.0}}}


@pytest.mark.skipif(not (ROOT / "makehuman").exists(), reason="data packs are not here")
def test_a_person_is_drawn_with_every_emotion_and_turned_as_told():
    rows, groups = stress.draw(ROOT, "makehuman", stress.FIRST_PERSON, (0, 40), 1)
    assert rows.shape == (2, 8, 64, 64) and set(groups) == {"ancestry", "sex", "age"}
    assert np.abs(rows[0].astype(int) - rows[1]).mean() > 5
