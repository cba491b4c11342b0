"""Gradient descent: it lowers held-out losses, stops, and ends the same after an interruption."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import make_hf_model
from hypothesis import given, settings
from hypothesis import strategies as st

from patchscopes.baselines import AffineLens, LogitLens
from patchscopes.data.texts import TextSet
from patchscopes.engine import fast, hooks
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.learned import future_lens, training, tuned_lens
from patchscopes.learned.config import FIXED_PROMPT, SOFT_PROMPT_TRAINING, TrainingConfig
from patchscopes.learned.continuation import read_with_continuation
from patchscopes.learned.future_lens import SoftPrompt, train_soft_prompt
from patchscopes.learned.mappings import LayerMapping, MapKey
from patchscopes.learned.training import train
from patchscopes.learned.tuned_lens import shuffle_batches, split_held_out, train_tuned_lens
from patchscopes.model.layers import EMBEDDING
from patchscopes.model.loading import load_model
from patchscopes.patch import patch_logits

TEXTS = TextSet("made up", "train", tuple(f"text {n}: {n * 7919 % 1000} dogs and {n**3 % 101} cats" for n in range(24)))
SHORT = TrainingConfig(n_steps=12, evaluate_every=4, batch_size=32)
SHORT_PROMPT = replace(SOFT_PROMPT_TRAINING, n_steps=6, evaluate_every=2, batch_size=8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def interrupted_after(n: int):
    """A progress wrapper that breaks off the iteration over steps."""

    def progress(items):
        if not isinstance(items, range):
            return items

        def some():
            for number, item in enumerate(items):
                if number == n:
                    raise KeyboardInterrupt
                yield item

        return some()

    return progress


class TestTrain:
    """On a quadratic bowl around 1 for one part and around 2 for the other, with noise that depends on the step."""

    def run(self, path, config, progress=iter, worse_after=None):
        parts = [[torch.zeros(3, requires_grad=True)], [torch.zeros(2, requires_grad=True)]]
        steps = []

        def add_gradients(step):
            steps.append(step)
            noise = torch.rand(1, generator=torch.Generator().manual_seed(step))
            (sum(((part[0] - goal) ** 2).sum() for goal, part in enumerate(parts, 1)) * noise).backward()

        def held_out_losses():
            if worse_after is not None and len(steps) > worse_after:
                return [9.0 + len(steps), 9.0 + len(steps)]
            return [float(((part[0].detach() - goal) ** 2).mean()) for goal, part in enumerate(parts, 1)]

        return train(parts, add_gradients, held_out_losses, config, path, progress), steps

    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_goes_down_and_resumes_to_the_same(self, tmp_path, optimizer):
        config = TrainingConfig(optimizer=optimizer, learning_rate=0.1, n_steps=40, evaluate_every=5)
        whole, steps = self.run(tmp_path / "whole", config)
        assert steps == list(range(40))
        assert [step for step, _ in whole.held_out] == list(range(0, 41, 5))
        assert all(now < then / 2 for now, then in zip(whole.held_out[-1][1], whole.held_out[0][1], strict=True))
        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path / "killed", config, interrupted_after(17))
        resumed, steps = self.run(tmp_path / "killed", config)
        assert steps == list(range(15, 40))
        assert resumed.held_out == whole.held_out
        for ours, theirs in zip(resumed.parts, whole.parts, strict=True):
            assert torch.equal(ours[0], theirs[0])

    def test_stops_when_nothing_improves_and_keeps_the_best(self, tmp_path):
        config = TrainingConfig(learning_rate=0.1, n_steps=100, evaluate_every=5, patience=2)
        trained, steps = self.run(tmp_path / "out", config, worse_after=10)
        assert trained.n_steps == len(steps) == 20
        best_losses = [float(((part[0].detach() - goal) ** 2).mean()) for goal, part in enumerate(trained.parts, 1)]
        assert best_losses == pytest.approx(trained.held_out[2][1])

    def test_a_finished_training_stays_finished(self, tmp_path):
        config = TrainingConfig(learning_rate=0.1, n_steps=10, evaluate_every=5)
        first, _ = self.run(tmp_path / "out", config)
        again, steps = self.run(tmp_path / "out", config)
        assert steps == []
        assert torch.equal(first.parts[0][0], again.parts[0][0])

    def test_schedules(self):
        sgd, adamw = TrainingConfig(n_steps=100), TrainingConfig(n_steps=100, optimizer="adamw")
        assert [training._schedule_rate(step, sgd) for step in (0, 50, 100)] == [1.0, 0.5, 0.0]
        shares = [training._schedule_rate(step, adamw) for step in range(101)]
        assert max(shares) == shares[20] == 1.0
        assert shares[:21] == sorted(shares[:21])
        assert shares[20:] == sorted(shares[20:], reverse=True)
        # The rate of the paper is for a momentum that does not sum up.
        assert training._build_optimizer([torch.zeros(1)], sgd).param_groups[0]["lr"] == pytest.approx(0.1)

    def test_each_optimizer_has_a_rate_of_its_own(self):
        assert TrainingConfig().learning_rate == 1.0
        assert TrainingConfig(optimizer="adamw").learning_rate == 1e-3
        assert TrainingConfig(optimizer="adamw", learning_rate=0.0).learning_rate == 0.0

    def test_a_loss_that_is_no_number_ends_it(self, tmp_path):
        part = [torch.zeros(1, requires_grad=True)]
        with pytest.raises(PatchscopesError, match="not a finite number after 0 steps"):
            train([part], lambda step: None, lambda: [float("nan")], TrainingConfig(), tmp_path / "out")

    def test_a_damaged_checkpoint_is_named(self, tmp_path):
        (tmp_path / "out").write_text("damaged")
        with pytest.raises(PatchscopesError, match=r"out is damaged, .* remove it"):
            self.run(tmp_path / "out", TrainingConfig())

    @settings(max_examples=20)
    @given(seed=st.integers(0, 999), n_rows=st.integers(1, 5), n_tokens=st.integers(1, 9))
    def test_divergence_is_that_of_the_definition(self, seed, n_rows, n_tokens):
        torch.manual_seed(seed)
        own, logits = torch.randn(n_rows, n_tokens).log_softmax(dim=-1), torch.randn(n_rows, n_tokens)
        expected = (own.exp() * (own - logits.softmax(dim=-1).log())).sum()
        torch.testing.assert_close(training.kl_divergence(own, logits), expected, atol=1e-5, rtol=1e-4)

    def test_mistakes(self):
        with pytest.raises(PatchscopesError, match="'sgd' or 'adamw', got 'adam'"):
            TrainingConfig(optimizer="adam")
        with pytest.raises(PatchscopesError, match="at least 1"):
            TrainingConfig(patience=0)


class TestTunedLens:
    def test_starts_at_the_logit_lens_and_lowers_held_out_kl(self, llama):
        maps = train_tuned_lens(llama, TEXTS, config=replace(SHORT, n_steps=60, evaluate_every=20))
        assert set(maps) == {MapKey(layer, 3) for layer in range(4)}
        (_, before), *_, (_, after) = maps[MapKey(0, 3)].provenance.options["held_out"]
        assert all(now < then for now, then in zip(after[:3], before[:3], strict=True))
        # The last layer is the prediction itself: nothing to learn.
        assert before[3] == pytest.approx(0, abs=1e-5)
        torch.testing.assert_close(maps[MapKey(3, 3)].weight, torch.eye(32), atol=1e-6, rtol=0)

    def test_before_the_first_step_it_is_the_logit_lens(self, llama):
        maps = train_tuned_lens(llama, TEXTS, [1], replace(SHORT, learning_rate=0.0, n_steps=1, evaluate_every=1))
        rows, layers = torch.randn(5, 32), torch.ones(5, dtype=torch.long)
        lens = AffineLens(llama, LayerMapping.to_last(llama, maps))
        torch.testing.assert_close(lens(rows, layers), LogitLens(llama)(rows, layers))

    def test_resumed_equals_uninterrupted(self, llama, cache, monkeypatch):
        whole = train_tuned_lens(llama, TEXTS, [0, 2], SHORT)
        monkeypatch.setenv("PATCHSCOPES_CACHE", str(cache / "other"))
        with pytest.raises(KeyboardInterrupt):
            train_tuned_lens(llama, TEXTS, [0, 2], SHORT, progress=interrupted_after(7))
        resumed = train_tuned_lens(llama, TEXTS, [0, 2], SHORT)
        for key in whole:
            assert torch.equal(whole[key].weight, resumed[key].weight)
            assert torch.equal(whole[key].bias, resumed[key].bias)
            assert whole[key].provenance == resumed[key].provenance
        left = sorted(path.suffix for path in (cache / "other" / "lenses").iterdir())
        assert left in ([".lock", ".safetensors"], [".safetensors"])

    def test_one_layer_alone_learns_the_same(self, llama):
        together = train_tuned_lens(llama, TEXTS, [0, 2], SHORT)
        alone = train_tuned_lens(llama, TEXTS, [2], SHORT)
        torch.testing.assert_close(together[MapKey(2, 3)].weight, alone[MapKey(2, 3)].weight, atol=1e-5, rtol=1e-4)

    def test_the_cache_is_reused_unless_fresh(self, llama, monkeypatch):
        first = train_tuned_lens(llama, TEXTS, [0], SHORT)
        again = train_tuned_lens(llama, TEXTS, [0], SHORT, progress=interrupted_after(0))
        assert torch.equal(first[MapKey(0, 3)].weight, again[MapKey(0, 3)].weight)
        assert first[MapKey(0, 3)].provenance == again[MapKey(0, 3)].provenance
        with pytest.raises(KeyboardInterrupt):
            train_tuned_lens(llama, TEXTS, [0], SHORT, fresh=True, progress=interrupted_after(0))

    def test_batches_hold_no_position_twice_in_an_epoch_and_can_start_anywhere(self, llama, monkeypatch):
        monkeypatch.setattr(tuned_lens, "TEXTS_IN_BUFFER", 5)
        learning, held_out = split_held_out(llama, TEXTS)
        assert len(held_out) == 3
        assert {text for _, text in learning}.isdisjoint(text for _, text in held_out)
        n = sum(len(ids) - 1 for ids, _ in learning)
        batches = shuffle_batches(llama, learning, [0], 16, seed=0)
        # Less than a batch is left over from each of the five groups of texts.
        drawn = [next(batches) for _ in range((n - 5 * 15) // 16)]
        assert {len(batch) for batch in drawn} == {16}
        places = [(ids, position) for ids, _ in learning for position in range(1, len(ids))]
        every = extract_representations(llama, *map(list, zip(*places, strict=True)), [0])
        rows = torch.cat(drawn)[:, 0]
        # Texts with a common beginning have equal states there.
        n_times, n_there = ((torch.cdist(rows, others) < 1e-2).sum(dim=1) for others in (rows, every[:, 0]))
        assert (n_times <= n_there).all()
        later = shuffle_batches(llama, learning, [0], 16, seed=0, first_batch=len(drawn) - 2)
        torch.testing.assert_close(next(later), drawn[-2])
        torch.testing.assert_close(next(later), drawn[-1])
        torch.testing.assert_close(next(later), next(batches))

    def test_mistakes(self, llama):
        with pytest.raises(PatchscopesError, match="train split, got 'evaluation'"):
            train_tuned_lens(llama, replace(TEXTS, split="evaluation"))
        with pytest.raises(PatchscopesError, match="has 1 train texts of two tokens or more"):
            train_tuned_lens(llama, replace(TEXTS, texts=("only one",)))


class TestSoftPrompt:
    def test_lowers_held_out_kl_and_keeps_the_first_vector(self, llama):
        config = replace(SHORT_PROMPT, n_steps=40, evaluate_every=20, learning_rate=3e-2, batch_size=32)
        learned = train_soft_prompt(llama, TEXTS, config=config, n_samples=200)
        (_, before), *_, (_, after) = learned.provenance.options["held_out"]
        assert after[0] < before[0]
        beginning = extract_representations(llama, [FIXED_PROMPT] * 2, [0, 1], [EMBEDDING])[:, 0]
        assert torch.equal(learned.vectors[0], beginning[0])
        assert not torch.equal(learned.vectors[1], beginning[1])

    @pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])
    def test_loss_and_gradient_are_those_of_plain_hooks(self, tiny_models, family):
        model = tiny_models(family)
        layers = [EMBEDDING, 0, 1, 2, 3]
        source = read_with_continuation(model, TEXTS.texts[:4], [5, 9, 3, 7], layers, 3)
        tokens = future_lens.build_fixed_prompt_target(model).tokens
        samples, slots = np.array([0, 1, 2, 3, 3, 0]), np.array([4, 0, 2, 1, 3, 3])
        answers = []
        for start in (fast.start_generation, hooks.start_generation):
            torch.manual_seed(0)
            soft_prompt = torch.randn(len(tokens), 32, requires_grad=True)
            target = TargetPrompt(model, tokens, -1, soft_prompt=soft_prompt)
            loss = future_lens._loss(target, source, layers, samples, slots, start)
            loss.backward()
            answers.append((loss.detach(), soft_prompt.grad))
        torch.testing.assert_close(*answers, atol=1e-4, rtol=1e-3)
        assert answers[0][1].abs().amax(dim=-1).min() > 0

    def test_a_model_that_the_fast_engine_cannot_run_is_refused(self, tokenizer, monkeypatch):
        model = load_model(hf_model=make_hf_model("llama"), tokenizer=tokenizer)
        monkeypatch.setattr(fast, "empty_generation", lambda layers: None)
        with (
            pytest.warns(UserWarning, match="slow hooks engine"),
            pytest.raises(PatchscopesError, match="trained with the fast engine"),
        ):
            train_soft_prompt(model, TEXTS, config=SHORT_PROMPT, n_samples=10)

    def test_before_the_first_step_it_is_the_fixed_prompt(self, llama):
        learned = train_soft_prompt(
            llama, TEXTS, config=replace(SHORT_PROMPT, n_steps=1, learning_rate=0.0), n_samples=20
        )
        vectors, layers = torch.randn(5, 32), [0, 1, 2, 3, EMBEDDING]
        torch.testing.assert_close(
            patch_logits(learned.target(llama), vectors, layers),
            patch_logits(future_lens.build_fixed_prompt_target(llama), vectors, layers),
        )

    def test_resumed_equals_uninterrupted(self, llama, cache, monkeypatch):
        whole = train_soft_prompt(llama, TEXTS, [1, 3], SHORT_PROMPT, n_samples=40)
        monkeypatch.setenv("PATCHSCOPES_CACHE", str(cache / "other"))
        with pytest.raises(KeyboardInterrupt):
            train_soft_prompt(llama, TEXTS, [1, 3], SHORT_PROMPT, n_samples=40, progress=interrupted_after(3))
        resumed = train_soft_prompt(llama, TEXTS, [1, 3], SHORT_PROMPT, n_samples=40)
        assert torch.equal(whole.vectors, resumed.vectors)
        assert whole.provenance == resumed.provenance

    def test_round_trip_and_refusal_of_another_model(self, llama, tokenizer, tmp_path):
        learned = train_soft_prompt(llama, TEXTS, [0], SHORT_PROMPT, prompt="a short one", n_samples=20)
        assert len(learned.vectors) == len(learned.tokens)
        learned.save(tmp_path / "prompt.safetensors")
        loaded = SoftPrompt.load(tmp_path / "prompt.safetensors")
        assert torch.equal(loaded.vectors, learned.vectors)
        assert asdict(loaded.provenance) == asdict(learned.provenance)
        other = load_model(hf_model=make_hf_model("llama", seed=1), tokenizer=tokenizer)
        with pytest.raises(PatchscopesError, match="learned from"):
            loaded.target(other)
        train_tuned_lens(llama, TEXTS, [0], SHORT)[MapKey(0, 3)].save(tmp_path / "map.safetensors")
        with pytest.raises(PatchscopesError, match="holds no soft prompt"):
            SoftPrompt.load(tmp_path / "map.safetensors")
