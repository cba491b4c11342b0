"""SelfIE's relevancy (Chen et al. 2024, arXiv 2403.10949): how much of what is said is due to the patch.

The relevancy of a generated token is its probability with the patch minus that without it, after the same tokens. What
the prompt would have made the model say anyhow has a relevancy near 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchscopes.engine.proof import Engine
from patchscopes.engine.row_patching import run_generation
from patchscopes.engine.rows import Row
from patchscopes.errors import PatchscopesError
from patchscopes.model.lens_model import LensModel
from patchscopes.tokens import decode_each_token, get_end_tokens

# What stands behind the last token of a row.
NO_TOKEN = -1


class RelevantTokens(NamedTuple):
    """What rows have generated.

    Attributes:
        tokens: up to the first end-of-sequence token, and -1 from there on.
        relevancies: of each token, from -1 to 1; 0 behind the last one.
    """

    tokens: Int[Tensor, "row new_token"]
    relevancies: Float[Tensor, "row new_token"]


class Continuation(NamedTuple):
    """A text, and its tokens with the relevancy of each."""

    text: str
    tokens: list[str]
    relevancies: list[float]


def describe_relevancy(model: LensModel, said: RelevantTokens) -> list[Continuation]:
    """What rows have generated, as text."""
    continuations = []
    for tokens, relevancies in zip(said.tokens, said.relevancies, strict=True):
        given = tokens[tokens != NO_TOKEN]
        text = model.tokenizer.decode(given, skip_special_tokens=True)
        continuations.append(Continuation(text, decode_each_token(model, given), relevancies[: len(given)].tolist()))
    return continuations


@torch.no_grad()
def generate_with_relevancy(
    rows: Sequence[Row], *, max_new_tokens: int = 20, engine: Engine = "auto", batch_size: int | None = None
) -> RelevantTokens:
    """What the model says after each row's target prompt, greedily, and the relevancy of each token.

    Args and errors: as for `generate_rows`.
    """
    said, patched = run_generation(rows, max_new_tokens, engine=engine, batch_size=batch_size, with_probabilities=True)
    assert patched is not None
    is_end = torch.isin(said, get_end_tokens(rows[0].target.model))
    tokens = torch.where(is_end.cumsum(dim=1) > 0, NO_TOKEN, said)

    # Many rows say the same.
    distinct: dict[tuple[int, tuple[int, ...]], int] = {}
    keys = [(id(row.target), tuple(of_row)) for row, of_row in zip(rows, tokens.tolist(), strict=True)]
    for number, key in enumerate(keys):
        distinct.setdefault(key, number)
    numbers = list(distinct.values())
    clean_rows = [Row(target=rows[number].target) for number in numbers]
    unpatched = score_tokens(clean_rows, tokens[numbers], engine=engine, batch_size=batch_size)
    places = {key: place for place, key in enumerate(distinct)}
    relevancies = patched - unpatched[[places[key] for key in keys]]
    return RelevantTokens(tokens, torch.where(tokens == NO_TOKEN, 0.0, relevancies))


@torch.no_grad()
def score_tokens(
    rows: Sequence[Row],
    tokens: Int[Tensor, "row new_token"],
    *,
    engine: Engine = "auto",
    batch_size: int | None = None,
) -> Float[Tensor, "row new_token"]:
    """How likely each token is after the row's target prompt and the tokens before it.

    The tokens are appended one by one, those that rows have in common once, so memory never holds the logits of more
    than some rows' next token.

    Args:
        tokens: of each row; -1 behind the last one, where the result is 0.

    Other args and errors: as for `generate_rows`; and there are not as many lists of tokens as rows.
    """
    if len(tokens) != len(rows):
        raise PatchscopesError(f"{len(rows)} rows need as many lists of tokens, got {len(tokens)}")
    following = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=NO_TOKEN)

    def stop(said: Int[Tensor, "some new_token"], numbers: Int[Tensor, " some"]) -> Bool[Tensor, " some"]:
        return following.to(numbers.device)[numbers, said.shape[1] - 1] == NO_TOKEN

    _, likely = run_generation(
        rows,
        tokens.shape[1],
        engine=engine,
        batch_size=batch_size,
        stop=stop,
        forced=tokens,
        with_probabilities=True,
    )
    assert likely is not None
    return torch.where(tokens.to(likely.device) == NO_TOKEN, 0.0, likely)
