"""Some rows in the place of all, in a call for many of them."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from patchscopes.estimating.tally import Estimate, Look, Tally, draw_out

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
    sizes = [min(size, n_rows - first) for first in range(0, n_rows, size)]
    before, limit = estimate.read(), estimate.limit_call()
    few = max(1, min(size, int(n_rows * FIRST_LOOK)))
    looks: list[Look] = []

    def look(place: float, n: int) -> tuple[Tally, Result]:
        """Some rows; and what the whole call takes, as far as can be told by then."""
        started = estimate.read()
        result = run(max(0, min(n_rows - n, round(place * n_rows - n / 2))), n)
        looks.append(Look(n, estimate.read() - started))
        return draw_out(looks, sizes), result

    expected, result = look(0.5, few)
    if expected.seconds > limit:
        if estimate.counting is None:
            # Again: something may have been prepared.
            looks.clear()
            expected, result = look(0.5, few)
        wider = max(2 * few, int(few * limit / len(PLACES) / max(looks[0].taken.seconds, 1e-9)))
        wider = min(size, max(few, n_rows // len(PLACES)), wider)
        for place in PLACES if wider > few else ():
            if expected.seconds > limit and (estimate.counting is None or len(looks) == 1):
                expected, result = look(place, wider)
    if few == n_rows:
        yield slice(0, n_rows), result
        return
    # As if nobody had looked.
    estimate.add(before - estimate.read())
    is_short = estimate.counting is None and expected.seconds <= limit
    if not is_short:
        estimate.add(expected)
    n_run = looks[-1].n
    for first, n in zip(range(0, n_rows, size), sizes, strict=True):
        if is_short:
            yield slice(first, first + n), run(first, n)
            continue
        with estimate.leave_out():
            made_up = stretch(result, n_run, n)
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
