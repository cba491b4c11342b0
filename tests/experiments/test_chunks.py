"""What all experiments share: chunks, seconds, checks, and the samples that two models have in common."""

import time
from contextlib import contextmanager

import pytest

from patchscopes.data.texts import TextSet
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.checks import check_methods
from patchscopes.experiments.chunks import StopWatch, measure_chunks, split_into_chunks, sum_timing
from patchscopes.experiments.sampling import sample_aligned_positions
from patchscopes.model.layers import resolve_layers
from patchscopes.results import ChunkStore


def test_chunks_hold_every_member_once_and_in_order():
    chunks = split_into_chunks(range(10), 4)
    assert [list(chunk) for chunk in chunks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert split_into_chunks([], 4) == []


def test_only_chunks_that_are_not_kept_are_measured(tmp_path):
    store = ChunkStore(tmp_path)
    store.save("00001", {"sum": -1})
    measured = []

    def measure(chunk):
        measured.append(chunk)
        return {"sum": sum(chunk)}

    assert measure_chunks([[1], [2], [3]], store, measure, iter) == [{"sum": 1}, {"sum": -1}, {"sum": 3}]
    assert measured == [[1], [3]]
    assert measure_chunks([[1], [2], [3]], store, measure, iter) == [{"sum": 1}, {"sum": -1}, {"sum": 3}]
    assert measured == [[1], [3]]


@contextmanager
def files_of_at_most(n_bytes: int):
    """As a full disk, and for real."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_in_the_middle_of_a_chunk(tmp_path):
    measured = []

    def measure(chunk):
        measured.append(chunk)
        return {"numbers": [0] * chunk}

    store, chunks = ChunkStore(tmp_path), [10, 20, 50_000, 30]
    with files_of_at_most(10_000), pytest.raises(PatchscopesError, match="cannot write .*00002.json .*make room"):
        measure_chunks(chunks, store, measure, iter)
    assert measured == [10, 20, 50_000]
    # Nothing torn is left that would take the room of what comes.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.json", "00001.json"]
    finished = measure_chunks(chunks, store, measure, iter)
    assert measured == [10, 20, 50_000, 50_000, 30]
    assert [len(chunk["numbers"]) for chunk in finished] == chunks


def test_seconds_of_a_step_are_added_up():
    watch = StopWatch()
    for _ in range(2):
        with watch.time("sleep"):
            time.sleep(0.01)
    with watch.time("nothing"):
        pass
    assert 0.02 <= watch.seconds["sleep"] < 1
    assert list(watch.seconds) == ["sleep", "nothing"]
    timing = sum_timing([{"seconds": {"a": 1.0}}, {"seconds": {"a": 2.0, "b": 0.5}}])
    assert timing == {"seconds": {"a": 3.0, "b": 0.5, "total": 3.5}}


def test_checks(llama):
    check_methods(("a", "b"), ("b", "a"))
    with pytest.raises(PatchscopesError, match="no method is called 'c'; choose from a, b"):
        check_methods(("a", "c"), ("a", "b"))
    assert resolve_layers(llama, None) == [0, 1, 2, 3]
    assert resolve_layers(llama, None, 2) == [0, 3]
    assert resolve_layers(llama, (3, -1), 2) == [3, -1]
    with pytest.raises(PatchscopesError, match="layer 4 does not exist"):
        resolve_layers(llama, (4,))


def test_aligned_samples_are_positions_of_both_models(models_by_tokenizer):
    source, target = models_by_tokenizer["byte_level"], models_by_tokenizer["sentencepiece_like"]
    texts = TextSet("made up", "evaluation", tuple(f"{number} dogs and cats sing" for number in range(5)))
    drawn = sample_aligned_positions(source, target, texts, 12, seed=0)
    assert len(drawn.samples) == len(set(drawn.samples)) == 12
    assert drawn.samples == sorted(drawn.samples, key=lambda sample: (sample.text, sample.position))
    n_pairs = sum(map(len, drawn.pairs.values()))
    assert n_pairs <= drawn.n_source_positions
    for sample in drawn.samples:
        assert min(drawn.pairs[sample.text][sample.position]) > 0
    with pytest.raises(PatchscopesError, match=f"have only {n_pairs} positions"):
        sample_aligned_positions(source, target, texts, n_pairs + 1, seed=0)
