"""Representations with the model's own continuation: the shared run equals running every text again."""

import pytest
import torch
from conftest import CONTEXT, KINDS

from patchscopes.engine.extract import extract_representations
from patchscopes.errors import PatchscopesError
from patchscopes.learned.continuation import read_with_continuation
from patchscopes.model.layers import EMBEDDING

TEXTS = ["a first text, with more", "another", "a first text, with more", "a first text, with more"]
POSITIONS = [3, -1, -2, 12]
LAYERS = [2, EMBEDDING, 3]


@pytest.mark.parametrize("family", KINDS)
def test_equals_running_everything_again(tiny_models, family):
    model = tiny_models(family)
    shared = read_with_continuation(model, TEXTS, POSITIONS, LAYERS, 3)
    plain = read_with_continuation(model, TEXTS, POSITIONS, LAYERS, 3, engine="hooks")
    assert torch.equal(shared.tokens, plain.tokens)
    torch.testing.assert_close(shared.final, plain.final, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(shared.representations, plain.representations, atol=1e-3, rtol=1e-3)


def test_reads_what_extraction_reads_and_says_what_the_model_says(smollm):
    text = "The capital of France is Paris. The capital of Italy is"
    read = read_with_continuation(smollm, [text], [-1], [5, 29], 4)
    torch.testing.assert_close(
        read.representations, extract_representations(smollm, [text], [-1], [5, 29]), atol=1e-2, rtol=1e-3
    )
    tokens = smollm.to_tokens(text)
    for token in read.tokens[0]:
        assert smollm(tokens)[0, -1].argmax() == token
        tokens = torch.cat([tokens, token.view(1, 1)], dim=1)
    assert "Rome" in smollm.tokenizer.decode(read.tokens[0])


def test_nothing_and_mistakes(llama):
    nothing = read_with_continuation(llama, [], [], [0, 1], 2)
    assert (nothing.representations.shape, nothing.tokens.shape) == ((0, 2, 32), (0, 2))
    with pytest.raises(PatchscopesError, match="at least 1 token"):
        read_with_continuation(llama, ["a"], [0], [0], 0)
    with pytest.raises(
        PatchscopesError, match=f"{CONTEXT + 2} tokens, 2 of .* own, do not fit its context of {CONTEXT}"
    ):
        read_with_continuation(llama, [[5] * CONTEXT], [-1], [0], 3)
    with pytest.raises(PatchscopesError, match="position"):
        read_with_continuation(llama, ["a"], [7], [0], 1)
