import numpy as np
import pytest

from visaged_training import data, prior


def test_shares_are_those_of_what_was_shown():
    target = np.eye(8)[[0, 0, 0, 1]]
    assert prior.shares(target, np.array([1, 1, 1, 3.0]))[:2] == pytest.approx([0.5, 0.5])


def test_the_largest_tau_that_costs_next_to_nothing_is_taken():
    rng = np.random.default_rng(0)
    label = np.where(rng.random(4000) < 0.9, 0, 1)
    label[:80] = np.arange(80) % 8
    share = np.bincount(label, minlength=8) / len(label)
    # A net that has learnt the shares: evidence of strength 1.5 for the label, and the log of the shares.
    logits = rng.normal(0, 1, (4000, 8)) + 1.5 * np.eye(8)[label] + np.log(share)
    valid = data.Ferplus(np.zeros((4000, 48, 48), np.uint8), np.zeros((4000, 10), int), label, np.ones(4000, bool))
    tau, tried = prior.choose(logits, valid, share)
    best = max(t["plurality"] for t in tried)
    at = {t["tau"]: t for t in tried}
    assert at[tau]["plurality"] >= best - prior.GIVE
    assert all(t["plurality"] < best - prior.GIVE for t in tried if t["tau"] > tau)
    assert at[tau]["mean_recall"] >= at[0.0]["mean_recall"]
