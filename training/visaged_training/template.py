"""`template`: measure where the five landmarks lie on FER+ crops and write training/template.json."""

from __future__ import annotations

import argparse
import json

import numpy as np
from PIL import Image
from tqdm import tqdm

from . import data, yunet
from .align import TEMPLATE


def arguments(parser: argparse.ArgumentParser) -> None:
    data.add_data_argument(parser)
    parser.add_argument("--count", type=int, default=4000, help="FER+ train pictures to look at")
    parser.add_argument("--seed", type=int, default=0)


def symmetric(points: np.ndarray, size: float = 128.0) -> np.ndarray:
    """Average the points with their mirror image."""
    mirror = points[[1, 0, 2, 4, 3]] * [-1, 1] + [size, 0]
    return (points + mirror) / 2


def robust_mean(samples: np.ndarray, rounds: int = 10) -> np.ndarray:
    """Mean of [N, 5, 2] samples, those far off (by the median distance) left out."""
    centre = np.median(samples, 0)
    for _ in range(rounds):
        distance = np.linalg.norm(samples - centre, axis=2).mean(1)
        centre = samples[distance <= 2.5 * np.median(distance)].mean(0)
    return centre


def measure(root, count: int, seed: int) -> tuple[np.ndarray, int, int]:
    train = data.ferplus(root, "train")
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(train))[:count]
    net = yunet.session(root / "weights" / "yunet_s_dynamic.onnx", 1)
    side, border = 144, 40
    samples = []
    for i in tqdm(chosen, desc="template"):
        picture = Image.fromarray(train.images[i]).resize((side, side), Image.BICUBIC)
        padded = np.pad(np.asarray(picture), border, mode="edge")
        faces = yunet.detect(net, np.repeat(padded[..., None], 3, 2), 0.7)
        if len(faces) == 1:
            samples.append((faces[0].landmarks - border) * (128 / side))
    samples = np.asarray(samples)
    return symmetric(robust_mean(samples)), len(samples), len(chosen)


def run(args: argparse.Namespace) -> int:
    points, found, seen = measure(args.data, args.count, args.seed)
    spec = {
        "size": 128,
        "points": [[round(float(x), 3), round(float(y), 3)] for x, y in points],
        "order": ["eye image-left", "eye image-right", "nose tip", "mouth corner image-left", "mouth corner image-right"],
        "from": f"YuNet (yunet_s) on {found} of {seen} FER+ train crops, robust mean, made symmetric",
    }
    TEMPLATE.write_text(json.dumps(spec, indent=1) + "\n")
    print(json.dumps(spec["points"]))
    return 0
