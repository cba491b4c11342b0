"""Causal tracing (Meng et al. 2022): which states carry a fact from its subject to the answer.

Noise on the subject's embeddings takes the answer away: the *total effect* is how much less likely that makes it. One
clean state (or what some MLPs or attention layers add) is put back: the *indirect effect* is how much of it returns.
Two forms of one measure, equal up to rounding:

* `original`: whole forward passes with plain hooks;
* `patchscope`: S = the prompt, T = S + ε, i* = i, ℓ* = ℓ (paper, appendix A).
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.data.facts import Fact
from patchscopes.experiments.causal_tracing_forms import trace_with_hooks, trace_with_patchscopes
from patchscopes.experiments.causal_tracing_measures import (
    classify_tokens,
    list_restorations,
    measure_effects,
    summarise_effects,
)
from patchscopes.experiments.causal_tracing_states import Restoration, Trace, measure_spread, prepare_trace
from patchscopes.experiments.checks import check_methods
from patchscopes.experiments.chunks import Progress, StopWatch, measure_parts, sum_timing
from patchscopes.experiments.config import CausalTracingConfig
from patchscopes.experiments.facts import KnownFact, ask_facts, describe_fact, draw_known_facts
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.results import ChunkStore, Json
from patchscopes.tokens import decode_each_token

FORMS = {"original": trace_with_hooks, "patchscope": trace_with_patchscopes}


def run(
    model: LensModel,
    facts: Sequence[Fact],
    config: CausalTracingConfig,
    store: ChunkStore,
    *,
    progress: Progress = iter,
) -> tuple[Json, Json]:
    """Run the experiment, going on from the facts finished in `store`.

    Args:
        progress: wraps the iteration over facts, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file.

    Raises:
        PatchscopesError: a method or layer does not exist, or the model knows none of the facts.
    """
    check_methods(config.methods, CausalTracingConfig.METHODS)
    layers = resolve_layers(model, config.layers, CausalTracingConfig.N_LAYERS)
    known, asked = ask_facts(model, facts, store, config.batch_size, config.chat)
    chosen = draw_known_facts(model, facts, known, config.n_samples, config.seed, config.chat)
    spread = measure_spread(model, chosen)

    def measure(number: int) -> Json:
        methods = [method for method in config.methods if number < count_facts(method, config)]
        return trace_fact(model, chosen[number], methods, layers, config.noise * spread, config, number)

    # Those that are measured in the original form take longer, and are a step of their own.
    n_original = count_facts("original", config) if "original" in config.methods else 0
    parts = {
        f"{'facts_with_original' if number < n_original else 'facts'}/{number:05d}": partial(measure, number)
        for number in range(len(chosen))
    }
    measured = list(measure_parts(parts, store, progress).values())
    effects = {
        method: [one["methods"][method] for one in measured if method in one["methods"]] for method in config.methods
    }
    differences = [one["largest_difference"] for one in measured if one["largest_difference"] is not None]
    # The form that every fact was measured in.
    of_facts = effects["patchscope" if "patchscope" in config.methods else "original"]
    results = {
        "layers": layers,
        "embedding_spread": spread,
        "n_facts": len(facts),
        "n_known": sum(answer["known"] for answer in known),
        "n_samples": len(chosen),
        "methods": {
            method: {"n_samples": len(some)} | summarise_effects(chosen[: len(some)], some, config.seed)
            for method, some in effects.items()
        },
        "largest_probability_difference": max(differences, default=None),
        "example": choose_example(chosen, of_facts),
        "facts": [describe_traced(model, fact) | found for fact, found in zip(chosen, of_facts, strict=True)],
    }
    return results, sum_timing([*asked, *measured]) | compare_speed(measured)


def count_facts(method: str, config: CausalTracingConfig) -> int:
    """How many of the facts a method is measured on: where there is the other form, the original needs only some."""
    return config.n_original if method == "original" and "patchscope" in config.methods else config.n_samples


def trace_fact(
    model: LensModel,
    fact: KnownFact,
    methods: Sequence[str],
    layers: Sequence[int],
    scale: float,
    config: CausalTracingConfig,
    number: int,
) -> Json:
    """The effects on one fact by each of some methods, and the largest difference between two methods in any run."""
    watch = StopWatch()
    with watch.time("states"):
        trace = prepare_trace(model, fact, scale, config.n_noise_samples, (config.seed, number))
    positions = range(fact.subject[0], len(fact.tokens))
    restorations = [
        restoration
        for site in CausalTracingConfig.SITES
        for restoration in list_restorations(site, positions, layers, model.cfg.n_layers, config.window)
    ]
    found: dict[str, Float[Tensor, " run"]] = {}
    effects: Json = {}
    for method in methods:
        with watch.time(method):
            clean, corrupted, restored = measure_runs(trace, restorations, method, config.batch_size)
        found[method] = torch.cat([clean[None], corrupted, restored.flatten()])
        tables = restored.reshape(len(CausalTracingConfig.SITES), len(positions), len(layers), -1).cpu().numpy()
        effects[method] = measure_effects(
            float(clean), corrupted.cpu().numpy(), dict(zip(CausalTracingConfig.SITES, tables, strict=True))
        )
    both = list(found.values())
    difference = float((both[0] - both[1]).abs().max()) if len(both) == 2 else None
    return {"methods": effects, "largest_difference": difference, "seconds": watch.seconds}


def measure_runs(
    trace: Trace, restorations: Sequence[Restoration], method: str, batch_size: int | None
) -> tuple[Float[Tensor, ""], Float[Tensor, " noise"], Float[Tensor, "restoration noise"]]:
    """How likely the answer is in the clean run, in each corrupted run, and there with each restoration."""
    nothing = Restoration()
    ((clean,),) = FORMS[method](trace.without_noise(), [nothing], batch_size)
    runs = FORMS[method](trace, [nothing, *restorations], batch_size)
    return clean, runs[0], runs[1:]


def choose_example(facts: Sequence[KnownFact], effects: Sequence[Json]) -> int:
    """The number of the fact that is shown in full: of those with several tokens in the subject (if there are any) the
    one on which the noise has the largest effect."""
    several = [number for number, fact in enumerate(facts) if len(fact.subject) > 1]
    return max(several or range(len(facts)), key=lambda number: effects[number]["total_effect"])


def describe_traced(model: LensModel, fact: KnownFact) -> Json:
    """The fact as it stands in the result file, with its tokens from the subject on."""
    return describe_fact(model, fact) | {
        "tokens": decode_each_token(model, fact.tokens[fact.subject[0] :]),
        "token_classes": classify_tokens(fact),
    }


def compare_speed(measured: Sequence[Json]) -> Json:
    """How many times faster the Patchscope's form is than the original, on the facts that both were measured on."""
    both = [one["seconds"] for one in measured if set(FORMS) <= set(one["methods"])]
    if not both:
        return {}
    seconds = {method: float(np.sum([one[method] for one in both])) for method in FORMS}
    return {"both_forms": seconds | {"n_facts": len(both), "speed_up": seconds["original"] / seconds["patchscope"]}}
