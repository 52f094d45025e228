"""Where the data packs are and how each one is read. Nothing here needs torch."""

from __future__ import annotations

import argparse
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent.parent  # the repository
BUNDLES = ROOT / "models-quantized"
WORK = Path(os.environ.get("VISAGED_WORK", ROOT / "training" / "out"))


def default_root() -> Path:
    """The data folder: VISAGED_DATA, else shared/data beside the repository."""
    env = os.environ.get("VISAGED_DATA")
    return Path(env) if env else ROOT.parent / "shared" / "data"


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        default=default_root(),
        help="folder of the data packs (default: $VISAGED_DATA, else ../shared/data)",
    )


@dataclass
class Ferplus:
    """FER+ pictures with their labels. `plurality` is -1 where there is no usable winner."""

    images: np.ndarray  # uint8 [N, 48, 48]
    votes: np.ndarray  # int [N, 10]
    plurality: np.ndarray  # int [N]
    strict: np.ndarray  # bool [N]: the winner has more than half of all votes

    def __len__(self) -> int:
        return len(self.images)


def labels_from_votes(votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Plurality label (-1 for a tie, unknown or not-a-face winner) and strict majority flag."""
    votes = votes.astype(int)
    ordered = np.sort(votes, axis=1)
    winner = votes.argmax(1)
    usable = (winner < 8) & (ordered[:, -1] > ordered[:, -2])
    plurality = np.where(usable, winner, -1)
    strict = usable & (votes.max(1) * 2 > votes.sum(1))
    return plurality, strict


def ferplus(root: Path, part: str) -> Ferplus:
    """`train` (without the pictures that are also in valid) or `valid`."""
    pack = np.load(Path(root) / f"ferplus_{part}.npz")
    images, votes = pack["images"], pack["votes"].astype(int)
    if part == "train":
        keep = ~pack["in_valid"]
        images, votes = images[keep], votes[keep]
    plurality, strict = labels_from_votes(votes)
    return Ferplus(images, votes, plurality, strict)


def soft_labels(votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vote distributions over the eight emotions, and which rows are good enough to learn from.

    A single vote is more often a slip than an opinion, so it is dropped.
    """
    votes = np.where(votes <= 1, 0, votes).astype(np.float32)
    keep = (votes[:, :8].sum(1) >= 5) & (votes.argmax(1) < 8)
    target = votes[:, :8] / np.maximum(votes[:, :8].sum(1, keepdims=True), 1)
    return target, keep


def rgb(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def london(root: Path) -> list[dict]:
    """One entry a picture: path, id, smile (bool), validation (bool)."""
    out = []
    for path in sorted((Path(root) / "london").glob("*.jpg")):
        person, kind = path.stem.split("_")
        out.append({"path": path, "id": person, "smile": kind == "smile", "validation": person in london_validation(root)})
    return out


def london_people(root: Path) -> list[str]:
    return sorted({p.stem.split("_")[0] for p in (Path(root) / "london").glob("*.jpg")})


def london_validation(root: Path) -> frozenset[str]:
    """Every seventh person, counted over the sorted ids: 12 of 82."""
    people = london_people(root)
    return frozenset(people[3::7])


def canada(root: Path) -> list[Path]:
    return sorted((Path(root) / "canada").glob("*.jpg"))


def sfhq(root: Path) -> list[dict]:
    entries = json.loads((Path(root) / "sfhq" / "index.json").read_text())
    return [{"path": Path(root) / "sfhq" / e["file"], "query": e.get("query")} for e in entries]


def clips(root: Path) -> dict[str, list[np.ndarray]]:
    out = {}
    for path in sorted((Path(root) / "clips").glob("*.gif")):
        with Image.open(path) as gif:
            out[path.stem] = [np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(gif)]
    return out


def decode(blob: np.ndarray) -> Image.Image:
    return Image.open(io.BytesIO(blob.tobytes()))
