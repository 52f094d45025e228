"""How far the expression network holds: rendered faces of people that no training saw, made harder step by step, and by group.

Every emotion of the rigs at full strength, one scene a person. What makes a picture harder is done to the aligned crop,
but for yaw, which is drawn. FER+ valid goes through the same steps, as renders tell how it falls and not from where.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from . import EMOTIONS, synth, worn

CROP_TO_FACE = 1.2  # side of the aligned crop in face widths
WIDTHS_PX = (54, 40, 32, 24, 20, 16, 12)
YAWS_DEG = (0, 10, 20, 30, 40)
BLURS_PX = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # standard deviation, in pixels of the 64x64 crop
LIGHTS = (1.0, 0.25, 0.1, 0.04, 0.02)  # share of the light of a well-lit picture
FULL_WELL = 4000.0  # electrons at white: a small sensor
READ_NOISE = 4.0  # electrons
FIRST_PERSON = 1_000_000  # numbers of people that `synth` never draws


def prototype(rng: np.random.Generator, table: dict, label: int) -> dict[str, float]:
    ways = table[EMOTIONS[label]]
    weights = ways[rng.integers(len(ways))]
    return {n: min(0.55 if n == "mouth-open" else 1.0, w * rng.uniform(0.85, 1.1)) for n, w in weights.items()}


def draw(root: Path, rig: str, number: int, yaws: tuple[float, ...] | None, seed: int, **wears: str):
    """Crops [len(yaws) or 1, 8, 64, 64] of one person, and the groups he or she belongs to."""
    rng = np.random.default_rng([seed, 11, 0 if rig == "makehuman" else 1, number])
    head, table = synth.person(root, rig, number, rng)
    head = worn.dressed(head, np.random.default_rng([seed, 13, number]), **wears)
    view = synth.scene(rng)
    shapes = [head.shape(prototype(rng, table, label), int(rng.integers(2))) for label in range(len(EMOTIONS))]
    shake = synth.jitter(rng)
    rows = []
    for yaw in yaws if yaws is not None else (np.degrees(view["yaw"]),):
        turned = {**view, "yaw": float(np.radians(yaw))}
        rows.append(
            np.stack(
                [
                    synth.aligned(synth.grey(synth.render(head, turned, s)), synth.points(head, turned, s, rig), shake)
                    for s in shapes
                ]
            )
        )
    if rig == "makehuman":
        groups = {"ancestry": head.race, "sex": head.sex, "age": head.age}
    else:
        name = sorted((root / "valid").glob("*.npz"))[number % 42].stem.removeprefix("X_")
        groups = {"VALID group": name.split("_")[0], "VALID sex": name.split("_")[1]}
    return np.stack(rows), groups


def far(faces: np.ndarray, width_px: float) -> np.ndarray:
    """As from a face of that width: shrunk by area, enlarged again."""
    side = round(width_px * CROP_TO_FACE)
    if side >= 64:
        return faces

    def one(face):
        small = Image.fromarray(face).resize((side, side), Image.BOX)
        return np.asarray(small.resize((64, 64), Image.BILINEAR))

    return np.stack([one(f) for f in faces])


def blurred(faces: np.ndarray, sigma_px: float) -> np.ndarray:
    if sigma_px == 0:
        return faces
    reach = int(np.ceil(3 * sigma_px))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    kernel /= kernel.sum()
    x = np.pad(faces.astype(np.float32), ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    x = sum(k * x[:, i : i + 64] for i, k in enumerate(kernel))
    x = sum(k * x[:, :, i : i + 64] for i, k in enumerate(kernel))
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def dim(faces: np.ndarray, light: float, rng: np.random.Generator) -> np.ndarray:
    """Less light, made up for by gain: shot noise and read noise grow with it."""
    electrons = faces.astype(np.float32) / 255 * FULL_WELL * light
    seen = rng.poisson(electrons) + rng.normal(0, READ_NOISE, faces.shape)
    return np.clip(np.rint(seen / (FULL_WELL * light) * 255), 0, 255).astype(np.uint8)


def curves(faces: np.ndarray, right, rng: np.random.Generator) -> dict:
    """Accuracy at every step; `right(faces)` gives a bool a face."""

    def at(steps, change):
        return {str(step): round(float(right(change(faces, step)).mean()), 4) for step in tqdm(steps)}

    return {
        "face width px": at(WIDTHS_PX, far),
        "blur px": at(BLURS_PX, blurred),
        "light": at(LIGHTS, lambda x, light: dim(x, light, rng)),
    }


def by_group(groups: list[dict[str, str]], right: np.ndarray) -> dict:
    """Accuracy of each group; `right` [people, emotions]."""
    result: dict[str, dict] = {}
    for kind in sorted({k for g in groups for k in g}):
        names = np.array([g.get(kind, "") for g in groups])
        result[kind] = {
            str(n): {"faces": int((names == n).sum()) * right.shape[1], "right": round(float(right[names == n].mean()), 4)}
            for n in sorted(set(names) - {""})
        }
    return result


def wearing(root: Path, right, people: int, seed: int) -> dict:
    """Accuracy of the same people in the same scenes with glasses, the men with beards, against nothing worn."""

    def those(kind: str, **wears: str) -> tuple[np.ndarray, np.ndarray]:
        drawn = [draw(root, "makehuman", FIRST_PERSON + i, None, seed, **wears) for i in tqdm(range(people), desc=kind)]
        return np.stack([right(rows[0]) for rows, _ in drawn]), np.array([groups["sex"] == "male" for _, groups in drawn])

    bare, men = those("nothing")
    result = {}
    for part, kinds, who in (("glasses", worn.GLASSES, np.full(people, True)), ("beard", worn.BEARDS, men)):
        for kind in kinds:
            found, _ = those(kind, **{part: kind})
            result[kind] = {
                "faces": int(who.sum()) * len(EMOTIONS),
                "right": round(float(found[who].mean()), 4),
                "right_without": round(float(bare[who].mean()), 4),
            }
    return result


def measure(root: Path, answer, ferplus: tuple[np.ndarray, np.ndarray], people: int = 240, seed: int = 31) -> dict:
    """`answer(faces)` gives a class a face; `ferplus`: crops and labels."""
    rng = np.random.default_rng(seed)
    jobs = [("makehuman", FIRST_PERSON + i) for i in range(people)]
    jobs += [("valid", FIRST_PERSON // 42 * 42 + i) for i in range(42)]
    drawn = [draw(root, rig, number, None, seed) for rig, number in tqdm(jobs, desc="people")]
    crops = np.concatenate([rows[0] for rows, _ in drawn])
    label = np.tile(np.arange(len(EMOTIONS)), len(jobs))
    right = answer(crops) == label
    turned = [draw(root, "makehuman", FIRST_PERSON + i, YAWS_DEG, seed)[0] for i in tqdm(range(people // 4), desc="yaw")]
    turned = np.stack(turned, 1)  # [yaw, person, emotion, 64, 64]
    yaw_label = np.tile(np.arange(len(EMOTIONS)), people // 4)
    renders = curves(crops, lambda x: answer(x) == label, rng)
    renders["yaw deg"] = {
        str(y): round(float((answer(turned[i].reshape(-1, 64, 64)) == yaw_label).mean()), 4) for i, y in enumerate(YAWS_DEG)
    }
    faces, wanted = ferplus
    return {
        "people": {"makehuman": people, "valid": 42},
        "faces": len(crops),
        "right": round(float(right.mean()), 4),
        "recall": {n: round(float(right[label == c].mean()), 4) for c, n in enumerate(EMOTIONS)},
        "renders": renders,
        "ferplus_valid": curves(faces, lambda x: answer(x) == wanted, rng),
        "wearing": wearing(root, lambda x: answer(x) == np.arange(len(EMOTIONS)), people // 4, seed),
        "groups": by_group([g for _, g in drawn], right.reshape(-1, len(EMOTIONS))),
    }
