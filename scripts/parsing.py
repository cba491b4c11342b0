"""How the values of options are parsed, so that a mistake is told at once."""

import argparse
from collections.abc import Callable
from pathlib import Path

from patchscopes.errors import PatchscopesError
from patchscopes.model.layer_names import parse_layers
from patchscopes.model.sources import find_source
from patchscopes.results import Share


def model_name(text: str) -> str:
    """What stands for a model; whether the hub has it, only the hub knows."""
    try:
        find_source(text)
    except PatchscopesError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def target_layer(text: str) -> str:
    """A rule for target layers, or the number of one."""
    if text not in ("same", "embedding", "last") and not text.removeprefix("-").isdecimal():
        raise argparse.ArgumentTypeError(f"expected same, embedding, last or a number, got {text!r}")
    return text


def share(text: str) -> Share:
    """Which of how many jobs this one is, counted from 1 on."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected K/N, job K of N from 1/N to N/N, got {text!r}")
    return Share(index=int(index) - 1, count=int(count))


def chat_side(text: str) -> str:
    """Which prompts are chats."""
    if text not in ("source", "target", "both"):
        raise argparse.ArgumentTypeError(
            f"expected source, target or both, got {text!r} (before it, give plain --chat as --chat both)"
        )
    return text


def at_least(minimum: int) -> Callable[[str], int]:
    """A parser of whole numbers from `minimum` on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, got {text!r}")
        return int(text)

    return parse


natural, positive = at_least(0), at_least(1)


def real_from_zero(text: str) -> float:
    """A parser of numbers that are not negative."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return number


def name_list(names: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """A parser of comma-separated `names`."""

    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
        unknown = [name for name in chosen if name not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(names)}, got {unknown[0]!r}")
        return chosen

    return parse


def file_name(suffix: str) -> Callable[[str], Path]:
    """A parser of file names that end in `suffix`."""

    def parse(text: str) -> Path:
        if Path(text).suffix.lower() != suffix:
            raise argparse.ArgumentTypeError(f"expected the name of a {suffix} file, got {text!r}")
        return Path(text)

    return parse


def entity_name(text: str) -> str:
    """A name with words in it."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty; give one")
    return text


def existing_file(suffix: str, advice: str) -> Callable[[str], Path]:
    """A parser of names of files that end in `suffix` and are there; the advice is what to do about one that is not."""
    parse_name = file_name(suffix)

    def parse(text: str) -> Path:
        path = parse_name(text)
        if not path.is_file():
            raise argparse.ArgumentTypeError(f"there is no file {text}; {advice}")
        return path

    return parse


def layer_list(text: str) -> tuple[int, ...] | None:
    """Layers as `parse_layers` reads them."""
    try:
        return parse_layers(text)
    except PatchscopesError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
