"""Heads of ICT Face Model Light (MIT): a hundred modes of identity, ARKit-like expressions, and no textures.

So skin, lips, brows, eyes and hair are painted here, on the face as seen from the front.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .heads import Part, _f4, _i4

PAGE = 288
WEST, NORTH, UNITS = -14.0, 15.5, 36.0  # the page's left and upper edge and its side, in the model's units

# As in `heads`: names without a side are done to both, `one-` to one.
EXPRESSIONS = {
    "neutral": [{}],
    "happiness": [
        {"mouthSmile": 0.9, "cheekSquint": 0.6},
        {"mouthSmile": 1.0, "mouthUpperUp": 0.5, "cheekSquint": 0.7, "eyeSquint": 0.3},
        {"mouthSmile": 0.9, "jawOpen": 0.2, "mouthUpperUp": 0.4, "cheekSquint": 0.5, "mouthLowerDown": 0.3},
    ],
    "surprise": [
        {"jawOpen": 0.5, "browInnerUp": 1.0, "browOuterUp": 1.0, "eyeWide": 0.8},
        {"jawOpen": 0.3, "mouthFunnel": 0.5, "browInnerUp": 0.8, "browOuterUp": 0.9, "eyeWide": 1.0},
    ],
    "sadness": [
        {"mouthFrown": 1.0, "browInnerUp": 0.9, "mouthShrugLower": 0.5},
        {"mouthFrown": 0.8, "browInnerUp": 1.0, "eyeSquint": 0.4, "mouthPress": 0.3},
    ],
    "anger": [
        {"browDown": 1.0, "eyeSquint": 0.5, "mouthPress": 0.8, "noseSneer": 0.4},
        {"browDown": 1.0, "jawOpen": 0.25, "mouthUpperUp": 0.5, "mouthLowerDown": 0.7, "noseSneer": 0.6},
    ],
    "disgust": [
        {"noseSneer": 1.0, "mouthUpperUp": 0.7, "browDown": 0.5, "eyeSquint": 0.5},
        {"noseSneer": 0.9, "mouthShrugUpper": 0.6, "mouthFrown": 0.5, "cheekSquint": 0.5},
    ],
    "fear": [
        {"browInnerUp": 1.0, "browOuterUp": 0.4, "eyeWide": 1.0, "mouthStretch": 0.9, "jawOpen": 0.15},
        {"browInnerUp": 0.9, "eyeWide": 0.9, "mouthStretch": 0.7, "jawOpen": 0.3, "mouthLowerDown": 0.4},
    ],
    "contempt": [
        {"one-mouthSmile": 0.7, "one-mouthDimple": 0.7},
        {"one-mouthSmile": 0.5, "one-mouthUpperUp": 0.4, "eyeSquint": 0.3},
    ],
}


@cache
def _model(root: Path):
    z = np.load(root / "ict" / "ict_facekit.npz")
    model = {k: z[k] for k in z.files}
    model["identity"] = model.pop("identity_q").astype(np.float32).reshape(100, -1) * model["identity_step"]
    return model


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise over the page, about -2 to 2."""
    small = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(small.resize((PAGE, PAGE), Image.BICUBIC))


def _on_page(points: np.ndarray) -> np.ndarray:
    return np.stack([(points[:, 0] - WEST) / UNITS, (NORTH - points[:, 1]) / UNITS], 1) * PAGE


def marks(root: Path) -> np.ndarray:
    """The 68 landmarks of the mean head at rest, [68, 3]."""
    z = _model(root)
    return z["neutral"][z["lm68"]].astype(np.float64)


class Ict:
    """One random person. `rng` decides everything."""

    def __init__(self, root: Path, rng: np.random.Generator):
        z = self.z = _model(root)
        self.names = [str(n) for n in z["expr_names"]]
        weights = np.clip(rng.normal(0, 0.8, 100), -2, 2).astype(np.float32)
        self.rest = _f4(z["neutral"] + (weights @ z["identity"]).reshape(-1, 3))
        self.marks = z["lm68"]
        balls = [slice(*z["region_vertex_range"][list(z["region_names"]).index(f"eyeball_{s}")]) for s in ("right", "left")]
        # The middles of the eyeballs: no expression moves them.
        self.eyes = np.stack([(self.rest[ball].min(0) + self.rest[ball].max(0)) / 2 for ball in balls])
        self.unit = float(np.linalg.norm(self.eyes[0] - self.eyes[1]))
        self.sex = ("female", "male")[rng.integers(2)]
        self._looks = []
        for tri, uv, texture, look in self._paint(rng):
            used, places = np.unique(tri, return_inverse=True)
            self._looks.append((used, _i4(places.reshape(tri.shape)), _f4(uv[used]), texture, look))

    def _paint(self, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, dict]]:
        """(triangles, uv of every vertex, texture, look) of each part."""
        z = self.z
        region, name = z["tri_region"], [str(n) for n in z["region_names"]]

        def of(*parts: str) -> np.ndarray:
            return _i4(z["tri"][np.isin(region, [name.index(p) for p in parts]) & ~z["tri_cornea"]])

        front = _f4(_on_page(z["neutral"]) / PAGE)
        plain = [
            (of("mouth_socket"), (60, 20, 20), {}),
            (of("eye_socket_left", "eye_socket_right"), (90, 50, 45), {}),
            (of("gums_and_tongue"), (150, 70, 70), {"shine": 0.1}),
            (of("teeth"), tuple(rng.uniform(185, 235) * np.array([1, 0.97, 0.9])), {"shine": 0.15}),
        ]
        self.is_mouth = [False, True, False, True, True, False, False, False]  # of the parts, in their order
        looks = [(of("face", "head_and_neck"), front, self._skin(rng), {"shine": rng.uniform(0.04, 0.15)})]
        looks += [(tri, front, np.full((2, 2, 4), (*colour, 255), np.uint8), look) for tri, colour, look in plain]
        iris = self._iris(rng)
        for side, centre in zip(("left", "right"), z["eye_centers"], strict=True):
            around = _f4((z["neutral"][:, :2] - centre[:2]) * [1, -1] / 3.2 + 0.5)
            looks.append((of(f"eyeball_{side}"), around, iris, {"shine": 0.3}))
        shade = np.full((2, 2, 4), (20, 10, 10, 70), np.uint8)
        looks.append((of("eye_occlusion_left", "eye_occlusion_right"), front, shade, {"alpha": 1, "cull": 0}))
        return looks

    @staticmethod
    def _iris(rng: np.random.Generator) -> np.ndarray:
        side = 96
        y, x = np.mgrid[:side, :side] / side - 0.5
        r = np.hypot(x, y) * 3.2
        colour = np.array([(70, 45, 25), (40, 28, 20), (95, 120, 150), (90, 105, 70)][rng.choice(4, p=(0.4, 0.3, 0.15, 0.15))])
        streaks = 1 + 0.25 * np.sin(np.arctan2(y, x) * 23 + rng.uniform(0, 6))
        page = np.full((side, side, 4), (225, 218, 212, 255), np.float32)
        page[r < 0.76, :3] = (colour * streaks[..., None])[r < 0.76]
        page[(r > 0.66) & (r < 0.78), :3] *= 0.55
        page[r < 0.3, :3] = 8
        return np.clip(page, 0, 255).astype(np.uint8)

    def _skin(self, rng: np.random.Generator) -> np.ndarray:
        tone = np.array(
            [(236, 200, 178), (214, 168, 138), (180, 128, 96), (128, 84, 60), (84, 54, 40)][rng.integers(5)], np.float32
        )
        page = tone * rng.normal(1, 0.03, 3) * (1 + 0.03 * _noise(rng, 12) + 0.02 * _noise(rng, 90))[..., None]
        page = page.astype(np.float32)
        marks = _on_page(self.z["neutral"][self.marks])
        scale = PAGE / UNITS

        def mask(draw, blur: float) -> np.ndarray:
            image = Image.new("L", (PAGE, PAGE))
            draw(ImageDraw.Draw(image))
            return np.asarray(image.filter(ImageFilter.GaussianBlur(blur * scale)), np.float32)[..., None] / 255

        def polygon(points):
            return lambda d: d.polygon([tuple(p) for p in points], fill=255)

        def lay(cover: np.ndarray, colour) -> None:
            page[:] = page * (1 - cover) + np.asarray(colour, np.float32) * cover

        lay(mask(polygon(marks[48:60]), 0.15) * rng.uniform(0.4, 0.9), tone * rng.uniform(0.6, 0.85) * [1.05, 0.72, 0.75])
        for eye in (marks[36:42], marks[42:48]):
            lay(mask(polygon(eye + (eye - eye.mean(0)) * 0.5), 0.4) * 0.35, tone * 0.65)
            # The rim of the lids, where lashes would be.
            lay(mask(lambda d, eye=eye: d.line([tuple(p) for p in eye[[0, 1, 2, 3]]], fill=255, width=2), 0.06), tone * 0.2)
        for x in (marks[40:42].mean(0), marks[46:48].mean(0)):
            cheek = [x[0] - 1.6 * scale, x[1] + 1.5 * scale, x[0] + 1.6 * scale, x[1] + 4.2 * scale]
            lay(mask(lambda d, box=cheek: d.ellipse(box, fill=255), 0.8) * rng.uniform(0, 0.3), tone * [1.0, 0.72, 0.68])
        hair = np.array(
            [(20, 16, 14), (50, 34, 24), (96, 66, 40), (170, 140, 96), (140, 138, 136)][
                rng.choice(5, p=(0.4, 0.25, 0.15, 0.1, 0.1))
            ]
        )
        strand = (1 + 0.3 * np.clip(_noise(rng, 128), -2, 2))[..., None]
        wide = rng.uniform(0.35, 0.8)
        for brow in (marks[17:22], marks[22:27]):
            line = [tuple(p) for p in brow + [0, 0.15 * scale]]
            brows = mask(lambda d, line=line: d.line(line, fill=255, width=int(wide * scale), joint="curve"), 0.12)
            lay(np.clip(brows * rng.uniform(0.6, 0.95) * strand, 0, 1), hair * 0.9)
        if rng.random() < 0.8:
            y, x = np.mgrid[:PAGE, :PAGE] / PAGE * UNITS
            high = NORTH - y - (rng.uniform(8.0, 10.5) - 0.035 * (x + WEST) ** 2 - np.where(np.abs(x + WEST) > 7.5, 4, 0))
            lay(1 / (1 + np.exp(-np.clip(3 * high, -30, 30)))[..., None], hair * strand)
        return np.ascontiguousarray(np.dstack([np.clip(page, 0, 255), np.full((PAGE, PAGE), 255)]).astype(np.uint8))

    def shape(self, weights: dict[str, float], side: int = 0) -> np.ndarray:
        """Vertices with the named expression; `side` picks the half for one-sided units."""
        v, z = self.rest.copy(), self.z
        for name, weight in weights.items():
            stem = name.removeprefix("one-")
            both = ("_R", "_L") if name == stem else (("_R", "_L")[side],)
            for full in [stem] if stem in self.names else [stem + s for s in both]:
                i = self.names.index(full)
                part = slice(z["expr_start"][i], z["expr_start"][i + 1])
                v[z["expr_idx"][part]] += weight * z["expr_delta"][part].astype(np.float32)
        return v

    def parts(self, v: np.ndarray) -> list[Part]:
        return [Part(_f4(v[used]), tri, tri, uv, texture, **look) for used, tri, uv, texture, look in self._looks]

    def landmarks(self, v: np.ndarray) -> np.ndarray:
        return np.concatenate([self.eyes, v[self.marks[[30, 48, 54]]]])
