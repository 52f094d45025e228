"""Contact sheet of the expression bundle, from clean data only: face, face without expression, what was read."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from . import EMOTIONS, align, data, synth
from .evaluate import aligned_faces, denormalise, softmax, through

CELL, TEXT, COLUMNS = 96, 12, 12


def _row(canvas: list, faces: np.ndarray, texts: list[str] | None = None) -> None:
    height = CELL + (TEXT if texts else 0)
    strip = Image.new("L", (CELL * COLUMNS, height), 255)
    draw = ImageDraw.Draw(strip)
    for i, face in enumerate(faces[:COLUMNS]):
        picture = Image.fromarray(np.clip(np.rint(face), 0, 255).astype(np.uint8)).resize((CELL, CELL), Image.BICUBIC)
        strip.paste(picture, (i * CELL, 0))
        if texts:
            draw.text((i * CELL + 2, CELL), texts[i], fill=0, font_size=10)
    canvas.append(strip)


def _title(canvas: list, text: str) -> None:
    strip = Image.new("L", (CELL * COLUMNS, 18), 255)
    ImageDraw.Draw(strip).text((2, 3), text, fill=0, font_size=11)
    canvas.append(strip)


def derl_sheet(args, net, find, london: dict, temperature: float) -> None:
    """`london` holds (grey, neutralised, held out) by kind, as `evaluate` leaves it."""

    def read(grey):
        out = through(net, grey, "sheet")
        p = softmax(out["logits"], temperature)
        texts = [f"{EMOTIONS[k]} {100 * v:.0f}" for k, v in zip(p.argmax(1), p.max(1), strict=True)]
        return denormalise(out["neutral"][:, 0], grey), texts

    canvas: list[Image.Image] = []
    grey, _, held = london["smile"]
    smile = grey[held][:COLUMNS]
    made, texts = read(smile)
    _title(canvas, "London, people the generator never saw: smile and what is read / neutralised / their true neutral")
    _row(canvas, smile, texts)
    _row(canvas, made, read(made)[1])
    grey, _, held = london["neutral"]
    true = grey[held][:COLUMNS]
    _row(canvas, true, read(true)[1])
    entries = [e for e in data.sfhq(args.data) if e["query"]]
    crops, _ = aligned_faces(args.data, find, [e["path"] for e in entries[:: max(1, len(entries) // COLUMNS)][:COLUMNS]])
    faces = np.stack([align.luminance64(c) for c in crops])
    made, texts = read(faces)
    _title(canvas, "SFHQ (synthetic people): face and what is read / neutralised")
    _row(canvas, faces, texts)
    _row(canvas, made, read(made)[1])
    a, b = [], []
    for k in range(6):
        rig = "makehuman" if k % 2 == 0 else "valid"
        face, neutral, _ = synth.scene_pairs(args.data, rig, 3 + 10 * k, 2, 77)
        a += list(face[1:])
        b += list(neutral[1:])
    faces = np.stack(a)
    made, texts = read(faces)
    _title(canvas, "renders: face and what is read / neutralised / true neutral")
    _row(canvas, faces, texts)
    _row(canvas, made)
    _row(canvas, np.stack(b))
    whole = Image.new("L", (CELL * COLUMNS, sum(s.height for s in canvas)), 255)
    y = 0
    for strip in canvas:
        whole.paste(strip, (0, y))
        y += strip.height
    args.sheet.parent.mkdir(parents=True, exist_ok=True)
    whole.quantize(40).save(args.sheet, optimize=True)
