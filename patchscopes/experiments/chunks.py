"""Measuring chunk by chunk: finished chunks are kept, and the seconds of every step are counted."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

from patchscopes.results import ChunkStore, Json

Member = TypeVar("Member")

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
    chunks: Sequence[Any], store: ChunkStore, measure: Callable[[Any], Json], progress: Progress
) -> list[Json]:
    """What `measure` finds for each chunk, or found in an earlier run that left it in `store`."""
    finished: list[Json] = []
    for number, chunk in enumerate(progress(chunks)):
        name = f"{number:05d}"
        measured = store.load(name)
        if measured is None:
            measured = measure(chunk)
            store.save(name, measured)
        finished.append(measured)
    return finished


def sum_timing(finished: Sequence[Json]) -> Json:
    """The `timing` of the result file: seconds by what they were spent on, over all chunks."""
    steps = dict.fromkeys(step for chunk in finished for step in chunk["seconds"])
    seconds = {step: sum(chunk["seconds"].get(step, 0.0) for chunk in finished) for step in steps}
    return {"seconds": seconds | {"total": sum(seconds.values())}}
