"""Result files and chunks."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.data.texts import load_texts
from patchscopes.errors import PatchscopesError
from patchscopes.model.environment import describe_environment
from patchscopes.results import LINE_LENGTH, ChunkStore, Json, build_document, format_json, write_atomically, write_json

FIGURES = Path(__file__).parent.parent / "figures"

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text()
json_values = st.recursive(
    scalars | st.lists(numbers, max_size=40),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(), inner, max_size=8),
    max_leaves=60,
)


def test_json_is_strict_and_whole(tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_json(path, {"a": [1.5, None, "é"]})
    assert json.loads(path.read_text()) == {"a": [1.5, None, "é"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": [1.5, None, "é"]}
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def number_lists(content: Json) -> Iterator[list[float]]:
    """All lists of numbers in it."""
    inner = list(content.values()) if isinstance(content, dict) else content if isinstance(content, list) else []
    if isinstance(content, list) and all(isinstance(item, int | float) for item in content):
        yield content
    for item in inner:
        yield from number_lists(item)


@given(json_values)
def test_json_is_the_same_and_short_to_read(content):
    text = format_json(content)
    # Also the type and every bit of a number: 1 is not 1.0, -0.0 is not 0.0.
    assert repr(json.loads(text)) == repr(content)
    lines = text.split("\n")
    for numbers in number_lists(content):
        assert any(json.dumps(numbers) in line for line in lines)
    assert json.dumps(content, ensure_ascii=False) == text or len(lines) > 1
    assert len(lines) == 1 or len(json.dumps(content, ensure_ascii=False)) > LINE_LENGTH


def test_json_of_a_document():
    ci95 = [[layer / 7, layer / 3] for layer in range(9)]
    content = {"layers": list(range(60)), "model": {"id": "llama"}, "curve": {"mean": [0.5] * 40, "ci95": ci95}}
    pairs = ",\n".join(f"   {json.dumps(pair)}" for pair in ci95)
    assert format_json(content) == (
        f'{{\n "layers": {json.dumps(content["layers"])},\n "model": {{"id": "llama"}},\n "curve": {{\n'
        f'  "mean": {json.dumps([0.5] * 40)},\n  "ci95": [\n{pairs}\n  ]\n }}\n}}'
    )


def test_json_of_what_python_writes_otherwise(tmp_path):
    """Tuples become lists, and keys texts, in a long value as in a short one."""
    path = tmp_path / "result.json"
    write_json(path, dict.fromkeys(range(3), ("a" * 40, "b" * 40)))
    assert json.loads(path.read_text()) == {str(layer): ["a" * 40, "b" * 40] for layer in range(3)}


@pytest.mark.parametrize("path", sorted(FIGURES.glob("*.json")), ids=lambda path: path.stem)
def test_committed_json_has_this_form(path, tmp_path):
    write_json(tmp_path / path.name, json.loads(path.read_text(encoding="utf-8")))
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


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
