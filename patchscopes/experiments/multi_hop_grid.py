"""One two-hop question: what the model says by itself, after a chain of thought, and patched at each pair (ℓ, ℓ*)."""

from collections.abc import Callable

from patchscopes.data.questions import TwoHopQuestion, contains_answer
from patchscopes.engine.extract import extract_representations
from patchscopes.experiments.config import MultiHopConfig
from patchscopes.experiments.multi_hop import ask_unpatched, resolve_layer_grid
from patchscopes.experiments.multi_hop_patching import build_patching, build_rows, generate_until_answered
from patchscopes.model.lens_model import LensModel
from patchscopes.results import Json


def run(
    model: LensModel,
    question: TwoHopQuestion,
    config: MultiHopConfig,
    show_unpatched: Callable[[str, str, bool], None],
    show_layer: Callable[[int, list[str], list[bool]], None],
) -> Json:
    """The `results` of the result file, with tables [ℓ][ℓ*] of what was said and whether that answers the question.

    Args:
        show_unpatched: is given `vanilla` or `cot`, what was said, and whether that is an answer.
        show_layer: is given a source layer, and the same for each target layer, as soon as it is there.

    Raises:
        PatchscopesError: a layer does not exist.
    """
    layers, target_layers = resolve_layer_grid(model, config)
    unpatched: Json = {}
    for method in MultiHopConfig.UNPATCHED:
        (unpatched[method],) = ask_unpatched(model, [question], method, config)
        show_unpatched(method, unpatched[method]["text"], bool(unpatched[method]["solved"]))
    source, position, target = build_patching(model, "patchscope", question, question, config.chat)
    states = dict(zip(layers, extract_representations(model, [source], [position], layers)[0], strict=True))
    continuations, solved = [], []
    for layer in layers:
        rows = build_rows(target, states, [(layer, target_layer) for target_layer in target_layers])
        of_layer = generate_until_answered(rows, [question] * len(rows), config)
        is_right = [contains_answer(text, question.accepted) for text in of_layer]
        continuations.append(of_layer)
        solved.append(list(map(int, is_right)))
        show_layer(layer, of_layer, is_right)
    return {
        "layers": layers,
        "target_layers": target_layers,
        "n_samples": 1,
        "methods": unpatched | {"patchscope": {"texts": continuations, "solved": solved}},
    }
