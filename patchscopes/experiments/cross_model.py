"""Another model as the explainer: the hidden states of one model, read by a second one (paper, section 4.4).

A representation of the source model M at layer ℓ goes through f into the residual stream of the target model M* at
layer ℓ*. The models may differ in width, depth and tokenizer. f is an affine map, fitted for each pair (ℓ, ℓ*) on other
texts at positions where both models have read the same part of the text; or the identity, between models of one width.

Two questions are asked of each state:

* `next_token`: which token comes next? M* answers after one of two target prompts: the token-identity prompt
  (`token_identity`), or the source prompt itself, S, patched at the position that has read the same text
  (`source_prompt`). What counts is M's own prediction: Precision@1 and Surprisal over all pairs (ℓ, ℓ*). With
  `source_prompt` the later blocks of M* still see the words of S before i*, and M* by itself often predicts what M
  does: how often is reported as `target_model_alone`.
* `entity`: what is the entity that the state stands for? M* goes on after the entity-description prompt; ROUGE against
  references, beside M's own description of the same state.

Predictions of different vocabularies are compared by their text. The Surprisal of a predicted text is that of the
longest token of M that it begins with: the same token, wherever M has it.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.alignment import Vocabularies
from patchscopes.data.entities import Entity
from patchscopes.data.texts import Sample, TextSet
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.engine.unembedding import logit_lens
from patchscopes.engine.unpatched import generate_after
from patchscopes.experiments.config import CrossModelConfig, EntityConfig
from patchscopes.experiments.entity import (
    CHUNK_ENTITIES,
    fill_placeholder,
    generate_descriptions,
    generate_from_vectors,
    score_descriptions,
    summarise_scores,
)
from patchscopes.experiments.model_pair import ModelPair, check_pair, draw_aligned
from patchscopes.experiments.sampling import (
    CHUNK_SAMPLES,
    check_finite,
    measure_chunks,
    sum_timing,
    summarise_metric,
)
from patchscopes.learned.mappings import AffineMap, MapKey
from patchscopes.metrics import surprisal
from patchscopes.model.layers import EMBEDDING
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import patch_logits_in_batches
from patchscopes.prompts import build_token_identity_prompt
from patchscopes.results import ChunkStore, Json
from patchscopes.tokens import to_token_ids

TARGET_MODEL_ALONE = "target_model_alone"


def run(
    source: LensModel,
    target: LensModel,
    texts: TextSet,
    entities: Sequence[Entity],
    config: CrossModelConfig,
    store: ChunkStore,
    *,
    maps: Mapping[MapKey, AffineMap] | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> tuple[Json, Json]:
    """Run the experiment, going on from the chunks in `store`.

    Args:
        entities: to describe; none to leave that part out.
        maps: f for each pair of `resolve_layer_grid`, if it is affine: from `learned.fitting.fit_cross_model_maps`.
        progress: wraps the iteration over chunks, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file. `results["next_token"]` has, for each method and metric, a
        table [ℓ][ℓ*]; `results["entity"]` is that of the entity experiment, with a method `cross_model`.

    Raises:
        PatchscopesError: a method or layer does not exist, f does not fit the models, or the texts have too few
            positions at which both models have read the same.
    """
    pair = check_pair(source, target, config, maps)
    drawn, pairs_in_texts, n_source_positions = draw_aligned(source, target, texts, config)
    chunks = [drawn[start : start + CHUNK_SAMPLES] for start in range(0, len(drawn), CHUNK_SAMPLES)]
    of_entities = [entities[start : start + CHUNK_ENTITIES] for start in range(0, len(entities), CHUNK_ENTITIES)]
    vocabularies = Vocabularies.of(source, target)
    identity = placeholder_target(target, build_token_identity_prompt())
    description = placeholder_target(target, config.entity.target_prompt, config.entity.placeholder)
    own_description = placeholder_target(source, config.entity.target_prompt, config.entity.placeholder)

    def measure(chunk: tuple[str, Sequence[Any]]) -> Json:
        kind, members = chunk
        if kind == "entity":
            return _describe(pair, description, own_description, members, config.entity)
        return _next_tokens(pair, texts, members, pairs_in_texts, vocabularies, identity, config)

    finished = measure_chunks(
        [*(("next_token", chunk) for chunk in chunks), *(("entity", chunk) for chunk in of_entities)],
        store,
        measure,
        progress,
    )
    predicted, described = finished[: len(chunks)], finished[len(chunks) :]
    groups = np.array([sample.text for sample in drawn])
    results: Json = {
        "layers": pair.layers,
        "target_layers": pair.target_layers,
        "next_token": {
            "n_samples": len(drawn),
            "n_texts": len(np.unique(groups)),
            "aligned_positions": sum(map(len, pairs_in_texts.values())),
            "source_positions": n_source_positions,
            "methods": {
                method: {
                    metric: summarise_metric(predicted, method, metric, groups, config.seed)
                    for metric in ("precision_at_1", "surprisal", "same_token_exists")
                }
                for method in [*config.methods, TARGET_MODEL_ALONE]
            },
        },
    }
    if entities:
        descriptions = [entity for chunk in described for entity in chunk["entities"]]
        results["entity"] = {
            "pairs": pair.diagonal,
            "n_samples": len(entities),
            "methods": summarise_scores(descriptions, config.seed),
            "entities": descriptions,
        }
    return results, sum_timing(finished)


def _next_tokens(
    pair: ModelPair,
    texts: TextSet,
    samples: Sequence[Sample],
    aligned: Mapping[int, list[tuple[int, int]]],
    vocabularies: Vocabularies,
    identity: TargetPrompt,
    config: CrossModelConfig,
) -> Json:
    """All metrics of each method for each sample, as tables [ℓ][ℓ*], and the seconds that each step took."""
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    positions = [aligned[sample.text][sample.position] for sample in samples]
    source_ids, target_ids = (
        [to_token_ids(model, texts.texts[sample.text], truncate=True) for sample in samples]
        for model in (pair.source, pair.target)
    )
    last = pair.source.cfg.n_layers - 1
    representations = extract_representations(
        pair.source, source_ids, [position for position, _ in positions], [*pair.layers, last]
    )
    final_logits = check_finite(pair.source, logit_lens(pair.source, representations[:, -1]))
    vectors = pair.mapped(representations[:, :-1], pair.grid)
    where = [target_layer for _, target_layer in pair.grid]
    seconds["sources"] = time.perf_counter() - started

    measured: Json = {}
    if "token_identity" in config.methods:
        started = time.perf_counter()
        rows = _predict_tokens(identity, vectors.flatten(0, 1), where * len(samples), config.batch_size)
        predicted = rows.view(len(samples), len(where))
        measured["token_identity"] = _compare_predictions(pair, predicted, final_logits, vocabularies)
        seconds["token_identity"] = time.perf_counter() - started

    # An embedding written over itself patches nothing: what the target model says alone.
    started = time.perf_counter()
    target_positions = [position for _, position in positions]
    own = extract_representations(pair.target, target_ids, target_positions, [EMBEDDING])
    patched = "source_prompt" in config.methods
    layers = [EMBEDDING, *where] if patched else [EMBEDDING]
    predictions = []
    for sample, (ids, position) in enumerate(zip(target_ids, target_positions, strict=True)):
        prompt = TargetPrompt(pair.target, ids[: position + 1], -1)
        rows = torch.cat([own[sample].float(), vectors[sample].to(own.device)]) if patched else own[sample]
        predictions.append(_predict_tokens(prompt, rows, layers, config.batch_size))
    predicted = torch.stack(predictions)
    alone = _compare_predictions(pair, predicted[:, :1], final_logits, vocabularies, shape=())
    if patched:
        measured["source_prompt"] = _compare_predictions(pair, predicted[:, 1:], final_logits, vocabularies)
    seconds["source_prompt"] = time.perf_counter() - started
    return {"measured": measured | {TARGET_MODEL_ALONE: alone}, "seconds": seconds}


def _predict_tokens(
    target: TargetPrompt, vectors: Float[Tensor, "row d_model"], layers: Sequence[int], batch_size: int | None
) -> Int[Tensor, " row"]:
    """The most likely token of each row; logits exist for one batch of rows at a time."""
    batches = patch_logits_in_batches(target, vectors, layers, batch_size=batch_size)
    return torch.cat([check_finite(target.model, logits).argmax(dim=-1) for logits in batches])


def _compare_predictions(
    pair: ModelPair,
    predicted: Int[Tensor, "sample pair"],
    final_logits: Float[Tensor, "sample d_vocab"],
    vocabularies: Vocabularies,
    shape: tuple[int, ...] | None = None,
) -> Json:
    """What M* predicts, against the prediction of M, by the text of their tokens.

    `same_token_exists` is 1 where M's vocabulary has the predicted token, so that its Surprisal is exact. A text that
    begins with no token of M counts as M's least likely token.
    """
    shape = (len(pair.layers), len(pair.target_layers)) if shape is None else shape
    predicted = predicted.to(final_logits.device)
    same, closest = vocabularies.same(pair.target, predicted), vocabularies.closest(predicted)
    own = vocabularies.same(pair.source, final_logits.argmax(dim=-1))
    measured = {
        "precision_at_1": (same == own[:, None]) & (same >= 0),
        "surprisal": surprisal(torch.where(closest < 0, final_logits.argmin(dim=-1)[:, None], closest), final_logits),
        "same_token_exists": same >= 0,
    }
    return {metric: (1.0 * values).reshape(len(predicted), *shape).tolist() for metric, values in measured.items()}


def _describe(
    pair: ModelPair,
    target: TargetPrompt,
    own_target: TargetPrompt,
    entities: Sequence[Entity],
    config: EntityConfig,
) -> Json:
    """Every generation and score for some entities, and the seconds that each step took."""
    names = [entity.name for entity in entities]
    started = time.perf_counter()
    representations = extract_representations(pair.source, names, [-1] * len(names), pair.layers)
    where = [target_layer for _, target_layer in pair.diagonal]
    across = generate_from_vectors(target, pair.mapped(representations, pair.diagonal), where, config)
    after_across = time.perf_counter()
    same = generate_descriptions(pair.source, own_target, names, pair.layers, pair.layers, config)
    after_same = time.perf_counter()
    prompts = [fill_placeholder(config, name) for name in [*names, config.placeholder]]
    in_clear: dict[str, list[str]] = {}
    for role, model in (("source", pair.source), ("target", pair.target)):
        said = generate_after(model, prompts, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size)
        in_clear[role] = model.tokenizer.batch_decode(said, skip_special_tokens=True)
    described = []
    for number, entity in enumerate(entities):
        texts_of = {
            "cross_model": across[number],
            "same_model": same[number],
            "name_in_clear_source_model": [in_clear["source"][number]],
            "name_in_clear_target_model": [in_clear["target"][number]],
            "unpatched_target_model": [in_clear["target"][-1]],
        }
        described.append(
            {
                "entity": entity.name,
                "reference": entity.reference,
                "kind": entity.kind,
                "popularity": entity.popularity,
                "methods": {
                    method: score_descriptions(texts, entity.reference, config.separator)
                    for method, texts in texts_of.items()
                },
            }
        )
    return {
        "entities": described,
        "seconds": {
            "cross_model": after_across - started,
            "same_model": after_same - after_across,
            "baselines": time.perf_counter() - after_same,
        },
    }
