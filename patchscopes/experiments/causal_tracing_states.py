"""The runs of causal tracing: a fact's prompt as it is, corrupted with noise, and what is put back into that.

*Corrupted* is the prompt with noise added to what enters block 0 at the tokens of the subject, once for each noise
sample. A *restoration* puts values of the clean run back into a corrupted one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.engine.extract import extract_representations
from patchscopes.experiments.facts import KnownFact
from patchscopes.model.layers import EMBEDDING, get_hook_name
from patchscopes.model.lens_model import LensModel

# The residual stream, and what attention and MLP add to it.
Site: TypeAlias = Literal["resid", "mlp_out", "attn_out"]
SITES: tuple[Site, ...] = ("resid", "mlp_out", "attn_out")


class Place(NamedTuple):
    """A site of a block: for `resid` the state after it, or `EMBEDDING`, what enters block 0."""

    site: Site
    layer: int


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """What is held in a corrupted run at one or several tokens.

    Attributes:
        positions: of the tokens.
        restored: places that get their values of the clean run.
        severed: places that keep those of the corrupted run, whatever is restored before them.
    """

    positions: tuple[int, ...] = ()
    restored: tuple[Place, ...] = ()
    severed: tuple[Place, ...] = ()


# What a site gives in each of some runs over the same tokens.
States: TypeAlias = dict[Place, Float[Tensor, "_run pos d_model"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """A fact and the runs over its prompt.

    Attributes:
        clean: all sites in the one clean run.
        corrupted: what enters block 0, and what the MLPs add, in the corrupted run of each noise sample.
    """

    model: LensModel
    fact: KnownFact
    clean: States
    corrupted: States

    @property
    def inputs(self) -> Float[Tensor, "noise pos d_model"]:
        """S + ε: what enters block 0 in each corrupted run."""
        return self.corrupted[Place("resid", EMBEDDING)]

    def without_noise(self) -> "Trace":
        """The same with the clean run in place of the corrupted ones."""
        return replace(self, corrupted=self.clean)


def measure_spread(model: LensModel, facts: Sequence[KnownFact]) -> float:
    """σ: the standard deviation of all numbers that enter block 0 at the tokens of all subjects.

    Meng et al. take embeddings of tokens; where a model adds learned positions to them, they are part of it here.
    """
    places = [(list(fact.tokens), position) for fact in facts for position in fact.subject]
    texts, positions = zip(*places, strict=True)
    return float(extract_representations(model, texts, positions, [EMBEDDING]).float().std())


def prepare_trace(model: LensModel, fact: KnownFact, scale: float, n_samples: int, seed: Sequence[int]) -> Trace:
    """The clean run of a fact, and corrupted ones with noise N(0, scale²)."""
    entering = extract_representations(
        model, [list(fact.tokens)] * len(fact.tokens), range(len(fact.tokens)), [EMBEDDING]
    )[:, 0]
    # Drawn by NumPy on the CPU, so that the noise is the same on every device.
    noise = np.random.default_rng(seed).normal(0, scale, (n_samples, len(fact.subject), model.cfg.d_model))
    inputs = entering.repeat(n_samples, 1, 1)
    inputs[:, list(fact.subject)] += torch.as_tensor(noise).to(inputs)
    every_block = range(model.cfg.n_layers)
    embedding = Place("resid", EMBEDDING)
    mlps = [Place("mlp_out", layer) for layer in every_block]
    clean = record_states(
        model, fact, entering[None], [embedding, *(Place(site, layer) for site in SITES for layer in every_block)]
    )
    return Trace(model=model, fact=fact, clean=clean, corrupted=record_states(model, fact, inputs, [embedding, *mlps]))


@torch.no_grad()
def record_states(
    model: LensModel, fact: KnownFact, inputs: Float[Tensor, "run pos d_model"], places: Sequence[Place]
) -> States:
    """What the sites give in plain runs over the prompt in which `inputs` enter block 0."""
    states: States = {}

    def keeping(place: Place) -> Callable[..., None]:
        def keep(value: Float[Tensor, "run pos d_model"], hook: Any) -> None:
            states[place] = value.clone()

        return keep

    tokens = torch.tensor(fact.tokens, device=model.cfg.device).expand(len(inputs), -1)
    hooks = [(get_site_hook_name(place), keeping(place)) for place in places]
    model.run_with_hooks(tokens, return_type=None, fwd_hooks=[build_input_hook(inputs), *hooks])
    return states


def build_input_hook(inputs: Float[Tensor, "row pos d_model"]) -> tuple[str, Callable[..., Tensor]]:
    """A TransformerLens hook that lets `inputs` enter block 0 in place of what the tokens put there."""

    def write(residual: Float[Tensor, "row pos d_model"], hook: Any) -> Float[Tensor, "row pos d_model"]:
        return inputs.to(residual)

    return get_hook_name(EMBEDDING), write


def get_site_hook_name(place: Place) -> str:
    """The TransformerLens hook point of a site."""
    return get_hook_name(place.layer) if place.site == "resid" else f"blocks.{place.layer}.hook_{place.site}"
