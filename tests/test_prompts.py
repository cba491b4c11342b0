"""Target prompts and placeholders."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.engine.target import placeholder_target
from patchscopes.errors import PatchscopesError
from patchscopes.prompts import SIMPLESCOPE_PROMPT, build_token_identity_prompt
from patchscopes.tokens import decode_each_token


def test_the_prompt_of_the_papers_code():
    assert build_token_identity_prompt() == "cat -> cat\n1135 -> 1135\nhello -> hello\n?"


def test_the_semicolon_variant():
    assert build_token_identity_prompt(separator="; ") == "cat -> cat; 1135 -> 1135; hello -> hello; ?"


@given(st.lists(st.text("abcdef", min_size=1), max_size=5), st.sampled_from(["?", "x", "_"]))
def test_any_demos_and_placeholder(demos, placeholder):
    lines = build_token_identity_prompt(demos, placeholder=placeholder).split("\n")
    assert lines == [f"{demo} -> {demo}" for demo in demos] + [placeholder]


@pytest.mark.parametrize(
    "prompt",
    [build_token_identity_prompt(), build_token_identity_prompt(separator="; "), SIMPLESCOPE_PROMPT, "? -> ? ->"],
)
def test_the_target_position_is_the_last_placeholder(smollm, prompt):
    target = placeholder_target(smollm, prompt)
    texts = decode_each_token(smollm, target.tokens)
    assert texts[target.position].strip() == "?"
    assert "?" not in texts[target.position + 1 :]


def test_bos_stands_before_simplescopes_placeholder(smollm):
    target = placeholder_target(smollm, SIMPLESCOPE_PROMPT)
    assert target.tokens.tolist()[0] == smollm.tokenizer.bos_token_id
    assert (len(target.tokens), target.position) == (2, 1)


def test_a_missing_placeholder(smollm):
    with pytest.raises(PatchscopesError, match="has no placeholder '\\?'"):
        placeholder_target(smollm, "cat -> cat\n")


@pytest.mark.parametrize(
    ("prompt", "placeholder"), [("cat -> 1135", "1135"), ("the category", "cat"), ("what??!", "?")]
)
def test_a_placeholder_that_is_not_one_token(smollm, prompt, placeholder):
    with pytest.raises(PatchscopesError, match="is not one token of its own"):
        placeholder_target(smollm, prompt, placeholder)
