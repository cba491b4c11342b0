"""Rows that write several vectors, cut attention edges and have several target prompts: the face of both engines.

See `rows` for what a row says. Rows of any target prompts of one model go into one call; those whose prompts have one
length are computed together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

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


# What rows that are computed together have in common: the engine, the length of their prompts, the first token to run.
_Group: TypeAlias = tuple[Literal["fast", "hooks"], int, int]


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
    return run_generation(rows, max_new_tokens, stop=stop, engine=engine, batch_size=batch_size)[0]


def run_generation(
    rows: Sequence[Row],
    max_new_tokens: int,
    *,
    engine: Engine,
    batch_size: int | None,
    stop: Stop | None = None,
    forced: Int[Tensor, "row max_new_tokens"] | None = None,
    with_probabilities: bool = False,
) -> tuple[Int[Tensor, "row max_new_tokens"], Float[Tensor, "row max_new_tokens"] | None]:
    """The tokens of `generate_rows`, chosen or forced, and perhaps how likely each was (see `generation.generate`)."""
    model = get_model(_check_any(rows))
    for target in {id(row.target): row.target for row in rows}.values():
        check_length(target, max_new_tokens)
    out = torch.empty(len(rows), max_new_tokens, dtype=torch.long, device=model.cfg.device)
    likely = torch.zeros(out.shape, device=out.device) if with_probabilities else None
    ends = get_end_tokens(model)
    for batch in _split_into_batches(rows, engine, batch_size, max_new_tokens):
        some = [rows[number] for number in batch.rows]
        start_generation = row_walk.start_generation if batch.engine == "fast" else row_hooks.start_generation
        logits, advance = start_generation(some)
        some_stop = None if stop is None else _number_rows(stop, torch.tensor(batch.rows, device=out.device))
        some_forced = None if forced is None else forced[batch.rows].to(out.device)
        some_likely = None if likely is None else likely[batch.rows]
        out[batch.rows] = generate(
            len(some), logits, advance, ends, max_new_tokens, 0.0, None, some_forced, some_stop, some_likely
        )
        if likely is not None and some_likely is not None:
            likely[batch.rows] = some_likely
    return out, likely


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
    groups: dict[_Group, list[int]] = {}
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
    groups: dict[_Group, list[int]],
) -> list[tuple[_Group, list[int]]]:
    """The groups, those of few tokens together with ones that start at later tokens, but not before a target's i*."""
    merged: list[tuple[_Group, list[int]]] = []
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
