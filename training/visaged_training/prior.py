"""Rare emotions get back some of what their rarity took: logits - tau * log(share in training), folded into the last bias.

Logit adjustment (Menon et al., 2021). tau is the largest on a grid for which FER+ valid's plurality accuracy stays within
`GIVE` of its best: mean recall rises with it, the accuracy over all pictures falls. Below zero it takes back what showing
rare classes more often gave them.
"""

from __future__ import annotations

import numpy as np

from . import data

TAUS = tuple(round(0.05 * i, 2) for i in range(-12, 17))
GIVE = 0.006


def shares(target: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """What part of what training showed each class was: soft labels [N, 8], probability of each picture [N]."""
    return (target * chance[:, None]).sum(0) / chance.sum()


def choose(logits: np.ndarray, valid: data.Ferplus, share: np.ndarray) -> tuple[float, list[dict]]:
    """tau, and what each one on the grid gives."""
    use = valid.plurality >= 0
    label = valid.plurality[use]
    tried = []
    for tau in TAUS:
        right = (logits[use] - tau * np.log(share)).argmax(1) == label
        recall = np.mean([right[label == c].mean() for c in range(8)])
        tried.append({"tau": tau, "plurality": round(float(right.mean()), 4), "mean_recall": round(float(recall), 4)})
    enough = max(t["plurality"] for t in tried) - GIVE
    best = max(t["tau"] for t in tried if t["plurality"] >= enough)
    return best, tried
