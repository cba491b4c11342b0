"""Result files and chunks."""

import json
import math
import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscopes import results
from patchscopes.data.texts import load_texts
from patchscopes.errors import PatchscopesError, PatchscopesWarning
from patchscopes.model.environment import describe_environment
from patchscopes.results import (
    LINE_LENGTH,
    ChunkStore,
    Json,
    build_document,
    check_writable,
    format_json,
    hold_lock,
    peak_memory_gib,
    write_atomically,
    write_json,
)

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
    with pytest.raises(PatchscopesError, match="cannot write .*result.json .*file is no folder.*choose another path"):
        write_json(tmp_path / "file" / "result.json", {})


def test_what_cannot_be_written_is_told_before_the_work(tmp_path):
    check_writable(tmp_path / "new" / "result.json")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "result.json", tmp_path / "new"):
        with pytest.raises(PatchscopesError, match=f"cannot write {path} .*; name another folder") as refused:
            check_writable(path, "name another folder")
        assert "\n" not in str(refused.value)


def test_a_file_is_closed_before_it_is_renamed(tmp_path, monkeypatch):
    """Windows asks for it."""
    opened, replace = [], Path.replace

    def keep(*args, **kwargs):
        opened.append(os_fdopen(*args, **kwargs))
        return opened[-1]

    def rename(self, target):
        assert opened[-1].closed
        return replace(self, target)

    os_fdopen = os.fdopen
    monkeypatch.setattr(os, "fdopen", keep)
    monkeypatch.setattr(Path, "replace", rename)
    write_atomically(tmp_path / "result.bin", b"new")
    assert len(opened) == 1
    assert (tmp_path / "result.bin").read_bytes() == b"new"


@pytest.mark.parametrize("n_refusals", [2, 100])
def test_a_file_that_another_process_has_open_is_replaced_when_it_is_closed(tmp_path, monkeypatch, n_refusals):
    """As on Windows, where it is refused until then."""
    path, refusals, replace = tmp_path / "result.bin", iter(range(n_refusals)), Path.replace
    path.write_bytes(b"old")

    def rename(self, target):
        for _ in refusals:
            raise PermissionError(13, "The process cannot access the file")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", rename)
    monkeypatch.setattr(results, "RENAMING_PAUSE", 0.0)
    if n_refusals == 100:
        with pytest.raises(PatchscopesError, match="cannot write .*cannot access the file"):
            write_atomically(path, b"new")
    else:
        write_atomically(path, b"new")
    assert path.read_bytes() == (b"old" if n_refusals == 100 else b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_many_that_write_one_file_leave_it_whole(tmp_path):
    path = tmp_path / "result.bin"
    contents = [bytes([number]) * 100_000 for number in range(6)]
    threads = [threading.Thread(target=write_atomically, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


class TestLock:
    def test_one_at_a_time(self, tmp_path):
        inside, most = [], []

        def work():
            with hold_lock(tmp_path / "new" / "lens"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.02)
                inside.pop()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == [1] * 4

    def test_who_waits_says_so(self, tmp_path, monkeypatch):
        monkeypatch.setattr(results, "SILENT_WAIT", 0.01)
        held, let_go = threading.Event(), threading.Event()

        def hold():
            with hold_lock(tmp_path / "lens"):
                held.set()
                let_go.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        threading.Timer(0.2, let_go.set).start()
        with pytest.warns(PatchscopesWarning, match="another process is at work on lens; waiting for it"):  # noqa: SIM117
            with hold_lock(tmp_path / "lens"):
                pass
        thread.join()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with hold_lock(tmp_path / "lens"):
                pass

    def test_a_mistake_inside_lets_go_and_stays_what_it_is(self, tmp_path):
        with pytest.raises(FileNotFoundError), hold_lock(tmp_path / "lens"):
            (tmp_path / "none").read_text()
        with hold_lock(tmp_path / "lens"):
            pass

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(PatchscopesError, match="cannot write .*; take another"):  # noqa: SIM117
            with hold_lock(tmp_path / "file" / "lens", "take another"):
                pass


class TestPeakMemory:
    def test_is_that_of_this_process(self):
        assert psutil.Process().memory_info().rss / 2**30 <= peak_memory_gib() < 100

    def test_on_windows(self, monkeypatch):
        info = SimpleNamespace(rss=2**30, peak_wset=3 * 2**30)
        monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: info))
        assert peak_memory_gib() == 3.0


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

    def test_clearing_leaves_alone_what_another_run_is_just_writing(self, tmp_path):
        store = ChunkStore(tmp_path / "of_run")
        store.clear()
        store.save("00000", 1)
        ChunkStore(store.folder / "phase").save("00000", 2)
        unfinished = store.folder / ".00001.json.x7"
        unfinished.write_text("[1")
        store.clear()
        assert [path for path in store.folder.rglob("*") if path.is_file()] == [unfinished]

    def test_chunks_that_cannot_be_removed(self, tmp_path, monkeypatch):
        def refuse(self, missing_ok=False):
            raise OSError(30, "Read-only file system")

        store = ChunkStore(tmp_path)
        store.save("00000", 1)
        monkeypatch.setattr(Path, "unlink", refuse)
        with pytest.raises(PatchscopesError, match="cannot write .*00000.json .Read-only file system"):
            store.clear()

    @pytest.mark.parametrize("content", [b"", b'{"a": [1,', b'"\xff"'])
    def test_a_damaged_chunk_is_measured_again(self, tmp_path, content):
        store = ChunkStore(tmp_path)
        (tmp_path / "00000.json").write_bytes(content)
        assert store.load("00000") is None
        store.save("00000", {"a": 1})
        assert store.load("00000") == {"a": 1}

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
