"""Rows that write several vectors, cut attention edges and have several target prompts: the face of both engines.

See `rows` for what a row says. Rows of any target prompts of one model go into one call; those whose prompts have one
length are computed together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchscopes.engine import row_hooks, row_walk
from patchscopes.engine.batching import check_length, rows_per_batch
from patchscopes.engine.generation import Stop, generate
from patchscopes.engine.proof import Engine
from patchscopes.engine.row_proof import choose_row_engines
from patchscopes.engine.rows import Row, get_model
from patchscopes.errors import PatchscopesError
from patchscopes.tokens import get_end_tokens

# Rows that start at different tokens walk together until they are this many tokens: a batch of fewer takes as long.
FEWEST_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """The numbers of some rows that are computed together, and by which engine."""

    rows: list[int]
    engine: Literal["fast", "hooks"]


@torch.no_grad()
def patch_rows(
    rows: Sequence[Row], *, engine: Engine = "auto", batch_size: int | None = None
) -> Float[Tensor, "row d_vocab"]:
    """Logits of the token after each row's target prompt.

    Args:
        rows: with any target prompts of one model, in any order and mix.
        engine: as for `patch_logits`; `"auto"` chooses for each row, and uses the fast engine for what it has been
            proved to do on this model.
        batch_size: rows at a time; chosen by size unless given. Results do not depend on it beyond rounding.

    Raises:
        PatchscopesError: there are no rows, they have different models, or neither engine can do on this model what
            they say.
    """
    batches = _split_into_batches(rows, engine, batch_size, new_tokens=0)
    cfg = rows[0].target.model.cfg
    out: Tensor | None = None
    for batch in batches:
        some = [rows[number] for number in batch.rows]
        logits = row_walk.first_logits(some) if batch.engine == "fast" else row_hooks.first_logits(some)
        if out is None:
            out = torch.empty(len(rows), logits.shape[-1], dtype=logits.dtype, device=cfg.device)
        out[batch.rows] = logits.to(out.device)
    assert out is not None
    return out


def patch_rows_in_batches(
    rows: Sequence[Row], *, engine: Engine = "auto", batch_size: int | None = None
) -> Iterator[Float[Tensor, "batch d_vocab"]]:
    """`patch_rows`, some rows at a time, in order: for more rows than their logits would fit into memory.

    Rows with the same target prompt, or with prompts of the same length, belong next to each other.
    """
    size = batch_size or rows_per_batch(get_model(_check_any(rows)))
    return (
        patch_rows(rows[first : first + size], engine=engine, batch_size=batch_size)
        for first in range(0, len(rows), size)
    )


@torch.no_grad()
def generate_rows(
    rows: Sequence[Row],
    *,
    max_new_tokens: int = 20,
    stop: Stop | None = None,
    engine: Engine = "auto",
    batch_size: int | None = None,
) -> Int[Tensor, "row new_token"]:
    """What the model says after each row's target prompt, greedily.

    What a row writes and cuts acts while the prompt is read; generated tokens see it through the keys and values that
    it caused, and no edge of theirs is cut. A row that has produced an end-of-sequence token is padded with that token.

    Args:
        stop: as for `patch_generate`.

    Other args and errors: as for `patch_rows`; and a prompt has no room for the new tokens.
    """
    model = get_model(_check_any(rows))
    for target in {id(row.target): row.target for row in rows}.values():
        check_length(target, max_new_tokens)
    out = torch.empty(len(rows), max_new_tokens, dtype=torch.long, device=model.cfg.device)
    ends = get_end_tokens(model)
    for batch in _split_into_batches(rows, engine, batch_size, max_new_tokens):
        some = [rows[number] for number in batch.rows]
        start_generation = row_walk.start_generation if batch.engine == "fast" else row_hooks.start_generation
        logits, advance = start_generation(some)
        some_stop = None if stop is None else _number_rows(stop, torch.tensor(batch.rows, device=out.device))
        out[batch.rows] = generate(len(some), logits, advance, ends, max_new_tokens, 0.0, None, stop=some_stop)
    return out


def _number_rows(stop: Stop, numbers: Int[Tensor, " row"]) -> Stop:
    """`stop` of a batch of the rows with these numbers."""

    def stop_in_batch(tokens: Int[Tensor, "row new_token"], rows: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
        return stop(tokens, numbers[rows])

    return stop_in_batch


def _check_any(rows: Sequence[Row]) -> Sequence[Row]:
    if not rows:
        raise PatchscopesError("no rows were given; give at least one Row")
    return rows


def _split_into_batches(rows: Sequence[Row], engine: Engine, batch_size: int | None, new_tokens: int) -> list[_Batch]:
    """Batches of rows with one engine and length; rows that start at one token, and rows of one target, together."""
    model = get_model(_check_any(rows))
    if batch_size is not None and batch_size < 1:
        raise PatchscopesError(f"batch_size must be at least 1, or None to choose by size; got {batch_size}")
    engines = choose_row_engines(rows, engine)
    first_seen: dict[int, int] = {}
    for number, row in enumerate(rows):
        first_seen.setdefault(id(row.target), number)
    groups: dict[tuple[str, int, int], list[int]] = {}
    for number, row in sorted(enumerate(rows), key=lambda pair: (pair[1].start, first_seen[id(pair[1].target)])):
        start = row.start if engines[number] == "fast" else 0
        groups.setdefault((engines[number], len(row.target.tokens), start), []).append(number)

    batches = []
    for (chosen, n_tokens, start), numbers in _merge_small(rows, groups):
        if batch_size is not None:
            size = batch_size
        elif chosen == "hooks":
            size = rows_per_batch(model, run=n_tokens + new_tokens, unembedded=n_tokens + new_tokens)
        elif new_tokens == 0:
            size = rows_per_batch(model, run=n_tokens - start)
        else:
            size = rows_per_batch(model, unembedded=0, cached=n_tokens - start + new_tokens)
        batches += [_Batch(rows=numbers[first : first + size], engine=chosen) for first in range(0, len(numbers), size)]
    return batches


def _merge_small(
    rows: Sequence[Row],
    groups: dict[tuple[str, int, int], list[int]],
) -> list[tuple[tuple[Literal["fast", "hooks"], int, int], list[int]]]:
    """The groups, those of few tokens together with ones that start at later tokens, but not before a target's i*."""
    merged: list = []
    for (engine, n_tokens, start), numbers in sorted(groups.items()):
        if merged:
            (last_engine, last_length, first), before = merged[-1]
            is_small = len(before) * (n_tokens - first) < FEWEST_TOKENS
            could_start = all(rows[number].target.position <= first for number in numbers)
            if (engine, n_tokens) == (last_engine, last_length) and is_small and could_start:
                before.extend(numbers)
                continue
        merged.append(((engine, n_tokens, start), list(numbers)))
    return merged
