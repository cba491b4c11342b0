"""What causal tracing restores, and the effects that it measures by it (Meng et al. 2022)."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from patchscopes.experiments.causal_tracing_states import Place, Restoration
from patchscopes.experiments.config import CausalTracingConfig, TracedSite
from patchscopes.experiments.facts import KnownFact
from patchscopes.metrics import mean_with_interval
from patchscopes.model.layers import find_window
from patchscopes.results import Json

DECIMALS = 6


def classify_tokens(fact: KnownFact) -> list[str]:
    """The class of each token from the subject's first on.

    Each token has one class: a subject of one token is its last, and a token that ends the prompt is the last one,
    unless it is the subject's.
    """
    n_subject, n_after = len(fact.subject), len(fact.tokens) - 1 - fact.subject[-1]
    of_subject = ["first_subject", *["middle_subject"] * (n_subject - 2)][: n_subject - 1]
    after = ["next", *["further"] * (n_after - 2)][: max(0, n_after - 1)]
    return [*of_subject, "last_subject", *after, *["last"] * min(1, n_after)]


def list_restorations(
    site: TracedSite, positions: Sequence[int], layers: Sequence[int], n_layers: int, window: int
) -> list[Restoration]:
    """What is put back at each position (slowest) and around each layer ℓ.

    - `resid`: the state after block ℓ.
    - `mlp_out`, `attn_out`: what the MLPs or the attention add in a window of blocks around ℓ.
    - `resid_severed`: the state after block ℓ, while the MLPs of all later blocks keep, at this token, what they add
      in the corrupted run. What is left of the effect did not need them.
    """

    def choose(layer: int) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
        if site == "mlp_out" or site == "attn_out":
            return tuple(Place(site, block) for block in find_window(layer, window, n_layers)), ()
        later = range(layer + 1, n_layers) if site == "resid_severed" else ()
        return (Place("resid", layer),), tuple(Place("mlp_out", block) for block in later)

    return [
        Restoration(positions=(position,), restored=restored, severed=severed)
        for position in positions
        for restored, severed in map(choose, layers)
    ]


def measure_effects(
    clean: float,
    corrupted: Float[np.ndarray, " noise"],
    restored: Mapping[str, Float[np.ndarray, "token layer noise"]],
) -> Json:
    """The total effect of the noise on one fact, and the indirect one of each restoration, means over noise samples.

    To six decimals: the tables of all facts stand in the result file.
    """
    total_effect = clean - corrupted.mean()
    indirect = {site: (of_site - corrupted).mean(axis=-1) for site, of_site in restored.items()}
    return {
        "clean": round(clean, DECIMALS),
        "corrupted": round(float(corrupted.mean()), DECIMALS),
        "total_effect": round(float(total_effect), DECIMALS),
        "indirect_effect": {site: effects.round(DECIMALS).tolist() for site, effects in indirect.items()},
    }


def summarise_effects(facts: Sequence[KnownFact], measured: Sequence[Json], seed: int) -> Json:
    """Means over facts with their intervals; the indirect effect by site and token class, over layers.

    Of several tokens of one class in a fact the mean counts, and a class counts in the facts that have it.
    """
    classes = [classify_tokens(fact) for fact in facts]

    def summarise(site: str, token_class: str) -> Json | None:
        curves = [
            np.mean(
                [
                    curve
                    for curve, name in zip(one["indirect_effect"][site], of_fact, strict=True)
                    if name == token_class
                ],
                axis=0,
            )
            for one, of_fact in zip(measured, classes, strict=True)
            if token_class in of_fact
        ]
        return interval(curves, seed) | {"n_facts": len(curves)} if curves else None

    return {
        **{name: interval([one[name] for one in measured], seed) for name in ("clean", "corrupted", "total_effect")},
        "indirect_effect": {
            site: {
                token_class: summary
                for token_class in CausalTracingConfig.TOKEN_CLASSES
                if (summary := summarise(site, token_class)) is not None
            }
            for site in CausalTracingConfig.SITES
        },
    }


def interval(values: Sequence[float] | Sequence[np.ndarray], seed: int) -> Json:
    """`mean` and `ci95` over facts of a number, or of one for each layer."""
    return mean_with_interval(np.array(values, dtype=float), seed=seed).as_json()
