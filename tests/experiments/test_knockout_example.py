"""Attention knockout of one prompt, on tiny models: what it is equal to, and what is refused."""

import pytest
from made_up_facts import make_facts

from patchscopes.errors import PatchscopesError
from patchscopes.experiments import attention_knockout, knockout_example
from patchscopes.experiments.config import AttentionKnockoutConfig
from patchscopes.model.layers import EMBEDDING
from patchscopes.results import ChunkStore

CONFIG = AttentionKnockoutConfig()


@pytest.fixture(scope="module")
def model(models_by_tokenizer):
    return models_by_tokenizer["byte_level"]


def test_it_says_what_the_experiment_on_many_facts_says_of_this_one(model, tmp_path):
    fact = make_facts(model, 3)[2]
    document, _ = attention_knockout.run(model, [fact], CONFIG, ChunkStore(tmp_path))
    (of_fact,) = document["facts"]
    results = knockout_example.run(model, fact.prompt, fact.subject, CONFIG)
    assert results["windows"] == document["windows"]
    assert results["probability"] == pytest.approx(of_fact["probability"], abs=1e-6)
    for method, measured in results["methods"].items():
        for keys, change in measured["relative_change"].items():
            assert change == pytest.approx(of_fact["methods"][method]["relative_change"][keys], abs=1e-2)


def test_how_far_the_forms_are_apart(model):
    results = knockout_example.run(model, "The Dog lives in a", "Dog", CONFIG)
    for keys, apart in results["largest_difference"].items():
        original, patchscope = (results["methods"][form]["relative_change"][keys] for form in CONFIG.methods)
        assert apart == max(abs(one - other) for one, other in zip(original, patchscope, strict=True)) > 0


def test_in_the_last_block_zeros_come_too_late_and_cuts_do_not(model):
    config = AttentionKnockoutConfig(layers=(3,), window=1)
    results = knockout_example.run(model, "The Dog lives in a", "Dog", config)
    changes = {method: measured["relative_change"] for method, measured in results["methods"].items()}
    assert changes["patchscope"]["subject"] == pytest.approx([0], abs=1e-3)
    assert changes["patchscope"]["rest"] == pytest.approx([0], abs=1e-3)
    assert abs(changes["original"]["subject"][0]) > 1e-3


def test_one_form_alone_is_not_compared(model):
    config = AttentionKnockoutConfig(methods=("original",), layers=(0,))
    assert knockout_example.run(model, "The Dog lives in a", "Dog", config)["largest_difference"] == {}


@pytest.mark.parametrize(
    ("prompt", "config", "message"),
    [
        ("We saw a Dog", CONFIG, "add a word to the end of the prompt"),
        ("We saw a cat", CONFIG, "'Dog' is not in the prompt"),
        ("A Dog is", AttentionKnockoutConfig(layers=(EMBEDDING,)), "nothing is read where the embedding enters"),
        ("A Dog is", AttentionKnockoutConfig(methods=("hooks",)), "no method is called 'hooks'"),
    ],
)
def test_what_cannot_be_knocked_out_is_refused(model, prompt, config, message):
    with pytest.raises(PatchscopesError, match=message):
        knockout_example.run(model, prompt, "Dog", config)
