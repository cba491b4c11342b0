"""What a generation shows to be known of an entity: the keywords in it, and its class."""

import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

from patchscopes.data.entities import Entity

# By number: none of the keywords, one, two or more.
CLASSES = ("failed", "partial", "strong")
STRONG = CLASSES.index("strong")

# Scripts that put no spaces between words (or, as Hangul, none between a word and its particles), by how Unicode names
# their characters: a word may begin or end anywhere.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def classify(text: str, keywords: Sequence[str]) -> int:
    """The number of the class in `CLASSES`: how many of the keywords stand in the text, two or more being `strong`."""
    return min(len(find_keywords(text, keywords)), STRONG)


def find_keywords(text: str, keywords: Iterable[str]) -> list[str]:
    """The keywords that stand in the text as whole words; case, accents' encoding and punctuation do not count.

    A keyword that stands only inside of a longer one that is found (“physics” in “nuclear physics”) is not found.
    Keywords that differ in nothing that counts are one.
    """
    words = normalise_words(text)
    given = list(dict.fromkeys(keywords))
    different = {normalise_words(keyword): keyword for keyword in reversed(given)}
    found = {}
    # What is found is taken out of the text, the longest first.
    for pattern in sorted(different, key=len, reverse=True):
        places = _find_whole(words, pattern)
        if places:
            found[pattern] = different[pattern]
        for start in places:
            words = words[:start] + "\0" * len(pattern) + words[start + len(pattern) :]
    return [keyword for keyword in given if keyword in found.values()]


def select_keywords(entity: Entity) -> tuple[str, ...]:
    """The entity's keywords without those that an echo of its name would say: what stands in it, or only its words."""
    words_of_name = set(normalise_words(entity.name).split())
    return tuple(
        keyword
        for keyword in dict.fromkeys(entity.keywords)
        if normalise_words(keyword)
        and not find_keywords(entity.name, [keyword])
        and not set(normalise_words(keyword).split()) <= words_of_name
    )


@lru_cache(maxsize=2**16)
def normalise_words(text: str) -> str:
    """The text in one case and form, with one space for whatever is no letter, digit or mark.

    Characters without a width (soft hyphens, joiners) are dropped.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    spaced = (
        "" if unicodedata.category(character) == "Cf" else character if _is_of_word(character) else " "
        for character in folded
    )
    return " ".join("".join(spaced).split())


def _find_whole(words: str, pattern: str) -> list[int]:
    """Where the pattern begins in normalised text, as whole words and without overlaps."""
    places: list[int] = []
    start = words.find(pattern) if pattern else -1
    while start >= 0:
        end = start + len(pattern)
        is_whole = _may_part(words[start - 1 : start], pattern[0]) and _may_part(pattern[-1], words[end : end + 1])
        if is_whole:
            places.append(start)
        start = words.find(pattern, end if is_whole else start + 1)
    return places


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
