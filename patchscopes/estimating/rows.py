"""Some rows in the place of all, in a call for many of them."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from patchscopes.estimating.tally import Estimate, Tally

Result = TypeVar("Result")

# The share of the rows that a first look is taken at.
FIRST_LOOK = 1 / 16
# Where some rows are run: many a call begins with low layers, whose rows run through more blocks than the last ones.
PLACES = (0.25, 0.75)


def run_and_count(estimate: Estimate, run: Callable[[], Result], n_rows: int, tokens_of_row: int) -> Result:
    """What `run` gives for so many rows, which are counted unless it calls for rows itself: those are then."""
    before = estimate.passed.rows
    estimate.inside += 1
    try:
        result = run()
    finally:
        estimate.inside -= 1
    if estimate.passed.rows == before:
        estimate.add(Tally(rows=float(n_rows), tokens=float(n_rows * tokens_of_row)))
    return result


def run_some_rows(
    estimate: Estimate, n_rows: int, size: int, run: Callable[[int, int], Result]
) -> Iterator[tuple[slice, Result]]:
    """Batch by batch what `run` gives, as `run_in_batches`: of all rows, or in a long call of some in the place of all.

    Args:
        size: rows of a batch.
        run: from the first row and a number of rows to their result.
    """

    def try_rows(place: float, width: int) -> tuple[Tally, Result]:
        before = estimate.read()
        result = run(min(n_rows - width, round(place * n_rows - width / 2)), width)
        return estimate.read() - before, result

    width = max(1, min(size, int(n_rows * FIRST_LOOK)))
    limit = estimate.limit_call()
    taken, result = try_rows(0.5, width)
    per_row = taken * (1 / width)
    is_short = estimate.counting is None and per_row.seconds * n_rows <= limit
    if is_short or width == n_rows:
        # As if nobody had looked.
        estimate.add(taken * -1)
        for first in range(0, n_rows, size):
            n = min(size, n_rows - first)
            yield slice(first, first + n), run(first, n)
        return
    if limit > 0:
        wider = max(width, min(size, n_rows // 2, int(limit / len(PLACES) / per_row.seconds)))
        estimate.add(taken * -1)
        tried = []
        for place in PLACES:
            taken, result = try_rows(place, wider)
            tried.append(taken)
        width, per_row = wider, sum(tried, Tally()) * (1 / (wider * len(PLACES)))
        taken = per_row * (wider * len(PLACES))
    estimate.add(per_row * n_rows - taken)
    for first in range(0, n_rows, size):
        n = min(size, n_rows - first)
        with estimate.leave_out():
            made_up = stretch(result, width, n)
        yield slice(first, first + n), made_up


def stretch(result: Any, n: int, wanted: int) -> Any:
    """The result of `n` rows again and again, as that of another number of rows."""
    if isinstance(result, Tensor):
        return (
            result[torch.arange(wanted, device=result.device) % n] if result.ndim > 0 and len(result) == n else result
        )
    if isinstance(result, list) and len(result) == n:
        return [result[place % n] for place in range(wanted)]
    if isinstance(result, tuple):
        parts = [stretch(part, n, wanted) for part in result]
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
    return result
