"""`cosmetics`: faces with the layers that make-up is painted on, as one .npz; and the painting itself.

A face is kept as three things: the picture without make-up, the light that fell on each pixel (what a white surface would show),
and a mask for each layer. Make-up replaces a share of the skin's colour and leaves the light, so any style can be painted on any
of these faces exactly, and the same style on two people is a pair with a known answer.

Rendered heads: the masks are drawn on the surface (placed by the 68 landmarks of the head seen from the front, in rest) and seen
through the same camera, so that they follow every pose and expression. Photographs: the masks are placed by their own 68
landmarks, the light is the luminance against its mean on the skin; these are the warped pseudo pairs of PairedCycleGAN.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from . import align, data, synth
from .heads import Part
from .raster import draw, vertex_normals

LAYERS = ("lips", "shadow", "liner", "blush", "brows", "foundation")
ORDER = (5, 3, 1, 4, 2, 0)  # what goes on first
SIZE = 128
CANVAS = 2 * synth.CANVAS
LIGHT_UNIT = 128.0  # the value that stands for the light in which a surface shows its own colour


def arguments(parser: argparse.ArgumentParser) -> None:
    data.add_data_argument(parser)
    parser.add_argument("--out", type=Path, default=data.WORK / "cosmetics.npz")
    parser.add_argument("--people", type=int, default=600, help="random MakeHuman people")
    parser.add_argument("--valid-rounds", type=int, default=7, help="scenes for each of the 42 VALID heads")
    parser.add_argument("--views", type=int, default=2, help="pictures of each scene's person, with other expressions")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet (PNG)")


# --- where make-up goes ----------------------------------------------------------------------------------------------


def _filled(size: int, outlines, blur: float, over: int = 3) -> np.ndarray:
    """Soft mask 0..1 of filled outlines."""
    picture = Image.new("L", (size * over, size * over))
    pen = ImageDraw.Draw(picture)
    for points in outlines:
        pen.polygon([(float(x) * over, float(y) * over) for x, y in points], fill=255)
    picture = picture.filter(ImageFilter.GaussianBlur(blur * over)).resize((size, size), Image.BOX)
    return np.asarray(picture, np.float32) / 255


def _spot(size: int, centre, reach_x: float, reach_y: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size] + 0.5
    return np.exp(-(((x - centre[0]) / reach_x) ** 2) - ((y - centre[1]) / reach_y) ** 2).astype(np.float32)


def placed(points: np.ndarray, size: int) -> np.ndarray:
    """Masks [6, size, size] of a face seen from about the front, from its 68 landmarks in pixels."""
    from .landmarks68 import BROWS, EYES, JAW, LIPS, MOUTH

    eyes = [points[e] for e in EYES]
    centres = [e.mean(0) for e in eyes]
    unit = float(np.linalg.norm(centres[1] - centres[0]))
    down = np.array([0.0, 1.0])
    lips = _filled(size, [points[LIPS]], 0.012 * unit) - _filled(size, [points[MOUTH]], 0.012 * unit)
    shadow, liner, brows, apples = [], [], [], []
    for eye, brow, centre in zip(eyes, (points[b] for b in BROWS), centres, strict=True):
        across = eye[3] - eye[0]
        # From the upper lid's edge two thirds of the way to the brow, a little beyond the outer corner.
        upper = eye[:4]
        outer = 0 if centre[0] < points[27][0] else 3
        stretched = upper.copy()
        stretched[outer] += (across if outer else -across) * 0.22 - down * 0.03 * unit
        roof = np.stack([np.interp(stretched[:, 0], brow[:, 0], brow[:, 1])], 1)[:, 0]
        top = stretched.copy()
        top[:, 1] = stretched[:, 1] * 0.42 + roof * 0.58
        shadow.append(np.concatenate([stretched, top[::-1]]))
        edge = stretched.copy()
        edge[1:3] -= down * 0.02 * unit
        liner.append(np.concatenate([edge + down * 0.005 * unit, (edge - down * 0.055 * unit)[::-1]]))
        thick = np.linspace(0.05, 0.09, len(brow)) if outer else np.linspace(0.09, 0.05, len(brow))
        rise = down * thick[:, None] * unit
        brows.append(np.concatenate([brow + rise * 0.7, (brow - rise * 0.5)[::-1]]))
        side = 1 if outer else -1
        apples.append(centre + np.array([side * 0.17, 0.58]) * unit)
    openings = _filled(size, eyes, 0.01 * unit)
    shadow, liner, brows = (_filled(size, p, b * unit) for p, b in ((shadow, 0.045), (liner, 0.012), (brows, 0.03)))
    blush = np.maximum(*(_spot(size, a, 0.34 * unit, 0.24 * unit) for a in apples))
    jaw = points[JAW]
    forehead = points[17:27] - down * 0.42 * unit
    face = _filled(size, [np.concatenate([jaw, forehead[::-1]])], 0.08 * unit)
    skin = face * (1 - openings) * (1 - lips) * (1 - _filled(size, [points[MOUTH]], 0.01 * unit)) * (1 - 0.8 * brows)
    return np.stack([lips.clip(0, 1), shadow * (1 - openings), liner * (1 - 0.7 * openings), blush * skin, brows, skin])


# --- rendered heads --------------------------------------------------------------------------------------------------


def _draw(head, view: dict, vertices, parts: list[Part], image, lit: bool) -> np.ndarray:
    depth = np.full(image.shape[:2], -1e9, np.float32)
    f = np.float32
    none, full = np.zeros(3, f), np.full(3, 1.25, f)  # `draw` gives flat light 0.8 to a surface seen from the front
    for part in parts:
        p = synth.project(head, view, part.vertices, CANVAS)
        normals = vertex_normals(np.ascontiguousarray(p * f([1, -1, 1]) * f([1, 1, 47.0 * 2 / head.unit])), part.tri)
        if not lit:
            normals[:] = f([0, 0, 1])
        draw(
            p, normals, part.tri, part.tri_uv, part.uv, part.texture, image, depth,
            view["ambient"].astype(f) if lit else full, view["key"].astype(f) if lit else none, view["light"].astype(f),
            view["fill"].astype(f) if lit else none, view["fill_dir"].astype(f), f(part.shine if lit else 0), part.alpha,
            f(part.bias), part.cull,
        )  # fmt: skip
    return np.clip(image, 0, 255)


def _coloured(part: Part, rgb: int) -> Part:
    """The part in one colour, its transparency kept."""
    texture = part.texture.copy()
    texture[..., :3] = rgb
    return Part(part.vertices, part.tri, part.tri_uv, part.uv, texture, part.alpha, part.shine, part.bias, part.cull)


def _front(head) -> dict:
    still = {"yaw": 0.0, "pitch": 0.0, "roll": 0.0, "light": np.array([0.0, 0.4, 0.9]), "ambient": np.full(3, 0.6)}
    background = np.full((CANVAS, CANVAS, 3), 128, np.float32)
    return {**still, "key": np.full(3, 0.5), "fill": np.zeros(3), "fill_dir": np.array([0.7, 0.1, 0.6]), "background": background}


def seen(canvas: np.ndarray, landmarks: np.ndarray, shake: np.ndarray | None = None) -> np.ndarray:
    """Canvas [H, W, C] -> aligned [128, 128, C]; landmarks in the canvas's pixels."""
    from .raster import resample

    m = np.vstack([align.similarity(landmarks, align.template()), [0, 0, 1]])
    m = m if shake is None else shake @ m
    inverse = np.linalg.inv(m)[:2]
    planes = [resample(np.ascontiguousarray(canvas[..., c], np.float32), inverse, SIZE, 2) for c in range(canvas.shape[2])]
    return np.stack(planes, 2)


def render(root: Path, finder, rig: str, number: int, views: int, seed: int):
    """One person in one light: (bare, light, masks), `views` of each; None where the front is not read as a face."""
    rng = np.random.default_rng([seed, 20 if rig == "makehuman" else 21, number])
    head, table = synth.person(root, rig, number, rng)
    front = _front(head)
    rest = head.shape({})
    five = synth.project(head, front, head.landmarks(rest), CANVAS)[:, :2]
    picture = _draw(head, front, rest, head.parts(rest), front["background"].copy(), True).astype(np.uint8)
    side = 2.35 * 94
    corner = five[:2].mean(0) + np.array([-side / 2, -0.36 * side])
    points = finder(picture, corner, side)
    if np.abs(points[36:48].reshape(2, 6, 2).mean(1) - five[:2]).max() > 12:
        return None
    # The mesh knows where its mouth is; the landmarks know its outline.
    points[48:] += five[3:].mean(0) - points[[48, 54]].mean(0)
    flat = placed(points / 2, CANVAS // 2)
    at = synth.project(head, front, rest, CANVAS)[:, :2] / CANVAS
    masks = [np.dstack([*(flat[i : i + 3] * 255), np.full_like(flat[0], 255)]).astype(np.uint8) for i in (0, 3)]
    view = synth.scene(rng)
    view["background"] = np.asarray(
        Image.fromarray(view["background"].clip(0, 255).astype(np.uint8)).resize((CANVAS, CANVAS), Image.BILINEAR), np.float32
    )
    out = []
    for k in range(views):
        shape = rest if k == 0 and rng.random() < 0.6 else head.shape(synth.expression(rng, table)[0], int(rng.integers(2)))
        parts = head.parts(shape)
        bare = _draw(head, view, shape, parts, view["background"].copy(), True)
        white = [_coloured(p, 128) for p in parts]
        light = _draw(head, view, shape, white, np.full_like(bare, LIGHT_UNIT), True)
        layers = []
        for mask in masks:
            drawn = [Part(parts[0].vertices, parts[0].tri, parts[0].tri, at.astype(np.float32), mask, 0, 0.0)]
            # Brows and lashes take the make-up of what they grow on; all else hides it.
            drawn += [_coloured(p, 0) for p in parts[1:] if not (p.alpha and p.bias)]
            layers.append(_draw(head, view, shape, drawn, np.zeros_like(bare), False))
        five = synth.project(head, view, head.landmarks(shape), CANVAS)[:, :2] + synth.OFFSETS[rig] * 94
        shake = synth.jitter(rng)
        out.append([seen(x, five, shake) for x in (bare, light, np.dstack(layers))])
    return out


# --- photographs -----------------------------------------------------------------------------------------------------


def photographs(root: Path):
    """(pack, picture, five points) of the clean colour photographs."""
    for entry in json.loads((root / "sfhq" / "index.json").read_text()):
        yield "sfhq", data.rgb(root / "sfhq" / entry["file"]), np.asarray(entry["kps5"], np.float64)
    held = data.london_validation(root)
    for pack in ("london", "canada"):
        marks = np.load(root / pack / "landmarks.npz")
        for name, points in zip(marks["files"], marks["yunet5"], strict=True):
            kind = "london_held" if pack == "london" and str(name)[:3] in held else pack
            yield kind, data.rgb(root / pack / str(name)), points.astype(np.float64)


def photograph(finder, picture: np.ndarray, five: np.ndarray):
    """(bare, light, masks) of a photograph; None where the landmarks do not agree with the five."""
    matrix = align.similarity(five, align.template())
    face = align.warp(picture, matrix).astype(np.float32)
    points = finder(face.astype(np.uint8), (-8.0, -2.0), 144.0)
    template = align.template()
    off = np.abs(np.stack([points[36:42].mean(0), points[42:48].mean(0), points[48], points[54]]) - template[[0, 1, 3, 4]])
    if off.max() > 9:
        return None
    masks = placed(points, SIZE)
    luminance = face @ np.array([0.299, 0.587, 0.114], np.float32)
    skin = masks[5]
    level = (luminance * skin).sum() / max(skin.sum(), 1e-6)
    light = (luminance / max(level, 1)).clip(0.2, 1.8)
    # Lips, shadow and brows have a colour of their own there: their light is that of the skin around.
    own = (masks[0] + masks[1] + masks[4]).clip(0, 1)
    far = Image.fromarray((light * 128).astype(np.uint8)).filter(ImageFilter.BoxBlur(9))
    light = light * (1 - 0.6 * own) + np.asarray(far, np.float32) / 128 * 0.6 * own
    return face, np.repeat(light[..., None] * LIGHT_UNIT, 3, 2), masks.transpose(1, 2, 0) * 255


# --- the pack --------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    from .landmarks68 import Finder

    finder = Finder(args.data)
    bare, light, masks, pack, person = [], [], [], [], []

    def add(kind: str, who: int, parts) -> None:
        for store, value in zip((bare, light, masks), parts, strict=True):
            store.append(np.clip(np.rint(value), 0, 255).astype(np.uint8))
        pack.append(kind)
        person.append(who)

    missed = 0
    for k, (kind, picture, five) in enumerate(tqdm(list(photographs(args.data)), desc="photographs", mininterval=10)):
        parts = photograph(finder, picture, five)
        missed += parts is None
        if parts is not None:
            add(kind, k, parts)
    taken, started = len(bare), time.process_time()
    jobs = [("makehuman", i) for i in range(args.people)] + [("valid", i) for i in range(42 * args.valid_rounds)]
    for rig, number in tqdm(jobs, desc="renders", mininterval=10):
        views = render(args.data, finder, rig, number, args.views, args.seed)
        missed += views is None
        for parts in views or []:
            add(rig, number if rig == "makehuman" else number % 42, parts)
    drawn, spent = len(bare) - taken, time.process_time() - started
    args.out.parent.mkdir(parents=True, exist_ok=True)
    stacks = {"bare": np.stack(bare), "light": np.stack(light), "masks": np.stack(masks)}
    np.savez(args.out, **stacks, pack=np.asarray(pack), person=np.asarray(person))
    speed = f"{drawn / max(spent, 1e-3):.1f} a CPU second"
    print(f"{drawn} renders ({speed}), {taken} photographs, {missed} left out -> {args.out}")
    if args.sheet:
        sheet(args.out, args.sheet, args.seed)
    return 0


def sheet(file: Path, path: Path, seed: int = 0, columns: int = 12) -> None:
    """Faces, their light, their masks, and a painted style."""
    z = np.load(file)
    rng = np.random.default_rng(seed)
    rows = []
    for kind in (("makehuman",), ("valid",), ("sfhq", "london")):
        chosen = rng.permutation(np.nonzero(np.isin(z["pack"], kind))[0])[:columns]
        if not len(chosen):
            continue
        face, light, masks = z["bare"][chosen], z["light"][chosen], z["masks"][chosen].astype(np.float32) / 255
        made = np.stack([paint(f, lt, m, style(rng)) for f, lt, m in zip(face, light, masks, strict=True)])
        colours = np.array([[255, 0, 60], [120, 0, 255], [0, 0, 0], [255, 120, 120], [0, 160, 0], [200, 200, 120]], np.float32)
        shown = face.astype(np.float32)
        for k in ORDER:
            shown = shown * (1 - 0.6 * masks[..., k : k + 1]) + 0.6 * masks[..., k : k + 1] * colours[k]
        rows += [np.concatenate(list(x.clip(0, 255).astype(np.uint8)), 1) for x in (face, light, shown, made)]
    Image.fromarray(np.concatenate(rows, 0)).save(path)


# --- styles ----------------------------------------------------------------------------------------------------------

# Colours a shop sells, as hue ranges in degrees, saturation and value; chosen with these odds.
_LIPS = (
    (0.45, (345, 370), (0.55, 0.9), (0.45, 0.85)),
    (0.30, (330, 360), (0.3, 0.6), (0.55, 0.9)),
    (0.15, (5, 25), (0.4, 0.75), (0.4, 0.8)),
    (0.10, (280, 330), (0.5, 0.9), (0.25, 0.6)),
)
_SHADOW = (
    (0.4, (15, 40), (0.25, 0.7), (0.2, 0.6)),
    (0.2, (190, 260), (0.3, 0.8), (0.25, 0.75)),
    (0.2, (280, 340), (0.25, 0.7), (0.3, 0.75)),
    (0.1, (80, 170), (0.3, 0.8), (0.3, 0.65)),
    (0.1, (30, 55), (0.3, 0.7), (0.6, 0.95)),
)
_BLUSH = ((0.7, (340, 375), (0.35, 0.65), (0.75, 0.98)), (0.3, (8, 25), (0.35, 0.6), (0.7, 0.95)))


def _colour(rng: np.random.Generator, table) -> np.ndarray:
    import colorsys

    kind = table[rng.choice(len(table), p=[t[0] for t in table])]
    h, s, v = (rng.uniform(*bounds) for bounds in kind[1:])
    return np.asarray(colorsys.hsv_to_rgb(h % 360 / 360, s, v), np.float32) * 255


def style(rng: np.random.Generator) -> np.ndarray:
    """A style: for each layer red, green, blue (0..255) and how much of the skin's colour it takes (0..1); f32 [6, 4].

    Foundation has no colour of its own: it evens the skin, drawing it to the wearer's mean colour, which its numbers multiply.
    They are ones: a tint could not be told from the skin below it, so nobody could say what it is on another face.
    """
    out = np.zeros((6, 4), np.float32)
    dark = rng.uniform(10, 60) * rng.normal(1, 0.08, 3)
    brown = rng.uniform(25, 90) * np.array([1.0, 0.78, 0.62])
    for k, (chance, colour, low, high) in enumerate((
        (0.85, _colour(rng, _LIPS), 0.45, 0.95),
        (0.75, _colour(rng, _SHADOW), 0.3, 0.85),
        (0.7, dark, 0.4, 0.95),
        (0.6, _colour(rng, _BLUSH), 0.15, 0.5),
        (0.4, brown, 0.2, 0.6),
        (0.5, np.ones(3), 0.2, 0.55),
    )):  # fmt: skip
        out[k, :3] = colour
        out[k, 3] = rng.uniform(low, high) if rng.random() < chance else 0
    return out


def paint(face, light, masks, chosen):
    """A style on one face: u8 or f32 [H, W, 3], light as stored, masks 0..1 [H, W, 6], style [6, 4] -> f32 [H, W, 3]."""
    out, light = face.astype(np.float32), light.astype(np.float32) / LIGHT_UNIT
    skin = masks[..., 5:]
    own = (out / np.maximum(light, 0.15) * skin).sum((0, 1)) / max(float(skin.sum()), 1e-6)
    for k in ORDER:
        share = masks[..., k : k + 1] * chosen[k, 3]
        colour = own * chosen[k, :3] if k == 5 else chosen[k, :3]
        out = out * (1 - share) + share * colour * light
    return out.clip(0, 255)
