"""A claim is one process's at a time, and no longer than that lives."""

import json
import os
import subprocess
import sys
import threading
import time
from multiprocessing import get_context

import pytest

from patchscopes.errors import PatchscopesError
from patchscopes.experiments import claims
from patchscopes.experiments.chunks import measure_chunks, measure_parts
from patchscopes.experiments.claims import claim
from patchscopes.results import ChunkStore, Share


def test_one_at_a_time(tmp_path):
    names = [tmp_path / "of_run" / name for name in ("00000", "00000", "00001")]
    with claim(names[0]) as first, claim(names[1]) as second, claim(names[2]) as other:
        assert (first, second, other) == (True, False, True)
    with claim(tmp_path / "of_run" / "00000") as again:
        assert again
    assert list((tmp_path / "of_run").iterdir()) == []


def test_it_is_let_go_of_by_what_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt), claim(tmp_path / "x"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def leave_claim(path, program="import os; os._exit(0)") -> None:
    """A claim of a process that was killed while it had it."""
    code = f"""
import sys
from pathlib import Path
from patchscopes.experiments.claims import claim
with claim(Path(sys.argv[1])) as mine:
    assert mine
    {program}
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=120)


def test_that_of_a_dead_process_is_taken_over_at_once(tmp_path):
    leave_claim(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x.claim-0"]
    with claim(tmp_path / "x") as mine, claim(tmp_path / "x") as another:
        assert (mine, another) == (True, False)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.claim-0", "x.claim-1"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", json.dumps({"machine": "another node", "pid": 1, "started": 0.0})])
def test_that_of_another_machine_expires_when_it_is_not_touched(tmp_path, monkeypatch, content):
    left = tmp_path / "x.claim-0"
    left.write_text(content)
    with claim(tmp_path / "x") as mine:
        assert not mine
    lifetime = claims.LIFETIME if "node" in content else claims.HEARTBEAT
    for age, expired in ((lifetime - 5, False), (lifetime + 5, True)):
        os.utime(left, (time.time() - age, time.time() - age))
        with claim(tmp_path / "x") as mine:
            assert mine == expired
    assert list(tmp_path.iterdir()) == []
    left.write_text(content)
    os.utime(left, (0, 0))
    with claim(tmp_path / "x") as mine:
        assert mine
    assert list(tmp_path.iterdir()) == []


def test_a_claim_is_touched_as_long_as_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT", 0.01)
    with claim(tmp_path / "x"):
        (made,) = tmp_path.iterdir()
        os.utime(made, (0, 0))
        until = time.monotonic() + 10
        while made.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert abs(made.stat().st_mtime - time.time()) < 60


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PatchscopesError, match="cannot write .*is no folder"), claim(tmp_path / "file" / "x"):
        pass


@pytest.mark.parametrize("n_takers", [2, 8])
def test_of_many_who_take_over_one_has_it(tmp_path, n_takers):
    (tmp_path / "x.claim-0").write_text("")
    os.utime(tmp_path / "x.claim-0", (0, 0))
    together, had = threading.Barrier(n_takers), []

    def take():
        together.wait()
        with claim(tmp_path / "x") as mine:
            had.append(mine)
            together.wait()

    takers = [threading.Thread(target=take) for _ in range(n_takers)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert sorted(had) == [False] * (n_takers - 1) + [True]


class TestShare:
    def test_alone_it_is_the_order(self):
        assert Share().put_first(["a", "b", "c"]) == ["a", "b", "c"]

    @pytest.mark.parametrize("count", [1, 2, 3, 7])
    def test_own_ones_come_first_and_all_are_there(self, count):
        names = [str(number) for number in range(6)]
        firsts = [Share(index=index, count=count).put_first(names) for index in range(count)]
        assert all(sorted(order) == names for order in firsts)
        assert sorted(name for index, order in enumerate(firsts) for name in order[: len(names[index::count])]) == names


def measure_slowly(folder, share, log, ready) -> None:
    ready.wait()

    def measure(number):
        with log.open("a") as file:
            file.write(f"{share.index} {number}\n")
        time.sleep(0.02)
        return {"square": number**2}

    found = measure_chunks(range(12), ChunkStore(folder, share), measure, iter)
    assert [one["square"] for one in found] == [number**2 for number in range(12)]


@pytest.mark.parametrize("count", [2, 4])
def test_no_chunk_is_measured_twice(tmp_path, count):
    context = get_context("fork")
    ready, log = context.Barrier(count), tmp_path / "log"
    folder = tmp_path / "chunks"
    processes = [
        context.Process(target=measure_slowly, args=(folder, Share(index=index, count=count), log, ready))
        for index in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count
    measured = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    assert sorted(number for _, number in measured) == list(range(12))
    assert {index for index, _ in measured} == set(range(count))
    assert all(path.suffix == ".json" for path in folder.iterdir())


def test_what_another_process_is_at_is_waited_for(tmp_path):
    store, began = ChunkStore(tmp_path), threading.Event()

    def measure_elsewhere():
        with claim(tmp_path / "1"):
            began.set()
            time.sleep(0.5)
            store.save("1", "elsewhere")

    elsewhere = threading.Thread(target=measure_elsewhere)
    elsewhere.start()
    began.wait()
    found = measure_parts({name: lambda: "here" for name in "012"}, store, iter)
    elsewhere.join()
    assert found == {"0": "here", "1": "elsewhere", "2": "here"}
