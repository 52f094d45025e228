import numpy as np

from visaged_training import data, evaluate


def test_perfectly_calibrated_answers_have_no_error():
    rng = np.random.default_rng(0)
    top = rng.uniform(0.4, 1.0, 20000)
    p = np.zeros((len(top), 8))
    p[:, 0] = top
    p[:, 1:] = (1 - top[:, None]) / 7
    label = np.where(rng.random(len(top)) < top, 0, 1)
    assert evaluate.calibration_error(p, label) < 0.02
    assert evaluate.calibration_error(p, np.ones(len(top), int)) > 0.6


def test_temperature_is_found_again():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (20000, 8))
    p = evaluate.softmax(logits)
    label = (p.cumsum(1) > rng.random((len(p), 1))).argmax(1)
    assert abs(evaluate.fit_temperature(logits * 1.7, label) - 1.7) < 0.1


def test_separation_is_the_area_under_the_curve():
    assert abs(evaluate.separation(np.arange(10.0), np.arange(10.0) + 100) - 1) < 1e-9
    assert evaluate.separation(np.arange(10.0) + 100, np.arange(10.0)) == 0.0
    assert abs(evaluate.separation(np.arange(0, 100, 2.0), np.arange(1, 101, 2.0)) - 0.5) < 0.02


def test_scores_leave_out_pictures_without_a_winner():
    votes = np.zeros((4, 10), int)
    votes[0, 0] = votes[1, 1] = votes[3, 1] = 10
    votes[2, :2] = 5
    plurality, strict = data.labels_from_votes(votes)
    valid = data.Ferplus(np.zeros((4, 48, 48), np.uint8), votes, plurality, strict)
    logits = np.eye(8)[[0, 1, 3, 2]]
    with np.errstate(invalid="ignore"):
        s = evaluate.scores(logits, valid)
    assert s["pictures"] == {"plurality": 3, "strict": 3}
    assert s["plurality"] == round(2 / 3, 4)


def test_denormalise_undoes_standardise():
    from visaged_training import align

    x = np.random.default_rng(2).uniform(20, 230, (3, 64, 64)).astype(np.float32)
    assert np.abs(evaluate.denormalise(align.standardise(x), x) - x).max() < 0.01


def test_int8_derl_is_within_a_third_of_a_point_of_float_and_calibrated():
    found = evaluate.load_measured("derl")["ferplus_valid"]
    assert found["float"]["plurality"] - found["int8"]["plurality"] <= 0.003
    assert found["int8"]["plurality"] >= 0.83 and found["int8"]["strict"] >= 0.88 and found["int8"]["mean_recall"] >= 0.62
    assert found["ece"] <= 0.03
