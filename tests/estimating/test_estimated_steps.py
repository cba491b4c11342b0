"""Some parts of each step in the place of all."""

import time
from functools import partial
from pathlib import Path

import pytest

from patchscopes.estimating.steps import NotMeasuredError, Part
from patchscopes.estimating.tally import ESTIMATE, Estimate, Tally
from patchscopes.experiments.chunks import measure_chunks, measure_parts, split_into_chunks
from patchscopes.results import ChunkStore

SECONDS_OF_MEMBER = 0.002


@pytest.fixture
def estimate(tmp_path):
    token = ESTIMATE.set(Estimate(name="sums", folder=tmp_path, seconds_per_step=0.1))
    yield ESTIMATE.get()
    ESTIMATE.reset(token)


def square(members, done=None):
    """Of each member a row in two tables, beside one of a length of its own."""
    time.sleep(SECONDS_OF_MEMBER * len(members))
    ESTIMATE.get().add(Tally(rows=float(len(members))))
    if done is not None:
        done.append(len(members))
    return {
        "found": [{"square": member**2} for member in members],
        "by_layer": [[[member + layer for member in members] for layer in range(3)]],
        "seconds": {"square": 0.0},
    }


def test_members_stand_for_all_members(estimate, tmp_path):
    done: list[int] = []
    store = ChunkStore(tmp_path).at("squares")
    chunks = split_into_chunks(range(1000), 300)
    found = measure_chunks(chunks, store, partial(square, done=done), iter, decides=True)
    assert sum(done) < 250
    assert [len(chunk["found"]) for chunk in found] == [300, 300, 300, 100]
    assert all(len(of_layer) == 300 for of_layer in found[0]["by_layer"][0])
    assert found[0]["found"][:5] == [{"square": member**2} for member in range(5)]
    step = estimate.steps["squares"]
    assert (step.members, step.finished) == (1000, 0)
    assert step.missing.rows == pytest.approx(1000)
    assert step.missing.seconds == pytest.approx(1000 * SECONDS_OF_MEMBER, rel=0.3)
    assert not list(tmp_path.iterdir())


def test_what_nothing_depends_on_cannot_be_read(estimate, tmp_path):
    found = measure_chunks(split_into_chunks(range(50), 20), ChunkStore(tmp_path), square, iter)
    assert list(estimate.steps) == ["sums"]
    with pytest.raises(NotMeasuredError):
        found[0]["found"]


def test_finished_parts_are_taken_from_the_store(estimate, tmp_path):
    store = ChunkStore(tmp_path)
    store.save("00001", {"found": "kept"})
    found = measure_chunks(split_into_chunks(range(50), 20), store, square, iter, decides=True)
    assert found[1] == {"found": "kept"}
    step = estimate.steps["sums"]
    assert (step.members, step.finished) == (50, 20)
    assert step.missing.rows == pytest.approx(30)
    assert [path.name for path in tmp_path.iterdir()] == ["00001.json"]


def test_each_of_several_things_decides_for_itself(estimate, tmp_path):
    parts = {
        f"{folder}/known": Part(square, range(first, first + 40), True) for folder, first in (("a", 0), ("b", 100))
    }
    found = measure_parts(parts, ChunkStore(tmp_path), iter)
    assert [len(found[name]["found"]) for name in parts] == [40, 40]
    assert found["b/known"]["found"][0] == {"square": 100**2}
    assert list(estimate.steps) == ["known"]
    assert estimate.steps["known"].members == 80


def test_dictionaries_of_members(estimate, tmp_path):
    def name(members):
        time.sleep(0.005 * len(members))
        return {"texts": {member: member.upper() for member in members}}

    names = [f"name {number}" for number in range(60)]
    (found,) = measure_chunks([names], ChunkStore(tmp_path), name, iter, decides=True)
    assert list(found["texts"]) == names


def test_parts_without_members(estimate, tmp_path):
    """Two of them are measured: the first and one in the middle."""
    done = []

    def measure(number: int) -> dict:
        time.sleep(0.01)
        done.append(number)
        return {"number": number}

    found = measure_chunks([*range(10)], ChunkStore(tmp_path), measure, iter)
    assert set(done) == {0, 5}
    assert found[5]["number"] == 5
    assert estimate.steps["sums"].missing.seconds == pytest.approx(0.1, rel=0.5)
    with pytest.raises(NotMeasuredError):
        found[1]["number"]


def test_what_is_in_a_text_is_no_member(estimate, tmp_path):
    measure_chunks(["a template"], ChunkStore(tmp_path), lambda template: {"length": len(template)}, iter)
    assert estimate.steps["sums"].members == 1


def test_names_of_steps():
    estimate = Estimate(name="fig", folder=Path("run"), seconds_per_step=1.0)
    assert estimate.name_step(Path("run/00001")) == "fig"
    assert estimate.name_step(Path("run/facts/00001")) == "facts"
    assert estimate.name_step(Path("run/3-capital/lre/00000")) == "lre"
    assert estimate.name_step(Path("run/multi/unpatched")) == "unpatched"
