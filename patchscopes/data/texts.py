"""Texts to take representations from, and the positions drawn in them."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, TypeAlias

import numpy as np

from patchscopes.data.cutting import cut_at_sentence_ends
from patchscopes.data.files import DATA_FOLDER, ROW_SUFFIXES, expand_home, get_suffix, read_rows
from patchscopes.data.hub import STREAMED, TRAIN, find_repository, stream_rows
from patchscopes.errors import PatchscopesError

Split: TypeAlias = Literal["train", "evaluation"]

MAX_WORDS = 250
MAX_CHARACTERS = 2000

PASSAGES = "passages"
SUFFIXES = (".txt", *ROW_SUFFIXES)
TEXT = "text"


@dataclass(frozen=True, kw_only=True)
class TextCounts:
    """What became of the rows of a data set that were read, whichever split their texts belong to.

    Attributes:
        texts: rows with a text.
        empty: rows without one.
        cut: texts that were too long and gave pieces.
        pieces: that these gave.
        too_long: sentences, or lines, that are too long themselves and were left out.
    """

    texts: int = 0
    empty: int = 0
    cut: int = 0
    pieces: int = 0
    too_long: int = 0


@dataclass(frozen=True)
class TextSet:
    """Texts of one split of a data set.

    Attributes:
        name: as it was asked for, and where they are not the usual ones the split of the hub and the column.
        counts: what became of what was read to find them.
    """

    name: str
    split: Split
    texts: tuple[str, ...]
    counts: TextCounts = field(default=TextCounts(), compare=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of the texts, in order."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()


def load_texts(
    name: str = PASSAGES,
    split: Split = "evaluation",
    *,
    limit: int | None = None,
    column: str = TEXT,
    hub_split: str = TRAIN,
) -> TextSet:
    """Texts by name: `passages`, a data set of the hub, or the path of a file with one of `SUFFIXES`.

    A .txt file has one text per line; in the others it is in the field or column `column`. Empty texts are left out.
    Texts over 250 words or 2,000 characters, which the paper leaves out, are cut into pieces at sentence ends, and a
    piece is a text like any other. A text belongs to one split by its own hash, so that the train and evaluation texts
    of any data sets, however ordered, never overlap.

    Args:
        name: of the hub, one of `STREAMED`, `owner/name` or `owner/name:configuration`; a folder of data files (and
            `folder:configuration`) is read in the same way.
        limit: of a data set of the hub, read only until there are this many texts. Files are always read whole.
        hub_split: which of its own splits to read of a data set of the hub.

    Raises:
        PatchscopesError: unknown name, unreadable file (the message gives the row), no network, or no text left.
    """
    is_streamed = name != PASSAGES and find_repository(name) is not None
    if hub_split != TRAIN and not is_streamed:
        raise PatchscopesError(f"a data set of the hub has a split {hub_split!r}, and {name!r} is none; leave it out")
    counts: Counter[str] = Counter()
    rows = stream_rows(name, hub_split) if is_streamed else _read_file(name)
    pieces = _cut_long_ones((_get_text(row, column, place) for row, place in rows), counts)
    kept = (piece for piece in pieces if assign_split(piece) == split)
    texts = tuple(islice(kept, limit if is_streamed else None))
    if not texts:
        raise PatchscopesError(
            f"{name!r} has no {split} text of at most {MAX_WORDS} words and {MAX_CHARACTERS} characters"
        )
    asked_for = [name, f"split {hub_split}" * (hub_split != TRAIN), f"column {column}" * (column != TEXT)]
    return TextSet(", ".join(filter(None, asked_for)), split, texts, TextCounts(**counts))


def check_train(texts: TextSet) -> None:
    """Refuse to learn from texts that an evaluation may use.

    Raises:
        PatchscopesError: they are not of the train split.
    """
    if texts.split != "train":
        raise PatchscopesError(f"lenses learn from texts of the train split, got {texts.split!r} of {texts.name!r}")


def is_short_enough(text: str) -> bool:
    """Whether the text passes the paper's filter."""
    return len(text) <= MAX_CHARACTERS and len(text.split()) <= MAX_WORDS


def assign_split(text: str) -> Split:
    """The split a text belongs to: half of all texts each, by the text's own hash."""
    return "train" if hashlib.sha256(text.encode()).digest()[0] % 2 else "evaluation"


def _read_file(name: str) -> Iterator[tuple[Any, str]]:
    path = DATA_FOLDER / "passages.jsonl" if name == PASSAGES else expand_home(name)
    if get_suffix(path) not in SUFFIXES:
        raise PatchscopesError(
            f"no data set is called {name!r}: give one of {', '.join([PASSAGES, *STREAMED])}, owner/name or "
            f"owner/name:configuration of the hub, or the path of a {', '.join(SUFFIXES)} file"
        )
    return read_rows(path, SUFFIXES, "texts")


def _get_text(row: Any, column: str, place: str) -> str:
    """The text of a row; nothing where it is null."""
    if not isinstance(row, dict) or column not in row:
        got = f"the fields {', '.join(row)}; --text-column names another" if isinstance(row, dict) else str(row)[:80]
        raise PatchscopesError(f"{place}: expected a field `{column}` with a string, got {got}")
    text = row[column]
    # Not a number: how tables have it that were written from data frames.
    if text is None or text != text:
        return ""
    if not isinstance(text, str):
        raise PatchscopesError(f"{place}: expected a field `{column}` with a string, got {str(text)[:80]}")
    return text


def _cut_long_ones(texts: Iterable[str], counts: Counter[str]) -> Iterator[str]:
    """The texts that are short enough, and the pieces of those that are not, while they are counted."""
    for text in map(str.strip, texts):
        counts["texts" if text else "empty"] += 1
        if not text:
            continue
        if is_short_enough(text):
            yield text
            continue
        parts = cut_at_sentence_ends(text, is_short_enough)
        pieces = [part for part in parts if is_short_enough(part)]
        counts["cut"] += bool(pieces)
        counts["pieces"] += len(pieces)
        counts["too_long"] += len(parts) - len(pieces)
        yield from pieces


@dataclass(frozen=True)
class Sample:
    """One representation to take: token `position` of text number `text`."""

    text: int
    position: int


def draw_samples(lengths: Sequence[int], texts: Sequence[str], n_samples: int, seed: int) -> list[Sample]:
    """Draw positions as in the paper (section 4.1): each text is trimmed at a random position.

    All texts are used once before any is used a second time, each time at another position. What is drawn depends
    only on the seed and on the texts themselves: more samples continue the same draw. The first token (BOS, or
    the first of the text) is never drawn, because nothing comes before it.

    Args:
        lengths: the number of tokens of each text.

    Raises:
        PatchscopesError: the texts have fewer positions than `n_samples`.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    positions = {index: _permuted_positions(texts[index], lengths[index], seed) for index in order}
    most = max(map(len, positions.values()))
    rounds: Iterable[Sample] = (
        Sample(int(index), positions[index][round_number])
        for round_number in range(most)
        for index in order
        if round_number < len(positions[index])
    )
    samples = list(islice(rounds, n_samples))
    if len(samples) < n_samples:
        raise PatchscopesError(
            f"{n_samples} samples asked for, but the {len(texts)} texts have only {len(samples)} positions"
        )
    return samples


def _permuted_positions(text: str, length: int, seed: int) -> list[int]:
    own_seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    return (1 + np.random.default_rng([seed, own_seed]).permutation(max(0, length - 1))).tolist()
