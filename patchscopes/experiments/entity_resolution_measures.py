"""The measures of entity resolution on one fact, each at all layers; `entity_resolution` says what they are."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from patchscopes.data.entities import cut_description
from patchscopes.data.facts import Fact
from patchscopes.data.relations import Relation, RelationSample
from patchscopes.engine.target import TargetPrompt
from patchscopes.experiments.attention_knockout import compute_relative_change
from patchscopes.experiments.attention_knockout_rows import knock_out, read_probability
from patchscopes.experiments.attribute_lre import read_in_context, read_sample
from patchscopes.experiments.attribute_samples import AttributeSample
from patchscopes.experiments.causal_tracing import measure_runs
from patchscopes.experiments.causal_tracing_measures import list_restorations, measure_effects
from patchscopes.experiments.causal_tracing_states import prepare_trace
from patchscopes.experiments.config import EntityConfig, EntityResolutionConfig
from patchscopes.experiments.entity import generate_from_vectors
from patchscopes.experiments.facts import KnownFact
from patchscopes.learned.mappings import LayerMapping
from patchscopes.metrics import rouge
from patchscopes.model.layers import find_window
from patchscopes.model.lens_model import LensModel
from patchscopes.results import Json


def describe_states(
    target: TargetPrompt, states: Float[Tensor, "layer d_model"], layers: Sequence[int], config: EntityConfig
) -> list[str]:
    """The description of the state of each layer, written at that layer (ℓ* = ℓ)."""
    (generations,) = generate_from_vectors(target, states[None], layers, config)
    return [cut_description(generation, config.separator) for generation in generations]


def score_descriptions(texts: Sequence[str], subject: str, in_clear: Mapping[str, str]) -> dict[str, list[float]]:
    """ROUGE-L (F1) of texts with what is said of a subject in clear (`own`), and their mean with those of the `others`.

    Without other subjects that mean is zero.
    """

    def score(text: str, name: str) -> float:
        return rouge(text, in_clear[name])["rougeL"]["f1"]

    others = [name for name in in_clear if name != subject]
    return {
        "own": [score(text, subject) for text in texts],
        "others": [float(np.mean([score(text, name) for name in others])) if others else 0.0 for text in texts],
    }


def trace_fact(
    model: LensModel,
    fact: KnownFact,
    layers: Sequence[int],
    scale: float,
    config: EntityResolutionConfig,
    number: int,
) -> Json:
    """The effects of causal tracing for the states of the subject's last token and of the prompt's."""
    trace = prepare_trace(model, fact, scale, config.n_noise_samples, (config.seed, number))
    positions = [fact.subject[-1], len(fact.tokens) - 1]
    restorations = list_restorations("resid", positions, layers, model.cfg.n_layers, window=1)
    clean, corrupted, restored = measure_runs(trace, restorations, "patchscope", config.batch_size)
    table = restored.reshape(len(positions), len(layers), -1).cpu().numpy()
    return measure_effects(float(clean), corrupted.cpu().numpy(), {"resid": table})


def measure_loss(
    model: LensModel, fact: KnownFact, layers: Sequence[int], window: int, config: EntityResolutionConfig
) -> list[float]:
    """How many percent of the answer's probability are lost without the subject, in a window around each layer."""
    windows = [find_window(layer, window, model.cfg.n_layers) for layer in layers]
    probability = read_probability(model, fact.tokens, fact.answer)
    keys = {"subject": fact.subject}
    changed = knock_out(model, fact.tokens, keys, windows, fact.answer, "original", config.batch_size)
    return [-change for change in compute_relative_change(changed["subject"], probability)]


def read_attribute(
    model: LensModel,
    fact: KnownFact,
    states: Float[Tensor, "layer d_model"],
    relation: Relation,
    mapping: LayerMapping,
) -> dict[str, list[int]]:
    """Whether the LRE reads the attribute at each layer, in the fact's own prompt and after the solved examples."""
    sample = AttributeSample(fact=build_relation_sample(fact.fact), tokens=fact.tokens, position=fact.subject[-1])
    return {
        "lre": read_sample(model, mapping, sample, states, ["lre"])["lre"],
        "lre_in_context": read_in_context(model, mapping, relation, relation.samples, sample.fact),
    }


def build_relation_sample(fact: Fact) -> RelationSample:
    """The fact without its prompt."""
    return RelationSample(subject=fact.subject, object=fact.attribute, aliases=fact.aliases)
