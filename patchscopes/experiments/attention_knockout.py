"""Attention knockout (Geva et al. 2023, arXiv 2304.14767): in which layers the last position reads the subject.

The last position of a prompt that asks for an attribute is kept from reading (a) the subject, (b) the rest, BOS among
it, (c) itself, in a window of layers around each layer. Measured is by how many percent the probability of the model's
own answer, its most likely token, changes. Both forms run on the same facts, and they are not the same computation:
`attention_knockout_rows` says what each of them takes away. One fact is shown in full: which token is read where.
"""

from collections.abc import Sequence

import numpy as np

from patchscopes.data.facts import Fact
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.attention_knockout_rows import (
    check_blocks,
    choose_window,
    divide_positions,
    knock_out,
    read_probability,
)
from patchscopes.experiments.checks import check_methods
from patchscopes.experiments.chunks import Progress, StopWatch, measure_chunks, sum_timing
from patchscopes.experiments.config import AttentionKnockoutConfig
from patchscopes.experiments.facts import KnownFact, ask_facts, describe_fact, draw_known_facts
from patchscopes.metrics import mean_with_interval
from patchscopes.model.layers import find_window, resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.results import ChunkStore, Json
from patchscopes.tokens import decode_each_token


def run(
    model: LensModel,
    facts: Sequence[Fact],
    config: AttentionKnockoutConfig,
    store: ChunkStore,
    *,
    progress: Progress = iter,
) -> tuple[Json, Json]:
    """Run the experiment, going on from the chunks in `store`.

    Args:
        progress: wraps the iteration over facts, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file.

    Raises:
        PatchscopesError: a method or layer does not exist, all prompts end with their subjects, or the model knows none
            of the facts.
    """
    check_methods(config.methods, AttentionKnockoutConfig.METHODS)
    layers = resolve_layers(model, config.layers)
    check_blocks(layers)
    window = choose_window(model.cfg.n_layers, config.window)
    windows = [list(find_window(layer, window, model.cfg.n_layers)) for layer in layers]
    asking = select_asking(facts)
    known, asked = ask_facts(model, asking, store, config.batch_size, config.chat)
    drawn = draw_known_facts(model, asking, known, config.n_samples, config.seed, config.chat)
    measured = measure_chunks(
        drawn, store.at("facts"), lambda fact: measure_fact(model, fact, windows, config), progress
    )
    shown = choose_example(measured, config.methods[0])
    (example,) = measure_chunks(
        [drawn[shown]],
        store.at("example"),
        lambda fact: measure_each_token(model, fact, windows, config),
        iter,
    )
    results = {
        "layers": layers,
        "window": window,
        "windows": windows,
        "n_facts": len(facts),
        "n_left_out": len(facts) - len(asking),
        "n_known": sum(answer["known"] for answer in known),
        "n_samples": len(drawn),
        "methods": {method: summarise_method(measured, method, config.seed) for method in config.methods},
        "example": example["found"],
        "facts": [one["found"] for one in measured],
    }
    return results, sum_timing([*asked, *measured, example])


def select_asking(facts: Sequence[Fact]) -> list[Fact]:
    """The facts with something behind the subject, so that the last position has to read it.

    Raises:
        PatchscopesError: there are none.
    """
    asking = [fact for fact in facts if fact.prompt[fact.span[1] :].strip()]
    if not asking:
        raise PatchscopesError(
            f"all {len(facts)} prompts end with their subjects, so that nothing behind them reads those; give prompts "
            "that go on, as “The capital city of Japan is”"
        )
    return asking


def measure_fact(
    model: LensModel, fact: KnownFact, windows: Sequence[Sequence[int]], config: AttentionKnockoutConfig
) -> Json:
    """How the probability of the model's own answer to one fact changes, and the seconds that each form took."""
    tokens = fact.tokens
    watch = StopWatch()
    with watch.time("clean"):
        probability = read_probability(model, tokens, fact.answer)
    key_sets = divide_positions(len(tokens), fact.subject)
    methods: Json = {}
    for method in config.methods:
        with watch.time(method):
            changed = knock_out(model, tokens, key_sets, windows, fact.answer, method, config.batch_size)
        methods[method] = {
            "relative_change": {
                keys: compute_relative_change(of_keys, probability) for keys, of_keys in changed.items()
            }
        }
    found = describe_fact(model, fact) | {
        "subject_positions": list(fact.subject),
        "probability": probability,
        "methods": methods,
    }
    return {"found": found, "seconds": watch.seconds}


def measure_each_token(
    model: LensModel, fact: KnownFact, windows: Sequence[Sequence[int]], config: AttentionKnockoutConfig
) -> Json:
    """Which token of one fact is read where: the edges to each are cut alone."""
    tokens = fact.tokens
    watch = StopWatch()
    with watch.time("example"):
        probability = read_probability(model, tokens, fact.answer)
        key_sets = {str(position): (position,) for position in range(len(tokens))}
        changed = knock_out(model, tokens, key_sets, windows, fact.answer, "original", config.batch_size)
    by_token = [compute_relative_change(of_token, probability) for of_token in changed.values()]
    found = describe_fact(model, fact) | {
        "subject_positions": list(fact.subject),
        "tokens": decode_each_token(model, tokens),
        "probability": probability,
        # Layers by tokens.
        "relative_change": np.array(by_token).T.tolist(),
    }
    return {"found": found, "seconds": watch.seconds}


def compute_relative_change(changed: Sequence[float], probability: float) -> list[float]:
    """By how many percent of a probability others lie above it."""
    return [100 * (one / probability - 1) for one in changed]


def choose_example(measured: Sequence[Json], method: str) -> int:
    """The number of the fact that loses most without its subject, among those whose subject has several tokens if there
    are such."""
    found = [one["found"] for one in measured]
    several = [number for number, one in enumerate(found) if len(one["subject_positions"]) > 1]
    return min(
        several or range(len(found)),
        key=lambda number: np.mean(found[number]["methods"][method]["relative_change"]["subject"]),
    )


def summarise_method(measured: Sequence[Json], method: str, seed: int) -> Json:
    """The mean change over facts without each set of keys, with its interval, at each layer."""

    def summarise(keys: str) -> Json:
        values = np.array([one["found"]["methods"][method]["relative_change"][keys] for one in measured])
        return mean_with_interval(values, seed=seed).as_json()

    return {"relative_change": {keys: summarise(keys) for keys in AttentionKnockoutConfig.KEYS}}
