"""`synth`: rendered pairs (any expression, the same head neutral), aligned as the daemon aligns, as one .npz.

Every picture of a scene shares camera, light and background; the expressive picture and its neutral partner go through
the same alignment (made from the expressive face), so what differs between them is the expression alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from . import EMOTIONS, data, heads, ict, worn
from .align import similarity, template
from .raster import draw, resample, vertex_normals

CANVAS = 168  # the scene is drawn larger than the 128 crop, so that alignment and jitter have room
# Where YuNet puts its points against the mesh points, in units of the eye distance (measured by `synth --calibrate`).
RIGS = ("makehuman", "valid", "ict")
OFFSETS = {rig: np.zeros((5, 2)) for rig in RIGS}
_calibration = data.PACKAGE / "landmark_offsets.json"
if _calibration.exists():
    OFFSETS |= {k: np.asarray(v) for k, v in json.loads(_calibration.read_text()).items()}


def arguments(parser: argparse.ArgumentParser) -> None:
    data.add_data_argument(parser)
    parser.add_argument("--out", type=Path, default=data.WORK / "pairs.npz", help="where the pairs go")
    parser.add_argument("--people", type=int, default=1400, help="random MakeHuman people")
    parser.add_argument("--valid-rounds", type=int, default=20, help="scenes for each of the 42 VALID heads")
    parser.add_argument("--ict", type=int, default=0, help="random people of ICT Face Model Light")
    parser.add_argument("--expressions", type=int, default=6, help="expressive pictures a scene")
    parser.add_argument(
        "--flows", type=int, default=0, help="write flows.npz instead: so many rendered expressions for real faces"
    )
    parser.add_argument("--worn", type=float, default=0.0, help="share of people with glasses, and of the men with a beard")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the parts already written")
    parser.add_argument("--calibrate", action="store_true", help="measure the landmark offsets instead, and store them")
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet (PNG)")


def scene(rng: np.random.Generator) -> dict:
    """Camera, light and background."""
    direction = rng.normal([0, 0.35, 0.9], [0.65, 0.35, 0.2])
    key, ambient = rng.uniform(0.35, 0.95), rng.uniform(0.18, 0.6)
    tint = rng.normal(1, 0.04, 3)
    return {
        "yaw": float(np.clip(rng.normal(0, 0.22), -0.6, 0.6)),
        "pitch": float(np.clip(rng.normal(0, 0.12), -0.35, 0.35)),
        "roll": float(rng.normal(0, 0.04)),
        "light": direction / np.linalg.norm(direction),
        "ambient": ambient * tint,
        "key": key * (2 - tint),
        "fill": rng.uniform(0.0, 0.3) * np.ones(3),
        "fill_dir": np.array([rng.choice([-0.7, 0.7]), 0.1, 0.6]),
        "background": background(rng),
    }


def background(rng: np.random.Generator) -> np.ndarray:
    """Soft random blobs, sometimes a plain wall."""
    n = int(rng.integers(1, 9))
    small = rng.uniform(10, 235, (n, n, 3)).astype(np.float32)
    base = rng.uniform(20, 225, 3)
    small = base + (small - small.mean((0, 1))) * rng.uniform(0, 0.8)
    picture = Image.fromarray(np.clip(small, 0, 255).astype(np.uint8))
    return np.asarray(picture.resize((CANVAS, CANVAS), Image.BICUBIC), np.float32)


def project(head, scene: dict, vertices: np.ndarray, size: int = CANVAS) -> np.ndarray:
    """Weak-perspective projection: x, y in pixels, z kept for the depth test."""
    cy, sy = np.cos(scene["yaw"]), np.sin(scene["yaw"])
    cp, sp = np.cos(scene["pitch"]), np.sin(scene["pitch"])
    cr, sr = np.cos(scene["roll"]), np.sin(scene["roll"])
    turn = np.array([[cy, 0, sy], [sp * sy, cp, -sp * cy], [-cp * sy, sp, cp * cy]])
    turn = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]]) @ turn
    eyes = head.landmarks(head.rest)[:2].mean(0)
    centre = eyes - np.array([0, 0.55 * head.unit, 0.9 * head.unit])
    focal = 47.0 / head.unit * (size / CANVAS)  # the template's eye distance, so the crop is about 1:1
    distance = 10 * head.unit
    q = (vertices - centre) @ turn.T
    k = distance / (distance - q[:, 2:3])
    return np.concatenate([q[:, :2] * k * focal * [1, -1] + size / 2, q[:, 2:3]], 1).astype(np.float32)


def render(head, scene: dict, vertices: np.ndarray) -> np.ndarray:
    """RGB f32 [CANVAS, CANVAS, 3], 0..255."""
    image = scene["background"].copy()
    depth = np.full(image.shape[:2], -1e9, np.float32)
    f = np.float32
    for part in head.parts(vertices):
        p = project(head, scene, part.vertices)
        normals = vertex_normals(np.ascontiguousarray(p * f([1, -1, 1]) * f([1, 1, 47.0 / head.unit])), part.tri)
        draw(
            p, normals, part.tri, part.tri_uv, part.uv, part.texture, image, depth,
            scene["ambient"].astype(f), scene["key"].astype(f), scene["light"].astype(f), scene["fill"].astype(f),
            scene["fill_dir"].astype(f), f(part.shine), part.alpha, f(part.bias), part.cull,
        )  # fmt: skip
    return np.clip(image, 0, 255)


def points(head, scene: dict, vertices: np.ndarray, rig: str) -> np.ndarray:
    """Where the detector would put its five landmarks."""
    p = project(head, scene, head.landmarks(vertices))[:, :2].astype(np.float64)
    return p + OFFSETS[rig] * 47.0


def expression(rng: np.random.Generator, table: dict) -> tuple[dict[str, float], int]:
    """A random expression and its emotion (-1 for a mixture of two)."""
    strength = rng.uniform(0.45, 1.1)
    label = int(rng.integers(1, len(EMOTIONS)))
    chosen = table[EMOTIONS[label]]
    weights = dict(chosen[rng.integers(len(chosen))])
    if rng.random() < 0.25:
        other = EMOTIONS[int(rng.integers(1, len(EMOTIONS)))]
        for name, weight in table[other][rng.integers(len(table[other]))].items():
            weights[name] = max(weights.get(name, 0), 0.6 * weight)
        label = -1
    out = {}
    for name, weight in weights.items():
        limit = 0.55 if name == "mouth-open" else 1.0
        out[name] = float(min(limit, weight * strength * rng.uniform(0.65, 1.15)))
    return out, label


def grey(image: np.ndarray) -> np.ndarray:
    return (image @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.float32)


def aligned(picture: np.ndarray, landmarks: np.ndarray, jitter: np.ndarray | None = None) -> np.ndarray:
    """Grey canvas -> 64x64 aligned luminance, u8. `jitter` is a 3x3 matrix in crop coordinates."""
    m = np.vstack([similarity(landmarks, template()), [0, 0, 1]])
    if jitter is not None:
        m = jitter @ m
    half = np.diag([0.5, 0.5, 1.0]) @ m
    return np.clip(np.rint(resample(picture, np.linalg.inv(half)[:2], 64, 2)), 0, 255).astype(np.uint8)


def jitter(rng: np.random.Generator) -> np.ndarray:
    """What an imperfect detector does to the alignment."""
    a, s = rng.normal(0, 0.04), np.exp(rng.normal(0, 0.04))
    t = rng.normal(0, 1.8, 2)
    c, d = s * np.cos(a), s * np.sin(a)
    m = np.array([[c, -d, 0], [d, c, 0], [0, 0, 1]])
    move = np.array([[1, 0, 64 + t[0]], [0, 1, 64 + t[1]], [0, 0, 1]])
    return move @ m @ np.array([[1, 0, -64], [0, 1, -64], [0, 0, 1.0]])


def person(root: Path, rig: str, number: int, rng: np.random.Generator):
    if rig == "makehuman":
        return heads.MakeHuman(root, rng), heads.MAKEHUMAN
    if rig == "ict":
        return ict.Ict(root, rng), ict.EXPRESSIONS
    files = sorted((root / "valid").glob("*.npz"))
    return heads.Valid(files[number % len(files)], rng), heads.VALID


def scene_pairs(root: Path, rig: str, number: int, expressions: int, seed: int, share_worn: float = 0.0):
    """All pairs of one scene: expressive [K,64,64], neutral [K,64,64], labels [K]; the first pair is (neutral, neutral)."""
    rng = np.random.default_rng([seed, RIGS.index(rig), number])
    head, table = person(root, rig, number, rng)
    if share_worn:
        head = worn.at_random(head, np.random.default_rng([seed, 13, number]), share_worn)
    view = scene(rng)
    base = head.shape({})
    still = grey(render(head, view, base))
    a, b, y = [], [], []
    for k in range(expressions + 1):
        if k == 0:
            shape, label, picture = base, 0, still
        else:
            weights, label = expression(rng, table)
            shape = head.shape(weights, int(rng.integers(2)))
            picture = grey(render(head, view, shape))
        at, shake = points(head, view, shape, rig), jitter(rng)
        a.append(aligned(picture, at, shake))
        b.append(aligned(still, at, shake))
        y.append(label)
    return np.stack(a), np.stack(b), np.asarray(y)


def calibrate(root: Path, seed: int) -> dict:
    """Mean distance between the detector's points and the projected mesh points."""
    from . import yunet

    net = yunet.session(root / "weights" / "yunet_s_dynamic.onnx")
    out = {}
    for rig in RIGS:
        diffs = []
        for number in tqdm(range(84), desc=rig):
            rng = np.random.default_rng([seed, 7, number])
            head, table = person(root, rig, number, rng)
            view = scene(rng)
            shape = head.shape(expression(rng, table)[0] if number % 2 else {})
            picture = render(head, view, shape).astype(np.uint8)
            framed = np.pad(picture, ((60, 60), (60, 60), (0, 0)), mode="edge")
            found = yunet.detect(net, framed, 0.7)
            if found:
                diffs.append((found[0].landmarks - 60 - project(head, view, head.landmarks(shape))[:, :2]) / 47.0)
        d = np.median(np.asarray(diffs), 0)
        d = (d + d[[1, 0, 2, 4, 3]] * [-1, 1]) / 2
        out[rig] = np.round(d, 4).tolist()
        print(rig, len(diffs), "detected of 84", out[rig])
    return out


def run(args: argparse.Namespace) -> int:
    root = args.data
    if args.calibrate:
        _calibration.write_text(json.dumps(calibrate(root, args.seed), indent=1) + "\n")
        return 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.flows:
        from . import moved  # needs torch

        np.savez(args.out.with_name("flows.npz"), **moved.bank(root, args.flows, args.seed))
        return 0
    parts = args.out.with_suffix(".parts")
    parts.mkdir(exist_ok=True)
    jobs = [("makehuman", i) for i in range(args.people)] + [("valid", i) for i in range(42 * args.valid_rounds)]
    jobs += [("ict", i) for i in range(args.ict)]
    block = 100
    started, drawn = time.process_time(), 0
    bar = tqdm(total=len(jobs), desc="scenes")
    for start in range(0, len(jobs), block):
        file = parts / f"{start:06d}-{args.seed}.npz"
        if args.resume and file.exists():
            bar.update(min(block, len(jobs) - start))
            continue
        a, b, y, who, rig_of = [], [], [], [], []
        for rig, number in jobs[start : start + block]:
            p, q, label = scene_pairs(root, rig, number, args.expressions, args.seed, args.worn)
            a.append(p)
            b.append(q)
            y.append(label)
            who += [number % 42 if rig == "valid" else number] * len(label)
            rig_of += [RIGS.index(rig)] * len(label)
            drawn += len(label)
            bar.update(1)
        np.savez(
            file,
            face=np.concatenate(a),
            neutral=np.concatenate(b),
            label=np.concatenate(y).astype(np.int8),
            person=np.asarray(who, np.int32),
            rig=np.asarray(rig_of, np.int8),
        )
    bar.close()
    files = [parts / f"{s:06d}-{args.seed}.npz" for s in range(0, len(jobs), block)]
    packs = [np.load(f) for f in files]
    merged = {k: np.concatenate([p[k] for p in packs]) for k in packs[0].files}
    np.savez_compressed(args.out, **merged)
    for f in files:
        f.unlink()
    seconds = time.process_time() - started
    if drawn:
        print(f"{len(merged['face'])} pairs; {drawn / seconds:.0f} pictures a CPU second -> {args.out}")
    if args.sheet:
        sheet(merged, args.sheet, args.seed)
    return 0


def sheet(pairs: dict, path: Path, seed: int = 0, columns: int = 16, rows: int = 6) -> None:
    """Faces above their neutral partners."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(pairs["face"]))[: columns * rows]
    lines = []
    for r in range(rows):
        line = chosen[r * columns : (r + 1) * columns]
        lines += [np.concatenate(list(pairs["face"][line]), 1), np.concatenate(list(pairs["neutral"][line]), 1)]
    Image.fromarray(np.concatenate(lines, 0)).save(path)
