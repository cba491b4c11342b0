"""Relations: the attribute that is asked for, its subjects and their objects (paper, section 4.2)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from patchscopes.data.files import DATA_FOLDER, PLACE, UNSPECIFIED, get_suffix, read_object, read_rows
from patchscopes.data.questions import CUE, contains_answer
from patchscopes.errors import PatchscopesError
from patchscopes.words import find_whole, is_whole

RELATIONS_FOLDER = DATA_FOLDER / "relations"
# The name under which carrier sentences stand in for a data set.
CARRIERS = "carriers"
SUFFIXES = (".json", ".tsv", ".csv")


@dataclass(frozen=True, kw_only=True)
class RelationSample:
    """A subject and its attribute.

    Attributes:
        subject: "Japan".
        object: "yen".
        aliases: other words for the object.
        source_prompts: texts in which the subject stands, where a sample table gives them; else none, and they are
            drawn from texts.
    """

    subject: str
    object: str
    aliases: tuple[str, ...] = ()
    source_prompts: tuple[str, ...] = ()

    @property
    def accepted(self) -> tuple[str, ...]:
        """The object and its aliases."""
        return (self.object, *self.aliases)


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A phrase that asks for an attribute, and the samples that have it.

    Attributes:
        prompt: with `PLACE` once, "The official currency of {}".
        kind: commonsense or factual.
        subject_kind: which carrier sentences fit its subjects: country, fruit, …
        left_out: the samples of a published file that cannot be used, one line each that says where and why: the
            subject says the answer itself ("playing basketball": "basketball"), or is not in its source prompt.
    """

    name: str
    prompt: str
    samples: tuple[RelationSample, ...]
    kind: str = UNSPECIFIED
    subject_kind: str = UNSPECIFIED
    left_out: tuple[str, ...] = ()

    @property
    def n_left_out(self) -> int:
        """How many samples of the file cannot be used."""
        return len(self.left_out)

    def fill(self, subject: str) -> str:
        """The prompt with the subject (or a placeholder) in its place."""
        return self.prompt.replace(PLACE, subject)

    @property
    def cue(self) -> str:
        """`CUE` if the prompt ends with the subject, so that the model goes on with the object; else nothing."""
        return CUE if self.prompt.endswith(PLACE) else ""


def find_relation_files() -> tuple[Path, ...]:
    """The relation files of this library, in order of their names."""
    return tuple(sorted(RELATIONS_FOLDER.glob("*.json")))


def load_relations(paths: Sequence[Path]) -> tuple[Relation, ...]:
    """The relations of files in any of three formats.

    - .json of this library: an object with `name`, `prompt` and `samples` of `subject`, `object` and perhaps
      `aliases`; it may have `kind` and `subject_kind`.
    - .json of Hernandez et al. 2023 (arXiv 2308.09124): `prompt_templates`, of which the first is used, in place of
      `prompt`, and `properties.relation_type` in place of `kind`.
    - .tsv and .csv in the columns of the paper's published samples: `subject`, `object`, `prompt_source` and
      `prompt_target`, one sample a row. Positions are counted in another model's tokens and not read: the subject is
      found in the source prompt. The relation has the file's name; there is one for each target prompt.

    A subject that is given again keeps its first object, and the others become aliases. In files of this library a
    sample that gives its answer away is an error. Published ones cannot be edited, so there it is in `left_out`, as is
    a row of a table whose source prompt lacks the subject (the paper's have some that are empty or cut too short).

    Raises:
        PatchscopesError: no such file, a bad row (the message names it), none that can be used, or two relations of
            one name.
    """
    files: dict[str, Path] = {}
    relations: list[Relation] = []
    for path in paths:
        for relation in (_read_relation_file(path),) if get_suffix(path) == ".json" else _read_sample_table(path):
            if relation.name in files:
                raise PatchscopesError(
                    f"{path}: another relation is called {relation.name!r} already, in {files[relation.name]}; give "
                    "each relation once, under a name of its own"
                )
            files[relation.name] = path
            relations.append(relation)
    return tuple(relations)


def load_carriers(path: Path = DATA_FOLDER / "carriers.json") -> dict[str, tuple[str, ...]]:
    """The carrier sentences of a JSON file, by kind of subject: an object of lists of strings with `PLACE` once.

    Raises:
        PatchscopesError: no such file, no sentence of a kind, or a bad one (the message names it).
    """
    kinds = read_object(path, "carrier sentences by kind of subject")
    if not kinds:
        raise PatchscopesError(f"{path} has no carrier sentences")
    for kind, sentences in kinds.items():
        if not isinstance(sentences, list) or not sentences:
            raise PatchscopesError(f"{path}, `{kind}`: expected a list of sentences, got {str(sentences)[:120]}")
    return {
        kind: tuple(
            _parse_prompt(sentence, f"{path}, `{kind}`, sentence {number}")
            for number, sentence in enumerate(sentences, start=1)
        )
        for kind, sentences in kinds.items()
    }


def find_subject(text: str, subject: str) -> tuple[int, int] | None:
    """The characters [start, end) of `text` in which the subject first stands, or None.

    Whole words are preferred, in the given case and then in any; else it may be a part of a word, in the given case:
    "tiger" stands in "tigers", and in the paper's published samples also "Japan" in "Japanese".
    """
    whole = next(iter(find_whole_subjects(text, subject)), None)
    start = text.find(subject)
    return whole or (None if start < 0 else (start, start + len(subject)))


def find_whole_subjects(text: str, subject: str) -> list[tuple[int, int]]:
    """The characters [start, end) of `text` where the subject stands as whole words, those in the given case first."""
    # Also where two of them overlap.
    spans = [found.span(1) for found in re.finditer(rf"(?=({re.escape(subject)}))", text, re.IGNORECASE)]
    whole = [span for span in spans if is_whole(text, *span)]
    return sorted(whole, key=lambda span: text[slice(*span)] != subject)


def _read_relation_file(path: Path) -> Relation:
    fields = read_object(path, "a relation")
    published = "prompt" not in fields and "prompt_templates" in fields
    if published:
        fields = _convert_hernandez(fields)
    groups = {name: fields.get(name, UNSPECIFIED) for name in ("kind", "subject_kind")}
    for name, text in {"name": fields.get("name"), **groups}.items():
        if not _is_text(text):
            raise PatchscopesError(f"{path}: expected a string `{name}`, got {str(text)[:80]}")
    prompt = _parse_prompt(fields.get("prompt"), f"{path}, the prompt")
    rows = fields.get("samples")
    if not isinstance(rows, list):
        raise PatchscopesError(f"{path}: expected `samples` as a list of objects, got {str(rows)[:80]}")
    places = [f"{path}, sample {number}" for number in range(1, len(rows) + 1)]
    parsed = [(_parse_sample(row, place), place) for row, place in zip(rows, places, strict=True)]
    if not published:
        for sample, place in parsed:
            _check_answer(sample, prompt.replace(PLACE, sample.subject), place)
    usable, left_out = _select_usable(parsed)
    _check_some_usable(usable, left_out, path)
    return Relation(
        name=fields["name"].strip(),
        prompt=prompt,
        samples=usable,
        **{name: text.strip() for name, text in groups.items()},
        left_out=left_out,
    )


def _convert_hernandez(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a file of Hernandez et al. as this library names them."""
    templates, properties = fields["prompt_templates"], fields.get("properties")
    kind = properties.get("relation_type") if isinstance(properties, dict) else None
    return {
        "name": fields.get("name"),
        "prompt": templates[0] if isinstance(templates, list) and templates else templates,
        "kind": kind if _is_text(kind) else UNSPECIFIED,
        "samples": fields.get("samples"),
    }


def _read_sample_table(path: Path) -> tuple[Relation, ...]:
    by_prompt: dict[str, list[tuple[RelationSample, str]]] = {}
    for row, place in read_rows(path, SUFFIXES, "relations"):
        prompt = _parse_target_prompt(row.get("prompt_target"), place)
        by_prompt.setdefault(prompt, []).append((_parse_table_row(row, place), place))
    if not by_prompt:
        raise PatchscopesError(f"{path} has no samples")
    selected = {prompt: _select_usable(rows) for prompt, rows in by_prompt.items()}
    usable = [prompt for prompt, (samples, _) in selected.items() if samples]
    _check_some_usable(usable, [line for _, lines in selected.values() for line in lines], path)
    # Samples of prompts with which none can be used are left out of the file's first relation.
    unused = [line for samples, lines in selected.values() if not samples for line in lines]
    return tuple(
        Relation(
            name=path.stem if number == 1 else f"{path.stem} ({number})",
            prompt=prompt,
            samples=selected[prompt][0],
            left_out=(*selected[prompt][1], *(unused if number == 1 else ())),
        )
        for number, prompt in enumerate(usable, start=1)
    )


def _parse_table_row(row: Mapping[str, str], place: str) -> RelationSample:
    """One sample, with its source prompt as it is written: a space before its first word makes other tokens."""
    if "prompt_source" not in row:
        raise PatchscopesError(f"{place}: expected a column `prompt_source`, got {', '.join(row)}")
    sample = _parse_sample({name: row.get(name) for name in ("subject", "object")}, place)
    return replace(sample, source_prompts=(row["prompt_source"],))


def _parse_target_prompt(text: str | None, place: str) -> str:
    """The relation's prompt: the last word x of the target prompt is where the subject stands."""
    placeholders = find_whole(text or "", "x")
    if text is None or not placeholders:
        raise PatchscopesError(f"{place}: expected a `prompt_target` with the placeholder x, got {text!r}")
    start = placeholders[-1]
    return _parse_prompt(text[:start] + PLACE + text[start + 1 :], f"{place}, prompt_target")


def _parse_prompt(text: Any, place: str) -> str:
    if not _is_text(text) or text.count(PLACE) != 1:
        raise PatchscopesError(f"{place}: expected a string with {PLACE} once, got {text!r:.120}")
    return text.strip()


def _parse_sample(row: Any, place: str) -> RelationSample:
    fields = row if isinstance(row, dict) else {}
    subject, answer, aliases = fields.get("subject"), fields.get("object"), fields.get("aliases", [])
    if not (_is_text(subject) and _is_text(answer)):
        raise PatchscopesError(
            f"{place}: expected the strings `subject` and `object`, and perhaps `aliases`, got {str(row)[:120]}"
        )
    if not isinstance(aliases, list) or not all(map(_is_text, aliases)):
        raise PatchscopesError(f"{place}: expected `aliases` as a list of strings, got {str(aliases)[:120]}")
    accepted = tuple(dict.fromkeys(text.strip() for text in [answer, *aliases]))
    for text in accepted:
        if not contains_answer(text, [text]):
            raise PatchscopesError(f"{place}: the answer {text!r} has no letter or digit to find it by")
    return RelationSample(subject=subject.strip(), object=accepted[0], aliases=accepted[1:])


def _check_answer(sample: RelationSample, prompt: str, place: str) -> None:
    if contains_answer(prompt, sample.accepted):
        raise PatchscopesError(
            f"{place}: an accepted answer, of {', '.join(sample.accepted)}, stands in the prompt {prompt!r} itself; "
            "choose another sample or prompt"
        )


def _select_usable(
    rows: Sequence[tuple[RelationSample, str]],
) -> tuple[tuple[RelationSample, ...], tuple[str, ...]]:
    """The samples that can be used, merged by subject, and a line for each that cannot."""
    flaws = [_find_flaw(sample) for sample, _ in rows]
    left_out = tuple(f"{place}: {flaw}" for (_, place), flaw in zip(rows, flaws, strict=True) if flaw)
    samples = _merge_samples(sample for (sample, _), flaw in zip(rows, flaws, strict=True) if not flaw)
    return samples, left_out


def _check_some_usable(usable: Sequence[Any], left_out: Sequence[str], path: Path) -> None:
    if not usable:
        raise PatchscopesError("; ".join([f"{path} has no samples that can be used", *left_out[:1]]))


def _find_flaw(sample: RelationSample) -> str | None:
    # The prompt may say the answer: published ones list the objects to choose from.
    if contains_answer(sample.subject, sample.accepted):
        return f"the subject {sample.subject!r} says the answer itself"
    for prompt in sample.source_prompts:
        if find_subject(prompt, sample.subject) is None:
            return f"the subject {sample.subject!r} is not in its source prompt {prompt!r}"
    return None


def _merge_samples(samples: Iterable[RelationSample]) -> tuple[RelationSample, ...]:
    """One sample for each subject: further objects become aliases."""
    merged: dict[str, RelationSample] = {}
    for sample in samples:
        before = merged.get(sample.subject)
        accepted = tuple(dict.fromkeys([*(before.accepted if before else ()), *sample.accepted]))
        merged[sample.subject] = RelationSample(
            subject=sample.subject,
            object=accepted[0],
            aliases=accepted[1:],
            source_prompts=(before.source_prompts if before else ()) + sample.source_prompts,
        )
    return tuple(merged.values())


def _is_text(text: Any) -> TypeGuard[str]:
    return isinstance(text, str) and bool(text.strip())
