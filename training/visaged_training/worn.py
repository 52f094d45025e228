"""Glasses and beards on the parametric heads: drawn in the same scene, so that the neutral face wears what the other does.

Everything is placed by the five landmarks of the head at rest. Lengths are in units of the eye distance.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from .heads import Part
from .raster import vertex_normals

GLASSES = ("thin", "thick", "sunglasses")
BEARDS = ("stubble", "moustache", "goatee", "full")
AROUND = 28  # points along a rim
PAGE = 256  # side of the beard's texture


class Wearing:
    """A head with what it wears; everything else is the head's."""

    def __init__(self, head, worn: list):
        self._head, self._worn = head, worn

    def __getattr__(self, name):
        return getattr(self._head, name)

    def parts(self, vertices: np.ndarray) -> list[Part]:
        own = self._head.parts(vertices)
        return own + [part for thing in self._worn for part in thing.parts(own)]


def dressed(head, rng: np.random.Generator, glasses: str | None = None, beard: str | None = None):
    """The head wearing these; `rng` decides colours, sizes and cut."""
    worn = ([Beard(head, rng, beard)] if beard else []) + ([Glasses(head, rng, glasses)] if glasses else [])
    return Wearing(head, worn) if worn else head


def at_random(head, rng: np.random.Generator, share: float):
    """Of all people `share` wear glasses, of the men as many a beard."""
    glasses = GLASSES[rng.choice(3, p=(0.5, 0.4, 0.1))] if rng.random() < share else None
    beard = BEARDS[rng.integers(4)] if rng.random() < share and getattr(head, "sex", "") == "male" else None
    return dressed(head, rng, glasses, beard)


def _plain(colour, alpha: int = 255) -> np.ndarray:
    return np.full((2, 2, 4), (*colour, alpha), np.uint8)


def _mesh(points: np.ndarray, triangles: list, texture: np.ndarray, uv: np.ndarray | None = None, **look) -> Part:
    points = np.ascontiguousarray(points, np.float32)
    tri = np.ascontiguousarray(triangles, np.int32)
    uv = np.full((len(points), 2), 0.5, np.float32) if uv is None else np.ascontiguousarray(uv, np.float32)
    return Part(points, tri, tri, uv, texture, cull=0, **look)


class Glasses:
    """Two rims, a bridge, two temples, and lenses that reflect a little or, as sunglasses, hide the eyes."""

    def __init__(self, head, rng: np.random.Generator, kind: str):
        at_rest = head.shape({})
        right, left = head.landmarks(at_rest)[:2]  # the person's right is the image's left
        skin, unit = head.parts(at_rest)[0], head.unit
        half = np.array([rng.uniform(0.36, 0.44), rng.uniform(0.24, 0.34)]) * unit
        square = rng.uniform(2.2, 5.0)  # exponent of the superellipse: 2 is an ellipse
        wide = {"thin": rng.uniform(0.015, 0.03), "thick": rng.uniform(0.05, 0.08), "sunglasses": rng.uniform(0.03, 0.07)}[
            kind
        ] * unit
        off = np.abs(skin.vertices[np.unique(skin.tri)] - (right + left) / 2)
        behind = skin.vertices[np.unique(skin.tri)][(off[:, 0] < unit) & (off[:, 1] < half[1] + wide + 0.06 * unit), 2]
        front = behind.max() + 0.04 * unit  # before the bridge of the nose and the cheeks
        dark = rng.uniform(10, 60)
        frame = _plain(np.clip(dark * rng.normal(1, 0.15, 3), 0, 255) if kind != "thin" else rng.uniform(60, 170) * np.ones(3))
        middle = (right[0] + left[0]) / 2
        self._parts = []
        ends = []
        for eye, side in ((right, -1), (left, 1)):
            # Rims stand a little further out than the eyes, and lower.
            centre = np.array([eye[0] + side * 0.02 * unit, eye[1] - 0.06 * unit])
            angle = np.linspace(0, 2 * np.pi, AROUND, endpoint=False)
            c, s = np.cos(angle), np.sin(angle)
            outline = np.stack([np.sign(c) * np.abs(c) ** (2 / square), np.sign(s) * np.abs(s) ** (2 / square)], 1)
            inner, outer = centre + outline * half, centre + outline * (half + wide)

            def bent(xy):
                """The front of a pair of glasses curves back towards the temples."""
                return np.concatenate([xy, (front - 0.25 * (xy[:, :1] - middle) ** 2 / unit)], 1)

            ring = [(i, (i + 1) % AROUND) for i in range(AROUND)]
            faces = [t for i, j in ring for t in ((i, j, AROUND + j), (i, AROUND + j, AROUND + i))]
            self._parts.append(_mesh(bent(np.concatenate([inner, outer])), faces, frame, shine=0.3))
            lens, share = self._lens(rng, kind)
            fan = np.concatenate([centre[None], inner])
            place = (fan - centre) / (2 * half) + 0.5
            uv = np.stack([place[:, 0], 1 - place[:, 1]], 1)
            self._parts.append(
                _mesh(bent(fan), [(0, i + 1, j + 1) for i, j in ring], lens, uv, alpha=1, shine=share, bias=0.02 * unit)
            )
            ends.append((bent(inner[[AROUND // 2 if side > 0 else 0]])[0], bent(outer[[0 if side > 0 else AROUND // 2]])[0]))
        self._parts.append(self._bar(ends[0][0], ends[1][0], max(wide, 0.03 * unit), frame, lift=0.05 * unit))
        for _, hinge in ends:
            back = hinge + np.array([0.12 * unit * np.sign(hinge[0] - middle), 0.05 * unit, -2.0 * unit])
            self._parts.append(self._bar(hinge, back, max(wide, 0.04 * unit), frame))

    @staticmethod
    def _lens(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, float]:
        side = 16
        y, x = np.mgrid[:side, :side] / side
        streak = np.exp(-(((x + 0.6 * y - rng.uniform(0.2, 1.4)) / rng.uniform(0.05, 0.25)) ** 2))
        page = np.empty((side, side, 4))
        if kind == "sunglasses":
            page[..., :3] = rng.uniform(5, 45) * np.ones(3)
            page[..., 3] = rng.uniform(205, 245) - 60 * y * (rng.random() < 0.5)
        else:
            page[..., :3] = 235
            page[..., 3] = 10 + streak * rng.choice([0, 40, 110], p=(0.5, 0.35, 0.15))
        return np.clip(page, 0, 255).astype(np.uint8), 0.5 if kind == "sunglasses" else 0.15

    @staticmethod
    def _bar(a: np.ndarray, b: np.ndarray, height: float, texture: np.ndarray, lift: float = 0.0) -> Part:
        steps = np.linspace(0, 1, 9)[:, None]
        line = a + (b - a) * steps + np.array([0, 1, 0]) * lift * (1 - (2 * steps - 1) ** 2)
        up = np.array([0, height / 2, 0])
        points = np.concatenate([line + up, line - up])
        faces = [t for i in range(8) for t in ((i, i + 1, 10 + i), (i, 10 + i, 9 + i))]
        return _mesh(points, faces, texture, shine=0.3)

    def parts(self, own: list[Part]) -> list[Part]:
        return self._parts


class Beard:
    """A second skin over jaw, chin and upper lip that moves with the first; its texture is seen from the front."""

    def __init__(self, head, rng: np.random.Generator, kind: str):
        at_rest = head.shape({})
        skin, marks, unit = head.parts(at_rest)[0], head.landmarks(at_rest), head.unit
        mouth = marks[3:].mean(0)
        self.place = (skin.vertices[:, :2] - mouth[:2]) / unit
        deep = (skin.vertices[:, 2] - mouth[2]) / unit
        corners = self.place[skin.tri]
        near = (np.abs(corners[..., 0]) < 1.3) & (corners[..., 1] < 0.75) & (corners[..., 1] > -1.5)
        near &= (deep[skin.tri] > -1.3) & (np.abs(corners[..., 0]) + 0.5 * corners[..., 1] < 1.25)
        self.tri = np.ascontiguousarray(skin.tri[near.all(1)])
        self.uv = np.ascontiguousarray(np.stack([self.place[:, 0] / 3 + 0.5, 0.4 - self.place[:, 1] / 3], 1), np.float32)
        nose = (marks[2, 1] - mouth[1]) / unit
        half = abs(marks[4, 0] - marks[3, 0]) / unit / 2
        self.texture = self._texture(rng, kind, nose, half)
        self.out = {"stubble": 0.004, "moustache": 0.03, "goatee": 0.035, "full": 0.05}[kind] * unit

    @staticmethod
    def _texture(rng: np.random.Generator, kind: str, nose: float, half: float) -> np.ndarray:
        """Colour and cover over the lower face, u8 RGBA; `nose`: height of its tip, `half`: of the mouth's width."""
        row, column = np.mgrid[:PAGE, :PAGE] / PAGE
        x, y = (column - 0.5) * 3, (0.4 - row) * 3

        def soft(inside, width=0.06):
            return 1 / (1 + np.exp(-np.clip(inside / width * 4, -30, 30)))

        lips = soft(1 - np.sqrt((x / (half * 1.02)) ** 2 + (y / 0.2) ** 2), 0.2)
        lip = soft(half * 1.25 - np.abs(x)) * soft(y - 0.06) * soft(nose * 0.62 - y)
        chin = soft(1 - np.hypot(x / (half * 1.25), (y + 0.45) / 0.6), 0.15) * soft(-0.08 - y)
        cheeks = soft(-0.02 - y + 1.1 * np.maximum(np.abs(x) - half * 1.5, 0)) * soft(y + 1.2) * soft(0.6 - y, 0.3)
        beside = soft(np.abs(x) - half * 1.05) * soft(half * 1.5 - np.abs(x)) * soft(0.15 - y) * soft(y + 0.4)
        cover = {
            "moustache": lip,
            "goatee": np.maximum.reduce([lip, chin, beside]),
        }.get(kind, np.maximum.reduce([lip, chin, cheeks]))
        grain = rng.normal(0, 1, (PAGE, PAGE))
        hair = np.asarray(Image.fromarray(grain.astype(np.float32)).resize((PAGE, PAGE // 6), Image.BOX).resize((PAGE, PAGE)))
        hair = hair / (hair.std() + 1e-6)
        most = {"stubble": rng.uniform(70, 130)}.get(kind, rng.uniform(200, 250))
        page = np.empty((PAGE, PAGE, 4))
        tone = rng.choice([25, 45, 70, 150], p=(0.45, 0.3, 0.15, 0.1)) * np.array([1.1, 0.95, 0.85])
        page[..., :3] = tone * (1 + 0.25 * hair[..., None])
        page[..., 3] = cover * (1 - lips) * most * (1 + 0.2 * hair)
        return np.clip(page, 0, 255).astype(np.uint8)

    def parts(self, own: list[Part]) -> list[Part]:
        skin = own[0]
        normals = vertex_normals(skin.vertices, self.tri)
        vertices = np.ascontiguousarray(skin.vertices + self.out * normals, np.float32)
        return [Part(vertices, self.tri, self.tri, self.uv, self.texture, alpha=1, shine=0.02, bias=self.out * 0.5 + 1e-4)]
