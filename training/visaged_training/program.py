"""FER+ as the program reads it: pictures written as files, `visaged analyze --crops --json`, answers counted. Needs no torch."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from . import EMOTIONS, data


def answers(binary: Path, bundle: Path, images: np.ndarray) -> np.ndarray:
    """The emotion of each picture u8 [N, H, W] by the bundle in that folder, as its place among EMOTIONS."""
    with tempfile.TemporaryDirectory() as folder:
        for i, image in enumerate(images):
            Image.fromarray(image).save(f"{folder}/{i:05d}.png")
        command = [binary, "analyze", "--crops", "--json", "--derl", bundle, folder]
        out = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    read = [json.loads(line)["faces"][0]["emotion"] for line in out.stdout.splitlines()]
    if len(read) != len(images):
        raise ValueError(f"{binary} answered {len(read)} of {len(images)} pictures")
    return np.array([EMOTIONS.index(name) for name in read])


def scores(answer: np.ndarray, valid: data.Ferplus) -> dict:
    """Shares that are right: plurality labels, strict majorities, and by class."""
    use = valid.plurality >= 0
    right = answer == valid.plurality
    recall = [float(right[valid.plurality == c].mean()) for c in range(8)]
    return {
        "plurality": round(float(right[use].mean()), 4),
        "strict": round(float(right[valid.strict].mean()), 4),
        "mean_recall": round(float(np.mean(recall)), 4),
        "recall": {n: round(r, 3) for n, r in zip(EMOTIONS, recall, strict=True)},
        "pictures": {"plurality": int(use.sum()), "strict": int(valid.strict.sum())},
    }
