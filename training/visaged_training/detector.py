"""The face detector: calibration pictures, and its figures (parity of int8 with float, recall by face size)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from PIL import Image
from tqdm import tqdm

from . import data, graphs, yunet

THRESHOLD = 0.6  # what counts as a face of the float net
WORKING = 0.5  # where the daemon cuts the int8 net
WIDTH, HEIGHT = 320, 240


def still_pictures(root: Path) -> list[tuple[str, Path]]:
    out = [("sfhq", e["path"]) for e in data.sfhq(root)]
    out += [("london", e["path"]) for e in data.london(root)]
    return out + [("canada", p) for p in data.canada(root)]


def is_calibration(index: int) -> bool:
    """Every eighth picture calibrates and is left out of the measurement."""
    return index % 8 == 0


def place(picture: np.ndarray, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A picture somewhere on a soft canvas made of its own colours."""
    small = Image.fromarray(picture).resize((4, 3), Image.BOX)
    canvas = np.asarray(small.resize((width, height), Image.BICUBIC)).copy()
    h, w = picture.shape[:2]
    y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    canvas[y : y + h, x : x + w] = picture
    return canvas


def calibration(root: Path, seed: int = 0, count: int = 160):
    """Pictures [1, 3, 256, 320] with faces of 12 to 200 pixels, from the clean packs only."""
    rng = np.random.default_rng(seed)
    stills = [p for i, (_, p) in enumerate(still_pictures(root)) if is_calibration(i)]
    frames = [f for clip in data.clips(root).values() for i, f in enumerate(clip) if is_calibration(i)]
    for k in range(count):
        if k % 4 == 3:
            picture = frames[rng.integers(len(frames))]
            picture = yunet.fit(picture, WIDTH, HEIGHT)[0]
            x = yunet.blob(picture)
        else:
            canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            many = int(rng.integers(1, 4))
            for n in range(many):
                picture = data.rgb(stills[rng.integers(len(stills))])
                if n == 0:
                    canvas = np.asarray(Image.fromarray(picture).resize((6, 4)).resize((WIDTH, HEIGHT), Image.BICUBIC)).copy()
                side = int(np.exp(rng.uniform(np.log(22), np.log(238))))
                small = np.asarray(Image.fromarray(picture).resize((side, side), Image.BOX))
                small = np.clip(small * rng.uniform(0.4, 1.3), 0, 255).astype(np.uint8)
                y, x = int(rng.integers(0, HEIGHT - side + 1)), int(rng.integers(0, WIDTH - side + 1))
                canvas[y : y + side, x : x + side] = small
            x = yunet.blob(canvas)
        full = np.zeros((1, 3, 256, 320), np.float32)
        full[:, :, : x.shape[2], : x.shape[3]] = x
        yield full


def parity(
    root: Path, reference, candidate, threshold: float = THRESHOLD, working: float = WORKING, limit: int | None = None
) -> dict:
    """Against the float net at 320x240: its faces found at IoU 0.5, landmark distance in pixels, extra faces.

    A face counts when the float net scores it `threshold` or more. It is looked for among the faces that the int8 net
    scores `working` or more; `found_same` is the share found when both work at `threshold`.
    """
    sets: dict[str, list] = {"clips": [], "sfhq": [], "london": [], "canada": []}
    for i, (name, path) in enumerate(still_pictures(root)):
        if not is_calibration(i):
            sets[name].append(path)
    for clip in data.clips(root).values():
        sets["clips"] += [f for i, f in enumerate(clip) if not is_calibration(i)]
    result, every = {}, []
    for name, pictures in sets.items():
        faces = found = same = extra = extra_float = 0
        distance, shift = [], []
        for picture in tqdm(pictures[:limit], desc=name):
            rgb = picture if isinstance(picture, np.ndarray) else data.rgb(picture)
            rgb = yunet.fit(rgb, WIDTH, HEIGHT)[0]
            low = yunet.detect(reference, rgb, working)
            want = [f for f in low if f.score >= threshold]
            have = yunet.detect(candidate, rgb, working)
            taken: set[int] = set()
            for w in want:
                faces += 1
                best = max(range(len(have)), key=lambda k: yunet.overlap(w.box, have[k].box), default=None)
                if best is not None and yunet.overlap(w.box, have[best].box) >= 0.5:
                    found += 1
                    same += have[best].score >= threshold
                    taken.add(best)
                    distance.append(np.linalg.norm(w.landmarks - have[best].landmarks, axis=1).mean())
                    shift.append(abs(w.score - have[best].score))
            extra += sum(all(yunet.overlap(h.box, f.box) < 0.5 for f in low) for h in have)
            extra_float += sum(all(yunet.overlap(h.box, f.box) < 0.5 for h in have) for f in low)
        every += distance
        result[name] = {
            "pictures": len(pictures[:limit]),
            "faces": faces,
            "found": round(found / max(faces, 1), 5),
            "found_same": round(same / max(faces, 1), 5),
            "only_int8": extra,
            "only_float": extra_float,
            "landmarks_median_px": round(float(np.median(distance)), 3),
            "landmarks_p95_px": round(float(np.percentile(distance, 95)), 3),
            "score_shift_mean": round(float(np.mean(shift)), 4),
        }
    total = sum(r["faces"] for r in result.values())
    result["all"] = {
        "faces": total,
        **{k: round(sum(r[k] * r["faces"] for r in result.values()) / total, 5) for k in ("found", "found_same")},
        "landmarks_median_px": round(float(np.median(every)), 3),
    }
    return result


def steadiness(root: Path, model: Path, working: float = WORKING, limit: int | None = None) -> dict:
    """How far the int8 graph's faces move when its sums are taken in float and in another order, in pixels at 320x240.

    Processors and engines add in different orders. Two of them part where a sum lies on the edge between two steps of a
    grid, unless all sums are exact.
    """
    one = yunet.session(model, float_sums=True)
    other = yunet.session(graphs.backwards(onnx.load(model)).SerializeToString(), float_sums=True)
    stills = [path for i, (_, path) in enumerate(still_pictures(root)) if not is_calibration(i)][:limit]
    faces, alone, box, landmarks = 0, 0, [], []
    for path in tqdm(stills, desc="order of sums"):
        rgb = yunet.fit(data.rgb(path), WIDTH, HEIGHT)[0]
        a, b = yunet.detect(one, rgb, working), yunet.detect(other, rgb, working)
        faces += len(a)
        for these, those in ((a, b), (b, a)):
            alone += sum(all(yunet.overlap(x.box, y.box) < 0.5 for y in those) for x in these)
        for x in a:
            for y in b:
                if yunet.overlap(x.box, y.box) >= 0.5:
                    box.append(np.abs(x.box - y.box).max())
                    landmarks.append(np.abs(x.landmarks - y.landmarks).max())
    return {
        "pictures": len(stills),
        "faces": faces,
        "alone": alone,
        "box_p99_px": round(float(np.percentile(box, 99)), 3),
        "box_worst_px": round(float(np.max(box)), 3),
        "landmarks_p99_px": round(float(np.percentile(landmarks, 99)), 3),
        "landmarks_worst_px": round(float(np.max(landmarks)), 3),
    }


def recall_by_size(root: Path, nets: dict, sizes=(12, 16, 20, 24, 32, 48), count: int = 60, seed: int = 3) -> list[dict]:
    """Faces of a given width (box of the float net at full size) put into a 640x480 frame; seen at several scales."""
    rng = np.random.default_rng(seed)
    first = next(iter(nets.values()))
    stills = [p for i, (_, p) in enumerate(still_pictures(root)) if not is_calibration(i)]
    chosen = [stills[i] for i in rng.permutation(len(stills))]
    faces = []
    for path in chosen:
        rgb = data.rgb(path)
        found = yunet.detect(first, rgb, 0.8)
        if len(found) == 1:
            faces.append((rgb, found[0].box))
        if len(faces) == count:
            break
    for clip in data.clips(root).values():
        found = yunet.detect(first, clip[0], 0.8)
        big = [f for f in found if f.box[2] > 40]
        faces += [(clip[0], f.box) for f in big]
    scales = {"640x480": (640, 480), "480x360": (480, 360), "320x240": (320, 240)}
    rows = []
    for size in tqdm(sizes, desc="sizes"):
        hit: dict[tuple[str, str], int] = {}
        number = 0
        for rgb, box in faces:
            f = size / box[2]
            h, w = max(8, round(rgb.shape[0] * f)), max(8, round(rgb.shape[1] * f))
            if h > 480 or w > 640:
                continue
            number += 1
            small = np.asarray(Image.fromarray(rgb).resize((w, h), Image.BOX))
            backdrop = Image.fromarray(rgb).resize((5, 4), Image.BOX).resize((640, 480), Image.BICUBIC)
            frame = np.asarray(backdrop).copy()
            y, x = int(rng.integers(0, 481 - h)), int(rng.integers(0, 641 - w))
            frame[y : y + h, x : x + w] = small
            truth = box * f + [x, y, 0, 0]
            for label, (width, height) in scales.items():
                seen, k = yunet.fit(frame, width, height)
                for name, net in nets.items():
                    got = yunet.detect(net, seen, WORKING)
                    if any(yunet.overlap(g.box / k, truth) >= 0.5 for g in got):
                        hit[name, label] = hit.get((name, label), 0) + 1
        for label in scales:
            rows.append(
                {
                    "face_px": size,
                    "frame": "640x480",
                    "seen_at": label,
                    "faces": number,
                    **{name: round(hit.get((name, label), 0) / number, 4) for name in nets},
                }
            )
    return rows
