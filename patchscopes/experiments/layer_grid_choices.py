"""Whose states a layer grid writes, and into which templates: what is chosen before there is a model.

The names are the one that is asked for, or several of a file, and other ones to compare with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from patchscopes.data.entities import Entity
from patchscopes.data.templates import Template, find_template, select_family
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import LayerGridConfig
from patchscopes.experiments.layer_grid_classes import find_keywords, select_keywords
from patchscopes.words import normalise_words

# Several names are drawn from those of this popularity, where there are such: of the others a small model knows little.
WELL_KNOWN = "well_known"
# Parts of names that are shorter stand in too many sentences ("The", "of").
SHORTEST_PART = 4


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source prompt S with a name in it.

    Attributes:
        name: as it stands in the prompt; i is its last token.
        keywords: what counts as known, without words of the name.
    """

    entity: Entity
    prompt: str
    name: str
    keywords: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ChosenNames:
    """The names of one run.

    Attributes:
        source: the one name; None where the mode takes several.
        several: the names of `multi`; none in modes that take one.
        others: names whose states are written too, and scored on the keywords of `source`.
    """

    source: Source | None
    several: tuple[Source, ...]
    others: tuple[Source, ...]


def choose_templates(templates: Sequence[Template], config: LayerGridConfig) -> tuple[Template, ...]:
    """The templates that a mode takes.

    Raises:
        PatchscopesError: there is no such mode, template or family, or the mode `patchscope` is given none.
    """
    if config.mode not in LayerGridConfig.MODES:
        raise PatchscopesError(f"no mode is called {config.mode!r}; choose from {', '.join(LayerGridConfig.MODES)}")
    if config.mode == "patchscope":
        if config.template_type is None:
            raise PatchscopesError("the mode patchscope runs one family of templates; say which with --template-type")
        return select_family(templates, config.template_type)
    one = find_template(templates, config.template)
    return tuple(templates) if config.mode in ("templates", "comprehensive") else (one,)


def choose_names(entities: Sequence[Entity], config: LayerGridConfig) -> ChosenNames:
    """The names that the mode takes, drawn by the seed.

    Raises:
        PatchscopesError: the source prompt has no name of the file, or no two keywords are left of it; or the mode
            takes several names, and fewer than two have two keywords.
    """
    order = np.random.default_rng(config.seed).permutation(len(entities))
    known = [number for number in order if len(select_keywords(entities[number])) > 1]
    several: tuple[Source, ...] = ()
    if config.mode in ("multi", "comprehensive"):
        if len(known) < 2:
            raise PatchscopesError(
                f"{config.mode} takes several names with two keywords each, and {len(known)} of the file's "
                f"{len(entities)} have them; give `keywords` that are no words of the name"
            )
        drawn = [number for number in known if entities[number].popularity == WELL_KNOWN]
        drawn = (drawn if len(drawn) > 1 else known)[: config.n_names]
        several = tuple(build_source(entities[number]) for number in sorted(drawn))
    if config.mode == "multi":
        return ChosenNames(source=None, several=several, others=())
    source = choose_source(entities, config)
    others = [
        build_source(entities[number])
        for number in order
        if normalise_words(entities[number].name) != normalise_words(source.entity.name)
        and not _is_alike(entities[number], source)
    ]
    return ChosenNames(source=source, several=several, others=tuple(others[: config.n_others]))


def choose_source(entities: Sequence[Entity], config: LayerGridConfig) -> Source:
    """The one name: of the source prompt, or the first of the file that has two keywords.

    Raises:
        PatchscopesError: as `choose_names`.
    """
    known = [entity.name for entity in entities if len(select_keywords(entity)) > 1]
    prompt = config.source_prompt or next(iter(known), None)
    if prompt is None:
        raise PatchscopesError("no name of the file has two keywords; give --source-prompt and --keywords")
    about = config.name or prompt
    if about not in prompt:
        raise PatchscopesError(f"the name {about!r} is not in the source prompt {prompt!r}; write it there")
    # With its name and its keywords told, the file is not asked.
    found = None if config.name and config.keywords else find_name(entities, about)
    if found is None and not config.keywords:
        raise PatchscopesError(
            f"no name of the file stands in the source prompt {prompt!r}; say what counts as known of it with "
            "--keywords, and with --name which words of a sentence are the name"
        )
    entity, part = found or (Entity(name=about), about)
    name = config.name or part
    source = build_source(replace(entity, keywords=config.keywords or entity.keywords), prompt, name)
    if len(source.keywords) < 2:
        raise PatchscopesError(
            f"{source.entity.name!r} has {len(source.keywords)} keywords that are no words of the name, and two are "
            "needed to tell that it is known; give them with --keywords"
        )
    return source


def build_source(entity: Entity, prompt: str | None = None, name: str | None = None) -> Source:
    """The entity in a prompt, or its name alone."""
    name = name or entity.name
    return Source(entity=entity, prompt=prompt or name, name=name, keywords=select_keywords(entity))


def find_name(entities: Sequence[Entity], prompt: str) -> tuple[Entity, str] | None:
    """The entity whose name stands in the prompt, and the part of the name that does, as it is written there.

    The longest part counts: the whole name in upper or lower case, or the words that it begins or ends with
    (“Einstein”), in a sentence only as the name writes them: not every river is the Amazon River.

    Raises:
        PatchscopesError: the part is one of several names.
    """
    parts = [
        (len(part), number, part)
        for number, entity in enumerate(entities)
        for part in _list_parts(entity.name)
        if find_keywords(prompt, [part])
        and (part in prompt or part == entity.name or part.casefold() == prompt.strip().casefold())
    ]
    if not parts:
        return None
    longest = max(parts)[0]
    found = {number: part for length, number, part in parts if length == longest}
    if len(found) > 1:
        names = ", ".join(repr(entities[number].name) for number in found)
        raise PatchscopesError(f"the source prompt {prompt!r} may be about {names}; write the whole name")
    ((number, part),) = found.items()
    start = prompt.casefold().rfind(part.casefold())
    if start < 0 or len(prompt.casefold()) != len(prompt):
        raise PatchscopesError(
            f"the source prompt {prompt!r} spells {part!r} differently; write it as the file does, or give --name"
        )
    return entities[number], prompt[start : start + len(part)]


def _list_parts(name: str) -> Iterator[str]:
    """The name, and the words that it begins and ends with where they are long enough."""
    words = name.split()
    yield name
    for n_words in range(1, len(words)):
        for some in (words[:n_words], words[-n_words:]):
            part = " ".join(some).strip(",;:")
            if len(part) >= SHORTEST_PART:
                yield part


def _is_alike(entity: Entity, source: Source) -> bool:
    """Whether two of the source's keywords are the entity's too, so that its own state may rightly say them."""
    return len(find_keywords(" ; ".join([entity.name, *entity.keywords]), source.keywords)) > 1
