"""Parametric heads: MakeHuman (CC0) and VALID (MIT). A head is meshes + textures + five landmark points + expressions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from . import data


@dataclass
class Part:
    vertices: np.ndarray
    tri: np.ndarray
    tri_uv: np.ndarray
    uv: np.ndarray
    texture: np.ndarray  # u8 [H, W, 4]
    alpha: int = 0
    shine: float = 0.03
    bias: float = 0.0
    cull: int = 1


def _f4(a):
    return np.ascontiguousarray(a, np.float32)


def _i4(a):
    return np.ascontiguousarray(a, np.int32)


def _rgba(picture: Image.Image, limit: int = 694) -> np.ndarray:
    picture = picture.convert("RGBA")
    side = max(picture.size)
    if side > limit:
        size = tuple(max(2, round(n * limit / side)) for n in picture.size)
        picture = picture.resize(size, Image.LANCZOS)
    return np.ascontiguousarray(np.asarray(picture))


# Expression prototypes by emotion; each entry is one way to show it, as unit weights. "eye" and "eyebrows" names are
# written once and applied to both sides.
MAKEHUMAN = {
    "neutral": [{}],
    "happiness": [
        {"mouth-corner-puller": 1.0, "eye-slit": 0.4},
        {"mouth-corner-puller": 1.0, "mouth-part-later": 0.5, "eye-slit": 0.3},
        {"mouth-corner-puller": 0.9, "mouth-upward-retraction": 0.35, "eye-slit": 0.5},
        {"mouth-corner-puller": 1.0, "mouth-open": 0.35, "eye-slit": 0.4, "eyebrows-up": 0.2},
    ],
    "surprise": [
        {"mouth-open": 0.5, "eyebrows-up": 1.0, "eye-opened-up": 0.8},
        {"mouth-open": 0.3, "eyebrows-up": 0.8, "eye-opened-up": 1.0, "mouth-pursing": 0.2},
        {"mouth-parling": 0.6, "eyebrows-up": 1.0, "eyebrows-inner-up": 0.4, "eye-opened-up": 0.7},
    ],
    "sadness": [
        {"mouth-depression": 1.0, "eyebrows-inner-up": 1.0},
        {"mouth-depression": 0.7, "eyebrows-inner-up": 0.8, "eye-slit": 0.4, "mouth-elevation": 0.3},
        {"mouth-depression-retraction": 0.7, "eyebrows-inner-up": 1.0, "eye-closure": 0.4},
    ],
    "anger": [
        {"eyebrows-down": 1.0, "mouth-compression": 1.0, "nose-dilatation": 0.6},
        {"eyebrows-down": 1.0, "mouth-retraction": 0.5, "mouth-open": 0.3, "nose-dilatation": 0.8, "eye-opened-up": 0.3},
        {"eyebrows-down": 1.0, "mouth-depression": 0.5, "eye-slit": 0.4, "nose-elevation": 0.4},
    ],
    "disgust": [
        {"mouth-upward-retraction": 1.0, "nose-elevation": 1.0, "nose-compression": 1.0, "eye-slit": 0.5},
        {"mouth-upward-retraction": 0.6, "nose-elevation": 1.0, "eyebrows-down": 0.6, "mouth-depression": 0.4},
        {"nose-compression": 0.8, "nose-elevation": 0.8, "mouth-elevation": 0.6, "eye-slit": 0.6, "eyebrows-down": 0.4},
    ],
    "fear": [
        {"eyebrows-inner-up": 1.0, "eyebrows-up": 0.5, "eye-opened-up": 1.0, "mouth-retraction": 0.8},
        {"eyebrows-inner-up": 0.9, "eyebrows-up": 0.6, "eye-opened-up": 0.9, "mouth-depression-retraction": 0.7,
         "mouth-open": 0.25, "neck-platysma": 0.7},
    ],
    "contempt": [
        {"mouth-elevation": 0.4, "one-mouth-corner": 0.9},
        {"mouth-compression": 0.5, "eye-slit": 0.4, "eyebrows-down": 0.3},
    ],
}  # fmt: skip

VALID = {
    "neutral": [{}],
    "happiness": [
        {"smileClose": 1.0, "squint": 0.3},
        {"smileOpen": 0.9, "lowLid": 0.4},
        {"smileOpen": 1.0, "squint": 0.5, "MouthOpen": 0.15},
    ],
    "surprise": [
        {"MouthOpen": 0.8, "browUp": 1.0, "outerUp": 1.0, "eyeOpen": 0.7},
        {"UH_OO": 0.5, "MouthOpen": 0.3, "browUp": 0.9, "outerUp": 0.9, "eyeOpen": 1.0},
    ],
    "sadness": [
        {"mouthSad": 1.0, "sad": 1.0, "pityful": 0.8},
        {"mouthSad": 0.7, "pityful": 1.0, "eyeClose": 0.25, "Chin": 0.4},
    ],
    "anger": [
        {"browDown": 1.0, "outerDown": 0.8, "JawCompress": 0.6, "squint": 0.6},
        {"browDown": 1.0, "Shout": 0.5, "nostril": 0.8, "eyeOpen": 0.3},
        {"browDown": 1.0, "outerDown": 0.6, "lipDown": 0.4, "nostril": 0.6, "Chin": 0.4},
    ],
    "disgust": [
        {"disgust": 1.0, "nostril": 0.8, "squint": 0.5},
        {"disgust": 0.9, "browDown": 0.7, "lipUp": 0.5, "mouthSad": 0.3},
    ],
    "fear": [
        {"pityful": 0.9, "browUp": 0.7, "eyeOpen": 1.0, "lipSide": 0.7},
        {"pityful": 0.8, "browUp": 0.8, "eyeOpen": 0.9, "MouthOpen": 0.35, "lipSide": 0.6, "neckTension": 0.8},
    ],
    "contempt": [
        {"one-smile": 0.9, "squint": 0.2},
        {"one-lipCorner": 0.9, "JawCompress": 0.4, "lowLid": 0.3},
    ],
}
_VALID_SIDES = {
    "outerUp": ("RRbrowUp", "LLbrowUp"),
    "outerDown": ("RRbrowDown", "LLbrowDown"),
    "neckTension": ("RneckTension", "LneckTension"),
}


@cache
def _makehuman(root: Path):
    head = np.load(root / "makehuman" / "makehuman_head.npz")
    head = {k: head[k] for k in head.files}
    proxies = np.load(root / "makehuman" / "makehuman_proxies.npz")
    proxies = {k: proxies[k] for k in proxies.files}
    index = {(str(k), str(n)): i for i, (k, n) in enumerate(zip(head["t_kind"], head["t_name"], strict=True))}
    return head, proxies, index


@cache
def _picture(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return _rgba(picture)


class MakeHuman:
    """One random person. `rng` decides everything."""

    HAIR = ("short01", "short02", "short03", "short04", "bob02", "braid01", None, None)

    def __init__(self, root: Path, rng: np.random.Generator):
        self.head, self.proxies, self.index = _makehuman(root)
        head = self.head
        v = head["verts"].astype(np.float32).copy()
        races = ("african", "asian", "caucasian")
        self.race = races[rng.integers(3)]
        sex = ("female", "male")[rng.integers(2)]
        old = float(rng.beta(0.6, 0.9))
        mix = float(rng.uniform(0, 0.35))
        second = races[rng.integers(3)]
        for race, share in ((self.race, 1 - mix), (second, mix)):
            self._add(v, "macro", f"{race}-{sex}-young", share * (1 - old))
            self._add(v, "macro", f"{race}-{sex}-old", share * old)
        self.sex, self.age = sex, "old" if old > 0.5 else "young"
        age = "old" if old > 0.6 else "young"
        body = f"universal-{sex}-{age}-averagemuscle-{('min', 'average', 'max')[rng.integers(3)]}weight"
        if ("universal", body) in self.index:
            self._add(v, "universal", body, float(rng.uniform(0.3, 0.9)))
        for kind, name, weight in self._shape(rng):
            self._add(v, kind, name, weight)
        self.rest = v
        dark = self.race == "african" or (self.race == "asian" and rng.random() < 0.15)
        tone = "darkskinned" if dark else "lightskinned"
        wanted = "old" if old > 0.7 else "middleage" if old > 0.4 else "young"
        skins = sorted(p for p in (root / "makehuman" / "skins").glob("*.jpg") if tone in p.name)
        close = [p for p in skins if p.name.startswith(wanted) and f"_{sex}" in p.name] or skins
        skin = _picture(close[rng.integers(len(close))]).astype(np.float32)
        skin[..., :3] *= rng.uniform(0.75, 1.15) * rng.normal(1, 0.03, 3)
        self.skin = np.clip(skin, 0, 255).astype(np.uint8)
        body_tri = head["tri_group"] == 0
        self.tri, self.tri_uv = _i4(head["tri"][body_tri]), _i4(head["tri_uv"][body_tri])
        self.uv = _f4(head["uv_skin"]).copy()
        self.uv[:, 1] = 1 - self.uv[:, 1]
        textures = root / "makehuman" / "textures"
        eyes = sorted(textures.glob("*_eye.webp"))
        eye = eyes[rng.integers(len(eyes))] if rng.random() < 0.5 else textures / "brown_eye.webp"
        named = dict(zip(self.proxies["names"].astype(str), self.proxies["textures"].astype(str), strict=True))
        brow = f"eyebrow{rng.integers(1, 13):03d}"
        hair = self.HAIR[rng.integers(len(self.HAIR))]
        self.addons = [("eyes_high_poly", _picture(eye)), ("teeth_base", _picture(textures / named["teeth_base"]))]
        for name in ("eyelashes01", brow, *([hair] if hair else [])):
            self.addons.append((name, _picture(textures / named[name])))
        joints = dict(zip(head["joint_names"].astype(str), head["joint_verts"].astype(int), strict=True))
        self.eye_joints = (joints["joint-r-eye"], joints["joint-l-eye"])  # the person's right is the image's left
        self.unit = float(np.linalg.norm(v[self.eye_joints[0]].mean(0) - v[self.eye_joints[1]].mean(0)))
        self.corners, self.nose = self._landmark_vertices()

    def _shape(self, rng):
        names = _shape_targets(tuple(sorted(self.index)))
        out = []
        for i in rng.integers(0, len(names), 16):
            kind, group = names[i]
            weight = float(min(1.0, abs(rng.normal(0, 0.4))))
            out += [(kind, name, weight) for name in group]
        return out

    def _add(self, v, kind, name, weight):
        if weight == 0:
            return
        i = self.index[kind, name]
        s = slice(self.head["t_start"][i], self.head["t_start"][i + 1])
        v[self.head["t_idx"][s]] += weight * (self.head["t_delta"][s].astype(np.float32) + self.head["t_offset"][i])

    def _moved(self, kind, *names):
        d = np.zeros_like(self.rest)
        for name in names:
            self._add(d, kind, name, 1)
        return np.linalg.norm(d, axis=1)

    def _landmark_vertices(self):
        lips = np.maximum(self._moved("mouth", "mouth-upperlip-volume-incr"), self._moved("mouth", "mouth-lowerlip-volume-incr"))
        used = np.zeros(len(self.rest), bool)
        used[np.unique(self.tri)] = True
        lips = (lips > 0.15 * lips.max()) & used
        x = np.where(lips, self.rest[:, 0], 0)
        eyes = np.stack([self.rest[j].mean(0) for j in self.eye_joints])
        middle = used & (abs(self.rest[:, 0]) < 0.15 * self.unit)
        low = self.rest[:, 1] < eyes[:, 1].mean() - 0.2 * self.unit
        high = self.rest[:, 1] > self.rest[lips][:, 1].max() + 0.05 * self.unit
        nose = int(np.where(middle & low & high, self.rest[:, 2], -1e9).argmax())
        return (int(x.argmin()), int(x.argmax())), nose

    def shape(self, weights: dict[str, float], side: int = 0) -> np.ndarray:
        """Vertices with the named expression; `side` picks the half for one-sided units."""
        v = self.rest.copy()
        kind = f"expression_{self.race}"
        for name, weight in weights.items():
            if name == "one-mouth-corner":
                moved = np.zeros_like(v)
                self._add(moved, kind, "mouth-corner-puller", weight)
                half = 1 / (1 + np.exp(-(v[:, :1] * (1 if side else -1)) / (0.12 * self.unit)))
                v += moved * half
            elif name.startswith(("eye", "eyebrows", "nose")) and (kind, name) not in self.index:
                stem, rest = name.split("-", 1)
                for which in ("left", "right"):
                    self._add(v, kind, f"{stem}-{which}-{rest}", weight)
            else:
                self._add(v, kind, name, weight)
        return v

    def _fit(self, name, v):
        p = self.proxies
        q = (v[p[name + ".ref"].astype(int)] * p[name + ".w"][:, :, None]).sum(1)
        k = np.ones(3)
        for axis in range(3):
            m, n = p[name + ".scale_ref"][axis].astype(int)
            if p[name + ".scale_den"][axis]:
                k[axis] = abs(v[m, axis] - v[n, axis]) / p[name + ".scale_den"][axis]
        return _f4(q + p[name + ".off"] * k)

    def parts(self, v: np.ndarray) -> list[Part]:
        out = [Part(_f4(v), self.tri, self.tri_uv, self.uv, self.skin, 0, 0.10)]
        for j, (name, texture) in enumerate(self.addons):
            uv = _f4(self.proxies[name + ".uv"]).copy()
            uv[:, 1] = 1 - uv[:, 1]
            out.append(
                Part(
                    self._fit(name, v),
                    _i4(self.proxies[name + ".tri"]),
                    _i4(self.proxies[name + ".tri_uv"]),
                    uv,
                    texture,
                    0 if j == 1 else 1,
                    0.25 if j == 0 else 0.03,
                    0.03 * self.unit if j in (2, 3) else 0.0,
                    0 if j >= 2 else 1,
                )
            )
        return out

    def landmarks(self, v: np.ndarray) -> np.ndarray:
        eyes = [v[j].mean(0) for j in self.eye_joints]
        return np.stack([*eyes, v[self.nose], v[self.corners[0]], v[self.corners[1]]])


@cache
def _shape_targets(keys: tuple) -> list[tuple[str, list[str]]]:
    """Local shape targets, left and right joined."""
    groups: dict[tuple[str, str], list[str]] = {}
    for kind, name in keys:
        if kind in ("head", "nose", "mouth", "chin", "cheek", "eyes", "forehead", "eyebrows", "ears"):
            if "trans" in name:
                continue
            stem = name[2:] if name[:2] in ("l-", "r-") else name
            groups.setdefault((kind, stem), []).append(name)
    return [(kind, names) for (kind, _), names in sorted(groups.items())]


@cache
def _valid(path: Path):
    z = np.load(path)
    return {k: z[k] for k in z.files}


class Valid:
    """One of the 42 textured heads, slightly stretched at random."""

    def __init__(self, path: Path, rng: np.random.Generator):
        z = self.z = _valid(path)
        self.sex = "female" if "_F_" in path.stem else "male"
        self.names = z["morph_names"].tolist()
        self.uv = _f4(z["uv_u16"] / 65535)
        self.stretch = rng.normal(1, [0.03, 0.03, 0.05]).astype(np.float32)
        skin = _rgba(data.decode(z["skin_jpg"])).astype(np.float32)
        skin[..., :3] *= rng.uniform(0.8, 1.12) * rng.normal(1, 0.03, 3)
        skin = np.clip(skin, 0, 255).astype(np.uint8)
        textures = [skin]
        for key in ("rest_jpg", "hair_jpg"):
            textures.append(_rgba(data.decode(z[key])) if key in z and z[key].size else skin)
        self.textures = textures
        self.tris = [_i4(z["tri"][z["tri_mat"] == m]) for m in range(3)]
        self.rest = _f4(z["verts"])
        eyes = z["eye_centers"]
        self.eyes = np.stack([eyes[1], eyes[0]])  # image's left first
        self.unit = float(np.linalg.norm(self.eyes[0] - self.eyes[1]))
        on_head = np.zeros(len(self.rest), bool)
        on_head[np.unique(z["tri"][z["tri_part"] == 0])] = True
        self.corners = tuple(
            int((np.linalg.norm(self._morphed({n: 1.0}) - self.rest, axis=1) * on_head).argmax())
            for n in ("RlipCorner", "LlipCorner")
        )
        mouth_y = self.rest[list(self.corners), 1].mean()
        middle = on_head & (abs(self.rest[:, 0]) < 0.15 * self.unit)
        middle &= (self.rest[:, 1] < self.eyes[:, 1].mean() - 0.2 * self.unit) & (self.rest[:, 1] > mouth_y + 0.2 * self.unit)
        self.nose = int(np.where(middle, self.rest[:, 2], -1e9).argmax())

    def _morphed(self, weights):
        z, v = self.z, self.rest.copy()
        for name, weight in weights.items():
            i = self.names.index(name)
            s = slice(z["morph_start"][i], z["morph_start"][i + 1])
            v[z["morph_idx"][s]] += weight * z["morph_delta"][s] * z["morph_step"]
        return v

    def shape(self, weights: dict[str, float], side: int = 0) -> np.ndarray:
        flat: dict[str, float] = {}
        for name, weight in weights.items():
            if name in self.names:
                flat[name] = weight
                continue
            if name == "one-smile":
                targets = (("RsmileClose", "LsmileClose")[side],)
            elif name == "one-lipCorner":
                targets = (("RlipCorner", "LlipCorner")[side],)
            else:
                targets = _VALID_SIDES.get(name, ("R" + name, "L" + name))
            for target in targets:
                flat[target] = flat.get(target, 0) + weight
        return _f4(self._morphed(flat) * self.stretch)

    def parts(self, v: np.ndarray) -> list[Part]:
        return [
            Part(v, self.tris[m], self.tris[m], self.uv, self.textures[m], 0, 0.10 if m == 0 else 0.03)
            for m in range(3)
            if len(self.tris[m])
        ]

    def landmarks(self, v: np.ndarray) -> np.ndarray:
        return np.stack([*(self.eyes * self.stretch), v[self.nose], v[self.corners[0]], v[self.corners[1]]])
