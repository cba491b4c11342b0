"""The history of layer grids: appended by several processes, torn, listed, compared."""

import json
import multiprocessing
from pathlib import Path

import pytest

from patchscopes.errors import PatchscopesError
from patchscopes.experiments.layer_grid_history import (
    append_entry,
    build_entry,
    compare_runs,
    find_run,
    load_history,
    tabulate_history,
)


def share(mean, low=None, high=None) -> dict:
    return {"mean": mean, "ci95": None if low is None else [low, high]}


def make_document(model: str = "tiny", strong: float = 0.25, stage: str = "targeted", names=("lion", "tiger")) -> dict:
    """The result file of a run with one grid."""
    grid = {
        "stage": stage,
        "layers": [0, 3],
        "target_layers": [0, 3],
        "names": [{"name": name} for name in names],
        "others": ["horse"],
        "templates": [{"name": "is"}],
        "success": {"strong": share(strong), "partial": share(0.0), "failed": share(1 - strong)},
        "other_state": share(0.0, 0.0, 0.1),
        "unpatched": share(0.0),
        "by_layer": {"strong": {"mean": [strong, 0.0], "ci95": None}, "other_state": None},
        "by_target_layer": {"strong": {"mean": [strong, 0.0], "ci95": None}, "other_state": None},
        "by_name": [strong + 0.1 * number for number in range(len(names))],
        "hotspots": {"pairs": [], "layers": [], "target_layers": []},
        "regions": {},
        "consistency": None,
        "texts": ["much text"],
    }
    return {
        "config": {"mode": stage, "seed": 0, "model": model},
        "environment": {"model": {"id": model}},
        "results": {"mode": stage, "n_layers": 4, "grids": [grid]},
    }


def make_entry(**options) -> dict:
    return build_entry(make_document(**options), Path("figures/a.json"), Path("figures/h.jsonl"))


def append_many(path: Path, process: int, n: int) -> None:
    for number in range(n):
        append_entry(path, {"process": process, "number": number, "filling": "ℓ" * 5000})


class TestAppending:
    def test_what_is_kept_of_a_run(self, tmp_path):
        entry = make_entry()
        assert entry["file"] == "a.json"
        assert (entry["model"], entry["config"]["seed"], entry["summary"]["mode"]) == ("tiny", 0, "targeted")
        (grid,) = entry["summary"]["grids"]
        assert (grid["names"], grid["templates"], grid["n_others"]) == (["lion", "tiger"], ["is"], 1)
        assert "texts" not in grid
        append_entry(tmp_path / "new" / "h.jsonl", entry)
        append_entry(tmp_path / "new" / "h.jsonl", entry)
        assert load_history(tmp_path / "new" / "h.jsonl").runs == (entry, entry)

    def test_a_result_on_another_drive(self, monkeypatch, tmp_path):
        def no_way(path, start):
            raise ValueError("path is on mount 'C:', start on mount 'D:'")

        monkeypatch.setattr("os.path.relpath", no_way)
        output = tmp_path / "a.json"
        assert build_entry(make_document(), output, Path("figures/h.jsonl"))["file"] == output.as_posix()

    def test_several_processes_at_once(self, tmp_path):
        path = tmp_path / "h.jsonl"
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=append_many, args=(path, number, 50)) for number in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert sorted((line["process"], line["number"]) for line in lines) == [
            (process, number) for process in range(4) for number in range(50)
        ]

    @pytest.mark.parametrize("n_bytes", [1, 40, -2, -1])
    def test_a_torn_last_line(self, tmp_path, n_bytes):
        path = tmp_path / "h.jsonl"
        append_entry(path, make_entry())
        whole = path.read_bytes()
        # Torn anywhere, within a character too.
        path.write_bytes(whole + make_line("Ōℓ")[:n_bytes])
        history = load_history(path)
        assert len(history.runs) == (2 if n_bytes == -1 else 1)
        assert history.torn == (() if n_bytes == -1 else (2,))
        # The next one is not glued to it.
        append_entry(path, make_entry(model="next"))
        history = load_history(path)
        assert history.runs[-1]["model"] == "next"
        assert len(history.runs) == (3 if n_bytes == -1 else 2)
        assert history.torn == (() if n_bytes == -1 else (2,))

    def test_lines_that_are_no_runs(self, tmp_path):
        path = tmp_path / "h.jsonl"
        path.write_text('[1]\n\n{"time": 3}\n')
        assert load_history(path) == load_history(path)
        assert load_history(path).torn == (1, 3)
        append_entry(path, make_entry())
        assert len(load_history(path).runs) == 1

    def test_mistakes(self, tmp_path):
        with pytest.raises(PatchscopesError, match="there is no history"):
            load_history(tmp_path / "h.jsonl")
        with pytest.raises(PatchscopesError, match="cannot write"):
            append_entry(Path("/proc/no/h.jsonl"), {})


def make_line(model: str) -> bytes:
    return json.dumps(make_entry(model=model), ensure_ascii=False).encode() + b"\n"


@pytest.fixture
def history(tmp_path):
    path = tmp_path / "h.jsonl"
    append_entry(path, make_entry())
    append_entry(path, make_entry(model="base", strong=0.5, names=("tiger", "lion", "horse")))
    append_entry(path, make_entry(stage="multi", names=("cow",)))
    return load_history(path)


class TestReading:
    def test_runs_by_number(self, history):
        assert find_run(history, 1)["model"] == find_run(history, -3)["model"] == "tiny"
        assert find_run(history, 2)["model"] == find_run(history, -2)["model"] == "base"
        for number in (0, 4, -4):
            with pytest.raises(PatchscopesError, match=f"there is no run {number}: the history has runs 1 to 3"):
                find_run(history, number)

    def test_a_row_for_each_grid(self, history):
        rows = tabulate_history(history)
        assert [row["run"] for row in rows] == ["1", "2", "3"]
        assert [row["names"] for row in rows] == ["2 names", "3 names", "cow"]
        assert rows[1]["strong"] == "0.500"
        assert len({tuple(row) for row in rows}) == 1

    def test_two_side_by_side(self, history):
        compared = compare_runs(history.runs[0], history.runs[1])
        assert compared["differences"] == {"model": ["tiny", "base"]}
        (grid,) = compared["grids"]
        assert grid["names"] == ["lion", "tiger"]
        # 0.6 - 0.25 and 0.5 - 0.35.
        assert grid["difference"]["mean"] == pytest.approx(0.25)
        low, high = grid["difference"]["ci95"]
        assert (low, high) == pytest.approx((0.15, 0.35))

    def test_without_a_name_of_both(self, history):
        other = make_entry(names=("cow",))
        assert compare_runs(history.runs[0], other)["grids"][0]["difference"] is None

    def test_without_a_grid_of_both(self, history):
        with pytest.raises(PatchscopesError, match="'targeted' and one of 'multi' have no grid in common"):
            compare_runs(history.runs[0], history.runs[2])
