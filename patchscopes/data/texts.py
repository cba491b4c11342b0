"""Texts to take representations from, and the positions drawn in them."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeAlias

import numpy as np

from patchscopes.data.files import DATA_FOLDER, expand_home, read_rows
from patchscopes.errors import PatchscopesError

Split: TypeAlias = Literal["train", "evaluation"]

MAX_WORDS = 250
MAX_CHARACTERS = 2000

# Hub data sets by name: repository and configuration. Both are streamed, and have a column `text`.
STREAMED = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "wikitext103": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "pile": ("monology/pile-uncopyrighted", None),
}
PASSAGES = "passages"
SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class TextSet:
    """Texts of one split of a data set.

    Attributes:
        name: as it was asked for.
    """

    name: str
    split: Split
    texts: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """SHA-256 of the texts, in order."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()


def load_texts(name: str = PASSAGES, split: Split = "evaluation", *, limit: int | None = None) -> TextSet:
    """Texts by name: `passages`, one of `STREAMED`, or the path of a .txt, .jsonl, .csv or .parquet file.

    A .txt file has one text per line; the others have a field or column `text`. Empty texts and, as in the paper,
    texts over 250 words or 2,000 characters are left out. A text belongs to one split by its own hash, so that the
    train and evaluation texts of any data sets, however ordered, never overlap.

    Args:
        limit: of a streamed data set, read only until there are this many texts. Files are always read whole.

    Raises:
        PatchscopesError: unknown name, unreadable file (the message gives the row), no network, or no text left.
    """
    usable = (text.strip() for text in _read(name))
    kept = (text for text in usable if text and is_short_enough(text) and assign_split(text) == split)
    texts = tuple(islice(kept, limit if name in STREAMED else None))
    if not texts:
        raise PatchscopesError(
            f"{name!r} has no {split} text of at most {MAX_WORDS} words and {MAX_CHARACTERS} characters"
        )
    return TextSet(name, split, texts)


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


def _read(name: str) -> Iterator[str]:
    if name in STREAMED:
        yield from _stream(name)
        return
    path = DATA_FOLDER / "passages.jsonl" if name == PASSAGES else expand_home(name)
    if path.suffix not in SUFFIXES:
        raise PatchscopesError(
            f"no data set is called {name!r}: give one of {', '.join([PASSAGES, *STREAMED])}, or the path of a "
            f"{', '.join(SUFFIXES)} file"
        )
    for row, place in read_rows(path, SUFFIXES, "texts"):
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise PatchscopesError(f"{place}: expected a field `text` with a string, got {str(row)[:80]}")
        yield text


def _stream(name: str) -> Iterator[str]:
    # Imported here: it takes seconds, and files need none of it.
    import datasets

    repository, configuration = STREAMED[name]
    try:
        rows = datasets.load_dataset(repository, configuration, split="train", streaming=True)
        yield from (row["text"] for row in rows)
    except OSError as error:
        raise PatchscopesError(
            f"the data set {name!r} ({repository}) could not be fetched from the hub: check the network connection, "
            f"or use the embedded texts ({PASSAGES!r}) or a file"
        ) from error


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
