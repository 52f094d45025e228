"""manifest.toml of a bundle: writing (a small TOML writer), and checking a bundle against its manifest."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _value(v) -> str:
    if isinstance(v, bool):
        return "true" if v else "false"
    if isinstance(v, int):
        return str(v)
    if isinstance(v, float):
        text = repr(v)
        return text if any(c in text for c in ".en") else text + ".0"
    if isinstance(v, str):
        escaped = v.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(v, (list, tuple)):
        return "[" + ", ".join(_value(x) for x in v) + "]"
    raise TypeError(f"no TOML for {type(v).__name__}")


def dumps(document: dict) -> str:
    """Plain values first, then tables, then arrays of tables: all that a manifest needs."""

    def is_table(v):
        return isinstance(v, dict)

    def is_tables(v):
        return isinstance(v, list) and v and all(isinstance(x, dict) for x in v)

    lines = [f"{k} = {_value(v)}" for k, v in document.items() if not is_table(v) and not is_tables(v)]
    for k, v in document.items():
        if is_table(v):
            lines += ["", f"[{k}]", *(f"{a} = {_value(b)}" for a, b in v.items())]
    for k, v in document.items():
        if is_tables(v):
            for entry in v:
                lines += ["", f"[[{k}]]", *(f"{a} = {_value(b)}" for a, b in entry.items())]
    return "\n".join(lines) + "\n"


def files(folder: Path) -> list[dict]:
    names = [n for n in ("model.onnx", "model.tflite", "weights.safetensors", "avatars.png") if (folder / n).exists()]
    return [{"path": n, "sha256": sha256(folder / n), "bytes": (folder / n).stat().st_size} for n in names]


def check(folder: Path) -> list[str]:
    """What is wrong with a bundle; empty when all is well."""
    path = folder / "manifest.toml"
    if not path.exists():
        return [f"{path}: missing"]
    document = tomllib.loads(path.read_text())
    wrong = []
    for key in ("schema", "name", "version", "task", "licence", "files", "inputs", "outputs"):
        if key not in document:
            wrong.append(f"{path}: no {key}")
    for entry in document.get("files", []):
        file = folder / entry["path"]
        if not file.exists():
            wrong.append(f"{file}: missing")
        elif file.stat().st_size != entry["bytes"] or sha256(file) != entry["sha256"]:
            wrong.append(f"{file}: does not match its sha256")
    return wrong
