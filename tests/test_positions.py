"""Positions of words in tokens, on three kinds of tokenizers and any text."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchscopes.errors import PatchscopesError
from patchscopes.positions import (
    find_substring_token_position,
    find_token_position,
    find_token_spans,
    verify_single_token,
)
from patchscopes.tokens import decode_each_token, to_token_ids


@pytest.fixture(scope="module", params=["sentencepiece_like", "byte_level", "embedded"])
def model(request, smollm, models_by_tokenizer):
    return smollm if request.param == "embedded" else models_by_tokenizer[request.param]


def covered(model, text: str, position: int) -> str:
    """The characters that the token at `position` stands for."""
    begin, end = find_token_spans(model, text)[position]
    return text[begin:end]


CASES = [
    ("Amazon's former CEO attended Oscars", "CEO"),
    ("un café crème, s'il vous plaît", "café"),
    ("decomposed: cafe\u0301 here", "cafe\u0301"),
    ("I 🧑‍🚀 like 🎉 parties", "🎉"),
    ("東京は日本の首都です", "日本"),
    ("Grüße aus Köln", "Köln"),
    (" leading space", "leading"),
    ("tabs\tand\nnewlines", "newlines"),
    ("price: $5.00 (five)", "(five)"),
]


@pytest.mark.parametrize(("text", "substring"), CASES)
def test_the_substring_lies_between_its_first_and_last_token(model, text, substring):
    first = find_substring_token_position(model, text, substring, last=False)
    last = find_substring_token_position(model, text, substring)
    spans = find_token_spans(model, text)
    begin = text.index(substring)
    assert spans[first][0] <= begin < spans[first][1]
    assert spans[last][0] < begin + len(substring) <= spans[last][1]
    # The tokens outside do not touch it.
    assert all(end <= begin for _, end in spans[:first])
    assert all(start >= begin + len(substring) for start, _ in spans[last + 1 :])


def test_occurrences_are_counted_from_both_ends(model):
    text = "the cat saw the cat and the cat ran"
    positions = [find_substring_token_position(model, text, "cat", occurrence=n) for n in range(3)]
    assert positions == sorted(set(positions))
    assert find_substring_token_position(model, text, "cat", occurrence=-1) == positions[-1]
    with pytest.raises(PatchscopesError, match="is in the text 3 times"):
        find_substring_token_position(model, text, "cat", occurrence=3)


def test_bos_is_counted_and_never_found(model):
    text = "hello world"
    assert to_token_ids(model, text)[0] == model.tokenizer.bos_token_id
    assert find_token_spans(model, text)[0] == (0, 0)
    assert find_substring_token_position(model, text, "hello", last=False) >= 1


def test_a_missing_substring_shows_the_tokens(model):
    with pytest.raises(PatchscopesError, match=r"'dog' is not in the text.*tokens are \["):
        find_substring_token_position(model, "the cat", "dog")
    with pytest.raises(PatchscopesError, match="not in the text"):
        find_substring_token_position(model, "the cat", "")


def test_only_spaces_belong_to_the_token_that_follows(model):
    text = "one two"
    found = covered(model, text, find_substring_token_position(model, text, " "))
    assert found
    assert " " in found or "two".startswith(found)


# No surrogates, which are not text, and none of the tokenizers' own special tokens or control characters.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), min_size=1, max_size=30)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT, data=st.data())
def test_any_substring_of_any_text_is_found(model, text, data):
    begin = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(begin + 1, len(text)))
    substring = text[begin:end]
    starts = [start for start in range(len(text)) if text.startswith(substring, start)]
    occurrence = starts.index(begin)
    spans = find_token_spans(model, text)
    assert len(spans) == len(to_token_ids(model, text))
    first, last = (
        find_substring_token_position(model, text, substring, last=side, occurrence=occurrence)
        for side in (False, True)
    )
    assert 1 <= first <= last < len(spans)
    if not substring.isspace():
        touching = [position for position, span in enumerate(spans) if span[0] < end and span[1] > begin]
        assert [first, last] == [touching[0], touching[-1]]


class TestWholeTokens:
    def test_found_with_and_without_leading_space(self, smollm):
        text = "cat -> cat\n?"
        assert decode_each_token(smollm, to_token_ids(smollm, text))[1:] == ["cat", " ->", " cat", "\n", "?"]
        assert find_token_position(smollm, text, "cat") == 3
        assert find_token_position(smollm, text, "cat", occurrence=0) == 1
        assert find_token_position(smollm, text, "?") == 5
        assert find_token_position(smollm, text, verify_single_token(smollm, "?")) == 5

    def test_part_of_a_token_is_not_found(self, smollm):
        with pytest.raises(PatchscopesError, match=r"token 'ca' is not in the text.*' cat'"):
            find_token_position(smollm, "the cat", "ca")

    def test_verify_single_token(self, smollm):
        assert smollm.tokenizer.decode([verify_single_token(smollm, " CEO")]) == " CEO"
        with pytest.raises(PatchscopesError, match="is 4 tokens, not one"):
            verify_single_token(smollm, "1135")


@pytest.mark.parametrize("text", ["the capital of the country", "a cat, a dog"])
def test_token_texts_keep_their_spaces(model, text):
    texts = decode_each_token(model, to_token_ids(model, text))
    assert "".join(texts[1:]).strip() == text
    assert find_token_position(model, text, texts[2]) >= 2
