"""How residues become neutrality: the weights of the first residue energy, its scale, and faces to measure it on.

FER+ crops are small and blurred, photographs are sharp and lit otherwise, renders are smooth, and the generator changes
more than expression in each: hair and light of a studio portrait, too. So the energy weighs places, some of them below
zero, by a ridge logistic regression that tells neutral from expressive faces of all three kinds, each counting alike. How
strongly it is held back, and the scale, come from people left out in turn. Nothing here looks at FER+ valid or at the
left-out London people.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import EMOTIONS, align, data, synth

STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
STRONG = (1, 2)  # happiness, surprise: what people agree on
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0)
CLOSE = 0.005  # the strongest ridge that parts as well as the best one but for this
FOLDS = 5


def folded(weights: np.ndarray) -> np.ndarray:
    """Weights [64] or residues [N, 64] with the 8x8 grid made symmetric: left and right count alike."""
    grid = weights.reshape(*weights.shape[:-1], 8, 8)
    return ((grid + grid[..., ::-1]) / 2).reshape(weights.shape)


def regress(x: np.ndarray, y: np.ndarray, weight: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """Weights and offset of the logistic regression of y in {0, 1} on standardised x, by Newton's method."""
    mean, spread = x.mean(0), x.std(0) + 1e-6
    z = np.concatenate([(x - mean) / spread, np.ones((len(x), 1))], 1)
    hold = np.full(z.shape[1], 2 * ridge)
    hold[-1] = 1e-9
    w = np.zeros(z.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(z @ w, -30, 30)))
        slope = z.T @ (weight * (p - y)) + hold * w
        curve = (z * (weight * p * (1 - p))[:, None]).T @ z + np.diag(hold)
        step = np.linalg.solve(curve, slope)
        w = w - step
        if np.abs(step).max() < 1e-9:
            break
    scaled = w[:-1] / spread
    return scaled, float(w[-1] - (mean * scaled).sum())


def fit(neutral: dict[str, np.ndarray], strong: dict[str, np.ndarray]) -> dict:
    """Weights, floor and ceiling from residues [N, 64] by kind; row i of a kind is person i, on both sides.

    At the floor at least half of the neutral faces of every kind read 1; the ceiling is the mean over the kinds of the
    strong ones' medians. Both from people that the weights had not seen.
    """
    neutral, strong = ({k: folded(v.astype(np.float64)) for k, v in side.items()} for side in (neutral, strong))

    def learn(chosen, ridge):
        x, y, weight = [], [], []
        for label, side in enumerate((neutral, strong)):
            for rows in side.values():
                picked = rows[chosen(len(rows))]
                x.append(picked)
                y.append(np.full(len(picked), float(label)))
                weight.append(np.full(len(picked), 1 / len(picked) / len(side)))
        return regress(np.concatenate(x), np.concatenate(y), np.concatenate(weight), ridge)

    tries = []
    for ridge in RIDGES:
        unseen = [{k: np.zeros(len(v)) for k, v in side.items()} for side in (neutral, strong)]
        for fold in range(FOLDS):
            w, offset = learn(lambda n, fold=fold: np.arange(n) % FOLDS != fold, ridge)
            for side, found in zip((neutral, strong), unseen, strict=True):
                for k, rows in side.items():
                    out = np.arange(len(rows)) % FOLDS == fold
                    found[k][out] = rows[out] @ w + offset
        apart = parted(list(unseen[0].values()), list(unseen[1].values()))
        tries.append({"ridge": ridge, "separation": apart, "unseen": unseen})
    enough = max(t["separation"] for t in tries) - CLOSE
    best = next(t for t in reversed(tries) if t["separation"] >= enough)
    w, offset = learn(lambda n: np.ones(n, bool), best["ridge"])
    low, high = best.pop("unseen")
    return {
        **best,
        "weights": folded(w),
        "floor": max(float(np.median(v)) for v in low.values()) - offset,
        "ceiling": float(np.mean([np.median(v) for v in high.values()])) - offset,
    }


def parted(low: list[np.ndarray], high: list[np.ndarray]) -> float:
    """Probability that a value of `high` is above one of `low` (equal ones: half), every list counting alike."""
    places = np.unique(np.concatenate([*low, *high]), return_inverse=True)[1]
    below = np.concatenate([np.full(len(a), 1 / (len(a) * len(low))) for a in low] + [np.zeros(len(a)) for a in high])
    above = np.concatenate([np.zeros(len(a)) for a in low] + [np.full(len(a), 1 / (len(a) * len(high))) for a in high])
    below, above = np.bincount(places, below), np.bincount(places, above)
    return float((above * (np.cumsum(below) - below / 2)).sum())


def apply(energy: np.ndarray, chosen: dict) -> np.ndarray:
    """What the daemon makes of energies [N, 5]."""
    e = energy[:, chosen["energy_index"]]
    return 1 - np.clip((e - chosen["floor"]) / (chosen["ceiling"] - chosen["floor"]), 0, 1)


def ferplus_train(root: Path, seed: int = 5, count: int = 1200) -> tuple[np.ndarray, np.ndarray]:
    """Strictly neutral and strictly happy or surprised training crops, 64x64."""
    rng = np.random.default_rng(seed)
    train = data.ferplus(root, "train")
    sides = []
    for wanted in ((0,), STRONG):
        chosen = rng.permutation(np.nonzero(train.strict & np.isin(train.plurality, wanted))[0])[:count]
        sides.append(align.crop64(train.images[chosen]).astype(np.float32))
    return sides[0], sides[1]


def photographs(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """London people of the training, at rest and smiling, one a row in the same order, 64x64."""
    marks = np.load(root / "london" / "landmarks.npz")
    points = {str(f): p for f, p in zip(marks["files"], marks["yunet5"], strict=True)}
    people = [p for p in data.london_people(root) if p not in data.london_validation(root)]

    def side(kind: str) -> np.ndarray:
        names = [f"{person}_{kind}.jpg" for person in people]
        faces = [align.align(data.rgb(root / "london" / name), points[name]) for name in names]
        return np.stack([align.luminance64(face) for face in faces])

    return side("neutral"), side("smile")


def rendered(root: Path, seed: int, people: int = 42) -> np.ndarray:
    """One expression in `STRENGTHS` for each of `people` heads of both rigs: [2 * people, strengths, 64, 64]."""
    rows = []
    for rig in ("makehuman", "valid"):
        for number in range(people):
            rng = np.random.default_rng([seed, rig == "valid", number])
            head, table = synth.person(root, rig, number, rng)
            view = synth.scene(rng)
            ways = table[EMOTIONS[1 + number % 7]]
            full, shake = ways[rng.integers(len(ways))], synth.jitter(rng)
            row = []
            for strength in STRENGTHS:
                weights = {n: min(0.55 if n == "mouth-open" else 1.0, strength * w) for n, w in full.items()}
                shape = head.shape(weights, 0)
                picture = synth.grey(synth.render(head, view, shape))
                row.append(synth.aligned(picture, synth.points(head, view, shape, rig), shake))
            rows.append(np.stack(row))
    return np.stack(rows).astype(np.float32)


def fit_module(module, root: Path) -> dict:
    """Fits and takes over the weights of `nets.Derl`'s first energy; gives what the manifest and the card say of it."""
    import torch

    renders = rendered(root, seed=911)
    faces = {"ferplus": ferplus_train(root), "photographs": photographs(root), "renders": (renders[:, 0], renders[:, -1])}

    @torch.no_grad()
    def residues(batch: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(align.standardise(batch))[:, None]
        return np.concatenate([module.residues(part).numpy() for part in x.split(64)])

    sides = [{k: residues(pair[side]) for k, pair in faces.items()} for side in (0, 1)]
    found = fit(*sides)
    module.read_with(found.pop("weights"))
    return {
        "energy_index": 0,
        "floor": round(found["floor"], 4),
        "ceiling": round(found["ceiling"], 4),
        "ridge": found["ridge"],
        "separation_left_out": round(found["separation"], 4),
        "faces": {k: [len(pair[0]), len(pair[1])] for k, pair in faces.items()},
    }


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, equal values sharing their mean rank."""
    less = (values[..., None, :] < values[..., :, None]).sum(-1)
    same = (values[..., None, :] == values[..., :, None]).sum(-1)
    return less + (same - 1) / 2


def spearman(rows: np.ndarray) -> np.ndarray:
    """Of each row of [N, K] with 0..K-1; 0 for a row that does not change."""
    r = ranks(rows)
    r = r - r.mean(-1, keepdims=True)
    t = np.arange(rows.shape[1]) - (rows.shape[1] - 1) / 2
    return (r * t).sum(-1) / np.maximum(np.sqrt((r**2).sum(-1) * (t**2).sum()), 1e-9)
