"""Measuring chunk by chunk: finished chunks are kept, processes share them, and the seconds of steps are counted."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias, TypeVar

from patchscopes.estimating.steps import Part, measure_some_parts
from patchscopes.estimating.tally import ESTIMATE
from patchscopes.experiments.claims import claim
from patchscopes.results import ChunkStore, Json

Member = TypeVar("Member")

# Seconds after which a process that has nothing to do looks again at what the others have finished.
PAUSE = 0.2

# Wraps an iteration to show how far it is, as `tqdm` does.
Progress: TypeAlias = Callable[[Iterable[Any]], Iterable[Any]]


class StopWatch:
    """The seconds that each step took.

    Attributes:
        seconds: by step; a step that is timed several times is added up.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, step: str) -> Iterator[None]:
        """Count what is done inside the `with` block to a step."""
        started = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - started


def split_into_chunks(members: Sequence[Member], size: int) -> list[Sequence[Member]]:
    """The members in parts of `size` (the last may be smaller) that are measured, and kept, together."""
    return [members[start : start + size] for start in range(0, len(members), size)]


def measure_chunks(
    chunks: Sequence[Any],
    store: ChunkStore,
    measure: Callable[[Any], Json],
    progress: Progress,
    *,
    decides: bool = False,
) -> list[Json]:
    """What `measure` finds for each chunk; see `measure_parts`.

    Args:
        decides: whether what is found decides what is measured next (see `Part`).
    """
    parts = {
        f"{number:05d}": Part(measure, chunk, decides)
        if isinstance(chunk, Sequence) and not isinstance(chunk, str)
        else partial(measure, chunk)
        for number, chunk in enumerate(chunks)
    }
    return list(measure_parts(parts, store, progress).values())


def measure_parts(parts: Mapping[str, Callable[[], Json]], store: ChunkStore, progress: Progress) -> dict[str, Json]:
    """What each part finds, or found in another run, or finds in another process, that leaves it in `store`.

    Of several processes each begins with its share, then takes what nobody is at, and waits for the rest: all have all
    that was found in the end. One that dies leaves only the part that it was at to the others. While an estimate is
    made, some parts are measured, and nothing is kept.

    Args:
        parts: by the names under which they are kept.
        progress: wraps the iteration over the parts, as they are finished.
    """
    if (estimate := ESTIMATE.get()) is not None:
        return measure_some_parts(estimate, parts, store)
    found: dict[str, Json] = {}
    missing = store.share.put_first(list(parts))
    for _ in progress(list(parts)):
        name, found[name] = _finish_next(missing, parts, store)
        missing.remove(name)
    return {name: found[name] for name in parts}


def _finish_next(
    missing: Sequence[str], parts: Mapping[str, Callable[[], Json]], store: ChunkStore
) -> tuple[str, Json]:
    """The first of the missing parts that is found in the store, or that no other process is at."""
    while True:
        for name in missing:
            measured = store.load(name)
            if measured is not None:
                return name, measured
            with claim(store.folder / name) as mine:
                # Another process may have finished it just before.
                if mine and (measured := store.load(name)) is None:
                    measured = parts[name]()
                    store.save(name, measured)
            if measured is not None:
                return name, measured
        time.sleep(PAUSE)


def sum_timing(finished: Sequence[Json]) -> Json:
    """The `timing` of the result file: seconds by what they were spent on, over all chunks."""
    steps = dict.fromkeys(step for chunk in finished for step in chunk["seconds"])
    seconds = {step: sum(chunk["seconds"].get(step, 0.0) for chunk in finished) for step in steps}
    return {"seconds": seconds | {"total": sum(seconds.values())}}
