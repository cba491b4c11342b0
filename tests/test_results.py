"""Result files and chunks."""

import json
import math
import os

import pytest

from patchscopes.data.texts import load_texts
from patchscopes.errors import PatchscopesError
from patchscopes.model.environment import describe_environment
from patchscopes.results import ChunkStore, build_document, write_atomically, write_json


def test_json_is_strict_and_whole(tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_json(path, {"a": [1.5, None, "é"]})
    assert json.loads(path.read_text()) == {"a": [1.5, None, "é"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": [1.5, None, "é"]}
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.bin"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PatchscopesError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PatchscopesError, match="cannot write .*choose another path"):
        write_json(tmp_path / "file" / "result.json", {})


class TestChunkStore:
    def test_kept_beside_the_output_by_configuration(self, tmp_path):
        store = ChunkStore.beside(tmp_path / "fig2.json", {"seed": 0, "layers": [1]}, {"git_commit": "a"})
        assert store.folder.parent == tmp_path / "fig2.chunks"
        assert store.load("00000") is None
        store.save("00000", {"x": 1})
        again = ChunkStore.beside(tmp_path / "fig2.json", {"layers": [1], "seed": 0}, {"git_commit": "b"})
        assert again.load("00000") == {"x": 1}
        for other in (({"seed": 1, "layers": [1]}, {}), ({"seed": 0, "layers": [1]}, {"dtype": "bfloat16"})):
            assert ChunkStore.beside(tmp_path / "fig2.json", *other).load("00000") is None
        again.clear()
        assert store.load("00000") is None

    def test_other_code_starts_over(self, tmp_path, monkeypatch, smollm):
        before = ChunkStore.beside(tmp_path / "fig2.json", {}, describe_environment(smollm))
        again = ChunkStore.beside(tmp_path / "fig2.json", {}, describe_environment(smollm))
        monkeypatch.setattr("patchscopes.model.environment.code_sha256", lambda: "other code")
        other = ChunkStore.beside(tmp_path / "fig2.json", {}, describe_environment(smollm))
        assert before == again != other


def test_environment_says_what_a_result_depends_on(smollm):
    described = describe_environment(smollm, load_texts())
    assert described["model"]["id"] == "smollm2-135m-instruct"
    assert described["dataset"]["name"] == "passages"
    assert described["dtype"] == "float32"
    assert {"python", "torch", "transformers", "transformer-lens", "patchscopes"} <= set(described["versions"])
    document = build_document("next_token", {}, described, {}, {})
    assert 0.1 < document["timing"]["peak_memory_gib"] < 100
    assert json.loads(json.dumps(document, allow_nan=False)) == document
