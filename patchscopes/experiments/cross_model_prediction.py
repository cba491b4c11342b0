"""The next token, as another model predicts it from hidden states of the first one: measured sample by sample."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.alignment import Vocabularies
from patchscopes.data.texts import Sample, TextSet
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt
from patchscopes.engine.unembedding import logit_lens
from patchscopes.experiments.chunks import StopWatch
from patchscopes.experiments.config import CrossModelConfig
from patchscopes.experiments.model_pair import ModelPair
from patchscopes.experiments.sampling import AlignedPositions, form_pair
from patchscopes.metrics import surprisal
from patchscopes.model.layers import EMBEDDING
from patchscopes.patch import patch_logits_in_batches
from patchscopes.results import Json
from patchscopes.tokens import to_token_ids

METRICS = ("precision_at_1", "surprisal", "same_token_exists")


def predict_next_tokens(
    pair: ModelPair,
    texts: TextSet,
    drawn: AlignedPositions,
    samples: Sequence[Sample],
    vocabularies: Vocabularies,
    token_identity: TargetPrompt,
    config: CrossModelConfig,
) -> Json:
    """All metrics of each method for some samples, as tables [ℓ][ℓ*], and the seconds that each step took."""
    watch = StopWatch()
    with watch.time("sources"):
        forms = [form_pair(texts.texts[sample.text], config.chat) for sample in samples]
        source_ids, target_ids = (
            [to_token_ids(model, form[role], truncate=True) for form in forms]
            for role, model in enumerate((pair.source, pair.target))
        )
        positions = [drawn.pairs[sample.text][sample.position] for sample in samples]
        source_positions, target_positions = ([position[role] for position in positions] for role in (0, 1))
        layers = [*pair.layers, pair.source.cfg.n_layers - 1]
        representations = extract_representations(pair.source, source_ids, source_positions, layers)
        final_logits = logit_lens(pair.source, representations[:, -1])
        vectors = pair.map_representations(representations[:, :-1], pair.grid)
        target_layers = [target_layer for _, target_layer in pair.grid]

    measured: Json = {}
    grid = (len(pair.layers), len(pair.target_layers))
    if "token_identity" in config.methods:
        with watch.time("token_identity"):
            predicted = predict_tokens(
                token_identity, vectors.flatten(0, 1), target_layers * len(samples), config.batch_size
            ).view(len(samples), len(target_layers))
            measured["token_identity"] = compare_predictions(pair, predicted, final_logits, vocabularies, grid)

    with watch.time("source_prompt"):
        # An embedding written over itself patches nothing: what the target model says alone.
        rows = extract_representations(pair.target, target_ids, target_positions, [EMBEDDING])
        row_layers = [EMBEDDING]
        if "source_prompt" in config.methods:
            rows = torch.cat([rows.float(), vectors.to(rows.device)], dim=1)
            row_layers += target_layers
        prompts = [
            TargetPrompt(pair.target, ids[: position + 1], -1)
            for ids, position in zip(target_ids, target_positions, strict=True)
        ]
        predicted = torch.stack(
            [
                predict_tokens(prompt, vectors_of_sample, row_layers, config.batch_size)
                for prompt, vectors_of_sample in zip(prompts, rows, strict=True)
            ]
        )
        alone = compare_predictions(pair, predicted[:, :1], final_logits, vocabularies, ())
        if "source_prompt" in config.methods:
            measured["source_prompt"] = compare_predictions(pair, predicted[:, 1:], final_logits, vocabularies, grid)
    return {"measured": measured | {CrossModelConfig.TARGET_MODEL_ALONE: alone}, "seconds": watch.seconds}


def predict_tokens(
    target: TargetPrompt, vectors: Float[Tensor, "row d_model"], layers: Sequence[int], batch_size: int | None
) -> Int[Tensor, " row"]:
    """The most likely token of each row; logits exist for one batch of rows at a time."""
    batches = patch_logits_in_batches(target, vectors, layers, batch_size=batch_size)
    return torch.cat([logits.argmax(dim=-1) for logits in batches])


def compare_predictions(
    pair: ModelPair,
    predicted: Int[Tensor, "sample pair"],
    final_logits: Float[Tensor, "sample d_vocab"],
    vocabularies: Vocabularies,
    shape: tuple[int, ...],
) -> Json:
    """What M* predicts, against the prediction of M, by the text of their tokens; each sample has a table of `shape`.

    `same_token_exists` is 1 where M's vocabulary has the predicted token, so that its Surprisal is exact. A text that
    begins with no token of M counts as M's least likely token.
    """
    predicted = predicted.to(final_logits.device)
    same, closest = vocabularies.same(pair.target, predicted), vocabularies.closest(predicted)
    source_prediction = vocabularies.same(pair.source, final_logits.argmax(dim=-1))
    measured = {
        "precision_at_1": (same == source_prediction[:, None]) & (same >= 0),
        "surprisal": surprisal(torch.where(closest < 0, final_logits.argmin(dim=-1)[:, None], closest), final_logits),
        "same_token_exists": same >= 0,
    }
    return {metric: (1.0 * values).reshape(len(predicted), *shape).tolist() for metric, values in measured.items()}
