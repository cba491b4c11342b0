"""The causal test of an LRE (Hernandez et al. 2023, section 5): moved by its inverse, does s name another's attribute?

If the map of a relation is what the model computes from the subject's representation s, then s + Δs with
Δs = W†_r (o' - o) makes the model go on as after the subject that o' belongs to. It is written over s, at layer ℓ of
the subject's last token, and the model runs on from there.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchscopes.data.relations import Relation, RelationSample
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.generation import find_most_likely
from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.learned.low_rank import invert_low_rank
from patchscopes.learned.lre import LRE, build_lre_prompt, find_subject_position
from patchscopes.learned.provenance import check_model
from patchscopes.metrics import mean_with_interval
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import patch_logits
from patchscopes.positions import find_first_tokens
from patchscopes.results import Json


@torch.no_grad()
def measure_editing(
    model: LensModel,
    lre: LRE,
    relation: Relation,
    examples: Sequence[RelationSample],
    tested: Sequence[RelationSample],
    ranks: Sequence[int],
    seed: int,
) -> Json:
    """How often an edited representation makes the model answer with another subject's attribute, by layer and rank.

    Args:
        examples: the solved examples that stand before each subject, the LRE's training samples as a rule.
        tested: samples outside of them that the model knows. Each is edited towards another one, drawn by the seed.
        ranks: r.

    Returns:
        `layers`, `ranks`, `n_subjects`, and two measures with 95 % intervals over subjects, each `[layer][rank]`:
        `answers`, the most likely next token begins an accepted answer of the other subject; and `efficacy`, that
        paper's, the first token of the other's object is more likely than that of the subject's own.

    Raises:
        PatchscopesError: the LRE was fitted on another model, no tested sample can be edited towards another, or a rank
            is none.
    """
    check_model(lre.provenance.source_model, model)
    pairs = draw_pairs(model, tested, seed)
    if not pairs:
        raise PatchscopesError(
            f"no two of the {len(tested)} tested samples of {relation.name!r} have objects that begin with different "
            "tokens; give more samples"
        )
    prompts = [build_lre_prompt(relation, examples, sample.subject) for sample in tested]
    positions = [find_subject_position(model, relation, prompt) for prompt in prompts]
    subjects = extract_representations(model, prompts, positions, lre.layers)
    outputs = extract_representations(model, prompts, [-1] * len(prompts), [model.cfg.n_layers - 1])[:, 0].float()
    inverse = invert_low_rank(lre.weights)
    found = torch.stack(
        [
            _edit(
                TargetPrompt(model, prompts[own], positions[own]),
                subjects[own],
                inverse(outputs[other] - outputs[own], ranks),
                lre.layers,
                tested[own],
                tested[other],
            )
            for own, other in pairs
        ]
    )
    measures = {
        measure: mean_with_interval(values.numpy().astype(float), seed=seed).as_json()
        for measure, values in zip(("answers", "efficacy"), found.unbind(dim=1), strict=True)
    }
    return {"layers": list(lre.layers), "ranks": list(ranks), "n_subjects": len(pairs)} | measures


def draw_pairs(model: LensModel, samples: Sequence[RelationSample], seed: int) -> list[tuple[int, int]]:
    """For each sample another one, drawn at random from those whose answers begin with none of the same tokens.

    A sample without such another one is left out.
    """
    firsts = [set(find_first_tokens(model, sample.accepted).tolist()) for sample in samples]
    pairs: list[tuple[int, int]] = []
    for own, first in enumerate(firsts):
        others = [other for other, first_of_other in enumerate(firsts) if not first & first_of_other]
        if others:
            pairs.append((own, others[np.random.default_rng([seed, own]).integers(len(others))]))
    return pairs


def _edit(
    target: TargetPrompt,
    subject: Float[Tensor, "layer d_model"],
    changes: Float[Tensor, "layer rank d_model"],
    layers: Sequence[int],
    own: RelationSample,
    other: RelationSample,
) -> Bool[Tensor, "measure layer rank"]:
    """Both measures for one subject: all layers and ranks are rows of one call."""
    n_ranks = changes.shape[1]
    edited = (subject[:, None] + changes.to(subject)).flatten(0, 1)
    logits = patch_logits(target, edited, [layer for layer in layers for _ in range(n_ranks)])
    answers = torch.isin(find_most_likely(logits), find_first_tokens(target.model, other.accepted))
    of_other, of_own = (
        logits[:, find_first_tokens(target.model, [sample.object])].amax(dim=-1) for sample in (other, own)
    )
    return torch.stack([answers, of_other > of_own]).unflatten(1, (len(layers), n_ranks)).cpu()
