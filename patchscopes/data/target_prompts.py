"""Target prompts to choose from, and those that were chosen for the layers of a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchscopes.data.files import DATA_FOLDER, ROW_SUFFIXES, UNSPECIFIED, get_suffix, read_fields, read_object
from patchscopes.errors import PatchscopesError
from patchscopes.prompts import PLACEHOLDER

OWN_CANDIDATES = DATA_FOLDER / "target_prompts.json"
SUFFIXES = (*ROW_SUFFIXES, ".txt")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A target prompt to try.

    Attributes:
        prompt: T, exactly: spaces and line breaks count.
        placeholder: i* is its last occurrence.
        family: what kind of prompt it is: identity, words, …
    """

    prompt: str
    placeholder: str = PLACEHOLDER
    family: str = UNSPECIFIED


@dataclass(frozen=True, kw_only=True)
class PromptBand:
    """The target prompt that was chosen for some consecutive layers.

    Attributes:
        first, last: of these layers, both included.
    """

    first: int
    last: int
    prompt: str
    placeholder: str


def load_candidates(path: Path = OWN_CANDIDATES) -> tuple[Candidate, ...]:
    """The target prompts of a file of any of `SUFFIXES`, each once.

    Rows have a `prompt`, and may have its `placeholder` (`?` unless given) and a `family`. A .txt file has a prompt
    with the placeholder `?` on each line; lines of nothing but spaces are left out.

    Raises:
        PatchscopesError: no such file, no prompts, or a bad row (the message names it).
    """
    rows = read_fields(path, SUFFIXES, "target prompts")
    if get_suffix(path) == ".txt":
        rows = (({"prompt": row["text"]}, place) for row, place in rows if row["text"].strip())
    candidates: dict[tuple[str, str], Candidate] = {}
    for candidate in (_parse_candidate(row, place) for row, place in rows):
        candidates.setdefault((candidate.prompt, candidate.placeholder), candidate)
    if not candidates:
        raise PatchscopesError(f"{path} has no target prompts; give at least one with its placeholder")
    return tuple(candidates.values())


def _parse_candidate(row: Any, place: str) -> Candidate:
    fields: Mapping[str, Any] = row if isinstance(row, dict) else {}
    prompt = fields.get("prompt")
    placeholder, family = fields.get("placeholder", PLACEHOLDER), fields.get("family", UNSPECIFIED)
    if not all(isinstance(text, str) and text.strip() for text in (prompt, placeholder, family)):
        raise PatchscopesError(
            f"{place}: expected the string `prompt`, and perhaps `placeholder` and `family`, got {str(row)[:120]}"
        )
    if placeholder not in str(prompt):
        raise PatchscopesError(
            f"{place}: the prompt {str(prompt)[:120]!r} has no placeholder {placeholder!r}; put one into it, or name "
            "another as its `placeholder`"
        )
    return Candidate(prompt=str(prompt), placeholder=placeholder, family=family)


def load_best_prompts(path: Path) -> tuple[PromptBand, ...]:
    """The prompts that run_target_prompts.py chose, from its result file.

    Raises:
        PatchscopesError: no such file, or another one.
    """
    content = read_object(path, "the result of run_target_prompts.py")
    results = content.get("results") if content.get("experiment") == "target_prompts" else None
    bands: list[Any] = (results.get("bands") if isinstance(results, dict) else None) or []
    if not (isinstance(bands, list) and bands and all(map(_is_band, bands))):
        raise PatchscopesError(f"{path} is no result of run_target_prompts.py; give the JSON file that it writes")
    return tuple(PromptBand(**{name: band[name] for name in _BAND_FIELDS}) for band in bands)


_BAND_FIELDS = {"first": int, "last": int, "prompt": str, "placeholder": str}


def _is_band(row: Any) -> bool:
    return isinstance(row, dict) and all(type(row.get(name)) is kind for name, kind in _BAND_FIELDS.items())
