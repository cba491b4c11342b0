"""The facts that a model knows, in its tokens."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_facts import make_facts

from patchscopes.data.facts import Fact
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.facts import (
    draw_known_facts,
    find_known,
    find_name,
    locate_subject,
    take_answer,
    tokenize_fact,
)
from patchscopes.positions import find_substring_token_position, find_token_spans
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


class TestNames:
    @pytest.mark.parametrize(
        ("text", "word", "name"),
        [
            ("the Space Needle is in", "Needle", "Space Needle"),
            ("We saw Jean-Luc Picard there", "Picard", "Jean-Luc Picard"),
            ("Diana, Princess of Wales", "Wales", "Wales"),
            ("a big dog", "dog", "dog"),
            ("Paris. Rome is", "Rome", "Rome"),
            ("Столица России", "России", "Столица России"),
            ("Barack Obama's wife", "Obama", "Barack Obama"),
        ],
    )
    def test_is_the_word_of_the_token_and_the_capitals_before_it(self, smollm, text, word, name):
        start, end = find_name(smollm, text, find_substring_token_position(smollm, text, word))
        assert text[start:end] == name

    def test_where_no_spaces_part_words_it_is_the_token(self, smollm):
        text = "東京は日本の首都です"
        start, end = find_name(smollm, text, find_substring_token_position(smollm, text, "日本"))
        assert text[start:end] in "日本"

    @given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=30), st.integers(0, 40))
    def test_of_any_text_it_holds_the_token(self, smollm, text, position):
        spans = find_token_spans(smollm, text)
        start, end = spans[position % len(spans)]
        if not text[start:end].strip():
            with pytest.raises(PatchscopesError, match="choose one of a word"):
                find_name(smollm, text, position % len(spans))
            return
        first, last = find_name(smollm, text, position % len(spans))
        assert text[start:end].strip() in text[first:last]

    def test_bos_is_of_no_word(self, smollm):
        with pytest.raises(PatchscopesError, match="stands for no word of the text"):
            find_name(smollm, "a dog", 0)

    def test_the_subject_is_where_the_token_is(self, smollm):
        prompt = "The dog saw a dog"
        assert locate_subject(smollm, prompt, "dog") == (4, 7)
        assert locate_subject(smollm, prompt, " Dog ") == (4, 7)
        assert locate_subject(smollm, prompt, "dog", -1) == (14, 17)
        assert locate_subject(smollm, prompt, "dog", 0) == (4, 7)

    def test_the_answer_is_the_models_own(self, smollm):
        fact = take_answer(smollm, "The capital of Japan is the city of", (15, 20))
        assert decode_each_token(smollm, [fact.answer]) == [" Tokyo"]
        assert decode_each_token(smollm, [fact.tokens[position] for position in fact.subject]) == [" Japan"]
