"""What a word is, in any script: one definition for answers, keywords, subjects, descriptions and ROUGE.

Words are made of Unicode's letters, digits and marks. In scripts that put no spaces between words a word may begin and
end at any letter, and where words are counted, each letter is one.
"""

import unicodedata
from functools import lru_cache
from itertools import pairwise

# Scripts that put no spaces between words (or, as Hangul, none between a word and its particles), by how Unicode names
# their characters.
UNSPACED = (
    *("CJK", "IDEOGRAPHIC", "BOPOMOFO", "HIRAGANA", "KATAKANA", "HANGUL"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI ", "NEW TAI LUE", "BALINESE", "JAVANESE"),
)
ZERO_WIDTH_SPACE = "\u200b"
# What stands for a character of which not all bytes are there yet.
UNFINISHED = "\ufffd"
# Commas, semicolons and full stops of other scripts; those that are only wider or narrower than the ASCII ones have
# these as their compatibility form.
ASCII_SIGNS = str.maketrans({"、": ",", "､": ",", "،": ",", "؛": ";", "。": ".", "｡": ".", "।": "."})


class _Blanked(dict[int, str]):
    """For `str.translate`: a space for a character that is of no word, and nothing for one without a width."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        is_dropped = unicodedata.category(character) == "Cf" and character != ZERO_WIDTH_SPACE
        self[code] = character if _is_of_word(character) else "" if is_dropped else " "
        return self[code]


BLANKED = _Blanked()


@lru_cache(maxsize=2**16)
def normalise_words(text: str) -> str:
    """The text in one case and form, with one space for whatever is no letter, digit or mark.

    Characters without a width (soft hyphens, joiners) are dropped, but for the one that parts words.
    """
    # Before the compatibility form too, in which ™ would be two letters of the word before it.
    apart = unicodedata.normalize("NFC", text).translate(BLANKED)
    folded = unicodedata.normalize("NFKC", apart).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).translate(BLANKED).split())


def split_words(text: str) -> list[str]:
    """The words of the text in one case and form; of scripts without spaces each letter, with its marks."""
    return [
        run[start:end]
        for run in normalise_words(text).split()
        for start, end in pairwise(
            [0, *(place for place in range(1, len(run)) if _may_part(run[place - 1], run[place])), len(run)]
        )
    ]


def find_whole(text: str, words: str) -> list[int]:
    """Where the words begin in the text, whole and without overlaps; both as they are given."""
    places: list[int] = []
    start = text.find(words) if words else -1
    while start >= 0:
        end = start + len(words)
        whole = is_whole(text, start, end)
        if whole:
            places.append(start)
        start = text.find(words, end if whole else start + 1)
    return places


def is_whole(text: str, start: int, end: int) -> bool:
    """Whether a word may begin at the character `start` of the text, and one may end before `end`."""
    return _may_part(text[start - 1 : start], text[start : start + 1]) and _may_part(
        text[end - 1 : end], text[end : end + 1]
    )


def widen_to_words(text: str, start: int, end: int) -> tuple[int, int]:
    """The characters [start, end) with the rest of the words at both ends; there is at least one."""
    while start > 0 and not _may_part(text[start - 1], text[start]):
        start -= 1
    while end < len(text) and not _may_part(text[end - 1], text[end]):
        end += 1
    return start, end


def may_go_on(text: str) -> bool:
    """Whether what is added to the text may become a part of its last word."""
    last = text[-1:]
    # A character whose bytes are not all there is one such sign; two of them are bytes that belong to no character.
    unfinished = last == UNFINISHED and not text.endswith(2 * UNFINISHED)
    return last != "" and (_is_of_word(last) or unicodedata.category(last) == "Cf" or unfinished)


def fold_signs(text: str) -> str:
    """The text with the signs of other scripts and widths as those of ASCII (： as :), each character in its place."""
    forms = (unicodedata.normalize("NFKC", character) for character in text)
    return "".join(
        form if len(form) == 1 else character for form, character in zip(forms, text, strict=True)
    ).translate(ASCII_SIGNS)


def _may_part(left: str, right: str) -> bool:
    """Whether a word may end between two characters (or at either end of the text)."""
    inside = bool(left and right) and _is_of_word(left) and _is_of_word(right)
    # A mark belongs to the character before it in any script.
    return not inside or (
        not unicodedata.category(right).startswith("M") and (_is_unspaced(left) or _is_unspaced(right))
    )


def _is_of_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNM"


def _is_unspaced(character: str) -> bool:
    return unicodedata.name(character, "").startswith(UNSPACED)
