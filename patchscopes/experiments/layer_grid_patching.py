"""What the model says when the state of each name at each ℓ is written at each ℓ* of a template."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch

from patchscopes.data.templates import CHAT, Template
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.engine.unpatched import generate_after
from patchscopes.estimating.steps import Part
from patchscopes.experiments.chunks import Progress, StopWatch, measure_parts, split_into_chunks
from patchscopes.experiments.config import LayerGridConfig
from patchscopes.experiments.layer_grid_choices import Source
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import patch_generate
from patchscopes.positions import find_substring_token_position
from patchscopes.prompts import NO_CHAT, Chat, ChatForm
from patchscopes.results import ChunkStore, Json
from patchscopes.tokens import write_out

# Rows that are finished, and kept, together (those of one name at least).
CHUNK_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Which states are written, where, and into which templates.

    Attributes:
        asked: names whose keywords are looked for.
        others: names whose states are written for comparison alone.
    """

    stage: str
    asked: tuple[Source, ...]
    others: tuple[Source, ...]
    templates: tuple[Template, ...]
    layers: tuple[int, ...]
    target_layers: tuple[int, ...]

    @property
    def states(self) -> tuple[Source, ...]:
        """All names whose states are written: those that are asked for, then the others."""
        return (*self.asked, *self.others)


def form_template(template: Template, chat: ChatForm) -> str | Chat:
    """The template as the model reads it; one of the family `chat` in the model's own chat template."""
    if template.family != CHAT:
        return chat.of_target(template.prompt)
    return Chat(template.prompt, chat.system if template.system is None else template.system)


def build_text(model: LensModel, template: Template, chat: ChatForm = NO_CHAT) -> str:
    """The template as the model reads it, written out.

    Raises:
        PatchscopesError: as `as_chat`.
    """
    return write_out(model, form_template(template, chat))


def build_target(model: LensModel, template: Template, chat: ChatForm = NO_CHAT) -> TargetPrompt:
    """The template with i* at its placeholder.

    Raises:
        PatchscopesError: the placeholder is no token of its own, or as `as_chat`.
    """
    return placeholder_target(model, form_template(template, chat), template.placeholder)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What is said in a whole grid.

    Attributes:
        texts: by template, state, ℓ and ℓ*.
        unpatched: of each template with its placeholder as it is.
        finished: the chunks, with the seconds that each took.
    """

    texts: list[list[list[list[str]]]]
    unpatched: list[str]
    finished: list[Json]


def say_grid(model: LensModel, grid: Grid, config: LayerGridConfig, store: ChunkStore, progress: Progress) -> Said:
    """All that is said in a grid, going on from the chunks in `store`.

    Raises:
        PatchscopesError: a template does not suit the model.
    """
    targets = {template.name: build_target(model, template, config.chat) for template in grid.templates}
    n_states = max(1, CHUNK_ROWS // (len(grid.layers) * len(grid.target_layers)))
    chunks = [(template.name, some) for template in grid.templates for some in split_into_chunks(grid.states, n_states)]

    def measure(template: str, some: Sequence[Source]) -> Json:
        watch = StopWatch()
        with watch.time("patched"):
            texts = say_states(targets[template], some, grid.layers, grid.target_layers, config)
        return {"texts": texts, "seconds": watch.seconds}

    def measure_unpatched() -> Json:
        watch = StopWatch()
        with watch.time("unpatched"):
            texts = say_unpatched(model, list(targets.values()), config)
        return {"texts": texts, "seconds": watch.seconds}

    parts: dict[str, Callable[[], Json]] = {
        f"{number:05d}": Part(partial(measure, template), some, decides=True)
        for number, (template, some) in enumerate(chunks)
    }
    *finished, unpatched = measure_parts(
        parts | {"unpatched": measure_unpatched}, store.at(grid.stage), progress
    ).values()
    texts: dict[str, list[list[list[str]]]] = {name: [] for name in targets}
    for (template, _), one in zip(chunks, finished, strict=True):
        texts[template] += one["texts"]
    return Said(texts=list(texts.values()), unpatched=unpatched["texts"], finished=[*finished, unpatched])


def say_states(
    target: TargetPrompt,
    sources: Sequence[Source],
    layers: Sequence[int],
    target_layers: Sequence[int],
    config: LayerGridConfig,
) -> list[list[list[str]]]:
    """What the model says for the state of each name at each ℓ, written at each ℓ*: texts by name, ℓ and ℓ*."""
    model = target.model
    prompts = [config.chat.of_source(source.prompt) for source in sources]
    positions = [
        find_substring_token_position(model, prompt, source.name, occurrence=-1)
        for prompt, source in zip(prompts, sources, strict=True)
    ]
    states = extract_representations(model, prompts, positions, layers)
    vectors = states.flatten(0, 1).repeat_interleave(len(target_layers), dim=0)
    tokens = patch_generate(
        target,
        vectors,
        torch.tensor(target_layers).repeat(len(sources) * len(layers)),
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
    )
    texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    by_layer = split_into_chunks(texts, len(target_layers))
    return [[list(row) for row in of_name] for of_name in split_into_chunks(by_layer, len(layers))]


def say_unpatched(model: LensModel, targets: Sequence[TargetPrompt], config: LayerGridConfig) -> list[str]:
    """What the model says after each template with its placeholder as it is."""
    tokens = generate_after(
        model,
        [target.tokens for target in targets],
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
    )
    texts: list[str] = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return texts


def describe_grid(model: LensModel, grid: Grid, chat: ChatForm = NO_CHAT) -> Json:
    """What a grid is made of, for the result file."""
    return {
        "stage": grid.stage,
        "layers": list(grid.layers),
        "target_layers": list(grid.target_layers),
        "names": [describe_source(source) for source in grid.asked],
        "others": [source.entity.name for source in grid.others],
        "templates": [asdict(template) | {"text": build_text(model, template, chat)} for template in grid.templates],
    }


def describe_source(source: Source) -> Json:
    """A name as the result file has it."""
    return {
        "name": source.entity.name,
        "source_prompt": source.prompt,
        "name_in_prompt": source.name,
        "keywords": list(source.keywords),
    }
