"""The facts that a model knows, in its tokens."""

from dataclasses import replace

import pytest
from made_up_facts import make_facts

from patchscopes.data.facts import Fact
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.facts import draw_known_facts, find_known, tokenize_fact
from patchscopes.tokens import decode_each_token


@pytest.fixture(scope="module")
def model(models_by_tokenizer):
    return models_by_tokenizer["byte_level"]


@pytest.fixture(scope="module")
def facts(model):
    return make_facts(model)


def test_known_is_what_the_model_says_next(model, facts):
    wrong = [replace(fact, attribute=f"not {fact.attribute}") for fact in facts]
    aliased = [replace(fact, attribute="not this", aliases=(fact.attribute,)) for fact in facts]
    found = find_known(model, [*facts, *wrong, *aliased], None)
    n = len(facts)
    assert [answer["known"] for answer in found] == [1] * n + [0] * n + [1] * n
    assert [answer["answer"] for answer in found[:n]] == [answer["answer"] for answer in found[n : 2 * n]]


def test_drawn_by_the_seed_from_those_that_are_known(model, facts):
    found = find_known(model, facts, None)
    found[1]["known"] = 0
    everyone = draw_known_facts(model, facts, found, 100, seed=0)
    assert [one.fact for one in everyone] == [fact for number, fact in enumerate(facts) if number != 1]
    assert draw_known_facts(model, facts, found, 3, seed=0) == draw_known_facts(model, facts, found, 3, seed=0)
    drawn = {tuple(one.fact for one in draw_known_facts(model, facts, found, 2, seed=seed)) for seed in range(9)}
    assert len(drawn) > 1
    with pytest.raises(PatchscopesError, match="begins the attribute after none of the 6 prompts"):
        draw_known_facts(model, facts, [answer | {"known": 0} for answer in found], 3, seed=0)


@pytest.mark.parametrize(
    ("prompt", "subject"), [("Tokyo is", "Tokyo"), ("Here is Tokyo, a city", "Tokyo"), ("Of New York", "New York")]
)
@pytest.mark.parametrize("tokenize", ["byte_level", "sentencepiece_like"])
def test_the_tokens_of_the_subject(models_by_tokenizer, tokenize, prompt, subject):
    model = models_by_tokenizer[tokenize]
    start = prompt.index(subject)
    known = tokenize_fact(model, Fact(prompt=prompt, span=(start, start + len(subject)), attribute="y"), answer=3)
    texts = decode_each_token(model, known.tokens)
    assert "".join(texts[position] for position in known.subject).strip() == subject
    assert list(known.subject) == list(range(known.subject[0], known.subject[-1] + 1))
