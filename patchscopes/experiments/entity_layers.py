"""One name, layer by layer: what the model says, and which words of the name that is about (paper, section 4.3, table).

A name is read from its last word backwards: early layers know "Wales", later ones "Princess of Wales", and only then
"Diana, Princess of Wales". To say which words a layer has resolved, the model also describes every ending of the name
in clear. Two measures compare a layer with these descriptions, side by side:

* `resolved`, by probability, is the judgement: the ending whose description the layer's state makes most likely. That
  is the mean log-probability of the description's tokens with the state written in, minus that without it. The
  difference is what counts, because some descriptions are likely of anything: "Queen of the Sky" is more so after the
  bare prompt than "British royal princess" ever is.
* `most_alike`, by ROUGE-L, only looks at the words that were said: the ending whose description shares most of them.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.data.entities import cut_description
from patchscopes.engine.target import TargetPrompt
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.chunks import Progress
from patchscopes.experiments.config import EntityConfig
from patchscopes.experiments.entity import (
    build_description_target,
    collect_relevancies,
    extract_names,
    fill_placeholder,
    find_description_tokens,
    generate_with_relevancies,
)
from patchscopes.metrics import rouge
from patchscopes.model.layers import resolve_layers, resolve_target_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import Row, Write, score_tokens
from patchscopes.results import Json
from patchscopes.tokens import decode_each_token, get_end_tokens

# A layer has resolved an ending if each token of its description is, on average, at least twice as likely with the
# layer's state as without it.
LIKELIER = math.log(2)
# Two descriptions are alike if their ROUGE-L (F1) is above this. A rough measure.
ALIKE = 1 / 3
# Layers that are generated, and shown, together.
LAYERS_AT_A_TIME = 5


@dataclass(frozen=True, kw_only=True)
class LayerDescription:
    """What one layer says.

    Attributes:
        generation: all of it.
        description: up to where the prompt's format ends it.
        log_probability: of each ending's description, the mean over its tokens (0 if it has none).
        resolved: the ending whose description gains most of this by the state, or "" if none gains enough.
        gain: how much that is, resolved or not.
        most_alike: the ending whose description shares most words with this one, or "" if none shares enough.
        likeness: ROUGE-L (F1) of the two, alike or not.
        tokens_of_description: the description once more.
        relevancy_of_description: how much of each of these tokens is due to the state (see `engine.relevancy`).
    """

    layer: int
    generation: str
    description: str
    log_probability: list[float]
    resolved: str
    gain: float
    most_alike: str
    likeness: float
    tokens_of_description: list[str]
    relevancy_of_description: list[float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Meaning:
    """What the model says of one ending of the name in clear.

    Attributes:
        tokens: what it generated, up to the end of the description.
        start: the first token of the description; before it stands the colon of the prompt's format.
    """

    ending: str
    description: str
    tokens: Int[Tensor, " token"]
    start: int


def list_name_endings(name: str) -> list[str]:
    """All endings of a name that begin with a word, the shortest first.

    Raises:
        PatchscopesError: the name has no words.
    """
    words = name.split()
    if not words:
        raise PatchscopesError("the name is empty; give one")
    return [" ".join(words[-n:]) for n in range(1, len(words) + 1)]


def run(
    model: LensModel,
    name: str,
    config: EntityConfig,
    show: Callable[[LayerDescription], None],
    progress: Progress = iter,
) -> Json:
    """The `results` of the result file; each layer is given to `show` as soon as it is there.

    Raises:
        PatchscopesError: the name is empty, or a layer or the placeholder does not exist.
    """
    endings = list_name_endings(name)
    layers = resolve_layers(model, config.layers)
    target_layers = resolve_target_layers(model, layers, config.target_layer)
    target = build_description_target(model, config)
    meanings = describe_in_clear(model, endings, config)
    vectors = extract_names(model, [name], layers, config)[0]
    *by_layer, unpatched = score_meanings(target, vectors, target_layers, meanings, config.batch_size).tolist()
    described: list[LayerDescription] = []
    for start in progress(range(0, len(layers), LAYERS_AT_A_TIME)):
        some = slice(start, start + LAYERS_AT_A_TIME)
        (said,) = generate_with_relevancies(target, [name], layers[some], target_layers[some], config)
        relevancies = collect_relevancies(said, config.separator)
        for number, (layer, one, likely) in enumerate(zip(layers[some], said, by_layer[some], strict=True)):
            description = cut_description(one.text, config.separator)
            resolved, gain = find_most_gained(endings, likely, unpatched)
            most_alike, likeness = find_most_alike(description, {of.ending: of.description for of in meanings})
            of_layer = LayerDescription(
                layer=layer,
                generation=one.text,
                description=description,
                log_probability=likely,
                resolved=resolved,
                gain=gain,
                most_alike=most_alike,
                likeness=likeness,
                **{field: values[number] for field, values in relevancies.items()},
            )
            described.append(of_layer)
            show(of_layer)
    fields = [field.name for field in dataclasses.fields(LayerDescription) if field.name != "layer"]
    return {
        "name": name,
        "layers": layers,
        "target_layers": target_layers,
        "n_samples": 1,
        "endings": [
            {"ending": of.ending, "description": of.description, "unpatched_log_probability": likely}
            for of, likely in zip(meanings, unpatched, strict=True)
        ],
        "methods": {"patchscope": {field: [getattr(one, field) for one in described] for field in fields}},
    }


def describe_in_clear(model: LensModel, endings: Sequence[str], config: EntityConfig) -> list[Meaning]:
    """What the model says of each ending of the name that stands in the placeholder's place."""
    prompts = [fill_placeholder(config, ending) for ending in endings]
    said = generate_after(model, prompts, max_new_tokens=config.max_new_tokens)
    has_ended = torch.isin(said, get_end_tokens(model)).cumsum(dim=1) > 0
    meanings = []
    for ending, of_ending, is_behind in zip(endings, said, has_ended, strict=True):
        tokens = of_ending[~is_behind]
        description = cut_description(model.tokenizer.decode(tokens, skip_special_tokens=True), config.separator)
        start, end = find_description_tokens(decode_each_token(model, tokens), config.separator)
        meanings.append(Meaning(ending=ending, description=description, tokens=tokens[:end], start=start))
    return meanings


def score_meanings(
    target: TargetPrompt,
    vectors: Float[Tensor, "layer d_model"],
    target_layers: Sequence[int],
    meanings: Sequence[Meaning],
    batch_size: int | None,
) -> Float[Tensor, "layer_or_none meaning"]:
    """The mean log-probability of each description's tokens, with each layer's vector written in; last without any."""
    states = [
        *(
            Row(target=target, writes=(Write(position=target.position, layer=layer, vector=vector),))
            for layer, vector in zip(target_layers, vectors, strict=True)
        ),
        Row(target=target),
    ]
    # With one place more than the longest needs: a description may be empty.
    n_tokens = 1 + max(len(meaning.tokens) for meaning in meanings)
    tokens = torch.full((len(meanings), n_tokens), -1)
    within = torch.zeros(len(meanings), n_tokens, dtype=torch.bool)
    for number, meaning in enumerate(meanings):
        tokens[number, : len(meaning.tokens)] = meaning.tokens
        within[number, meaning.start : len(meaning.tokens)] = True
    rows = [row for row in states for _ in meanings]
    likely = score_tokens(rows, tokens.repeat(len(states), 1), batch_size=batch_size).cpu()
    scores = likely.clamp(min=torch.finfo(likely.dtype).tiny).log().unflatten(0, (len(states), len(meanings)))
    return (scores * within).sum(dim=-1) / within.sum(dim=-1).clamp(min=1)


def find_most_gained(endings: Sequence[str], likely: Sequence[float], unpatched: Sequence[float]) -> tuple[str, float]:
    """The ending whose description gains most by a state (of equals the shortest), and how much.

    If none gains enough, the ending is empty.

    Args:
        likely, unpatched: the mean log-probability of each ending's description, with the state and without.
    """
    gains = [with_state - without for with_state, without in zip(likely, unpatched, strict=True)]
    best = max(range(len(endings)), key=lambda number: gains[number])
    return (endings[best] if gains[best] >= LIKELIER else "", gains[best])


def find_most_alike(description: str, meanings: dict[str, str]) -> tuple[str, float]:
    """The ending of the name whose description is most like the given one (of equals the shortest), and how much.

    If none is like it, the ending is empty.
    """
    likeness = {ending: rouge(description, meaning)["rougeL"]["f1"] for ending, meaning in meanings.items()}
    best = max(likeness, key=lambda ending: likeness[ending])
    return (best if likeness[best] > ALIKE else "", likeness[best])
