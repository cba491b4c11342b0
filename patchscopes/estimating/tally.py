"""Counts of what is computed while an estimate is made, what is only drawn out included."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from patchscopes.estimating.flop import FlopCounter

Item = TypeVar("Item")

# Of one step that is measured: what its calls share (see `limit_call`).
SHARE_OF_CALL = 1 / 3
# A call that takes less is done whatever time is left: to look at some of its rows would take as long.
FEWEST_SECONDS = 1.0
# Of the time for a call, what some of its steps take; and how many they are at least.
SHARE_OF_STEPS = 1 / 4
FEWEST_STEPS = 4
# Items of an iteration that are done in any case, since some fits need two examples; and for how long it goes on.
FEWEST_ITEMS = 2
SECONDS_OF_ITEMS = 2.0


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What something takes.

    Attributes:
        rows: of batches.
        tokens: that rows run through the model, in however many of its blocks.
        flop: floating-point operations.
        seconds: on this machine.
    """

    rows: float = 0.0
    tokens: float = 0.0
    flop: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __mul__(self, factor: float | int) -> "Tally":
        return Tally(**{name: value * factor for name, value in vars(self).items()})

    def __sub__(self, other: "Tally") -> "Tally":
        return self + other * -1


NOTHING = Tally()


@dataclass(frozen=True)
class Look:
    """What `n` of something took."""

    n: int
    taken: Tally


def draw_out(looks: Sequence[Look], sizes: Sequence[int]) -> Tally:
    """What parts of these sizes take.

    The first look is at few, the others are at more: seconds lie on the line through both, unless it falls or does not
    begin above 0; all else, and seconds where all looks are at as many, grows in proportion.
    """
    few = looks[0]
    wider = [look for look in looks if look.n > few.n] or looks
    n, mean = (
        sum(look.n for look in wider) / len(wider),
        sum((look.taken for look in wider), NOTHING) * (1 / len(wider)),
    )
    per_one = mean * (1 / n)
    slope = per_one.seconds
    if n > few.n:
        slope = min(slope, max(0.0, (mean.seconds - few.taken.seconds) / (n - few.n)))
    fixed = mean.seconds - n * slope
    return replace(per_one * sum(sizes), seconds=fixed * len(sizes) + slope * sum(sizes))


@dataclass(kw_only=True)
class Step:
    """A kind of parts that an experiment is measured in.

    Attributes:
        members: facts, samples, names, … or parts, where one cannot be measured in smaller ones.
        finished: of these, how many an earlier run has left.
        missing: what the others take.
    """

    members: int = 0
    finished: int = 0
    missing: Tally = NOTHING


@dataclass(kw_only=True)
class Learned:
    """Something that is learned, and then kept in the cache folder.

    Attributes:
        stand_in: learned from a small part of the texts.
        taken: by the whole.
        in_step: whether it is learned in a step of the experiment, whose time it is part of.
    """

    stand_in: Any
    taken: Tally
    in_step: bool


@dataclass(kw_only=True)
class Estimate:
    """An estimate that is being made.

    Attributes:
        name: of the experiment.
        folder: in which finished parts are kept.
        seconds_per_step: to spend on each step, about.
        passed: counts so far; of seconds only those that were not spent, or that were and do not count.
        counting: whether FLOP are counted, which takes time, so that seconds are not.
        may_skip_rows: whether some rows of a long call may stand for others: what is found of them is then not true.
        inside: how many batches of rows are open, one in another.
        scale: how much larger the batches of the whole run are than those of the part at hand.
        largest_batch: bytes.
        stop_at: when the step at hand should be measured.
        prepared: seconds that the proof of the engine took, once for all that follows.
        steps, learned: what was found, by name and by file.
    """

    name: str = ""
    folder: Path = Path()
    seconds_per_step: float
    passed: Tally = NOTHING
    counting: "FlopCounter | None" = None
    may_skip_rows: bool = False
    inside: int = 0
    scale: float = 1.0
    largest_batch: float = 0.0
    stop_at: float = float("inf")
    prepared: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    steps: dict[str, Step] = field(default_factory=dict)
    learned: dict[Path, Learned] = field(default_factory=dict)

    def read(self) -> Tally:
        """All counts up to now; differences of two readings are what was done in between."""
        flop = 0.0 if self.counting is None else self.counting.flop
        return self.passed + Tally(flop=flop, seconds=time.perf_counter())

    def add(self, tally: Tally) -> None:
        """Count something that is not done, or with -1 something that was done beside the run."""
        self.passed += tally

    @contextmanager
    def leave_out(self) -> Iterator[None]:
        """Count nothing of what is done inside the `with` block."""
        before = self.read()
        yield
        self.add(before - self.read())

    @contextmanager
    def count_flop(self) -> Iterator[None]:
        """Count the FLOP of what is done inside the `with` block, and do as little as possible."""
        # PyTorch takes seconds to import, and options are read before that.
        from patchscopes.estimating.flop import FlopCounter

        with FlopCounter() as self.counting:
            yield
        self.add(Tally(flop=self.counting.flop))
        self.counting = None

    @contextmanager
    def stop_counting(self) -> Iterator[None]:
        """Do not count the FLOP of what is done inside the `with` block, which takes less time then."""
        counter = self.counting
        if counter is None:
            yield
            return
        counter.__exit__(None, None, None)
        try:
            yield
        finally:
            counter.__enter__()

    def limit_call(self) -> float:
        """Seconds to spend on one call for rows: fewer and fewer, so that all of a step end in time."""
        left = max(0.0, self.stop_at - time.perf_counter())
        return max(FEWEST_SECONDS, min(left, self.seconds_per_step) * SHARE_OF_CALL)

    def name_step(self, path: Path) -> str:
        """What a part is called without the numbers in its name; as the experiment, if it has nothing else in it."""
        words = [word for word in path.relative_to(self.folder).parts if not word.isdecimal()]
        return words[-1] if words else self.name

    def note_batch(self, n_bytes: float | int) -> None:
        """Remember the largest batch."""
        self.largest_batch = max(self.largest_batch, float(n_bytes))


ESTIMATE: ContextVar[Estimate | None] = ContextVar("ESTIMATE", default=None)


def do_some(
    items: Iterable[Item],
    progress: Callable[[Iterable[Item]], Iterable[Item]] = iter,
    *,
    fewest: int = FEWEST_ITEMS,
    seconds: float | None = None,
) -> Iterator[Item]:
    """All items; while an estimate is made, the first few, and the others are counted like them.

    Args:
        progress: wraps the iteration over all of them.
        fewest: are done in any case.
        seconds: to go on for.
    """
    estimate = ESTIMATE.get()
    if estimate is None:
        yield from progress(items)
        return
    every = list(items)
    until = time.perf_counter() + (SECONDS_OF_ITEMS if seconds is None else seconds)
    readings = [estimate.read()]
    for item in every:
        yield item
        readings.append(estimate.read())
        if len(readings) > fewest and time.perf_counter() > until:
            break
    n_done = len(readings) - 1
    if n_done < len(every):
        # The first of several is left out of the mean: something is prepared in it.
        first = min(1, n_done - 1)
        estimate.add((readings[-1] - readings[first]) * ((len(every) - n_done) / (n_done - first)))


def count_steps(n: int) -> Iterator[int]:
    """The numbers of `n` steps, all of which take as long; where an estimate may leave something out, of the first."""
    estimate = ESTIMATE.get()
    if estimate is None or not estimate.may_skip_rows:
        return iter(range(n))
    return do_some(range(n), fewest=FEWEST_STEPS, seconds=estimate.limit_call() * SHARE_OF_STEPS)


@contextmanager
def preparing() -> Iterator[None]:
    """What is done inside the `with` block is done once for a model: an estimate counts it by itself."""
    estimate = ESTIMATE.get()
    if estimate is None:
        yield
        return
    token = ESTIMATE.set(None)
    try:
        with estimate.leave_out(), estimate.stop_counting():
            started = time.perf_counter()
            yield
            estimate.prepared += time.perf_counter() - started
    finally:
        ESTIMATE.reset(token)


@contextmanager
def keeping_all_rows() -> Iterator[None]:
    """What is found inside the `with` block decides what is done next: in an estimate no row stands for another."""
    estimate = ESTIMATE.get()
    if estimate is None:
        yield
        return
    may_skip_rows, estimate.may_skip_rows = estimate.may_skip_rows, False
    try:
        yield
    finally:
        estimate.may_skip_rows = may_skip_rows


@contextmanager
def counted_before() -> Iterator[None]:
    """What is done inside the `with` block is part of another step: an estimate does not count it again."""
    estimate = ESTIMATE.get()
    with nullcontext() if estimate is None else estimate.leave_out():
        yield


@contextmanager
def standing_for(times: int) -> Iterator[None]:
    """While an estimate is made, what is done inside the `with` block is counted so many times."""
    estimate = ESTIMATE.get()
    before = None if estimate is None else estimate.read()
    yield
    if estimate is not None and before is not None:
        estimate.add((estimate.read() - before) * (times - 1))
