"""Logits in words: the most likely tokens and how likely they are."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.errors import PatchscopesError
from patchscopes.model.lens_model import LensModel
from patchscopes.tokens import decode_each_token


class TokenProbability(NamedTuple):
    """A token, as text, and how likely it is."""

    token: str
    probability: float


def check_k(model: LensModel, k: int) -> None:
    """Refuse to list more tokens than there are.

    Raises:
        PatchscopesError: the model has fewer than `k` tokens, or `k` is below 1.
    """
    n_tokens = model.cfg.d_vocab
    if not 1 <= k <= n_tokens:
        raise PatchscopesError(
            f"the model has {n_tokens} tokens, {k} most likely ones were asked for: give 1 to {n_tokens}"
        )


def list_likely_tokens(model: LensModel, logits: Float[Tensor, "row d_vocab"], k: int) -> list[list[TokenProbability]]:
    """The `k` most likely tokens of each row, with their probabilities."""
    top = torch.softmax(logits.float(), dim=-1).topk(k, dim=-1)
    return [
        [TokenProbability(*pair) for pair in zip(decode_each_token(model, ids), row.tolist(), strict=True)]
        for ids, row in zip(top.indices, top.values, strict=True)
    ]
