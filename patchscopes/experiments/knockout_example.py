"""Attention knockout of one prompt (Geva et al. 2023), for a quick look: in which layers its last token reads the
subject.

The last token is kept from the subject, and as a control from the rest of the prompt (BOS among it), in a window of
layers around each layer; what counts is by how many percent that changes the probability of the model's own answer.
The original cuts attention edges, the Patchscope writes zeros over states, which is another computation:
`attention_knockout_rows` says what each takes away.
"""

from itertools import product

import numpy as np

from patchscopes.experiments.attention_knockout import compute_relative_change
from patchscopes.experiments.attention_knockout_rows import (
    check_blocks,
    choose_window,
    divide_positions,
    knock_out,
    read_probability,
)
from patchscopes.experiments.checks import check_methods
from patchscopes.experiments.chunks import Progress
from patchscopes.experiments.config import AttentionKnockoutConfig
from patchscopes.experiments.facts import describe_fact, locate_subject, take_answer
from patchscopes.model.layers import find_window, resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.results import Json
from patchscopes.tokens import decode_each_token

# Whose keys are knocked out; the rest is the control.
KEYS = ("subject", "rest")


def run(
    model: LensModel,
    prompt: str,
    subject: str,
    config: AttentionKnockoutConfig,
    *,
    position: int | None = None,
    progress: Progress = iter,
) -> Json:
    """The `results` of the result file: the relative change in each form, by whose keys are missing, at each layer.

    Args:
        subject: words of the prompt.
        position: of a token of the subject, if it stands in the prompt several times.
        progress: wraps the iteration over forms and keys.

    Raises:
        PatchscopesError: the subject is not in the prompt or ends it, or a method or layer does not exist.
    """
    check_methods(config.methods, AttentionKnockoutConfig.METHODS)
    layers = resolve_layers(model, config.layers)
    check_blocks(layers)
    window = choose_window(model.cfg.n_layers, config.window)
    windows = [list(find_window(layer, window, model.cfg.n_layers)) for layer in layers]
    fact = take_answer(model, prompt, locate_subject(model, prompt, subject, position), config.chat)
    positions = divide_positions(len(fact.tokens), fact.subject)
    probability = read_probability(model, fact.tokens, fact.answer)
    methods: Json = {method: {"relative_change": {}} for method in config.methods}
    for method, keys in progress(list(product(config.methods, KEYS))):
        key_sets = {keys: positions[keys]}
        changed = knock_out(model, fact.tokens, key_sets, windows, fact.answer, method, config.batch_size)
        methods[method]["relative_change"][keys] = compute_relative_change(changed[keys], probability)
    return {
        **describe_fact(model, fact),
        "layers": layers,
        "n_samples": 1,
        "window": window,
        "windows": windows,
        "tokens": decode_each_token(model, fact.tokens),
        "subject_positions": list(fact.subject),
        "probability": probability,
        "methods": methods,
        "largest_difference": compare_forms(methods),
    }


def compare_forms(methods: Json) -> dict[str, float]:
    """How many percent of the probability two forms are apart at most, over layers, by whose keys are missing."""
    changes = [np.array([of_method["relative_change"][keys] for keys in KEYS]) for of_method in methods.values()]
    apart = np.ptp(changes, axis=0).max(axis=-1)
    return dict(zip(KEYS, apart.tolist(), strict=True)) if len(methods) > 1 else {}
