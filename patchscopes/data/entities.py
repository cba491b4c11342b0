"""Entities with their reference descriptions, and where a generated description ends."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchscopes.data.files import UNSPECIFIED, read_rows
from patchscopes.data.questions import contains_answer
from patchscopes.errors import PatchscopesError
from patchscopes.prompts import DESCRIPTION_SEPARATOR
from patchscopes.words import fold_signs

# Between keywords in a cell of a table.
KEYWORD_SEPARATOR = ";"


@dataclass(frozen=True, kw_only=True)
class Entity:
    """A name and what it stands for.

    Attributes:
        reference: one line that describes it.
        kind: person, place, …
        popularity: well_known, little_known, or any other groups to report apart.
        keywords: words or short names that say something true of it, and are none of its own name: who says the name
            again knows nothing yet.
    """

    name: str
    reference: str
    kind: str = UNSPECIFIED
    popularity: str = UNSPECIFIED
    keywords: tuple[str, ...] = ()


def load_entities(path: Path) -> tuple[Entity, ...]:
    """The entities of a JSON file (a list of objects) or a CSV file.

    Each row has `entity` and `reference`, and may have `kind`, `popularity` and `keywords` (a list of strings; in a CSV
    file one cell, with semicolons between them).

    Raises:
        PatchscopesError: no such file, or a bad row (the message names it).
    """
    rows = read_rows(path, (".json", ".csv"), "entities")
    if path.suffix == ".csv":
        rows = ((_parse_cells(row), place) for row, place in rows)
    entities = tuple(_parse_entity(row, place) for row, place in rows)
    if not entities:
        raise PatchscopesError(f"{path} has no entities")
    return entities


def _parse_cells(row: dict[str, str]) -> dict[str, Any]:
    """A row of a table in the form of one of a JSON file. Empty cells are those that are not there."""
    fields: dict[str, Any] = {name: cell for name, cell in row.items() if cell}
    if "keywords" in fields:
        fields["keywords"] = [part for part in fields["keywords"].split(KEYWORD_SEPARATOR) if part.strip()]
    return fields


def _parse_entity(row: Any, place: str) -> Entity:
    fields = dict(row) if isinstance(row, dict) else {}
    texts = [fields.get("entity"), fields.get("reference")]
    groups = [fields.get("kind", UNSPECIFIED), fields.get("popularity", UNSPECIFIED)]
    if not all(isinstance(text, str) and text.strip() for text in [*texts, *groups]):
        raise PatchscopesError(
            f"{place}: expected the strings `entity` and `reference`, and perhaps `kind` and `popularity`, got "
            f"{str(row)[:120]}"
        )
    name, reference, kind, popularity = (text.strip() for text in [*texts, *groups])
    keywords = _parse_keywords(fields.get("keywords", []), name, place)
    return Entity(name=name, reference=reference, kind=kind, popularity=popularity, keywords=keywords)


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
