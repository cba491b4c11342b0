"""One two-hop question: what the model says by itself, after a chain of thought, and patched at each pair (ℓ, ℓ*)."""

from collections.abc import Callable

from patchscopes.data.questions import TwoHopQuestion, contains_answer
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.unpatched import generate_after
from patchscopes.experiments.config import MultiHopConfig
from patchscopes.experiments.multi_hop import CHAIN_OF_THOUGHT, resolve_layer_grid
from patchscopes.experiments.multi_hop_patching import build_patching, generate_patched
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
    for method, prompt, new_tokens in (
        ("vanilla", question.combined_question, config.max_new_tokens),
        ("cot", CHAIN_OF_THOUGHT + question.combined_question, config.cot_new_tokens),
    ):
        (text,) = model.tokenizer.batch_decode(
            generate_after(model, [prompt], max_new_tokens=new_tokens), skip_special_tokens=True
        )
        unpatched[method] = {"text": text, "solved": int(contains_answer(text, question.accepted))}
        show_unpatched(method, text, contains_answer(text, question.accepted))
    source, position, target = build_patching(model, "patchscope", question, question)
    states = extract_representations(model, [source], [position], layers)[0]
    texts, solved = [], []
    for slot, layer in enumerate(layers):
        pairs = [(layer, target_layer) for target_layer in target_layers]
        said = generate_patched(model, target, states[slot : slot + 1], [layer], pairs, question, config)
        right = [contains_answer(text, question.accepted) for text in said]
        texts.append(said)
        solved.append([int(one) for one in right])
        show_layer(layer, said, right)
    return {
        "layers": layers,
        "target_layers": target_layers,
        "n_samples": 1,
        "methods": unpatched | {"patchscope": {"texts": texts, "solved": solved}},
    }
