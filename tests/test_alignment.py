"""Positions and tokens of two models, matched by their text."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchscopes.alignment import Vocabularies, align_positions, find_longest_beginning, map_vocabulary_by_text
from patchscopes.tokens import decode_each_token, to_token_ids

MIXED = "Zoë naïvely paid 25 € in Москва, then 東京 and 서울 🙂👩‍🚀; ﷺ done.\nשלום  two  spaces"


@pytest.fixture(scope="module")
def pair(models_by_tokenizer):
    """Two tiny models that differ in everything."""
    return models_by_tokenizer["byte_level"], models_by_tokenizer["sentencepiece_like"]


class TestAlignment:
    @pytest.mark.parametrize("text", [MIXED, "plain words only", "  spaces  ", "東京", "🙂", "e\u0301"])
    def test_both_have_read_the_same_characters(self, pair, text):
        source, target = pair
        aligned = align_positions(source, target, text)
        assert aligned == sorted(set(aligned))
        for source_position, target_position in aligned:
            read = [
                prefixes(model, text)[position].lstrip()
                for model, position in ((source, source_position), (target, target_position))
            ]
            assert read[0] == read[1]
            assert text.lstrip().startswith(read[0])
        # Both end at the end of the text.
        last = (len(to_token_ids(source, text)) - 1, len(to_token_ids(target, text)) - 1)
        assert aligned[-1] == last

    def test_all_of_them_are_found(self, pair):
        source, target = pair
        texts = [[text.lstrip() for text in prefixes(model, MIXED)] for model in pair]
        common = {text for text in set(texts[0]) & set(texts[1]) if text and "\ufffd" not in text}
        found = {texts[0][position] for position, _ in align_positions(source, target, MIXED)}
        assert found == common

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
    def test_any_text(self, pair, text):
        source, target = pair
        ends = [source_position for source_position, _ in align_positions(source, target, text)]
        assert ends == sorted(set(ends))

    def test_with_itself_every_token_that_ends_a_character(self, smollm):
        text = "The quick brown fox, déjà vu"
        n_tokens = len(to_token_ids(smollm, text))
        aligned = align_positions(smollm, smollm, text)
        assert all(source == target for source, target in aligned)
        assert {source for source, _ in aligned} == set(range(1, n_tokens))

    def test_a_text_longer_than_a_context_is_cut(self, pair):
        source, target = pair
        text = "dogs and cats " * 200
        aligned = align_positions(source, target, text)
        assert max(position for position, _ in aligned) < source.cfg.n_ctx
        assert max(position for _, position in aligned) < target.cfg.n_ctx
        assert len(aligned) > 50


def prefixes(model, text: str) -> list[str]:
    """What the model has read of the text with each of its tokens."""
    ids = to_token_ids(model, text)
    return [model.tokenizer.decode(ids[: n + 1]).removeprefix("<s>") for n in range(len(ids))]


class TestVocabularies:
    def test_tokens_by_text(self, smollm, pair):
        for model in (smollm, *pair):
            vocabulary = map_vocabulary_by_text(model)
            sample = list(vocabulary.items())[::97]
            assert decode_each_token(model, [token for _, token in sample]) == [text for text, _ in sample]

    def test_bytes_do_not_stand_for_letters(self, pair):
        target = pair[1]
        for letter in ("e", ":"):
            assert target.tokenizer.convert_ids_to_tokens(map_vocabulary_by_text(target)[letter]) == letter

    def test_a_later_byte_does_not_replace_a_token(self, pair, monkeypatch):
        """As the newline of Gemma 3, whose byte comes after it in the vocabulary: here the two names change places."""
        tokenizer = pair[1].tokenizer
        first, second = sorted(tokenizer.convert_tokens_to_ids(["e", "<0x65>"]))
        monkeypatch.setattr(tokenizer, "get_vocab", lambda: {"e": first, "<0x65>": second})
        assert map_vocabulary_by_text(pair[1]) == {"e": first}

    def test_longest_beginning(self):
        vocabulary = {" cap": 1, " capital": 2, "c": 3}
        assert find_longest_beginning(" capital", vocabulary) == 2
        assert find_longest_beginning(" capitals", vocabulary) == 2
        assert find_longest_beginning(" cape", vocabulary) == 1
        assert find_longest_beginning("東", vocabulary) is None

    def test_one_vocabulary_is_compared_as_it_is(self, llama):
        """Also its bytes, which have no text."""
        both = Vocabularies.of(llama, llama)
        tokens = torch.tensor([[0, 1, 200, 299]])
        assert torch.equal(both.same(llama, tokens), tokens)
        assert torch.equal(both.closest(tokens), tokens)

    def test_vocabularies_of_a_family_may_be_padded_to_different_sizes(self, llama, monkeypatch):
        both = Vocabularies.of(llama, llama)
        monkeypatch.setattr(llama.cfg, "d_vocab", 200)
        assert both.same(llama, torch.tensor([[0, 1, 200, 299]])).tolist() == [[0, 1, -1, -1]]
