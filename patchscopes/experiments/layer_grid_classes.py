"""What a generation shows to be known of an entity: the keywords in it, and its class."""

from collections.abc import Iterable, Sequence

from patchscopes.data.entities import Entity
from patchscopes.words import find_whole, normalise_words

# By number: none of the keywords, one, two or more.
CLASSES = ("failed", "partial", "strong")
STRONG = CLASSES.index("strong")


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
        places = find_whole(words, pattern)
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
