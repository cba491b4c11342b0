"""Causal tracing of one prompt, on tiny models: both forms, the tokens restored, and the experiment on many facts."""

from dataclasses import replace

import pytest
import torch
from made_up_facts import make_facts

from patchscopes.data.facts import Fact
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import causal_tracing, tracing_example
from patchscopes.experiments.config import CausalTracingConfig, TracingExampleConfig
from patchscopes.experiments.facts import KnownFact
from patchscopes.experiments.tracing_example import choose_inner, choose_tokens
from patchscopes.positions import find_substring_token_position
from patchscopes.results import ChunkStore
from patchscopes.tokens import to_token_ids

CONFIG = TracingExampleConfig(n_original_layers=None)


@pytest.fixture(scope="module")
def model(models_by_tokenizer):
    return models_by_tokenizer["byte_level"]


@pytest.fixture(scope="module")
def results(model):
    return tracing_example.run(model, "The big Dog lives in a", "big Dog", CONFIG)


class TestRun:
    def test_both_forms_are_one_computation(self, results):
        original, patchscope = results["methods"]["original"], results["methods"]["patchscope"]
        for name in ("clean", "corrupted"):
            assert original[name] == pytest.approx(patchscope[name], abs=1e-5)
        for token, restored in patchscope["restored"].items():
            assert original["restored"][token] == pytest.approx(restored, abs=1e-5)
        assert results["largest_probability_difference"] < 1e-5

    def test_clean_is_what_the_model_says(self, model, results):
        tokens = to_token_ids(model, "The big Dog lives in a")
        likely = torch.softmax(model(tokens[None])[0, -1].float(), dim=-1)
        assert results["methods"]["patchscope"]["clean"] == pytest.approx(float(likely.max()), abs=1e-5)
        assert results["answer"] == model.tokenizer.decode(likely.argmax())

    def test_the_last_token_after_the_last_block_is_the_clean_run(self, results):
        measured = results["methods"]["patchscope"]
        assert measured["restored"]["last"][-1] == pytest.approx(measured["clean"], abs=1e-5)
        assert measured["restored"]["last_subject"][-1] == pytest.approx(measured["corrupted"], abs=1e-5)
        assert measured["restored"]["control"][-1] == pytest.approx(measured["corrupted"], abs=1e-5)

    def test_it_says_what_the_experiment_on_many_facts_says_of_this_one(self, model, tmp_path):
        fact = make_facts(model, 3)[2]
        many = CausalTracingConfig(layers=(0, 1, 3), n_samples=1, n_noise_samples=3)
        document, _ = causal_tracing.run(model, [fact], many, ChunkStore(tmp_path))
        config = replace(CONFIG, layers=(0, 1, 3))
        results = tracing_example.run(model, fact.prompt, fact.subject, config)
        (of_fact,) = document["facts"]
        assert results["embedding_spread"] == document["embedding_spread"]
        measured = results["methods"]["patchscope"]
        assert measured["clean"] == pytest.approx(of_fact["clean"], abs=1e-5)
        assert measured["corrupted"] == pytest.approx(of_fact["corrupted"], abs=1e-5)
        first = results["subject_positions"][0]
        for token, position in results["restored_positions"].items():
            effects = of_fact["indirect_effect"]["resid"][position - first]
            restored = [measured["corrupted"] + effect for effect in effects]
            assert measured["restored"][token] == pytest.approx(restored, abs=1e-5)

    def test_the_original_is_measured_at_some_of_the_layers(self, model):
        config = replace(CONFIG, n_original_layers=2)
        results = tracing_example.run(model, "The big Dog lives in a", "big Dog", config)
        assert results["methods"]["original"]["layers"] == [1, 2]
        assert {len(curve) for curve in results["methods"]["original"]["restored"].values()} == {2}

    def test_another_seed_is_other_noise(self, model, results):
        other = tracing_example.run(model, "The big Dog lives in a", "big Dog", replace(CONFIG, seed=1))
        assert other["methods"]["patchscope"]["clean"] == results["methods"]["patchscope"]["clean"]
        assert other["methods"]["patchscope"]["corrupted"] != results["methods"]["patchscope"]["corrupted"]

    def test_a_subject_that_stands_there_twice_is_that_of_the_token(self, model):
        prompt = "Dog and Dog live in"
        config = replace(CONFIG, layers=(0,))
        position = find_substring_token_position(model, prompt, "Dog", occurrence=1)
        first, second = (
            tracing_example.run(model, prompt, "Dog", config, position=given)["subject_positions"]
            for given in (None, position)
        )
        assert second[-1] == position > first[-1]

    @pytest.mark.parametrize("prompt", ["Dog", "a Dog", "Dog is"])
    def test_the_shortest_prompts(self, model, prompt):
        results = tracing_example.run(model, prompt, "Dog", replace(CONFIG, layers=(0, 3)))
        assert results["methods"]["patchscope"]["restored"]["last_subject"]


class TestTokens:
    def choose(self, n_tokens, subject):
        fact = Fact(prompt="x", span=(0, 1), attribute="y")
        return choose_tokens(KnownFact(fact=fact, tokens=tuple(range(n_tokens)), subject=subject, answer=0))

    def test_the_control_lies_between_subject_and_last(self):
        assert self.choose(9, (2, 3)) == {"last_subject": 3, "last": 8, "control": 6}
        assert self.choose(5, (2,)) == {"last_subject": 2, "last": 4, "control": 3}

    def test_without_anything_between_it_is_of_the_subject(self):
        assert self.choose(5, (2, 3)) == {"last_subject": 3, "last": 4, "control": 2}
        assert self.choose(4, (2, 3)) == {"last_subject": 3, "control": 2}

    def test_without_any_other_token_there_is_none(self):
        assert self.choose(3, (1,)) == {"last_subject": 1, "last": 2}
        assert self.choose(2, (1,)) == {"last_subject": 1}

    def test_layers_at_equal_distances(self):
        assert choose_inner([0, 3, 6, 9, 12], 3) == [3, 6, 9]
        assert choose_inner(list(range(30)), 2) == [10, 19]
        assert choose_inner([4], 3) == choose_inner([4], 1) == choose_inner([4], None) == [4]
        assert choose_inner(list(range(29)), 1) == [14]


@pytest.mark.parametrize(
    ("subject", "config", "message"),
    [
        ("cat", CONFIG, "'cat' is not in the prompt"),
        ("", CONFIG, "is not in the prompt"),
        ("Dog", replace(CONFIG, noise=0.0), "noise must be above 0"),
        ("Dog", replace(CONFIG, n_noise_samples=0), "at least one sample"),
        ("Dog", replace(CONFIG, layers=(99,)), "layer 99 does not exist"),
    ],
)
def test_what_cannot_be_traced_is_refused(model, subject, config, message):
    with pytest.raises(PatchscopesError, match=message):
        tracing_example.run(model, "a Dog is", subject, config)
