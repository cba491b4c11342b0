"""Computing for the pages: one thing at a time, with progress and a way to stop; what was found is kept.

The pages' own thread computes. Streamlit stops such a thread whenever it draws something and the reader has meanwhile
clicked; since progress is drawn at every step of an iteration, that is how a computation ends at once, whatever it was.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast
from weakref import WeakValueDictionary

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from patchscopes.errors import PatchscopesError
from patchscopes.experiments.chunks import Progress
from patchscopes.tutorial.signs import escape

Found = TypeVar("Found")
Key = tuple[str, Hashable]

# Results that are kept, the ones used longest ago let go first.
N_KEPT = 400
# Seconds until progress and the button to stop are shown, and between two drawings of it.
SHOWN_AFTER, DRAWN_EVERY = 1.0, 0.1
# Seconds after which a reader that waits for another one's computation is told so.
TOLD_AFTER = 0.3

_kept: OrderedDict[Key, Any] = OrderedDict()
_locks: "WeakValueDictionary[Key, threading.Lock]" = WeakValueDictionary()
_keeping = threading.Lock()


def run(label: str, key: Hashable, function: Callable[[Progress], Found]) -> Found | None:
    """What the function gives, computed at most once for the same label and key.

    A mistake of the reader's is told with the library's sentence in the place of the result, and None is given; so it
    is after the reader has stopped the computation, beside a button that begins again.

    Args:
        label: what is computed, for the reader ("Reading 30 layers").
        key: whatever else the result depends on.
        function: is given what wraps its iteration, as `tqdm` does.
    """
    full_key = (label, key)
    found, value = _look_up(full_key)
    if found:
        return cast(Found, value)
    stopped = st.session_state.setdefault("stopped", set())
    if full_key in stopped:
        st.button("Go on", key=f"go on {full_key}", on_click=stopped.discard, args=(full_key,))
        return None
    place = st.empty()
    try:
        # In this order: what is learned holds a lock of its file while it lets others compute in between.
        with (
            _hold(full_key, lambda: place.caption("Another reader has asked for the same; it is under way.")),
            _turns.take(lambda: place.caption("Another reader's computation is under way; yours is next.")),
        ):
            # Another reader may have asked for the same.
            found, value = _look_up(full_key)
            if not found:
                with place.container(), st.spinner(label):
                    value = function(_ShownProgress(st.empty(), full_key))
                _keep(full_key, value)
    except PatchscopesError as error:
        place.error(escape(str(error)))
        return None
    place.empty()
    return cast(Found, value)


def run_on_request(label: str, key: Hashable, function: Callable[[Progress], Found], *, takes: str) -> Found | None:
    """As `run`, once the reader has clicked a button; what is kept is given without asking.

    Args:
        takes: how long, for the reader ("about a minute").
    """
    found, value = _look_up((label, key))
    if found:
        return cast(Found, value)
    if st.button(f"{label} ({takes})", key=f"ask for {(label, key)}"):
        st.session_state.setdefault("stopped", set()).discard((label, key))
        return run(label, key, function)
    return None


def forget() -> None:
    """Let go of all that was found."""
    with _keeping:
        _kept.clear()


def _look_up(key: Key) -> tuple[bool, Any]:
    with _keeping:
        if key not in _kept:
            return False, None
        _kept.move_to_end(key)
        return True, _kept[key]


def _keep(key: Key, value: Any) -> None:
    with _keeping:
        _kept[key] = value
        while len(_kept) > N_KEPT:
            _kept.popitem(last=False)


@contextmanager
def _hold(key: Key, tell: Callable[[], object]) -> Iterator[None]:
    """Let one thread at a time compute the same; `tell` is called from time to time in those that wait."""
    with _keeping:
        lock = _locks.setdefault(key, threading.Lock())
    while not lock.acquire(timeout=TOLD_AFTER):
        tell()
    try:
        yield
    finally:
        lock.release()


class _Turns:
    """Who may compute: one thread at a time, and those that came first first, so that a long computation that lets
    others in between its steps does not take the next turn itself."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: list[object] = []

    @contextmanager
    def take(self, tell: Callable[[], object]) -> Iterator[None]:
        """Wait for the turn; `tell` is called from time to time while another thread has it."""
        ticket = object()
        try:
            self._wait(ticket, tell)
            yield
        finally:
            self._leave(ticket)

    def let_others(self, tell: Callable[[], object]) -> None:
        """Between two steps, whoever has the turn gives it to those that wait, and takes it again after them."""
        with self._changed:
            if len(self._queue) < 2:
                return
            ticket = self._queue.pop(0)
            self._changed.notify_all()
        self._wait(ticket, tell)

    def _wait(self, ticket: object, tell: Callable[[], object]) -> None:
        with self._changed:
            self._queue.append(ticket)
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._queue[0] is ticket, TOLD_AFTER):
                    return
            tell()

    def _leave(self, ticket: object) -> None:
        with self._changed:
            self._queue.remove(ticket)
            self._changed.notify_all()


_turns = _Turns()


class _ShownProgress:
    """Wraps iterations so that the reader sees how far they are, and can stop them; others compute in between."""

    def __init__(self, place: DeltaGenerator, key: Key) -> None:
        self._place, self._key = place, key
        self._drawn_at = time.monotonic() + SHOWN_AFTER - DRAWN_EVERY
        self._bar: DeltaGenerator | None = None

    def __call__(self, members: Iterable[Any]) -> Iterator[Any]:
        total = len(members) if isinstance(members, Sized) else None
        for number, member in enumerate(members):
            if time.monotonic() - self._drawn_at > DRAWN_EVERY:
                self._draw(number, total)
            _turns.let_others(partial(self._draw, number, total))
            yield member

    def _draw(self, number: int, total: int | None) -> None:
        """Draw how far it is. If the reader has clicked meanwhile, Streamlit ends the thread here."""
        if self._bar is None:
            left, right = self._place.container().columns([4, 1], vertical_alignment="center")
            self._bar = left.empty()
            right.button("Stop", key=f"stop {self._key}", on_click=_note_stop, args=(self._key,))
        text = f"{number} done" if total is None else f"{number} of {total}"
        self._bar.progress(number / total if total else 0.0, text=text)
        self._drawn_at = time.monotonic()


def _note_stop(key: Key) -> None:
    st.session_state.setdefault("stopped", set()).add(key)
