import numpy as np

from visaged_training import data


def test_ties_unknown_and_not_a_face_have_no_label():
    votes = np.array(
        [
            [6, 4, 0, 0, 0, 0, 0, 0, 0, 0],  # neutral, strict
            [5, 5, 0, 0, 0, 0, 0, 0, 0, 0],  # tie
            [1, 2, 0, 0, 0, 0, 0, 0, 7, 0],  # unknown
            [1, 2, 0, 0, 0, 0, 0, 0, 0, 7],  # not a face
            [4, 3, 3, 0, 0, 0, 0, 0, 0, 0],  # neutral, no majority
        ]
    )
    label, strict = data.labels_from_votes(votes)
    assert label.tolist() == [0, -1, -1, -1, 0]
    assert strict.tolist() == [True, False, False, False, False]


def test_soft_labels_drop_single_votes():
    votes = np.array([[8, 1, 1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 2, 0]])
    target, keep = data.soft_labels(votes)
    assert target[0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert keep.tolist() == [True, False]
