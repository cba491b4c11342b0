"""One state of any text: what the model says it stands for, layer by layer (paper, section 4.3), for a quick look.

The state of token i of S is described at each layer. Two controls frame it: the name in clear in the placeholder's
place (as well as this model can do), and the placeholder left as it is (what is said about nothing). How alike a
description and that of the name in clear are is their ROUGE-L: only the words that were said count, so it is a rough
measure (`entity_layers` has a better one, and takes its time).
"""

from patchscopes.data.entities import cut_description
from patchscopes.experiments.chunks import Progress, split_into_chunks
from patchscopes.experiments.config import EntityConfig
from patchscopes.experiments.entity import fill_placeholder
from patchscopes.experiments.facts import find_name
from patchscopes.metrics import rouge
from patchscopes.model.layers import resolve_layers, resolve_target_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import Row, TargetPrompt, generate_rows
from patchscopes.patchscope import Patchscope
from patchscopes.results import Json
from patchscopes.tokens import decode_each_token

# Layers, and controls, that are generated together: between them progress is shown.
ROWS_AT_A_TIME = 32


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
        progress: wraps the iteration over chunks of what is generated.

    Raises:
        PatchscopesError: a position, a layer or the placeholder does not exist, or token i is of no word and no name
            was given.
    """
    layers = resolve_layers(model, config.layers)
    target_layers = resolve_target_layers(model, layers, config.target_layer)
    if name is None or not name.strip():
        name = source_prompt[slice(*find_name(model, source_prompt, source_position))]
    patchscope = Patchscope(
        model=model,
        source_prompt=config.chat.of_source(source_prompt),
        source_position=source_position,
        source_layers=layers,
        target_prompt=config.chat.of_target(config.target_prompt),
        target_position=config.placeholder,
        target_layers=target_layers,
    )
    tokens, position = patchscope.source
    clear = TargetPrompt(model, fill_placeholder(config, name.strip()), -1)
    rows = [Row(target=clear), Row(target=patchscope.target), *patchscope.rows]
    said: list[str] = []
    for some in progress(split_into_chunks(rows, ROWS_AT_A_TIME)):
        generated = generate_rows(some, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size)
        said += model.tokenizer.batch_decode(generated, skip_special_tokens=True)
    in_clear, unpatched, *described = said
    reference = cut_description(in_clear, config.separator)
    return {
        "layers": layers,
        "target_layers": target_layers,
        "n_samples": 1,
        "name": name.strip(),
        "source_tokens": decode_each_token(model, tokens),
        "source_position": position,
        "methods": {
            "patchscope": compare_descriptions(described, reference, config.separator),
            "name_in_clear": compare_descriptions([in_clear], reference, config.separator),
            "unpatched": compare_descriptions([unpatched], reference, config.separator),
        },
    }


def compare_descriptions(generations: list[str], reference: str, separator: str) -> Json:
    """What was said, the descriptions in it, and how alike each is to another one."""
    descriptions = [cut_description(generation, separator) for generation in generations]
    return {
        "generation": generations,
        "description": descriptions,
        "rougeL_f1_of_description": [rouge(description, reference)["rougeL"]["f1"] for description in descriptions],
    }
