"""Entities with their reference descriptions, and where a generated description ends."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchscopes.data.files import ROW_SUFFIXES, UNSPECIFIED, read_fields
from patchscopes.data.questions import contains_answer
from patchscopes.errors import PatchscopesError
from patchscopes.prompts import DESCRIPTION_SEPARATOR
from patchscopes.words import fold_signs


@dataclass(frozen=True, kw_only=True)
class Entity:
    """A name and what it stands for.

    Attributes:
        references: lines that describe it; of a score against them, the best counts.
        kind: person, place, …
        popularity: well_known, little_known, or any other groups to report apart.
        keywords: words or short names that say something true of it, and are none of its own name: who says the name
            again knows nothing yet.
    """

    name: str
    references: tuple[str, ...] = ()
    kind: str = UNSPECIFIED
    popularity: str = UNSPECIFIED
    keywords: tuple[str, ...] = ()


def load_entities(path: Path) -> tuple[Entity, ...]:
    """The entities of a file of any of `ROW_SUFFIXES`.

    Each row has `entity` and `reference` or `references`, and may have `kind`, `popularity` and `keywords`.
    `references` and `keywords` are lists of strings; in a table one cell, with semicolons between them.

    Raises:
        PatchscopesError: no such file, or a bad row (the message names it).
    """
    rows = read_fields(path, ROW_SUFFIXES, "entities", lists=("references", "keywords"))
    entities = tuple(_parse_entity(row, place) for row, place in rows)
    if not entities:
        raise PatchscopesError(f"{path} has no entities")
    return entities


def _parse_entity(row: Any, place: str) -> Entity:
    fields = dict(row) if isinstance(row, dict) else {}
    references = fields.get("references", [])
    references = [*([fields["reference"]] if "reference" in fields else []), *_as_list(references)]
    texts = [fields.get("entity"), fields.get("kind", UNSPECIFIED), fields.get("popularity", UNSPECIFIED)]
    if not references or not all(isinstance(text, str) and text.strip() for text in [*texts, *references]):
        raise PatchscopesError(
            f"{place}: expected the strings `entity` and `reference` (or a list of strings, `references`), and perhaps "
            f"`kind` and `popularity`, got {str(row)[:120]}"
        )
    name, kind, popularity = (str(text).strip() for text in texts)
    return Entity(
        name=name,
        references=tuple(dict.fromkeys(reference.strip() for reference in references)),
        kind=kind,
        popularity=popularity,
        keywords=_parse_keywords(fields.get("keywords", []), name, place),
    )


def _as_list(references: Any) -> list[Any]:
    return references if isinstance(references, list) else [references]


def _parse_keywords(keywords: Any, name: str, place: str) -> tuple[str, ...]:
    """The keywords of the entity with this name.

    Raises:
        PatchscopesError: they are not strings with a letter or digit each, or one stands in the name or twice in the
            list.
    """
    if not isinstance(keywords, list) or not all(isinstance(keyword, str) for keyword in keywords):
        raise PatchscopesError(f"{place}: expected `keywords` as a list of strings, got {str(keywords)[:120]}")
    parsed: list[str] = []
    for keyword in map(str.strip, keywords):
        if not contains_answer(keyword, [keyword]):
            raise PatchscopesError(f"{place}: the keyword {keyword!r} has no letter or digit to find it by")
        if contains_answer(name, [keyword]):
            raise PatchscopesError(
                f"{place}: the keyword {keyword!r} stands in the name {name!r}, so whoever repeats the name would know "
                "it; give a fact that the name does not say"
            )
        if any(contains_answer(other, [keyword]) and contains_answer(keyword, [other]) for other in parsed):
            raise PatchscopesError(f"{place}: the keyword {keyword!r} is given twice; leave one out")
        parsed.append(keyword)
    return tuple(parsed)


def cut_description(generation: str, separator: str = DESCRIPTION_SEPARATOR) -> str:
    """The description in what a model said after the entity-description prompt. See `find_description`."""
    start, end = find_description(generation, separator)
    return generation[start:end]


def find_description(generation: str, separator: str = DESCRIPTION_SEPARATOR) -> tuple[int, int]:
    """Where the description begins and ends in what a model said after the entity-description prompt.

    The prompt's format is `name: description` with `separator` in between. So the description begins after the colon
    that ends the name, if there is one (some models go on with the name for a word or two), and it ends with the line,
    or where the next entry begins: a separator, a name and a colon. Commas inside a description do not end it. Colons
    and separators of other scripts and widths count as those of ASCII.
    """
    within = re.escape(fold_signs(separator).strip()) or r"\n"
    line = fold_signs(generation).split("\n", maxsplit=1)[0]
    name = re.match(rf"(?:(?!{within})[^:])*:", line)
    start = 0 if name is None else name.end()
    next_entry = re.search(rf"{within}(?:(?!{within})[^:])*:", line[start:])
    description = line[start:] if next_entry is None else line[start : start + next_entry.start()]
    start += len(description) - len(description.lstrip())
    return start, start + len(description.strip())
