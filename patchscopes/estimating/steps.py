"""Some parts of each step of an experiment in the place of all."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from patchscopes.estimating.tally import Estimate, Look, Step, Tally, draw_out
from patchscopes.results import ChunkStore, Json

# Where in a step parts are measured: at its beginning, where some do more, and further on.
PLACES = (0.0, 0.5)
# Members that are looked at first, at most, and the share of the time for a part that this may take.
FEW_MEMBERS = 4
SHARE_OF_FEW = 1 / 3
# Next this share of all: rows that are computed together cost less than as many one by one, so that only a look at many
# tells what many cost; where that seems to take too long, so many times as many as first. And then more and more, as
# many as seem to fit into the time.
SHARE_OF_MANY = 1 / 3
WIDER = 3
LEAST_WIDER = 1.5
# Nearly all members of a part are as soon measured as all, and tell less.
NEARLY_ALL = 0.6
# Members of a part that decides for itself whether anything follows: of few it may seem that nothing does.
DECIDING_MEMBERS = 16
# A part without members that seems to take more seconds is measured by some of its rows; others as they are.
LONGEST = 120.0
# How much more time there is for a part that cannot be measured by members.
TIME_OF_WHOLE = 2
# Many members may seem to take at most so many times as long as there is time for a part.
TOO_LONG = 20
# A part of which a look takes so many times as long is the only one that is measured.
LONG = 3


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
        decides: whether what is found decides what is measured next: then an estimate makes something up for the
            members that it leaves out.
    """

    measure: Callable[[Sequence[Any]], Json]
    members: Sequence[Any]
    decides: bool = False

    def __call__(self) -> Json:
        """What is found of all of them."""
        return self.measure(self.members)


@dataclass(frozen=True)
class _Piece:
    """What was found of the first members, and what that took."""

    members: Sequence[Any]
    found: Json
    taken: Tally

    @property
    def n(self) -> int:
        """How many members there are; one of what has none."""
        return len(self.members)


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
    seconds = estimate.seconds_per_step / (1 + len(others)) * (1 if isinstance(parts[first], Part) else TIME_OF_WHOLE)

    def measure(name: str, n: int) -> _Piece:
        """The part, or so many of its members, in about the time for a part."""
        part = parts[name]
        members = part.members[:n] if isinstance(part, Part) else [name]
        estimate.scale, estimate.stop_at = count_members(part) / len(members), time.perf_counter() + seconds
        is_whole = not isinstance(part, Part)
        estimate.may_skip_rows = is_whole and (estimate.counting is not None or counted.taken.seconds > LONGEST)
        before = estimate.read()
        found = part.measure(members) if isinstance(part, Part) else part()
        taken = estimate.read() - before
        estimate.may_skip_rows, estimate.stop_at = False, float("inf")
        return _Piece(members, found, taken)

    # First to count FLOP: what is prepared on first use is prepared then.
    n_members = count_members(parts[first])
    with estimate.count_flop():
        counted = measure(first, min(2, n_members))
    affordable = int(counted.n * SHARE_OF_FEW * seconds / counted.taken.seconds)
    few = piece = measure(first, max(1, min(FEW_MEMBERS, n_members // 2, affordable)))
    while piece.n < n_members:
        n = choose_many(few, n_members, seconds) if piece is few else count_affordable(few, piece, seconds)
        if n < LEAST_WIDER * piece.n:
            break
        few, piece = piece, measure(first, n_members if n > NEARLY_ALL * n_members else n)
    pieces = {first: piece}
    for name in others if piece.taken.seconds < LONG * seconds else []:
        pieces[name] = measure(name, piece.n)

    sizes = [count_members(part) for part in parts.values()]
    different = pieces.values() if few is piece else [few, *pieces.values()]
    looks = [Look(one.n, one.taken) for one in different]
    taken = replace(draw_out(looks, sizes), flop=counted.taken.flop / counted.n * sum(sizes))
    deciding = {name: part for name, part in parts.items() if isinstance(part, Part) and part.decides}
    # Parts in folders of their own are about different things, each of which decides for itself.
    if len({name.rpartition("/")[0] for name in deciding}) > 1:
        with estimate.leave_out():
            pieces |= {name: measure(name, DECIDING_MEMBERS) for name in deciding if name not in pieces}
    found: dict[str, Json | NotMeasured] = {}
    for name, part in parts.items():
        if name in deciding:
            found[name] = make_up(few, piece, pieces.get(name, piece), deciding[name].members)
        else:
            found[name] = pieces[name].found if name in pieces and not isinstance(part, Part) else NotMeasured()
    return taken, found


def choose_many(few: _Piece, n_members: int, seconds: float) -> int:
    """How many members to look at after the first few."""
    many = int(SHARE_OF_MANY * n_members)
    takes_too_long = few.taken.seconds / few.n * many > TOO_LONG * seconds
    return max(WIDER * few.n, int(few.n * seconds / few.taken.seconds), 0 if takes_too_long else many)


def count_affordable(few: _Piece, piece: _Piece, seconds: float) -> int:
    """How many members seem to take so many seconds, on the line through two pieces; at most some times as many."""
    slope = (piece.taken.seconds - few.taken.seconds) / (piece.n - few.n)
    left, most = seconds - piece.taken.seconds, WIDER * piece.n
    return most if slope * (most - piece.n) <= left else piece.n + int(left / slope)


def make_up(few: _Piece, more: _Piece, piece: _Piece, members: Sequence[Any]) -> Json | NotMeasured:
    """What might be found of some members: what was found of those of a piece, again and again.

    Args:
        few, more: found of two numbers of members: lists of these lengths have an entry for each member, and so have
            dictionaries in which they are the keys.
    """
    if len(members) == piece.n:
        return piece.found
    if few.n == more.n:
        return NotMeasured()

    def stretch(of_few: Json, of_more: Json, of_piece: Json) -> Json:
        if isinstance(of_piece, list):
            if (len(of_few), len(of_more), len(of_piece)) == (few.n, more.n, piece.n):
                return [of_piece[number % piece.n] for number in range(len(members))]
            if not len(of_few) == len(of_more) == len(of_piece):
                raise NotMeasuredError
            return [stretch(*entries) for entries in zip(of_few, of_more, of_piece, strict=True)]
        if isinstance(of_piece, dict):
            if list(of_few) == list(few.members) and list(of_more) == list(more.members):
                values = list(of_piece.values())
                return {member: values[number % len(values)] for number, member in enumerate(members)}
            if not of_few.keys() == of_more.keys() == of_piece.keys():
                raise NotMeasuredError
            return {name: stretch(of_few[name], of_more[name], value) for name, value in of_piece.items()}
        return of_piece

    try:
        return stretch(few.found, more.found, piece.found)
    except NotMeasuredError:
        return NotMeasured()
