import tomllib

import pytest

from visaged_training import data, manifest


def test_toml_survives_a_round_trip():
    document = {
        "schema": 1,
        "name": 'odd "name" \\ here',
        "share": 0.5,
        "whole": 2.0,
        "labels": ["a", "b"],
        "table": {"x": 1, "text": "one\ntwo"},
        "files": [{"path": "model.onnx", "bytes": 3}, {"path": "other", "bytes": 4}],
    }
    assert tomllib.loads(manifest.dumps(document)) == document


def test_a_changed_file_is_noticed(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"abc")
    document = {
        "schema": 1, "name": "n", "version": "0", "task": "t", "licence": "l", "inputs": [{"name": "i"}],
        "outputs": [{"name": "o"}], "files": manifest.files(tmp_path),
    }  # fmt: skip
    (tmp_path / "manifest.toml").write_text(manifest.dumps(document))
    assert manifest.check(tmp_path) == []
    (tmp_path / "model.onnx").write_bytes(b"abd")
    assert "does not match" in manifest.check(tmp_path)[0]


@pytest.mark.parametrize("name", ["detector", "derl"])
def test_shipped_bundles_match_their_manifests(name):
    folder = data.BUNDLES / name
    if not folder.exists():
        pytest.skip("not built")
    assert manifest.check(folder) == []
    card = (folder / "CARD.md").read_text()
    assert "must not be used for" in card
