"""Where long texts are cut."""

import re
from collections.abc import Callable, Iterator

# A full stop, but not of an initial ("J. K. Rowling", "e.g. London") or a short word with a capital ("Dr. Smith"), that
# may stand for an abbreviation. A sentence that ends in such a word is not cut off, and no harm is done.
_FULL_STOP = r"(?<!\b\w)(?<!\b[A-Z]\w)(?<!\b[A-Z]\w\w)\."
# It and the signs of several scripts that end a sentence before a space, and what closes a quotation or a bracket.
_END_BEFORE_SPACE = rf"(?:{_FULL_STOP}|[!?…।॥؟۔።])[.!?…]*[\"'”’»›)\]]*(?=\s)"
_END_ANYWHERE = r"[。！？｡]+[」』”’）]*"
_BLANK_LINE = r"\n\s*\n"
# And what the next one begins with.
SENTENCE_END = re.compile(rf"(?:{_END_BEFORE_SPACE}|{_END_ANYWHERE}|{_BLANK_LINE})\s*(?=(\S?))")
LINE_END = re.compile(r"\n")


def cut_at_sentence_ends(text: str, is_short_enough: Callable[[str], bool]) -> list[str]:
    """A text in consecutive pieces, each of as many whole sentences as are short enough together.

    A sentence that is too long is cut at the ends of its lines. What is still too long (a line without a sentence end)
    is a piece of its own.
    """
    pieces: list[str] = []
    begin = end = 0
    for part_end in _find_ends(text, is_short_enough):
        if end > begin and not is_short_enough(text[begin:part_end].strip()):
            pieces.append(text[begin:end])
            begin = end
        end = part_end
    pieces.append(text[begin:])
    return [piece.strip() for piece in pieces if piece.strip()]


def _find_ends(text: str, is_short_enough: Callable[[str], bool]) -> Iterator[int]:
    """Where sentences end, and within those that are too long also where lines do; last the end of the text."""
    begin = 0
    for end in [*_find_sentence_ends(text), len(text)]:
        if not is_short_enough(text[begin:end].strip()):
            yield from (line.end() for line in LINE_END.finditer(text, begin, end))
        yield end
        begin = end


def _find_sentence_ends(text: str) -> Iterator[int]:
    for found in SENTENCE_END.finditer(text):
        # A small letter goes on with the sentence: "the cats, dogs etc. of this street".
        if not found[1].islower():
            yield found.end()
