"""The LRE Attribute Lens on the samples of attribute extraction (Hernandez et al. 2023), and as a Patchscope.

Faithfulness is how often the most likely token that the lens reads begins an accepted answer. It is measured on the
samples that the other methods see, and as in that paper on the relation's own prompt after the solved examples. The
subjects that the LRE is estimated from are never among those that it is tested on.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.baselines import AffineLens, source_patchscope
from patchscopes.data.relations import Relation, RelationSample
from patchscopes.engine.extract import extract_representations
from patchscopes.experiments.attribute_editing import draw_pairs, measure_editing
from patchscopes.experiments.attribute_samples import AttributeSample, draw_examples
from patchscopes.experiments.config import AttributesConfig
from patchscopes.learned.cached_fits import fit_or_load_lre
from patchscopes.learned.lre import build_lre_prompt, find_subject_position
from patchscopes.learned.mappings import LayerMapping
from patchscopes.model.lens_model import LensModel
from patchscopes.positions import find_first_tokens
from patchscopes.results import Json


def measure_lre(
    model: LensModel,
    relation: Relation,
    samples: Sequence[AttributeSample],
    states: Float[Tensor, "sample layer d_model"],
    layers: Sequence[int],
    config: AttributesConfig,
) -> Json | None:
    """What the LRE of a relation reads at each layer, in both forms, and what it moves; None with too few subjects.

    Where no two of the tested subjects have different objects, nothing can be moved, and `editing` is None.

    Args:
        states: of the samples at each of `layers`.
    """
    subjects = list(dict.fromkeys(sample.fact for sample in samples))
    if len(subjects) <= config.n_examples:
        return None
    examples = draw_examples(subjects, config)
    lre = fit_or_load_lre(model, relation, examples, layers)
    mapping = lre.mapping(model)
    tested = [number for number, sample in enumerate(samples) if sample.fact not in examples]
    read = [read_sample(model, mapping, samples[number], states[number], config.methods) for number in tested]
    others = [subject for subject in subjects if subject not in examples]
    in_context = [read_in_context(model, mapping, relation, examples, subject) for subject in others]
    ranks = [rank for rank in config.ranks if rank <= model.cfg.d_model]
    editing = None
    if ranks and draw_pairs(model, others, config.seed):
        editing = measure_editing(model, lre, relation, examples, others, ranks, config.seed)
    return {
        "examples": [sample.subject for sample in examples],
        "betas": lre.betas.tolist(),
        "tested": tested,
        "read": read,
        "in_context": in_context,
        "editing": editing,
    }


def read_sample(
    model: LensModel,
    mapping: LayerMapping,
    sample: AttributeSample,
    states: Float[Tensor, "layer d_model"],
    methods: Sequence[str],
) -> Json:
    """Whether the lens reads a sample rightly at each layer, in the forms that are asked for; with both, how far their
    logits differ at most."""
    logits = compute_lre_logits(
        model, mapping, sample.tokens, sample.position, states, layers=list(mapping.maps), methods=methods
    )
    accepted = find_first_tokens(model, sample.fact.accepted)
    rightly: Json = {}
    for method, of_method in logits.items():
        rightly[method] = torch.isin(of_method.argmax(dim=-1), accepted.to(of_method.device)).int().tolist()
    if len(logits) == 2:
        rightly["largest_difference"] = (logits["lre"] - logits["lre_patchscope"]).abs().max().item()
    return rightly


def compute_lre_logits(
    model: LensModel,
    mapping: LayerMapping,
    source_tokens: Sequence[int],
    source_position: int,
    states: Float[Tensor, "layer d_model"],
    *,
    layers: Sequence[int],
    methods: Sequence[str],
) -> dict[str, Float[Tensor, "layer d_vocab"]]:
    """What the lens reads from the states at some layers, in the forms that are asked for: `lre`, `lre_patchscope`.

    Args:
        source_tokens: S, and i, which the states are of.
    """
    numbers = torch.tensor(list(layers), device=states.device)
    logits: dict[str, Float[Tensor, "layer d_vocab"]] = {}
    if "lre" in methods:
        logits["lre"] = AffineLens(model, mapping)(states, numbers)
    if "lre_patchscope" in methods:
        lens = source_patchscope(model, list(source_tokens), source_position, mapping)
        logits["lre_patchscope"] = lens(states, numbers)
    return logits


def read_in_context(
    model: LensModel,
    mapping: LayerMapping,
    relation: Relation,
    examples: Sequence[RelationSample],
    sample: RelationSample,
) -> list[int]:
    """Whether the lens reads a subject rightly at each layer of the relation's own prompt, after solved examples."""
    layers = list(mapping.maps)
    prompt = build_lre_prompt(relation, examples, sample.subject)
    position = find_subject_position(model, relation, prompt)
    states = extract_representations(model, [prompt], [position], layers)[0]
    read = AffineLens(model, mapping)(states, torch.tensor(layers, device=states.device)).argmax(dim=-1)
    rightly: list[int] = torch.isin(read, find_first_tokens(model, sample.accepted).to(read.device)).int().tolist()
    return rightly
