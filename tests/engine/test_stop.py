"""Rows that have said what was waited for drop out of a generation."""

import pytest
import torch

from patchscopes.engine.generation import generate
from patchscopes.engine.target import TargetPrompt
from patchscopes.patch import patch_generate
from patchscopes.tokens import get_end_tokens


class TestStop:
    """Rows that have answered drop out."""

    @pytest.mark.parametrize("engine", ["fast", "hooks"])
    def test_the_others_go_on_as_before(self, llama, engine):
        target = TargetPrompt(llama, "Colour of the DOG is", 3)
        vectors, layers = torch.randn(6, llama.cfg.d_model), [0, 0, 1, 2, 3, -1]
        whole = patch_generate(target, vectors, layers, max_new_tokens=6, engine=engine)

        def third_token_is_even(tokens, rows):
            return torch.tensor([len(row) >= 3 and int(row[2]) % 2 == 0 for row in tokens])

        stopped = patch_generate(target, vectors, layers, max_new_tokens=6, engine=engine, stop=third_token_is_even)
        ends = get_end_tokens(llama)
        for row, of_whole in zip(stopped, whole, strict=True):
            if int(of_whole[2]) % 2 == 0 and not torch.isin(of_whole[:3], ends).any():
                assert torch.equal(row[:3], of_whole[:3])
                assert (row[3:] == ends[0]).all()
            else:
                assert torch.equal(row, of_whole)

    @pytest.mark.parametrize("engine", ["fast", "hooks"])
    @pytest.mark.parametrize("batch_size", [2, None])
    def test_rows_are_known_by_their_numbers(self, llama, engine, batch_size):
        """Each row waits for a token of its own, in batches as all at once."""
        target = TargetPrompt(llama, "Colour of the DOG is", 3)
        vectors, layers = torch.randn(6, llama.cfg.d_model), [3, 0, 2, 1, 0, -1]
        whole = patch_generate(target, vectors, layers, max_new_tokens=6, engine=engine)
        n_new = torch.tensor([1, 2, 3, 4, 5, 6])

        def stop(tokens, rows):
            return torch.full((len(tokens),), tokens.shape[1]) >= n_new[rows]

        stopped = patch_generate(
            target, vectors, layers, max_new_tokens=6, engine=engine, stop=stop, batch_size=batch_size
        )
        end = get_end_tokens(llama)[0]
        for row, of_whole, n in zip(stopped, whole, n_new, strict=True):
            assert torch.equal(row[:n], of_whole[:n])
            assert (row[n:] == end).all()


def test_without_an_end_of_sequence_no_row_is_stopped():
    """There is nothing to pad it with."""
    logits = torch.zeros(2, 5)
    logits[:, 3] = 1.0
    nothing = torch.tensor([], dtype=torch.long)
    everyone = torch.ones(2, dtype=torch.bool)
    tokens = generate(
        2, [logits], lambda chosen, kept: [logits], nothing, 4, 0.0, None, stop=lambda tokens, rows: everyone
    )
    assert (tokens == 3).all()
