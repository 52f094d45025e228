"""The layer lists under int8/ are what the bundled networks have."""

from pathlib import Path

import onnx
import pytest

from visaged_training import layers

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("name", "size"), [("derl", None), ("derl-tiny", None), ("detector", (320, 256))])
def test_the_list_of_a_bundled_network_is_up_to_date(name, size):
    lines = (ROOT / f"int8/layers/{name}.txt").read_text().splitlines()[1:]
    assert list(layers.layers(onnx.load(ROOT / f"models-quantized/{name}/model.onnx"), size)) == lines


def test_an_open_size_is_refused():
    with pytest.raises(ValueError, match="--size"):
        list(layers.layers(onnx.load(ROOT / "models-quantized/detector/model.onnx")))
