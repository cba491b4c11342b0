"""How many rows run at a time: by a GPU's free memory, and by halves where that was too many."""

import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchscopes.data.texts import TextSet
from patchscopes.engine import batching, extract, fast, hooks, row_hooks, row_walk
from patchscopes.engine.batching import RowSize, rows_per_batch, run_in_batches
from patchscopes.engine.jacobian import compute_jacobians
from patchscopes.engine.memory import measure_free_memory
from patchscopes.engine.relevancy import generate_with_relevancy, score_tokens
from patchscopes.engine.rows import Row, Write
from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError, PatchscopesWarning
from patchscopes.experiments import next_token
from patchscopes.experiments.config import NextTokenConfig
from patchscopes.patch import (
    extract_representations,
    generate_after,
    generate_rows,
    patch_generate,
    patch_logits,
    patch_logits_ahead_in_batches,
    patch_rows,
    patch_rows_in_batches,
)
from patchscopes.results import ChunkStore
from patchscopes.tokens import get_end_tokens

ENGINES = {"fast": (fast, row_walk), "hooks": (hooks, row_hooks)}
LINE = "{} rows at a time are out of memory; going on with {} at a time"


@pytest.fixture(autouse=True)
def _forget_limits(monkeypatch):
    """What one test finds out about a model is nothing to the next."""
    monkeypatch.setattr(batching, "_limits", weakref.WeakKeyDictionary())


@pytest.fixture
def halvings():
    """The lines that say that a batch was halved, as they come."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield Lines(told)


class Lines:
    def __init__(self, told):
        self.told = told

    def take(self):
        lines = [str(one.message) for one in self.told if one.category is PatchscopesWarning]
        self.told.clear()
        return lines


def refuse(n_rows, most):
    if n_rows > most:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def limit_engines(monkeypatch, most, most_at_second_token=10_000):
    """No engine computes more rows than that at once, or can append more second tokens."""

    def limited(whole):
        def first_logits(*args):
            refuse(len(args[-1]), most)
            return whole(*args)

        return first_logits

    def limited_generation(whole):
        def start_generation(*args):
            refuse(len(args[-1]), most)
            logits, advance = whole(*args)

            def limited_advance(chosen, kept):
                refuse(len(chosen), most_at_second_token)
                return advance(chosen, kept)

            return logits, limited_advance

        return start_generation

    for module in (fast, hooks, row_walk, row_hooks):
        monkeypatch.setattr(module, "first_logits", limited(module.first_logits))
        monkeypatch.setattr(module, "start_generation", limited_generation(module.start_generation))


class TestHalving:
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, 40), st.integers(1, 50), st.integers(1, 50))
    def test_every_row_is_run_once_in_order_and_each_failure_is_one_line(self, llama, n_rows, batch_size, most):
        batching._limits.clear()
        failed = []

        def run(rows):
            n = rows.stop - rows.start
            if n > most:
                failed.append(n)
            refuse(n, most)
            return list(range(n_rows))[rows]

        for n_failures in (None, 0):
            failed.clear()
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                batches = list(run_in_batches(llama, n_rows, run, batch_size=batch_size))
            assert [row for _, rows in batches for row in rows] == list(range(n_rows))
            assert all(rows == list(range(n_rows))[which] for which, rows in batches)
            assert [str(one.message) for one in told] == [LINE.format(n, n // 2) for n in failed]
            # What does not fit is found out once.
            assert n_failures is None or len(failed) == n_failures

    def test_a_larger_row_is_taken_to_fit_less_often(self, llama, halvings):
        sizes = []

        def run(rows):
            sizes.append(rows.stop - rows.start)
            refuse(sizes[-1], 8)

        assert len(list(run_in_batches(llama, 16, run, row=RowSize(run=5)))) == 2
        sizes.clear()
        assert len(list(run_in_batches(llama, 16, run, row=RowSize(run=20)))) > 2
        assert max(sizes) < 8
        assert halvings.take() == [LINE.format(16, 8)]

    def test_other_models_are_as_free_as_before(self, llama, tiny_models, halvings):
        list(run_in_batches(llama, 4, lambda rows: refuse(rows.stop - rows.start, 1)))
        assert len(list(run_in_batches(tiny_models("gpt2"), 4, lambda rows: None))) == 1
        assert len(halvings.take()) == 2

    def test_one_row_that_does_not_fit_ends_it(self, llama, halvings):
        batches = run_in_batches(llama, 4, lambda rows: refuse(rows.stop - rows.start, 0))
        with pytest.raises(PatchscopesError, match="one row alone is out of memory on cpu; give shorter prompts"):
            list(batches)
        assert halvings.take() == [LINE.format(4, 2), LINE.format(2, 1)]

    def test_other_errors_and_those_of_the_caller_pass(self, llama, halvings):
        def fail(rows):
            raise RuntimeError("shapes do not fit")

        with pytest.raises(RuntimeError, match="shapes"):
            list(run_in_batches(llama, 4, fail))

        def use_batches():
            for _ in run_in_batches(llama, 4, lambda rows: None):
                refuse(2, 1)

        with pytest.raises(torch.OutOfMemoryError):
            use_batches()
        assert not halvings.take()

    def test_a_bad_batch_size_is_refused_at_once(self, llama):
        with pytest.raises(PatchscopesError, match="batch_size must be at least 1"):
            run_in_batches(llama, 4, lambda rows: None, batch_size=0)


@pytest.mark.parametrize("engine", ["fast", "hooks"])
class TestEngines:
    """What is out of memory above some number of rows gives what it gives at once."""

    def build(self, llama, n_rows=7):
        target = TargetPrompt(llama, "Colour of the DOG is", 3)
        generator = torch.Generator().manual_seed(0)
        return target, torch.randn(n_rows, 32, generator=generator), [number % 5 - 1 for number in range(n_rows)]

    def build_rows(self, llama):
        target, vectors, layers = self.build(llama)
        other = TargetPrompt(llama, "A cat, a hat and a", 2)
        targets = [target, other, target, target, other, target, target]
        return [
            Row(target=one, writes=(Write(position=one.position, layer=layer, vector=vector),))
            for one, vector, layer in zip(targets, vectors, layers, strict=True)
        ]

    def test_logits(self, llama, engine, monkeypatch, halvings):
        target, vectors, layers = self.build(llama)
        whole = patch_logits(target, vectors, layers, engine=engine)
        limit_engines(monkeypatch, 2)
        halved = patch_logits(target, vectors, layers, engine=engine)
        torch.testing.assert_close(halved, whole)
        assert halvings.take() == [LINE.format(7, 3), LINE.format(3, 1)]
        torch.testing.assert_close(patch_logits(target, vectors, layers, engine=engine), whole)
        assert not halvings.take()

    def test_a_given_batch_size_is_halved_too(self, llama, engine, monkeypatch, halvings):
        target, vectors, layers = self.build(llama)
        whole = patch_logits(target, vectors, layers, engine=engine)
        limit_engines(monkeypatch, 2)
        torch.testing.assert_close(patch_logits(target, vectors, layers, engine=engine, batch_size=5), whole)
        assert halvings.take() == [LINE.format(5, 2)]

    def test_logits_ahead(self, llama, engine, monkeypatch, halvings):
        target, vectors, layers = self.build(llama)
        whole = torch.cat(list(patch_logits_ahead_in_batches(target, vectors, layers, 3, engine=engine)))
        limit_engines(monkeypatch, 10_000, most_at_second_token=3)
        halved = list(patch_logits_ahead_in_batches(target, vectors, layers, 3, engine=engine))
        assert [len(batch) for batch in halved] == [3, 3, 1]
        torch.testing.assert_close(torch.cat(halved), whole, atol=1e-4, rtol=1e-4)
        assert halvings.take() == [LINE.format(7, 3)]

    def test_generation_with_a_stop_that_knows_rows_by_their_numbers(self, llama, engine, monkeypatch, halvings):
        """In the middle of a generation; each row waits for a token of its own."""
        target, vectors, layers = self.build(llama)
        whole = patch_generate(target, vectors, layers, max_new_tokens=7, engine=engine)
        n_new = torch.tensor([7, 3, 5, 1, 4, 6, 2])

        def stop(tokens, rows):
            return torch.full((len(tokens),), tokens.shape[1]) >= n_new[rows]

        def check(stopped):
            for row, of_whole, n in zip(stopped, whole, n_new, strict=True):
                assert torch.equal(row[:n], of_whole[:n])
                assert (row[n:] == get_end_tokens(llama)[0]).all()

        limit_engines(monkeypatch, 4, most_at_second_token=2)
        check(patch_generate(target, vectors, layers, max_new_tokens=7, engine=engine, stop=stop))
        assert halvings.take() == [LINE.format(7, 3), LINE.format(3, 1)]
        batching._limits.clear()
        rows = [
            Row(target=target, writes=(Write(position=3, layer=layer, vector=vector),))
            for vector, layer in zip(vectors, layers, strict=True)
        ]
        check(generate_rows(rows, max_new_tokens=7, engine=engine, stop=stop))
        assert halvings.take() == [LINE.format(7, 3), LINE.format(3, 1)]

    def test_samples_stay_those_of_the_seed(self, llama, engine, monkeypatch, halvings):
        target, vectors, layers = self.build(llama)

        def sample():
            torch.manual_seed(3)
            return patch_generate(target, vectors, layers, max_new_tokens=5, temperature=1.0, engine=engine)

        whole = sample()
        limit_engines(monkeypatch, 2)
        assert torch.equal(sample(), whole)
        assert halvings.take()

    def test_rows_of_several_targets(self, llama, engine, monkeypatch, halvings):
        rows = self.build_rows(llama)
        logits, said = (ask(rows, engine=engine) for ask in (patch_rows, generate_rows))
        limit_engines(monkeypatch, 3)
        torch.testing.assert_close(patch_rows(rows, engine=engine), logits)
        assert halvings.take() == [LINE.format(5, 2)]
        torch.testing.assert_close(torch.cat(list(patch_rows_in_batches(rows, engine=engine))), logits)
        assert torch.equal(generate_rows(rows, engine=engine), said)

    def test_relevancy_and_scores(self, llama, engine, monkeypatch, halvings):
        rows = self.build_rows(llama)
        whole = generate_with_relevancy(rows, max_new_tokens=4, engine=engine)
        scores = score_tokens(rows, whole.tokens, engine=engine)
        limit_engines(monkeypatch, 10_000, most_at_second_token=2)
        halved = generate_with_relevancy(rows, max_new_tokens=4, engine=engine)
        assert torch.equal(halved.tokens, whole.tokens)
        torch.testing.assert_close(halved.relevancies, whole.relevancies, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(score_tokens(rows, whole.tokens, engine=engine), scores, atol=1e-5, rtol=1e-4)
        assert halvings.take()

    def test_generation_with_nothing_patched(self, llama, engine, monkeypatch, halvings):
        prompts = ["a dog", "a dog and", "a cat", "another", "a"]
        whole = generate_after(llama, prompts, max_new_tokens=4, engine=engine)
        limit_engines(monkeypatch, 2)
        assert torch.equal(generate_after(llama, prompts, max_new_tokens=4, engine=engine), whole)
        assert halvings.take() == [LINE.format(5, 2)]


@pytest.mark.parametrize("packed", [False, True])
def test_extraction(llama, monkeypatch, halvings, packed):
    texts, positions = ["abc", "a", "abcdef", "abcdefgh", "abc", "xy"], [-1, 0, 2, 5, 1, -1]
    whole = extract_representations(llama, texts, positions)
    run_with_hooks, read_packed = llama.run_with_hooks, extract.read_packed

    def limited(tokens, **kwargs):
        refuse(len(tokens), 2)
        return run_with_hooks(tokens, **kwargs)

    def limited_packed(twin, tree, *args):
        refuse(len(tree.nodes), 2)
        return read_packed(twin, tree, *args)

    monkeypatch.setattr(llama, "run_with_hooks", limited)
    monkeypatch.setattr(extract, "read_packed", limited_packed)
    if not packed:
        monkeypatch.setattr(extract, "choose_tree", lambda *args: None)
    torch.testing.assert_close(extract_representations(llama, texts, positions), whole)
    # One text is there twice, and read once.
    assert halvings.take() == [LINE.format(5, 2)]


def test_jacobians(llama, monkeypatch, halvings):
    whole = compute_jacobians(llama, "a dog and a", 2, engine="fast")
    grad = torch.autograd.grad

    def limited(outputs, inputs, grad_outputs, **kwargs):
        refuse(len(grad_outputs), 20)
        return grad(outputs, inputs, grad_outputs, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", limited)
    torch.testing.assert_close(compute_jacobians(llama, "a dog and a", 2, engine="fast").jacobians, whole.jacobians)
    assert halvings.take() == [LINE.format(32, 16)]


def test_an_experiment_goes_on_with_the_same_results(llama, tmp_path, monkeypatch, halvings):
    texts = TextSet("some", "evaluation", tuple(f"a dog and {number} more animals" for number in range(12)))
    config = NextTokenConfig(n_samples=12, methods=("logit_lens", "token_identity"))
    whole, _ = next_token.run(llama, texts, config, ChunkStore(tmp_path / "whole"))
    limit_engines(monkeypatch, 10)
    halved, _ = next_token.run(llama, texts, config, ChunkStore(tmp_path / "halved"))
    assert halved == whole
    assert halvings.take() == [LINE.format(48, 24), LINE.format(24, 12), LINE.format(12, 6)]


class Somewhere:
    """A model of which nothing is asked but where it is and how large."""

    def __init__(self, cfg, devices):
        self.cfg, self.devices, self.tokenizer, self.hook_dict = cfg, devices, None, {}

    def named_parameters(self):
        return ((device, SimpleNamespace(device=torch.device(device))) for device in self.devices)

    def to_tokens(self):
        raise AssertionError

    run_with_hooks = to_tokens


class TestGpuMemory:
    @pytest.fixture
    def gpus(self, monkeypatch):
        """Two GPUs, of which the second has less memory that is free or kept for nothing."""
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((2000, 1000)[device.index], 8000))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: (500, 700)[device.index])
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: (400, 300)[device.index])

    @pytest.mark.parametrize(
        ("device", "devices", "free"),
        [
            ("cpu", ["cpu"], None),
            ("cuda:0", ["cuda:0"], 2100),
            ("cuda", ["cuda:1", "cuda:1"], 1400),
            ("cuda:0", ["cuda:0", "cuda:1", "cpu"], 1400),
        ],
    )
    def test_what_is_free_is_that_of_the_fullest_gpu(self, gpus, llama, device, devices, free):
        assert measure_free_memory(Somewhere(SimpleNamespace(device=device), devices)) == free

    def test_a_model_on_the_cpu_has_none(self, llama):
        assert measure_free_memory(llama) is None

    @given(
        st.integers(0, 2**38),
        st.builds(
            RowSize,
            run=st.integers(1, 400),
            unembedded=st.integers(0, 400),
            cached=st.integers(0, 400),
            seen=st.integers(0, 400),
        ),
    )
    def test_a_batch_takes_a_part_of_what_is_free(self, smollm, free, row):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batching, "measure_free_memory", lambda model: free)
            n_rows = rows_per_batch(smollm, row)
            assert n_rows.bit_count() == 1
            taken = n_rows * row.count_bytes(smollm)
            assert n_rows == 1 or taken <= free / 2
            # No larger power of two fits, or it is more than a kernel can count.
            assert 4 * taken >= free or 2 * n_rows * row.count_largest(smollm) > 2**31
            patch.setattr(batching, "measure_free_memory", lambda model: 2 * free + 2)
            assert rows_per_batch(smollm, row) >= n_rows

    @pytest.mark.parametrize("part", ["run", "unembedded", "cached", "seen"])
    def test_a_row_with_more_of_anything_is_larger(self, smollm, part):
        sizes = [RowSize(**{"run": 5, part: n}).count_bytes(smollm) for n in (10, 100, 1000)]
        assert sizes == sorted(set(sizes))
