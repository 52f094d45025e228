"""Golden figures of rendered heads; they need the data packs and skip themselves without them."""

import json
from pathlib import Path

import numpy as np
import pytest

from visaged_training import data, heads, ict, synth

ROOT = data.default_root()
GOLDEN = Path(__file__).parent / "golden_synth.json"
needs_data = pytest.mark.skipif(not (ROOT / "makehuman").exists(), reason="data packs are not here")


def test_every_emotion_has_prototypes_in_all_rigs():
    from visaged_training import EMOTIONS

    assert set(heads.MAKEHUMAN) == set(heads.VALID) == set(ict.EXPRESSIONS) == set(EMOTIONS)


def digest(picture: np.ndarray) -> list[float]:
    """Means of an 8x8 grid: steady against the last bit, not against a change that one can see."""
    return picture.reshape(8, 8, 8, 8).mean((1, 3)).round(1).ravel().tolist()


@needs_data
@pytest.mark.parametrize("rig", synth.RIGS)
def test_renders_look_as_they_did(rig):
    face, neutral, label = synth.scene_pairs(ROOT, rig, 3, 2, 11)
    assert face.shape == neutral.shape == (3, 64, 64)
    assert label[0] == 0 and (face[0] == neutral[0]).all()
    assert np.abs(face[1].astype(int) - neutral[1]).mean() > 0.3
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    now = [digest(face[1]), digest(neutral[1])]
    if rig not in golden:  # written once, then looked at and committed
        golden[rig] = now
        GOLDEN.write_text(json.dumps(golden) + "\n")
    assert np.abs(np.array(golden[rig]) - np.array(now)).max() < 1.5


@needs_data
def test_same_seed_same_pictures():
    a = synth.scene_pairs(ROOT, "valid", 5, 1, 2)
    b = synth.scene_pairs(ROOT, "valid", 5, 1, 2)
    assert all((x == y).all() for x, y in zip(a, b, strict=True))
