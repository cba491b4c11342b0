"""The LRE Attribute Lens on the samples of attribute extraction (Hernandez et al. 2023), and as a Patchscope.

Faithfulness is how often the most likely token that the lens reads begins an accepted answer. It is measured on the
samples that the other methods see, and as in that paper on the relation's own prompt after the solved examples. The
subjects that the LRE is estimated from are never among those that it is tested on.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.baselines import AffineLens, Lens, source_patchscope
from patchscopes.data.relations import Relation, RelationSample
from patchscopes.engine.extract import extract_representations
from patchscopes.experiments.attribute_editing import draw_pairs, measure_editing
from patchscopes.experiments.attribute_samples import AttributeSample
from patchscopes.experiments.config import AttributesConfig
from patchscopes.learned.cached_fits import fit_or_load_lre
from patchscopes.learned.lre import LRE, build_lre_prompt, find_subject_position
from patchscopes.model.lens_model import LensModel
from patchscopes.positions import find_first_tokens
from patchscopes.results import Json


def draw_examples(samples: Sequence[AttributeSample], config: AttributesConfig) -> list[RelationSample]:
    """The subjects that the LRE of a task is estimated from, drawn by the seed; none if too few would be left to test
    it on."""
    subjects = list(dict.fromkeys(sample.of for sample in samples))
    if len(subjects) <= config.n_examples:
        return []
    order = np.random.default_rng(config.seed).permutation(len(subjects))
    return [subjects[index] for index in order[: config.n_examples]]


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
    examples = draw_examples(samples, config)
    if not examples:
        return None
    lre = fit_or_load_lre(model, relation, examples, layers)
    tested = [number for number, sample in enumerate(samples) if sample.of not in examples]
    read = [read_sample(model, lre, samples[number], states[number], config.methods) for number in tested]
    subjects = list(dict.fromkeys(samples[number].of for number in tested))
    in_context = [read_in_context(model, lre, relation, examples, subject) for subject in subjects]
    ranks = [rank for rank in config.ranks if rank <= model.cfg.d_model]
    editing = None
    if ranks and draw_pairs(model, subjects, config.seed):
        editing = measure_editing(model, lre, relation, examples, subjects, ranks, config.seed)
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
    lre: LRE,
    sample: AttributeSample,
    states: Float[Tensor, "layer d_model"],
    methods: Sequence[str],
) -> Json:
    """Whether the lens reads a sample rightly at each layer, in the forms that are asked for; with both, how far their
    logits differ at most."""
    rightly: Json = {}
    numbers = torch.tensor(lre.layers, device=states.device)
    lenses: dict[str, Lens] = {
        "lre": AffineLens(model, lre.mapping(model)),
        "lre_patchscope": source_patchscope(model, list(sample.tokens), sample.position, lre.mapping(model)),
    }
    logits = {method: lens(states, numbers) for method, lens in lenses.items() if method in methods}
    accepted = find_first_tokens(model, sample.of.accepted)
    for method, of_method in logits.items():
        rightly[method] = torch.isin(of_method.argmax(dim=-1), accepted.to(of_method.device)).int().tolist()
    if len(logits) == 2:
        rightly["largest_difference"] = (logits["lre"] - logits["lre_patchscope"]).abs().max().item()
    return rightly


def read_in_context(
    model: LensModel, lre: LRE, relation: Relation, examples: Sequence[RelationSample], sample: RelationSample
) -> list[int]:
    """Whether the lens reads a subject rightly at each layer of the relation's own prompt, after solved examples."""
    prompt = build_lre_prompt(relation, examples, sample.subject)
    position = find_subject_position(model, relation, prompt)
    states = extract_representations(model, [prompt], [position], lre.layers)[0]
    read = AffineLens(model, lre.mapping(model))(states, torch.tensor(lre.layers, device=states.device)).argmax(dim=-1)
    rightly: list[int] = torch.isin(read, find_first_tokens(model, sample.accepted).to(read.device)).int().tolist()
    return rightly
