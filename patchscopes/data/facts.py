"""Facts: a prompt about a subject that a model goes on from with an attribute (Meng et al. 2022)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patchscopes.data.files import PLACE, ROW_SUFFIXES, UNSPECIFIED, get_suffix, holds_object, read_fields
from patchscopes.data.relations import Relation, find_relation_files, find_subject, load_relations
from patchscopes.errors import PatchscopesError


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A prompt with a subject in it, and what is true of the subject.

    Attributes:
        prompt: the attribute follows it: "The capital city of Japan is".
        span: the characters [start, end) of the prompt in which the subject stands.
        attribute: "Tokyo".
        aliases: other words for the attribute.
        relation: the name of the relation that the fact is from.
    """

    prompt: str
    span: tuple[int, int]
    attribute: str
    aliases: tuple[str, ...] = ()
    relation: str = UNSPECIFIED

    @property
    def subject(self) -> str:
        """The subject as the prompt has it."""
        start, end = self.span
        return self.prompt[start:end]

    @property
    def accepted(self) -> tuple[str, ...]:
        """The attribute and its aliases."""
        return (self.attribute, *self.aliases)


def convert_relations(relations: Sequence[Relation]) -> tuple[Fact, ...]:
    """The facts of relations, one for each sample: its subject in the relation's prompt, and the cue behind it."""
    return tuple(
        Fact(
            prompt=relation.fill(sample.subject) + relation.cue,
            span=_find_place(relation.prompt, sample.subject),
            attribute=sample.object,
            aliases=sample.aliases,
            relation=relation.name,
        )
        for relation in relations
        for sample in relation.samples
    )


def load_own_facts(*relations: str) -> tuple[Fact, ...]:
    """The facts of this library's relations with these names, or of all of them."""
    paths = find_relation_files()
    chosen = [next(path for path in paths if path.stem == name) for name in relations]
    return convert_relations(load_relations(chosen or paths))


def load_facts(path: Path) -> tuple[Fact, ...]:
    """The facts of a file of any of `ROW_SUFFIXES` with `prompt`, `subject` and `attribute`.

    The facts that Meng et al. 2022 (arXiv 2202.05262) publish are in this form. A prompt is whole, or has `{}` in the
    place of the subject; other fields are not read. A prompt that is given again with the same subject keeps its first
    attribute, and the others become aliases. A file of one relation (`load_relations`) gives its facts.

    Raises:
        PatchscopesError: no such file, no facts, or a bad row (the message names it).
    """
    if get_suffix(path) == ".json" and holds_object(path, "facts"):
        return convert_relations(load_relations([path]))
    facts = _merge(_parse_fact(row, place) for row, place in read_fields(path, ROW_SUFFIXES, "facts"))
    if not facts:
        raise PatchscopesError(f"{path} has no facts; give rows with a `prompt`, its `subject` and the `attribute`")
    return facts


def _parse_fact(row: Any, place: str) -> Fact:
    fields: Mapping[str, Any] = row if isinstance(row, dict) else {}
    texts = [fields.get(name) for name in ("prompt", "subject", "attribute")]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise PatchscopesError(
            f"{place}: expected the strings `prompt`, `subject` and `attribute`, got {str(row)[:120]}"
        )
    prompt, subject, attribute = (str(text).strip() for text in texts)
    if PLACE in prompt:
        if prompt.count(PLACE) > 1:
            raise PatchscopesError(f"{place}: expected a prompt with {PLACE} at most once, got {prompt[:120]!r}")
        return Fact(prompt=prompt.replace(PLACE, subject), span=_find_place(prompt, subject), attribute=attribute)
    span = find_subject(prompt, subject)
    if span is None:
        raise PatchscopesError(
            f"{place}: the subject {subject!r} is not in the prompt {prompt[:120]!r}; write it there, or {PLACE} for it"
        )
    return Fact(prompt=prompt, span=span, attribute=attribute)


def _find_place(prompt: str, subject: str) -> tuple[int, int]:
    """The characters in which the subject stands once it is put in its place."""
    start = prompt.index(PLACE)
    return start, start + len(subject)


def _merge(facts: Iterable[Fact]) -> tuple[Fact, ...]:
    """One fact for each prompt and subject: further attributes become aliases."""
    merged: dict[tuple[str, tuple[int, int]], Fact] = {}
    for fact in facts:
        first = merged.setdefault((fact.prompt, fact.span), fact)
        accepted = dict.fromkeys([*first.accepted, *fact.accepted])
        merged[fact.prompt, fact.span] = replace(first, aliases=tuple(accepted)[1:])
    return tuple(merged.values())
