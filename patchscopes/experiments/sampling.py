"""What experiments over random positions of texts share: drawing them, finishing them chunk by chunk, summing up."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.data.texts import Sample, TextSet, draw_samples
from patchscopes.errors import PatchscopesError
from patchscopes.metrics import mean_with_interval
from patchscopes.model.layers import check_layer
from patchscopes.model.lens_model import LensModel
from patchscopes.results import ChunkStore, Json
from patchscopes.tokens import to_token_ids

# Samples that are finished, and kept, together.
CHUNK_SAMPLES = 32


@dataclass(frozen=True, eq=False)
class DrawnSamples:
    """Random positions of texts.

    Attributes:
        tokens: of each text.
        samples: sorted by text, so that a text is read once.
    """

    tokens: list[Int[Tensor, " _"]]
    samples: list[Sample]

    @property
    def groups(self) -> Int[np.ndarray, " sample"]:
        """The text of each sample: positions of one text are not independent."""
        return np.array([sample.text for sample in self.samples])

    def chunks(self) -> list[list[Sample]]:
        """The samples in the parts that are finished together."""
        return [self.samples[start : start + CHUNK_SAMPLES] for start in range(0, len(self.samples), CHUNK_SAMPLES)]


def draw_positions(model: LensModel, texts: TextSet, n_samples: int, seed: int, room: int = 0) -> DrawnSamples:
    """Draw positions of `texts` as in the paper, with room for more tokens in the context. See `draw_samples`."""
    tokens = [to_token_ids(model, text, truncate=True)[: model.cfg.n_ctx - room] for text in texts.texts]
    samples = draw_samples([len(ids) for ids in tokens], texts.texts, n_samples, seed)
    return DrawnSamples(tokens, sorted(samples, key=lambda sample: (sample.text, sample.position)))


def resolve_layers(model: LensModel, layers: Sequence[int] | None) -> list[int]:
    """The given source layers, which must exist, or all blocks."""
    return [check_layer(model, layer) for layer in (range(model.cfg.n_layers) if layers is None else layers)]


def check_finite(model: LensModel, logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch d_vocab"]:
    """The logits, if none overflowed.

    Raises:
        PatchscopesError: some did.
    """
    if not bool(torch.isfinite(logits).all()):
        raise PatchscopesError(f"logits overflow in {model.cfg.dtype}: use float32 or bfloat16")
    return logits


def measure_chunks(
    chunks: Sequence[Any],
    store: ChunkStore,
    measure: Callable[[Any], Json],
    progress: Callable[[Iterable[Any]], Iterable[Any]],
) -> list[Json]:
    """What `measure` finds for each chunk, or found in an earlier run that left it in `store`."""
    finished: list[Json] = []
    for number, chunk in enumerate(progress(chunks)):
        name = f"{number:05d}"
        measured = store.load(name)
        if measured is None:
            measured = measure(chunk)
            store.save(name, measured)
        finished.append(measured)
    return finished


def summarise_metric(
    finished: Sequence[Json], method: str, metric: str, groups: Int[np.ndarray, " sample"], seed: int
) -> Json:
    """Mean and interval over samples of one metric; several positions of one text are resampled together."""
    values = np.array([row for chunk in finished for row in chunk["measured"][method][metric]], dtype=float)
    return mean_with_interval(values, groups=groups, seed=seed).as_json()


def sum_timing(finished: Sequence[Json]) -> Json:
    """The `timing` of the result file: seconds by what they were spent on, over all chunks."""
    steps = dict.fromkeys(step for chunk in finished for step in chunk["seconds"])
    seconds = {step: sum(chunk["seconds"].get(step, 0.0) for chunk in finished) for step in steps}
    return {"seconds": seconds | {"total": sum(seconds.values())}}
