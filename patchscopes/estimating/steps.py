"""Some parts of each step of an experiment in the place of all."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patchscopes.estimating.tally import NOTHING, Estimate, Step, Tally
from patchscopes.results import ChunkStore, Json

# Where in a step parts are measured: at its beginning, where some do more, and further on.
PLACES = (0.0, 0.5)
# Members that are looked at first.
FEW_MEMBERS = 4
# A part that takes so many times as long as there is time for a step is the only one that is measured.
LONG = 10


class NotMeasuredError(Exception):
    """Something was read that an estimate does not have: it ends there, before what is made of all results."""


class NotMeasured:
    """In the place of the result of a part."""

    def __getitem__(self, name: str) -> Any:
        raise NotMeasuredError(name)


@dataclass(frozen=True)
class Part:
    """A part of a step of which an estimate may measure fewer members.

    Attributes:
        measure: what is found of some members.
        members: samples, names, …
    """

    measure: Callable[[Sequence[Any]], Json]
    members: Sequence[Any]

    def __call__(self) -> Json:
        """What is found of all of them."""
        return self.measure(self.members)


@dataclass(frozen=True)
class _Piece:
    """What was found of the first `n` members, and what that took."""

    n: int
    found: Json
    taken: Tally


def measure_some_parts(
    estimate: Estimate, parts: Mapping[str, Callable[[], Json]], store: ChunkStore
) -> dict[str, Json | NotMeasured]:
    """What the parts find, where that was measured or is left from an earlier run; else something of the same form."""
    found: dict[str, Json | NotMeasured] = {}
    steps: dict[str, dict[str, Callable[[], Json]]] = {}
    for name, part in parts.items():
        finished = store.load(name)
        counted = estimate.steps.setdefault(step := estimate.name_step(store.folder / name), Step())
        counted.members += count_members(part)
        if finished is None:
            steps.setdefault(step, {})[name] = part
        else:
            found[name] = finished
            counted.finished += count_members(part)
    for step, missing in steps.items():
        taken, of_step = measure_step(estimate, missing)
        estimate.steps[step].missing += taken
        found |= of_step
    return {name: found[name] for name in parts}


def count_members(part: Callable[[], Json]) -> int:
    """How many members a part has; one that is measured as a whole counts as one."""
    return len(part.members) if isinstance(part, Part) else 1


def measure_step(
    estimate: Estimate, parts: Mapping[str, Callable[[], Json]]
) -> tuple[Tally, dict[str, Json | NotMeasured]]:
    """What parts of one kind take, and what is found in them or something of its form."""
    names = list(parts)
    first, *others = dict.fromkeys(names[int(place * len(names))] for place in PLACES)
    seconds = estimate.seconds_per_step / (1 + len(others))

    def measure(name: str, n: int) -> _Piece:
        """The part, or so many of its members, in about the time for a part."""
        part = parts[name]
        n = min(n, count_members(part))
        estimate.scale, estimate.stop_at = count_members(part) / n, time.perf_counter() + seconds
        # What is found of some members decides what is done next.
        estimate.may_skip_rows = not isinstance(part, Part)
        before = estimate.read()
        found = part.measure(part.members[:n]) if isinstance(part, Part) else part()
        taken = estimate.read() - before
        estimate.may_skip_rows, estimate.stop_at = False, float("inf")
        return _Piece(n, found, taken)

    # First to count FLOP: what is prepared on first use is prepared then.
    with estimate.count_flop():
        counted = measure(first, FEW_MEMBERS)
    few = measure(first, FEW_MEMBERS)
    pieces = {first: few}
    n = max(FEW_MEMBERS + 1, int(few.n * seconds / few.taken.seconds))
    if count_members(parts[first]) > few.n:
        pieces[first] = measure(first, n)
    for name in others if few.taken.seconds < LONG * estimate.seconds_per_step else []:
        pieces[name] = measure(name, n)

    n_members = sum(map(count_members, parts.values()))
    per_member = sum((piece.taken for piece in pieces.values()), NOTHING) * (1 / sum(one.n for one in pieces.values()))
    taken = per_member * n_members + Tally(flop=counted.taken.flop / counted.n * n_members)
    # Parts in folders of their own are about different things: what is found there decides what is done next.
    if len({name.rpartition("/")[0] for name in names}) > 1 and all(isinstance(part, Part) for part in parts.values()):
        pieces = {name: pieces.get(name) or measure(name, FEW_MEMBERS) for name in names}
    more = pieces[first]
    return taken, {
        name: make_up(few, more, pieces.get(name, more), count_members(part))
        if isinstance(part, Part)
        else NotMeasured()
        for name, part in parts.items()
    }


def make_up(few: _Piece, more: _Piece, piece: _Piece, n: int) -> Json | NotMeasured:
    """What might be found of `n` members: what was found of those of a piece, again and again.

    Args:
        few, more: found of two numbers of members; lists of these lengths have an entry for each member.
    """

    def stretch(of_few: Json, of_more: Json, of_piece: Json) -> Json:
        if isinstance(of_piece, list):
            if len(of_few) == few.n and len(of_more) == more.n and len(of_piece) == piece.n:
                return [of_piece[number % piece.n] for number in range(n)]
            if not len(of_few) == len(of_more) == len(of_piece):
                raise NotMeasuredError
            return [stretch(*entries) for entries in zip(of_few, of_more, of_piece, strict=True)]
        if isinstance(of_piece, dict):
            if not of_few.keys() == of_more.keys() == of_piece.keys():
                raise NotMeasuredError
            return {name: stretch(of_few[name], of_more[name], value) for name, value in of_piece.items()}
        return of_piece

    if piece.n == n:
        return piece.found
    if few.n == more.n:
        return NotMeasured()
    try:
        return stretch(few.found, more.found, piece.found)
    except NotMeasuredError:
        return NotMeasured()
