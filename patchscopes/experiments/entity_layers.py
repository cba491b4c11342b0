"""One name, layer by layer: what the model says, and which words of the name that is about (paper, section 4.3, table).

A name is read from its last word backwards: early layers know "Wales", later ones "Princess of Wales", and only then
"Diana, Princess of Wales". To say which words a layer has resolved, the model also describes every ending of the name
in clear; a layer has resolved the ending whose description is most like its own, if the two share enough words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from patchscopes.data.entities import cut_description
from patchscopes.engine.target import placeholder_target
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.chunks import Progress
from patchscopes.experiments.config import EntityConfig
from patchscopes.experiments.entity import collect_relevancies, fill_placeholder, generate_with_relevancies
from patchscopes.metrics import rouge
from patchscopes.model.layers import resolve_layers, resolve_target_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.results import Json

# Two descriptions are taken to be of the same thing if their ROUGE-L (F1) is above this. A rough measure: the
# descriptions in clear stand beside the result, so that a reader can judge.
ALIKE = 1 / 3
# Layers that are generated, and shown, together.
LAYERS_AT_A_TIME = 5


@dataclass(frozen=True)
class LayerDescription:
    """What one layer says.

    Attributes:
        generation: all of it.
        description: up to where the prompt's format ends it.
        resolved: the ending of the name that it is most like, or "" if it is like none.
        likeness: ROUGE-L (F1) of the description and that of the ending it is most like.
        tokens_of_description: the description once more.
        relevancy_of_description: how much of each of these tokens is due to the state (see `engine.relevancy`).
    """

    layer: int
    generation: str
    description: str
    resolved: str
    likeness: float
    tokens_of_description: list[str]
    relevancy_of_description: list[float]


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
    target = placeholder_target(model, config.target_prompt, config.placeholder)
    meanings = _describe_in_clear(model, endings, config)
    described: list[LayerDescription] = []
    for start in progress(range(0, len(layers), LAYERS_AT_A_TIME)):
        some = slice(start, start + LAYERS_AT_A_TIME)
        (said,) = generate_with_relevancies(target, [name], layers[some], target_layers[some], config)
        relevancies = collect_relevancies(said, config.separator)
        for number, (layer, one) in enumerate(zip(layers[some], said, strict=True)):
            description = cut_description(one.text, config.separator)
            resolved, likeness = find_most_alike(description, meanings)
            of_layer = {field: values[number] for field, values in relevancies.items()}
            described.append(LayerDescription(layer, one.text, description, resolved, likeness, **of_layer))
            show(described[-1])
    return {
        "name": name,
        "layers": layers,
        "target_layers": target_layers,
        "n_samples": 1,
        "endings": [{"ending": ending, "description": meaning} for ending, meaning in meanings.items()],
        "methods": {
            "patchscope": {
                field: [getattr(one, field) for one in described]
                for field in (
                    "generation",
                    "description",
                    "resolved",
                    "likeness",
                    "tokens_of_description",
                    "relevancy_of_description",
                )
            }
        },
    }


def _describe_in_clear(model: LensModel, endings: Sequence[str], config: EntityConfig) -> dict[str, str]:
    """What the model says of each ending of the name that stands in the placeholder's place."""
    prompts = [fill_placeholder(config, ending) for ending in endings]
    tokens = generate_after(model, prompts, max_new_tokens=config.max_new_tokens)
    generations = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    descriptions = (cut_description(generation, config.separator) for generation in generations)
    return dict(zip(endings, descriptions, strict=True))


def find_most_alike(description: str, meanings: dict[str, str]) -> tuple[str, float]:
    """The ending of the name whose description is most like the given one (of equals the shortest), and how much.

    If none is like it, the ending is empty.
    """
    likeness = {ending: rouge(description, meaning)["rougeL"]["f1"] for ending, meaning in meanings.items()}
    best = max(likeness, key=lambda ending: likeness[ending])
    return (best if likeness[best] > ALIKE else "", likeness[best])
