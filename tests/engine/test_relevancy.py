"""SelfIE's relevancy: what is due to the patch, token by token."""

import pytest
import torch
from conftest import KINDS

from patchscopes.engine import relevancy
from patchscopes.engine.relevancy import NO_TOKEN, describe_relevancy
from patchscopes.engine.rows import Row, Write
from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.patch import extract_representations, generate_rows, generate_with_relevancy, score_tokens

PROMPT = "Syria: Country in the Middle East, x"


def build_rows(model, n_rows=6, position=-1, prompt=PROMPT):
    target = TargetPrompt(model, prompt, position)
    vectors = 3 * torch.randn(n_rows, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    return [
        Row(target=target, writes=(Write(position=target.position, layer=number % 5 - 1, vector=vector),))
        for number, vector in enumerate(vectors)
    ]


def score_plainly(row, tokens):
    """The probabilities of the tokens from one forward pass with the model's own hooks."""
    model = row.target.model
    whole = torch.cat([row.target.tokens, tokens])[None]

    def writing(write):
        def hook(residual, hook):
            residual = residual.clone()
            residual[:, write.position] = write.vector
            return residual

        name = "blocks.0.hook_resid_pre" if write.layer == -1 else f"blocks.{write.layer}.hook_resid_post"
        return name, hook

    logits = model.run_with_hooks(whole, fwd_hooks=[writing(write) for write in row.writes])[0]
    probabilities = logits[len(row.target.tokens) - 1 : -1].softmax(dim=-1)
    return probabilities.gather(1, tokens[:, None])[:, 0]


@pytest.mark.parametrize("engine", ["auto", "hooks"])
@pytest.mark.parametrize("family", KINDS)
def test_is_the_difference_of_plain_probabilities(tiny_models, family, engine):
    model = tiny_models(family)
    rows = build_rows(model, position=-3)
    said = generate_with_relevancy(rows, max_new_tokens=5, engine=engine)
    for row, tokens, relevancies in zip(rows, *said, strict=True):
        given = tokens[tokens != NO_TOKEN]
        if len(given) > 0:
            expected = score_plainly(row, given) - score_plainly(Row(target=row.target), given)
            torch.testing.assert_close(relevancies[: len(given)], expected, atol=1e-4, rtol=0)
        assert not relevancies[len(given) :].any()


def test_says_what_the_rows_say(llama):
    rows = build_rows(llama)
    relevant = generate_with_relevancy(rows, max_new_tokens=6)
    said = generate_rows(rows, max_new_tokens=6)
    assert torch.equal(torch.where(relevant.tokens == NO_TOKEN, said, relevant.tokens), said)
    assert relevant.relevancies.abs().max() <= 1
    texts = llama.tokenizer.batch_decode(said, skip_special_tokens=True)
    described = describe_relevancy(llama, relevant)
    assert [one.text for one in described] == texts
    # A byte-level token may be a part of a character.
    assert [len(one.tokens) for one in described] == (relevant.tokens != NO_TOKEN).sum(dim=1).tolist()


def test_what_changes_nothing_is_irrelevant(llama):
    target = TargetPrompt(llama, PROMPT, 3)
    states = extract_representations(llama, [PROMPT], [3])[0]
    over_itself = [
        Row(target=target, writes=(Write(position=3, layer=layer, vector=state),)) for layer, state in enumerate(states)
    ]
    for rows in ([Row(target=target)], over_itself):
        tokens, relevancies = generate_with_relevancy(rows, max_new_tokens=6)
        assert (tokens != NO_TOKEN).any()
        torch.testing.assert_close(relevancies, torch.zeros_like(relevancies), atol=1e-5, rtol=0)


def test_batched_equals_one_by_one(llama):
    rows = [*build_rows(llama), *build_rows(llama, 3, prompt="another prompt: x"), *build_rows(llama, 2)]
    together = generate_with_relevancy(rows, max_new_tokens=5)
    in_batches = generate_with_relevancy(rows, max_new_tokens=5, batch_size=2)
    alone = [generate_with_relevancy([row], max_new_tokens=5) for row in rows]
    for other in (in_batches, (torch.cat(part) for part in zip(*alone, strict=True))):
        tokens, relevancies = other
        assert torch.equal(tokens, together.tokens)
        torch.testing.assert_close(relevancies, together.relevancies, atol=1e-5, rtol=0)


def test_ends_with_the_text(llama, monkeypatch):
    rows = build_rows(llama)
    said = generate_rows(rows, max_new_tokens=6)
    end = said[0, 2]
    monkeypatch.setattr(relevancy, "get_end_tokens", lambda model: end[None])
    tokens, relevancies = generate_with_relevancy(rows, max_new_tokens=6)
    for of_row, relevancies_of_row, spoken in zip(tokens, relevancies, said, strict=True):
        n_tokens = next((place for place, token in enumerate(spoken) if token == end), 6)
        assert torch.equal(of_row[:n_tokens], spoken[:n_tokens])
        assert (of_row[n_tokens:] == NO_TOKEN).all()
        assert not relevancies_of_row[n_tokens:].any()


class TestScoreTokens:
    def test_of_any_tokens(self, llama):
        rows = build_rows(llama, 3)
        tokens = torch.tensor([[5, 6, 7, 8], [9, NO_TOKEN, NO_TOKEN, NO_TOKEN], [NO_TOKEN] * 4])
        scores = score_tokens(rows, tokens)
        torch.testing.assert_close(scores[0], score_plainly(rows[0], tokens[0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(scores[1, :1], score_plainly(rows[1], tokens[1, :1]), atol=1e-5, rtol=0)
        assert not scores[1, 1:].any()
        assert not scores[2].any()

    def test_an_end_of_sequence_token_is_one_like_any_other(self, llama):
        end = llama.tokenizer.eos_token_id
        rows, tokens = build_rows(llama, 2), torch.tensor([[end, 5], [6, end]])
        scores = score_tokens(rows, tokens)
        expected = torch.stack([score_plainly(*pair) for pair in zip(rows, tokens, strict=True)])
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)

    def test_mistakes(self, llama):
        with pytest.raises(PatchscopesError, match="2 rows need as many lists of tokens, got 3"):
            score_tokens(build_rows(llama, 2), torch.zeros(3, 2, dtype=torch.long))
        with pytest.raises(PatchscopesError, match="no rows were given"):
            generate_with_relevancy([])
