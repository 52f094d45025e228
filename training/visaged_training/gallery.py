"""`gallery`: faces for the identity generator, as one .npz: photographs with their landmarks, and rendered people who change
places.

Photographs: aligned RGB, 68 landmarks, who it is where that is known. Renders: groups of people and scenes, each person drawn
in each scene of his group (the same pose, expression, light and background), so that the right answer to "this person, as that
one looks" is in the group.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from . import align, data, identity, synth
from .raster import resample

SIDE = 128
# Landmarks that lie so far from the five points were not found.
FURTHEST_PX = 9
# SFHQ's people who judge: every so many, counted from the fifth.
SFHQ_HELD_EVERY = 9


def arguments(parser: argparse.ArgumentParser) -> None:
    data.add_data_argument(parser)
    parser.add_argument("--out", type=Path, default=data.WORK / "gallery.npz")
    parser.add_argument("--groups", type=int, default=1200, help="rendered groups")
    parser.add_argument("--people", type=int, default=3, help="people of a group")
    parser.add_argument("--scenes", type=int, default=3, help="scenes of a group")
    parser.add_argument("--seed", type=int, default=1)


class Photograph(NamedTuple):
    """A picture, where its five points are, whose it is (a name within the pack), and whether it judges."""

    pack: str
    name: str
    picture: np.ndarray
    points: np.ndarray
    held: bool


def photographs(root: Path):
    """Every photograph that teaches or judges."""
    lfw = np.load(root / "lfw_grey" / "lfw_grey.npz")
    held = set(identity.held_people(lfw["identity"]).tolist())
    for i, points in enumerate(lfw["kps5"]):
        blob, name = lfw["jpeg"][lfw["start"][i] : lfw["start"][i + 1]], lfw["identity"][i].item()
        grey = np.asarray(data.decode(blob))
        yield Photograph("lfw", str(name), np.repeat(grey[..., None], 3, 2), points.astype(np.float64), name in held)
    for k, entry in enumerate(json.loads((root / "sfhq" / "index.json").read_text())):
        points = np.asarray(entry["kps5"], np.float64)
        yield Photograph("sfhq", str(k), data.rgb(root / "sfhq" / entry["file"]), points, k % SFHQ_HELD_EVERY == 4)
    held = data.london_validation(root)
    for pack in ("london", "canada"):
        marks = np.load(root / pack / "landmarks.npz")
        for file, points in zip(marks["files"], marks["yunet5"], strict=True):
            name = str(file)[:3]
            judges = pack == "london" and name in held
            yield Photograph(pack, name, data.rgb(root / pack / str(file)), points.astype(np.float64), judges)


def landmarks(finder, face: np.ndarray) -> np.ndarray | None:
    """The 68 landmarks of an aligned face in its pixels; None where they do not agree with where its five points are."""
    points = finder(face, (-8.0, -2.0), 144.0)
    seen = np.stack([points[36:42].mean(0), points[42:48].mean(0), points[48], points[54]])
    return None if np.abs(seen - align.template()[[0, 1, 3, 4]]).max() > FURTHEST_PX else points


def aligned(canvas: np.ndarray, points: np.ndarray, shake: np.ndarray) -> np.ndarray:
    """A rendered canvas aligned, u8 [128, 128, 3]."""
    m = shake @ np.vstack([align.similarity(points, align.template()), [0, 0, 1]])
    inverse = np.linalg.inv(m)[:2]
    planes = [resample(np.ascontiguousarray(canvas[..., c], np.float32), inverse, SIDE, 2) for c in range(3)]
    return np.clip(np.rint(np.stack(planes, 2)), 0, 255).astype(np.uint8)


def group(root: Path, finder, number: int, people: int, scenes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Faces u8 [people, scenes, 128, 128, 3] and their landmarks [people, scenes, 68, 2], not numbers where they were not found.

    Every other group is of MakeHuman's people, of those between half of VALID's and half of ICT's.
    """
    rng = np.random.default_rng([seed, 31, number])
    rig = ("makehuman", "valid", "makehuman", "ict")[number % 4]
    first = int(rng.integers(42))
    # VALID has few heads: other ones each time, and never one twice in a group.
    heads = [synth.person(root, rig, first + 5 * k, np.random.default_rng([seed, 32, number, k])) for k in range(people)]
    out, points = np.zeros((people, scenes, SIDE, SIDE, 3), np.uint8), np.full((people, scenes, 68, 2), np.nan, np.float32)
    for s in range(scenes):
        view = synth.scene(rng)
        weights = synth.expression(rng, heads[0][1])[0] if rng.random() < 0.7 else {}
        variant, shake = int(rng.integers(2)), synth.jitter(rng)
        for k, (head, _) in enumerate(heads):
            shape = head.shape(weights, variant)
            out[k, s] = aligned(synth.render(head, view, shape), synth.points(head, view, shape, rig), shake)
            found = landmarks(finder, out[k, s])
            points[k, s] = np.nan if found is None else found
    return out, points


def run(args: argparse.Namespace) -> int:
    from .landmarks68 import Finder

    finder, missed = Finder(args.data), 0
    faces, points, packs, people, held = [], [], [], [], []
    for shot in tqdm(photographs(args.data), desc="photographs", mininterval=10):
        face = align.align(shot.picture, shot.points)
        found = landmarks(finder, face)
        missed += found is None
        if found is not None:
            faces.append(face)
            points.append(found)
            packs.append(shot.pack)
            people.append(f"{shot.pack}/{shot.name}")
            held.append(shot.held)
    groups = [
        group(args.data, finder, k, args.people, args.scenes, args.seed)
        for k in tqdm(range(args.groups), desc="groups", mininterval=10)
    ]
    drawn, marks = (np.stack(parts) for parts in zip(*groups, strict=True))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        args.out, face=np.stack(faces), points=np.stack(points).astype(np.float32), pack=np.asarray(packs),
        person=np.unique(people, return_inverse=True)[1], held=np.asarray(held), drawn=drawn, drawn_points=marks,
    )  # fmt: skip
    print(f"{len(faces)} photographs ({missed} left out), {len(groups)} groups -> {args.out}")
    return 0
