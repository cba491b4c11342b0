"""One state of any text: what the model says it stands for, layer by layer (paper, section 4.3), for a quick look.

The state of token i of S is described at each layer. Two controls frame it: the name in clear in the placeholder's
place (as well as this model can do), and the placeholder left as it is (what is said about nothing). How alike a
description and that of the name in clear are is their ROUGE-L: only the words that were said count, so it is a rough
measure (`entity_layers` has a better one, and takes its time).
"""

from collections.abc import Sequence

from patchscopes.data.entities import cut_description
from patchscopes.engine.unpatched import generate_after
from patchscopes.experiments.chunks import Progress, split_into_chunks
from patchscopes.experiments.config import EntityConfig
from patchscopes.experiments.entity import fill_placeholder
from patchscopes.experiments.facts import find_name
from patchscopes.metrics import rouge
from patchscopes.model.layers import resolve_layers, resolve_target_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.patchscope import Patchscope
from patchscopes.results import Json
from patchscopes.tokens import decode_each_token

# Layers that are generated together: between them progress is shown.
LAYERS_AT_A_TIME = 15


def run(
    model: LensModel,
    source_prompt: str,
    source_position: int,
    config: EntityConfig,
    *,
    name: str | None = None,
    progress: Progress = iter,
) -> Json:
    """The `results` of the result file: per layer what is said, and how alike it is to what is said of the name.

    Args:
        name: in clear; None for the words of S that token i stands in (`find_name`).
        progress: wraps the iteration over chunks of layers.

    Raises:
        PatchscopesError: a position, a layer or the placeholder does not exist, or token i is of no word and no name
            was given.
    """
    layers = resolve_layers(model, config.layers)
    target_layers = resolve_target_layers(model, layers, config.target_layer)
    if name is None or not name.strip():
        name = source_prompt[slice(*find_name(model, source_prompt, source_position))]
    patchscopes = [
        build_patchscope(model, source_prompt, source_position, some, target_layers, config)
        for some, target_layers in zip(
            split_into_chunks(layers, LAYERS_AT_A_TIME),
            split_into_chunks(target_layers, LAYERS_AT_A_TIME),
            strict=True,
        )
    ]
    tokens, position = patchscopes[0].source
    prompts = [fill_placeholder(config, words) for words in (name.strip(), config.placeholder)]
    in_clear, unpatched = model.tokenizer.batch_decode(
        generate_after(model, prompts, max_new_tokens=config.max_new_tokens), skip_special_tokens=True
    )
    said = [
        text
        for patchscope in progress(patchscopes)
        for text in patchscope.generate(config.max_new_tokens, batch_size=config.batch_size)
    ]
    reference = cut_description(in_clear, config.separator)
    return {
        "layers": layers,
        "target_layers": target_layers,
        "n_samples": 1,
        "name": name.strip(),
        "source_tokens": decode_each_token(model, tokens),
        "source_position": position,
        "methods": {
            "patchscope": compare_descriptions(said, reference, config.separator),
            "name_in_clear": compare_descriptions([in_clear], reference, config.separator),
            "unpatched": compare_descriptions([unpatched], reference, config.separator),
        },
    }


def build_patchscope(
    model: LensModel,
    source_prompt: str,
    source_position: int,
    layers: Sequence[int],
    target_layers: Sequence[int],
    config: EntityConfig,
) -> Patchscope:
    """The entity description of one state: T is the few-shot prompt, and i* its placeholder."""
    return Patchscope(
        model=model,
        source_prompt=config.chat.of_source(source_prompt),
        source_position=source_position,
        source_layers=layers,
        target_prompt=config.chat.of_target(config.target_prompt),
        target_position=config.placeholder,
        target_layers=target_layers,
    )


def compare_descriptions(generations: list[str], reference: str, separator: str) -> Json:
    """What was said, the descriptions in it, and how alike each is to another one."""
    descriptions = [cut_description(generation, separator) for generation in generations]
    return {
        "generation": generations,
        "description": descriptions,
        "rougeL_f1_of_description": [rouge(description, reference)["rougeL"]["f1"] for description in descriptions],
    }
