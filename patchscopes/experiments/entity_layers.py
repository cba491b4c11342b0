"""One name, layer by layer: what the model says, and which words of the name that is about (paper, section 4.3, table).

A name is read from its last word backwards: early layers know "Wales", later ones "Princess of Wales", and only then
"Diana, Princess of Wales". To say which words a layer has resolved, the model also describes every ending of the name
in clear; a layer has resolved the ending whose description is most like its own, if the two share enough words.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from patchscopes.data.entities import cut_description
from patchscopes.engine.target import placeholder_target
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import EntityConfig
from patchscopes.experiments.entity import fill_placeholder, generate_descriptions
from patchscopes.experiments.sampling import resolve_layers
from patchscopes.metrics import rouge
from patchscopes.model.layers import resolve_target_layers
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
    """

    layer: int
    generation: str
    description: str
    resolved: str
    likeness: float


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
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Json:
    """The `results` of the result file; each layer is given to `show` as soon as it is there.

    Raises:
        PatchscopesError: the name is empty, or a layer or the placeholder does not exist.
    """
    endings = list_name_endings(name)
    layers = resolve_layers(model, config.layers)
    where = resolve_target_layers(model, layers, config.target_layer)
    target = placeholder_target(model, config.target_prompt, config.placeholder)
    prompts = [fill_placeholder(config, ending) for ending in endings]
    in_clear = model.tokenizer.batch_decode(
        generate_after(model, prompts, max_new_tokens=config.max_new_tokens), skip_special_tokens=True
    )
    meanings = dict(zip(endings, (cut_description(text, config.separator) for text in in_clear), strict=True))
    described: list[LayerDescription] = []
    for start in progress(range(0, len(layers), LAYERS_AT_A_TIME)):
        some = slice(start, start + LAYERS_AT_A_TIME)
        (texts,) = generate_descriptions(model, target, [name], layers[some], where[some], config)
        for layer, text in zip(layers[some], texts, strict=True):
            description = cut_description(text, config.separator)
            resolved, likeness = find_most_alike(description, meanings)
            described.append(LayerDescription(layer, text, description, resolved, likeness))
            show(described[-1])
    return {
        "name": name,
        "layers": layers,
        "target_layers": where,
        "n_samples": 1,
        "endings": [{"ending": ending, "description": meaning} for ending, meaning in meanings.items()],
        "methods": {
            "patchscope": {
                "generation": [one.generation for one in described],
                "description": [one.description for one in described],
                "resolved": [one.resolved for one in described],
                "likeness": [one.likeness for one in described],
            }
        },
    }


def find_most_alike(description: str, meanings: dict[str, str]) -> tuple[str, float]:
    """The ending of the name whose description is most like the given one (of equals the shortest), and how much.

    If none is like it, the ending is empty.
    """
    likeness = {ending: rouge(description, meaning)["rougeL"]["f1"] for ending, meaning in meanings.items()}
    best = max(likeness, key=lambda ending: likeness[ending])
    return (best if likeness[best] > ALIKE else "", likeness[best])
