"""What experiments over random positions of texts share: drawing them, scoring predictions there, summing up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.alignment import align_positions
from patchscopes.data.texts import Sample, TextSet, draw_samples
from patchscopes.metrics import mean_with_interval, precision_at_1, surprisal
from patchscopes.model.lens_model import LensModel
from patchscopes.prompts import NO_CHAT, Chat, ChatForm
from patchscopes.results import Json
from patchscopes.tokens import to_token_ids

# Samples that are finished, and kept, together.
CHUNK_SAMPLES = 32
# Of the prediction of the next token, by `score_predictions`.
METRICS = ("precision_at_1", "surprisal")


@dataclass(frozen=True, eq=False)
class SampledPositions:
    """Random positions of texts.

    Attributes:
        tokens: of each text.
        samples: sorted by text, so that a text is read once.
    """

    tokens: list[Int[Tensor, " _"]]
    samples: list[Sample]

    def get_sources(self, samples: Sequence[Sample]) -> tuple[list[Int[Tensor, " _"]], list[int]]:
        """S, as tokens, and i of each sample."""
        return [self.tokens[sample.text] for sample in samples], [sample.position for sample in samples]


def sample_positions(
    model: LensModel, texts: TextSet, n_samples: int, seed: int, room: int = 0, chat: ChatForm = NO_CHAT
) -> SampledPositions:
    """Draw positions of `texts` as in the paper, with room for more tokens in the context. See `draw_samples`.

    In the form of a chat the same tokens of the texts are drawn, and each text is the user's message; what follows the
    token there, in the text and in the template, it does not see.

    Raises:
        PatchscopesError: the texts have fewer positions.
    """
    longest = model.cfg.n_ctx - room
    forms = [chat.of_source(text) for text in texts.texts]
    tokens = [to_token_ids(model, form, truncate=True)[:longest] for form in forms]
    if not chat.source:
        samples = draw_samples([len(ids) for ids in tokens], texts.texts, n_samples, seed)
        return SampledPositions(tokens, _sort_by_text(samples))
    in_chat = [
        [place for alone, place in align_positions(model, model, text, form) if alone > 0 and place < longest]
        for text, form in zip(texts.texts, forms, strict=True)
    ]
    # draw_samples leaves out the first position of a text, which is not among these.
    drawn = draw_samples([1 + len(places) for places in in_chat], texts.texts, n_samples, seed)
    samples = [Sample(sample.text, in_chat[sample.text][sample.position - 1]) for sample in drawn]
    return SampledPositions(tokens, _sort_by_text(samples))


@dataclass(frozen=True, eq=False)
class AlignedPositions:
    """Random positions of texts at which two models have read the same.

    Attributes:
        samples: sorted by text; `position` is the number of a pair of that text.
        pairs: all such positions of each text, (of the source model, of the target model).
        n_source_positions: positions of the source model in all texts, aligned or not.
    """

    samples: list[Sample]
    pairs: Mapping[int, list[tuple[int, int]]]
    n_source_positions: int


def sample_aligned_positions(
    source: LensModel, target: LensModel, texts: TextSet, n_samples: int, seed: int, chat: ChatForm = NO_CHAT
) -> AlignedPositions:
    """Draw positions of `texts` at which both models have read the same; in the form of a chat, of the message.

    Raises:
        PatchscopesError: the texts have fewer such positions.
    """
    pairs = {
        number: [pair for pair in align_positions(source, target, *form_pair(text, chat)) if min(pair) > 0]
        for number, text in enumerate(texts.texts)
    }
    n_source_positions = sum(len(to_token_ids(source, text, truncate=True)) - 1 for text in texts.texts)
    # draw_samples leaves out the first position of a text, which is not among the pairs.
    lengths = [len(of_text) + 1 for of_text in pairs.values()]
    samples = draw_samples(lengths, texts.texts, n_samples, seed)
    samples = [Sample(sample.text, sample.position - 1) for sample in samples]
    return AlignedPositions(_sort_by_text(samples), pairs, n_source_positions)


def form_pair(text: str, chat: ChatForm) -> tuple[str | Chat, str | Chat]:
    """A text as the source model reads it, and as the target model does."""
    return chat.of_source(text), chat.of_target(text)


def _sort_by_text(samples: Sequence[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: (sample.text, sample.position))


def score_predictions(predicted: Int[Tensor, "sample layer"], final_logits: Float[Tensor, "sample d_vocab"]) -> Json:
    """Both `METRICS` of each prediction, against the model's own at the same position."""
    return {
        "precision_at_1": precision_at_1(predicted, final_logits).int().tolist(),
        "surprisal": surprisal(predicted, final_logits).tolist(),
    }


def summarise_samples(
    finished: Sequence[Json], samples: Sequence[Sample], methods: Sequence[str], metrics: Sequence[str], seed: int
) -> Json:
    """The part of `results` that all experiments over positions share: how many there are, and means with intervals.

    Several positions of one text are not independent, so they are resampled together.
    """
    texts = np.array([sample.text for sample in samples])

    def summarise(method: str, metric: str) -> Json:
        values = np.array([row for chunk in finished for row in chunk["measured"][method][metric]], dtype=float)
        return mean_with_interval(values, groups=texts, seed=seed).as_json()

    return {
        "n_samples": len(samples),
        "n_texts": len(np.unique(texts)),
        "methods": {method: {metric: summarise(method, metric) for metric in metrics} for method in methods},
    }
