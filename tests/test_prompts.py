"""Target prompts and placeholders."""

import copy

import pytest
from conftest import make_hf_model
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.engine.target import placeholder_target
from patchscopes.errors import PatchscopesError
from patchscopes.model.loading import load_model
from patchscopes.prompts import SIMPLESCOPE_PROMPT, as_chat, build_token_identity_prompt
from patchscopes.tokens import decode_each_token, to_token_ids


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


TURNS = "{% for one in messages %}<s>{{ one.role }}\n{{ one.content }}</s>\n{% endfor %}"
GO_ON = "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system, please') }}{% endif %}"


class TestChat:
    @pytest.fixture
    def build(self, tokenizer):
        """A tiny model with a chat template."""

        def build(template):
            own = copy.deepcopy(tokenizer)
            own.chat_template = template
            return load_model(hf_model=make_hf_model("llama"), tokenizer=own)

        return build

    @pytest.mark.parametrize("system", [None, "Be brief. Is that clear?"])
    @pytest.mark.parametrize("prompt", ["?", "Tell me about ?", "cat -> cat\n1135 -> 1135\n?", "What is ? known for"])
    def test_it_is_read_as_the_models_own_template(self, smollm, prompt, system):
        chat = as_chat(smollm, prompt, system)
        messages = [{"role": "user", "content": prompt}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        text = smollm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = to_token_ids(smollm, chat).tolist()
        assert ids == smollm.tokenizer(text, add_special_tokens=False)["input_ids"]
        # One BOS, and then the role: a second one would stand right behind it.
        assert (ids[0], smollm.tokenizer.decode(ids[1])) == (smollm.tokenizer.bos_token_id, "system")
        assert chat.endswith("<|im_start|>assistant\n")
        target = placeholder_target(smollm, chat)
        texts = decode_each_token(smollm, target.tokens)
        assert texts[target.position].strip() == "?"
        behind = "".join(texts[target.position + 1 :])
        assert behind == prompt.rpartition("?")[2] + "<|im_end|>\n<|im_start|>assistant\n"

    @pytest.mark.parametrize("begins", ["", "<s>", "[chat] "])
    def test_one_bos_whatever_the_template_begins_with(self, build, begins):
        model = build(begins + "{{ messages[0].content }}" + GO_ON)
        ids = to_token_ids(model, as_chat(model, "about x")).tolist()
        expected = "<s>" + begins.removeprefix("<s>") + "about x<s>assistant\n"
        assert ids == model.tokenizer(expected, add_special_tokens=False)["input_ids"]

    def test_each_turn_is_there(self, build):
        model = build(TURNS + GO_ON)
        expected = "system\nHush.</s>\n<s>user\nx</s>\n<s>assistant\n"
        assert as_chat(model, "x", "Hush.") == expected

    def test_without_a_chat_template(self, llama):
        with pytest.raises(PatchscopesError, match="has no chat template; give the prompt itself"):
            as_chat(llama, "x")

    def test_a_template_that_refuses(self, build):
        model = build(REFUSING + TURNS + GO_ON)
        assert "x" in as_chat(model, "x")
        with pytest.raises(PatchscopesError, match=r"refuses these messages \(no system, please\)"):
            as_chat(model, "x", "Hush.")

    def test_a_template_that_changes_the_prompt(self, build):
        model = build("{{ messages[0].content | trim }}" + GO_ON)
        assert as_chat(model, "x") == "x<s>assistant\n"
        with pytest.raises(PatchscopesError, match="changes the prompt 'x '"):
            as_chat(model, "x ")
