"""Texts in every form that a tokenizer gives them, read as the model reads them."""

import copy

import pytest
import torch
from conftest import make_hf_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from patchscopes import Patchscope
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.model.loading import load_model
from patchscopes.positions import (
    find_characters,
    find_end,
    find_first_tokens,
    find_substring_token_position,
    find_token_position,
    find_token_spans,
)
from patchscopes.prompts import Chat, as_chat
from patchscopes.tokens import check_texts, decode_each_token, to_token_ids

MESSAGES = [{"role": "user", "content": "Where is the Eiffel Tower ? I like Köln 🎉"}]
# How a tokenizer gives a chat back.
FORMS = {
    "text": {"tokenize": False},
    "encoding": {},
    "list": {"return_dict": False},
    "tensor": {"return_dict": False, "return_tensors": "pt"},
    "array": {"return_dict": False, "return_tensors": "np"},
    "encoding of tensors": {"return_tensors": "pt"},
    "encoding of arrays": {"return_tensors": "np"},
    "padded encoding": {"return_tensors": "pt", "padding": "max_length", "max_length": 90},
}


@pytest.fixture(scope="module", params=["sentencepiece_like", "byte_level", "embedded"])
def model(request, smollm, models_by_tokenizer):
    return smollm if request.param == "embedded" else models_by_tokenizer[request.param]


@pytest.fixture(scope="module")
def chats(smollm):
    """The chat in each form, and as a batch of one."""
    template = smollm.tokenizer.apply_chat_template
    made = {name: template(MESSAGES, add_generation_prompt=True, **options) for name, options in FORMS.items()}
    return made | {
        f"batch of one, {name}": template([MESSAGES], add_generation_prompt=True, **options)
        for name, options in FORMS.items()
    }


@pytest.fixture(scope="module")
def ids(smollm, chats):
    return smollm.tokenizer(chats["text"], add_special_tokens=False)["input_ids"]


FORM_NAMES = [*FORMS, *(f"batch of one, {name}" for name in FORMS)]


class TestWhatAChatTemplateReturns:
    @pytest.mark.parametrize("form", FORM_NAMES)
    def test_it_is_read_token_by_token(self, smollm, chats, ids, form):
        assert to_token_ids(smollm, chats[form]).tolist() == ids

    @pytest.mark.parametrize("form", FORM_NAMES)
    def test_words_are_found_in_it(self, smollm, chats, ids, form):
        chat = chats[form]
        for word in ("Tower", "Köln", "🎉", "assistant", "<|im_start|>"):
            first, last = (find_substring_token_position(smollm, chat, word, last=end) for end in (False, True))
            assert word in smollm.tokenizer.decode(ids[first : last + 1])
            assert word not in smollm.tokenizer.decode(ids[first + 1 : last + 1])
        assert find_token_position(smollm, chat, "Tower") == find_substring_token_position(smollm, chat, "Tower")
        assert placeholder_target(smollm, chat).position == find_substring_token_position(smollm, chat, "?")

    def test_it_goes_wherever_a_prompt_goes(self, smollm, chats):
        expected = extract_representations(smollm, [chats["list"]], [7], [3])
        for form in ("text", "encoding", "batch of one, encoding of tensors"):
            assert torch.equal(extract_representations(smollm, [chats[form]], [7], [3]), expected)
            assert TargetPrompt(smollm, chats[form], 7).tokens.tolist() == chats["list"]
        expected = None
        for source, target in (("text", "encoding"), ("encoding of tensors", "batch of one, text")):
            patchscope = Patchscope(
                model=smollm,
                source_prompt=chats[source],
                source_position="Tower",
                source_layers=[4],
                target_prompt=chats[target],
                target_position="?",
            )
            logits = patchscope.logits(engine="hooks")
            assert expected is None or torch.equal(logits, expected)
            expected = logits


class TestBos:
    @given(text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), n=st.integers(1, 3))
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_a_text_that_begins_with_it_gets_no_second_one(self, model, text, n):
        bos = model.tokenizer.bos_token
        written = to_token_ids(model, bos * n + text)
        assert written.tolist() == model.tokenizer(bos * n + text, add_special_tokens=False)["input_ids"]
        assert len(find_token_spans(model, bos * n + text)) == len(written)

    def test_it_reads_the_same_as_without(self, smollm):
        bos = smollm.tokenizer.bos_token
        assert torch.equal(to_token_ids(smollm, f"{bos}The cat"), to_token_ids(smollm, "The cat"))
        assert find_substring_token_position(smollm, f"{bos}The cat", "cat") == 2

    def test_elsewhere_it_is_kept(self, smollm):
        bos = smollm.tokenizer.bos_token
        ids = to_token_ids(smollm, f"a{bos}b").tolist()
        assert ids.count(smollm.tokenizer.bos_token_id) == 2

    def test_a_model_that_puts_none(self, tokenizer):
        model = load_model(hf_model=make_hf_model("llama"), tokenizer=copy.deepcopy(tokenizer))
        model.cfg.default_prepend_bos = False
        assert to_token_ids(model, "<s>ab").tolist() == tokenizer("<s>ab", add_special_tokens=False)["input_ids"]
        assert to_token_ids(model, "ab").tolist() == tokenizer("ab", add_special_tokens=False)["input_ids"]

    @pytest.mark.parametrize("text", ["ab", "ab</s>", "ab</s></s>", "<s>ab</s>", "</s>", "</s>ab"])
    def test_eos_that_is_written_stays_where_the_tokenizer_appends_one(self, tokenizer, text):
        model = load_model(hf_model=make_hf_model("llama"), tokenizer=copy.deepcopy(tokenizer))
        special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
        model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=special
        )
        model.cfg.tokenizer_prepends_bos = model.cfg.tokenizer_appends_eos = True
        expected = tokenizer("<s>" + text.removeprefix("<s>"), add_special_tokens=False)["input_ids"]
        assert to_token_ids(model, text).tolist() == expected


class TestTokenIds:
    @given(text=st.text("ab \n?éü日本🎉\u0301", max_size=16))
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_their_characters_are_where_those_of_the_text_are(self, smollm, text):
        text = f"a{text}z"
        ids = to_token_ids(smollm, text)
        characters, spans = find_characters(smollm, ids)
        assert characters == smollm.tokenizer.bos_token + text
        begin = len(smollm.tokenizer.bos_token)
        for span, of_text in zip(spans[1:], find_token_spans(smollm, text)[1:], strict=True):
            # Tokens that are one character only together share a span, which may hold the one before it too.
            assert span[0] <= of_text[0] + begin
            assert span[1] >= of_text[1] + begin

    def test_bytes_that_are_no_character(self, llama):
        ids = [*to_token_ids(llama, "ab").tolist(), to_token_ids(llama, "é").tolist()[1]]
        characters, spans = find_characters(llama, ids)
        assert characters == "<s>ab"
        assert [characters[start:end] for start, end in spans] == ["<s>", "a", "b", ""]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ([[1, 2], [3]], "give one text at a time"),
            (["a", "b"], "give one text at a time"),
            (torch.ones(2, 3, dtype=torch.long), "a tensor of shape \\(2, 3\\)"),
            ({"input_ids": [[1, 2], [3, 4]]}, "give one text at a time"),
            ([[1], [2]], "a tensor of shape \\(2, 1\\)"),
            (MESSAGES, "got a mapping of role, content: give messages as what"),
            (MESSAGES * 2, "give one text at a time"),
            ({"text": "a"}, "got a mapping of text"),
            ([], "the text has no tokens"),
            ({"input_ids": [5, 6], "attention_mask": [0, 0]}, "the text has no tokens"),
            ([5, 10_000_000], "token ids must be from 0"),
        ],
    )
    def test_what_is_no_text(self, smollm, text, message):
        with pytest.raises(PatchscopesError, match=message):
            to_token_ids(smollm, text)

    def test_no_list_of_texts(self, llama):
        """A batch would be taken for a list of the names of its parts."""
        for texts in ("abc", Chat("abc"), {"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [1, 1]]}):
            with pytest.raises(PatchscopesError, match="a list of texts was expected, and got one"):
                check_texts(texts)
        with pytest.raises(PatchscopesError, match="got one str: put it into a list"):
            generate_after(llama, "abc")


class TestChat:
    """A prompt in a chat is a text, in which the template's tokens stand for nothing."""

    @pytest.mark.parametrize("system", [None, "Hush."])
    @pytest.mark.parametrize("prompt", ["x", "user", "I like Köln 🎉", "cat -> cat\n?", "<|im_start|>"])
    def test_its_tokens_are_those_of_the_template(self, smollm, prompt, system):
        chat = Chat(prompt, system)
        assert torch.equal(to_token_ids(smollm, chat), to_token_ids(smollm, as_chat(smollm, prompt, system)))
        characters, spans = find_characters(smollm, chat)
        assert characters == prompt
        inside = [place for place, (start, end) in enumerate(spans) if end > start]
        assert inside == list(range(inside[0], inside[-1] + 1))
        assert (spans[inside[0]][0], spans[inside[-1]][1]) == (0, len(prompt))
        texts = decode_each_token(smollm, to_token_ids(smollm, chat))
        assert "".join(texts[: inside[0]]).endswith("<|im_start|>user\n")
        assert "".join(texts[inside[-1] + 1 :]) == "<|im_end|>\n<|im_start|>assistant\n"
        assert find_end(smollm, chat) == inside[-1]

    def test_words_are_those_of_the_prompt(self, smollm):
        # The template says "helpful" before the prompt, and "assistant" behind it.
        assert (
            decode_each_token(smollm, to_token_ids(smollm, Chat("a helpful x")))[
                find_substring_token_position(smollm, Chat("a helpful x"), "helpful")
            ]
            == " helpful"
        )
        with pytest.raises(PatchscopesError, match="'assistant' is not in the text"):
            find_substring_token_position(smollm, Chat("an x"), "assistant")
        with pytest.raises(PatchscopesError, match="the target prompt 'an x' has no placeholder 'user'"):
            placeholder_target(smollm, Chat("an x"), "user")

    def test_the_end_of_a_text(self, smollm):
        assert find_end(smollm, "x") == -1
        with pytest.raises(PatchscopesError, match="the user's message of a chat is empty"):
            find_end(smollm, Chat(""))

    def test_answers_begin_what_the_assistant_says(self, smollm):
        after_word = find_first_tokens(smollm, ["paris"])
        after_chat = find_first_tokens(smollm, ["paris"], after=Chat("Where?"))
        said = set(decode_each_token(smollm, after_chat))
        assert {"Paris", " Paris"} <= said
        assert set(decode_each_token(smollm, after_word)) == {" par", " Paris"}

    def test_in_a_patchscope(self, smollm):
        patchscope = Patchscope(
            model=smollm,
            source_prompt=Chat("Amazon's former CEO attended Oscars"),
            source_position="CEO",
            source_layers=[3, 20],
            target_prompt=Chat("cat -> cat\n?"),
            target_position="?",
        )
        tokens, position = patchscope.source
        assert decode_each_token(smollm, tokens)[position] == " CEO"
        target = placeholder_target(smollm, as_chat(smollm, "cat -> cat\n?"))
        assert (patchscope.target.tokens.tolist(), patchscope.target.position) == (
            target.tokens.tolist(),
            target.position,
        )
