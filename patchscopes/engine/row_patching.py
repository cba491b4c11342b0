"""Rows that write several vectors, cut attention edges and have several target prompts: the face of both engines.

See `rows` for what a row says. Rows of any target prompts of one model go into one call; those whose prompts have one
length are computed together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.engine import row_hooks, row_walk
from patchscopes.engine.batching import RowSize, check_length, run_in_batches
from patchscopes.engine.generation import Stop, generate, number_rows
from patchscopes.engine.proof import Engine
from patchscopes.engine.row_proof import choose_row_engines
from patchscopes.engine.rows import Row, get_model
from patchscopes.errors import PatchscopesError
from patchscopes.model.lens_model import LensModel
from patchscopes.tokens import get_end_tokens

# Rows that start at different tokens walk together until they are this many tokens: a batch of fewer takes as long.
FEWEST_TOKENS = 256


_EngineName: TypeAlias = Literal["fast", "hooks"]

# What rows that are computed together have in common: the engine, the length of their prompts, the first token to run.
_Kind: TypeAlias = tuple[_EngineName, int, int]

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Rows of one kind, by their numbers, which are computed together as far as they fit."""

    model: LensModel
    rows: list[int]
    engine: _EngineName
    size: RowSize

    def run(
        self, run: Callable[[list[int], _EngineName], Result], batch_size: int | None
    ) -> Iterator[tuple[list[int], Result]]:
        """Some rows at a time: their numbers, and what `run` gives for these and the engine."""

        def run_some(batch: slice) -> Result:
            return run(self.rows[batch], self.engine)

        for batch, result in run_in_batches(self.model, len(self.rows), run_some, row=self.size, batch_size=batch_size):
            yield self.rows[batch], result


@torch.no_grad()
def patch_rows(
    rows: Sequence[Row], *, engine: Engine = "auto", batch_size: int | None = None
) -> Float[Tensor, "row d_vocab"]:
    """Logits of the token after each row's target prompt.

    Args:
        rows: with any target prompts of one model, in any order and mix.
        engine: as for `patch_logits`; `"auto"` chooses for each row, and uses the fast engine for what it has been
            proved to do on this model.
        batch_size: as for `patch_logits`.

    Raises:
        PatchscopesError: there are no rows, they have different models, or neither engine can do on this model what
            they say.
    """
    device = get_model(_check_any(rows)).cfg.device

    def ask(numbers: list[int], chosen: _EngineName) -> Float[Tensor, "batch d_vocab"]:
        some = [rows[number] for number in numbers]
        return row_walk.first_logits(some) if chosen == "fast" else row_hooks.first_logits(some)

    out: Tensor | None = None
    for group in _group_rows(rows, engine, new_tokens=0):
        for numbers, logits in group.run(ask, batch_size):
            if out is None:
                out = torch.empty(len(rows), logits.shape[-1], dtype=logits.dtype, device=device)
            out[numbers] = logits.to(out.device)
    assert out is not None
    return out


def patch_rows_in_batches(
    rows: Sequence[Row], *, engine: Engine = "auto", batch_size: int | None = None
) -> Iterator[Float[Tensor, "batch d_vocab"]]:
    """`patch_rows`, some rows at a time, in order: for more rows than their logits would fit into memory.

    Rows with the same target prompt, or with prompts of the same length, belong next to each other.
    """

    def run(batch: slice) -> Float[Tensor, "batch d_vocab"]:
        return patch_rows(rows[batch], engine=engine, batch_size=batch_size)

    batches = run_in_batches(get_model(_check_any(rows)), len(rows), run, batch_size=batch_size)
    return (logits for _, logits in batches)


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

    def generate_some(
        numbers: list[int], chosen: _EngineName
    ) -> tuple[Int[Tensor, "batch max_new_tokens"], Float[Tensor, "batch max_new_tokens"] | None]:
        start_generation = row_walk.start_generation if chosen == "fast" else row_hooks.start_generation
        logits, advance = start_generation([rows[number] for number in numbers])
        some_stop = None if stop is None else number_rows(stop, torch.tensor(numbers, device=out.device))
        some_forced = None if forced is None else forced[numbers].to(out.device)
        some_likely = None if likely is None else likely[numbers]
        tokens = generate(
            len(numbers), logits, advance, ends, max_new_tokens, 0.0, None, some_forced, some_stop, some_likely
        )
        return tokens, some_likely

    for group in _group_rows(rows, engine, max_new_tokens):
        for numbers, (tokens, some_likely) in group.run(generate_some, batch_size):
            out[numbers] = tokens
            if likely is not None and some_likely is not None:
                likely[numbers] = some_likely
    return out, likely


def _check_any(rows: Sequence[Row]) -> Sequence[Row]:
    if not rows:
        raise PatchscopesError("no rows were given; give at least one Row")
    return rows


def _group_rows(rows: Sequence[Row], engine: Engine, new_tokens: int) -> list[_Group]:
    """The rows by engine and length; those that start at one token, and those of one target, next to each other."""
    engines = choose_row_engines(rows, engine)
    first_seen: dict[int, int] = {}
    for number, row in enumerate(rows):
        first_seen.setdefault(id(row.target), number)
    kinds: dict[_Kind, list[int]] = {}
    for number, row in sorted(enumerate(rows), key=lambda pair: (pair[1].start, first_seen[id(pair[1].target)])):
        start = row.start if engines[number] == "fast" else 0
        kinds.setdefault((engines[number], len(row.target.tokens), start), []).append(number)

    groups = []
    for (chosen, n_tokens, start), numbers in _merge_small(rows, kinds):
        n_seen = n_tokens + new_tokens
        if chosen == "hooks":
            size = RowSize(run=n_seen, unembedded=n_seen)
        elif new_tokens == 0:
            size = RowSize(run=n_tokens - start, seen=n_seen)
        else:
            size = RowSize(unembedded=0, cached=n_seen - start, seen=n_seen)
        groups.append(_Group(model=get_model(rows), rows=numbers, engine=chosen, size=size))
    return groups


def _merge_small(
    rows: Sequence[Row],
    kinds: dict[_Kind, list[int]],
) -> list[tuple[_Kind, list[int]]]:
    """The kinds, those of few tokens together with ones that start at later tokens, but not before a target's i*."""
    merged: list[tuple[_Kind, list[int]]] = []
    for (engine, n_tokens, start), numbers in sorted(kinds.items()):
        if merged:
            (last_engine, last_length, first), before = merged[-1]
            is_small = len(before) * (n_tokens - first) < FEWEST_TOKENS
            could_start = all(rows[number].target.position <= first for number in numbers)
            if (engine, n_tokens) == (last_engine, last_length) and is_small and could_start:
                before.extend(numbers)
                continue
        merged.append(((engine, n_tokens, start), list(numbers)))
    return merged
