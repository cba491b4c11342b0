"""Some rows in the place of all: what is counted, and what stands in for the others."""

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from patchscopes.engine.batching import RowSize, run_in_batches
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt
from patchscopes.estimating import tally
from patchscopes.estimating.flop import FlopCounter
from patchscopes.estimating.rows import stretch
from patchscopes.estimating.tally import ESTIMATE, Estimate, Tally, do_some, keeping_all_rows, preparing, standing_for
from patchscopes.patch import patch_generate, patch_logits


@pytest.fixture
def estimate():
    token = ESTIMATE.set(Estimate(seconds_per_step=0.05))
    yield ESTIMATE.get()
    ESTIMATE.reset(token)


def rows_and_tokens(estimate: Estimate) -> tuple[float, float]:
    return estimate.passed.rows, estimate.passed.tokens


class TestCounts:
    def test_of_texts(self, llama, estimate):
        """Byte by byte: BOS and three letters, then BOS and five; each is run up to its last position that is read."""
        extract_representations(llama, ["abc", "abcde"], [-1, -1])
        assert rows_and_tokens(estimate) == (2, 2 * 6)

    def test_of_rows(self, llama, estimate):
        target = TargetPrompt(llama, "say ? now", 5)
        vectors = torch.randn(7, 32)
        patch_logits(target, vectors, [0] * 7)
        # From i* = 5 of 10 tokens on.
        assert rows_and_tokens(estimate) == (7, 7 * 5)
        patch_generate(target, vectors, [0] * 7, max_new_tokens=3)
        assert rows_and_tokens(estimate) == (14, 7 * 5 + 7 * 8)

    def test_of_calls_in_calls(self, llama, estimate):
        target = TargetPrompt(llama, "say ?", -1)
        vectors = torch.randn(6, 32)
        batches = run_in_batches(llama, 6, lambda rows: patch_logits(target, vectors[rows], [1] * len(vectors[rows])))
        assert sum(len(logits) for _, logits in batches) == 6
        assert rows_and_tokens(estimate) == (6, 6)

    def test_of_the_largest_batch(self, llama, estimate):
        row = RowSize(run=3, cached=5)
        list(run_in_batches(llama, 6, lambda rows: rows, row=row, batch_size=4))
        assert estimate.largest_batch == 4 * row.count_bytes(llama)
        estimate.scale = 0.5
        list(run_in_batches(llama, 6, lambda rows: rows, row=row, batch_size=8))
        assert estimate.largest_batch == 4 * row.count_bytes(llama)


class TestLongCalls:
    N = 64

    @pytest.fixture
    def slow(self, llama, estimate):
        """A call in which a row takes 2 ms, and which rows were run."""
        estimate.may_skip_rows = True
        done: list[int] = []

        def run(rows: slice) -> torch.Tensor:
            time.sleep(0.002 * (rows.stop - rows.start))
            done.extend(range(rows.start, rows.stop))
            return torch.arange(rows.start, rows.stop)

        return done, lambda: list(run_in_batches(llama, self.N, run, batch_size=16))

    def test_some_rows_stand_for_all(self, slow, estimate, monkeypatch):
        done, call = slow
        monkeypatch.setattr(tally, "FEWEST_SECONDS", 0.04)
        before = estimate.read()
        batches = call()
        taken = estimate.read() - before
        assert len(done) < self.N
        assert [(rows.start, rows.stop) for rows, _ in batches] == [(0, 16), (16, 32), (32, 48), (48, 64)]
        assert all(len(result) == 16 for _, result in batches)
        assert taken.rows == pytest.approx(self.N)
        assert taken.seconds == pytest.approx(0.002 * self.N, rel=0.5)

    def test_a_short_call_runs_all(self, slow, estimate):
        done, call = slow
        estimate.seconds_per_step = 60.0
        before = estimate.read()
        batches = call()
        taken = estimate.read() - before
        assert torch.cat([result for _, result in batches]).tolist() == list(range(self.N))
        assert done[-self.N :] == list(range(self.N))
        assert taken.rows == pytest.approx(self.N)
        assert taken.seconds == pytest.approx(0.002 * self.N, rel=0.5)

    def test_what_decides_what_is_done_next_is_found_of_every_row(self, slow, estimate, monkeypatch):
        done, call = slow
        monkeypatch.setattr(tally, "FEWEST_SECONDS", 0.04)
        with keeping_all_rows():
            batches = call()
        assert done == list(range(self.N))
        assert torch.cat([result for _, result in batches]).tolist() == done
        assert estimate.may_skip_rows

    def test_what_decides_is_found_of_every_row(self, slow, estimate):
        done, call = slow
        estimate.may_skip_rows = False
        estimate.stop_at = 0.0
        call()
        assert done == list(range(self.N))


def test_results_of_any_form_are_stretched():
    table = torch.arange(6).reshape(3, 2)
    result = stretch((table, ["a", "b", "c"], None, torch.tensor(7.0)), 3, 7)
    assert result[0].tolist() == [[0, 1], [2, 3], [4, 5]] * 2 + [[0, 1]]
    assert result[1] == list("abcabca")
    assert result[2:] == (None, torch.tensor(7.0))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mixtral"])
def test_flop_are_those_of_pytorch(tiny_models, family):
    model = tiny_models(family)
    target = TargetPrompt(model, "say ? now", 5)

    def run() -> None:
        extract_representations(model, ["abc", "abcde"], [-1, -1])
        patch_generate(target, torch.ones(4, 32), [0, 1, 2, 3], max_new_tokens=3, engine="fast")

    run()
    with FlopCounter() as counter:
        run()
    with FlopCounterMode(display=False) as expected:
        run()
    assert counter.flop == expected.get_total_flops() > 0


def test_flop_of_a_model_are_two_for_each_weight_and_token(llama):
    """The weights of the blocks, and the attention over 20 tokens: queries by keys, and scores by values."""
    n_tokens, width, of_keys, of_mlp = 20, 32, 16, 64
    n_weights = 2 * width * width + 2 * width * of_keys + 3 * width * of_mlp
    with FlopCounter() as counter:
        extract_representations(llama, ["x" * (n_tokens - 1)], [-1])
    assert counter.flop == 4 * n_tokens * (2 * n_weights + 4 * n_tokens * width)


class TestIterations:
    def test_the_first_few_items_stand_for_all(self, estimate, monkeypatch):
        monkeypatch.setattr("patchscopes.estimating.tally.SECONDS_OF_ITEMS", 0.02)
        before = estimate.read()
        done = []
        for item in do_some(range(100)):
            time.sleep(0.01)
            estimate.add(Tally(rows=2.0))
            done.append(item)
        taken = estimate.read() - before
        assert done == list(range(len(done)))
        assert 2 <= len(done) < 10
        assert taken.rows == pytest.approx(200)
        assert taken.seconds == pytest.approx(1.0, rel=0.3)

    def test_without_an_estimate_all_with_progress(self):
        seen = []
        assert list(do_some([1, 2, 3], lambda items: [seen.append(item) or item for item in items])) == [1, 2, 3]
        assert seen == [1, 2, 3]

    def test_once_for_several_times(self, estimate):
        before = estimate.read()
        with standing_for(5):
            estimate.add(Tally(rows=3.0))
        assert (estimate.read() - before).rows == 15

    def test_what_is_prepared_once_counts_by_itself(self, estimate):
        before = estimate.read()
        with preparing():
            assert ESTIMATE.get() is None
            time.sleep(0.05)
        assert ESTIMATE.get() is estimate
        assert (estimate.read() - before).seconds < 0.01
        assert estimate.prepared >= 0.05
