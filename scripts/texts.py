"""Which texts a script reads, and how many there are."""

import argparse

from patchscopes.data.hub import STREAMED, TRAIN
from patchscopes.data.texts import (
    MAX_CHARACTERS,
    MAX_WORDS,
    PASSAGES,
    SUFFIXES,
    TEXT,
    Split,
    TextSet,
    load_texts,
)


def add_text_options(group: argparse._ArgumentGroup, default: str, *, reads_texts: bool) -> None:
    """`--dataset`, and where the script has a use for it also which column and split of it."""
    embedded = ", ".join(dict.fromkeys((default, PASSAGES)))
    group.add_argument(
        "--dataset",
        default=default,
        help=f"{embedded} (embedded); {', '.join(STREAMED)}, owner/name or owner/name:configuration (streamed from the "
        f"hub); or a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file (default: %(default)s)",
    )
    if reads_texts:
        group.add_argument(
            "--text-column", default=TEXT, metavar="NAME", help="in which the texts are (default: %(default)s)"
        )
        group.add_argument(
            "--split", default=TRAIN, metavar="NAME", help="of a data set of the hub (default: %(default)s)"
        )


def load_chosen_texts(options: argparse.Namespace, split: Split = "evaluation", limit: int | None = None) -> TextSet:
    """The texts of `--dataset`; how many there are is printed, unless they are the embedded ones.

    Args:
        split, limit: as for `load_texts`.
    """
    texts = load_texts(options.dataset, split, limit=limit, column=options.text_column, hub_split=options.split)
    if options.dataset != PASSAGES:
        print(describe_counts(texts))
    return texts


def describe_counts(texts: TextSet) -> str:
    """How many texts and pieces there are, and what was left out."""
    counts = texts.counts
    said = [f"{texts.name}: {len(texts.texts)} of the {texts.split} half, from {counts.texts} texts"]
    if counts.cut:
        long = f"more than {MAX_WORDS} words or {MAX_CHARACTERS} characters"
        said.append(f"{counts.cut} of {long} cut into {counts.pieces} pieces")
    if counts.too_long:
        said.append(f"{counts.too_long} lines without a sentence end, longer than that, left out")
    if counts.empty:
        said.append(f"{counts.empty} empty ones skipped")
    return "; ".join(said)
