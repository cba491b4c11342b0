"""How much does one hidden state say about the tokens that come later? (Pal et al. 2023; paper, sections 3.2 and 4.1)

For one random position t in each text, the model goes on with its own most likely tokens t+1, t+2, t+3. Every method
has the representation of token t alone, and says what these will be:

* `linear`: an affine map of the representation to the last layer's at t, t+1, t+2, then unembedding (for t+1 this is
  the Tuned Lens);
* `fixed_prompt`: it is written over the last token of a fixed text, and the model goes on for three tokens;
* `learned_prompt`: the same with a soft prompt, trained on other texts;
* `token_identity`: the same with the token-identity prompt.

The prompts go on with the tokens that they themselves say, not with those of the model's continuation. The learned
prompt was trained on the model's continuations, the affine maps were fitted on what the texts really say next.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.baselines import AffineLens
from patchscopes.data.texts import Sample, TextSet
from patchscopes.engine.batching import rows_per_batch
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import FutureLensConfig
from patchscopes.experiments.sampling import (
    DrawnSamples,
    check_finite,
    draw_positions,
    measure_chunks,
    resolve_layers,
    sum_timing,
    summarise_metric,
)
from patchscopes.learned.config import N_TOKENS
from patchscopes.learned.continuation import read_with_continuation
from patchscopes.learned.future_lens import SoftPrompt, build_fixed_prompt_target
from patchscopes.learned.mappings import AffineMap, LayerMapping, MapKey
from patchscopes.metrics import rank
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import patch_logits_ahead_in_batches
from patchscopes.prompts import build_token_identity_prompt
from patchscopes.results import ChunkStore, Json

# Precision@k is how often the model's own token is among the k that the lens finds most likely.
PRECISION_AT = (1, 5, 10)
METRICS = (*(f"precision_at_{k}" for k in PRECISION_AT), "surprisal")

# Representations and their layers in; logits of tokens t+1, t+2, t+3 out, batch by batch.
Reader: TypeAlias = Callable[
    [Float[Tensor, "row d_model"], Int[Tensor, " row"]], Iterator[Float[Tensor, "batch ahead d_vocab"]]
]


def build_prompt_reader(target: TargetPrompt, batch_size: int | None) -> Reader:
    """A Patchscope with ℓ* = ℓ that goes on for three tokens."""

    def read(
        vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, " row"]
    ) -> Iterator[Float[Tensor, "batch ahead d_vocab"]]:
        return patch_logits_ahead_in_batches(target, vectors, layers, N_TOKENS, batch_size=batch_size)

    return read


def build_linear_reader(model: LensModel, maps: Mapping[MapKey, AffineMap], batch_size: int | None) -> Reader:
    """Affine maps to the last layer of the same token and of the next two."""
    lenses = [AffineLens(model, LayerMapping.to_last(model, maps, ahead)) for ahead in range(N_TOKENS)]
    size = batch_size or rows_per_batch(model, unembedded=N_TOKENS)

    def read(
        vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, " row"]
    ) -> Iterator[Float[Tensor, "batch ahead d_vocab"]]:
        for some, of_some in zip(vectors.split(size), layers.split(size), strict=True):
            yield torch.stack([lens(some, of_some) for lens in lenses], dim=1)

    return read


def build_readers(
    model: LensModel,
    methods: Sequence[str],
    maps: Mapping[MapKey, AffineMap] | None,
    soft_prompt: SoftPrompt | None,
    batch_size: int | None,
) -> dict[str, Reader]:
    """The reader of each method.

    Raises:
        PatchscopesError: a method does not exist, or lacks what it has to learn first.
    """
    readers: dict[str, Reader] = {}
    for method in methods:
        if method == "linear" and maps is not None:
            readers[method] = build_linear_reader(model, maps, batch_size)
        elif method == "learned_prompt" and soft_prompt is not None:
            readers[method] = build_prompt_reader(soft_prompt.target(model), batch_size)
        elif method == "fixed_prompt":
            readers[method] = build_prompt_reader(build_fixed_prompt_target(model), batch_size)
        elif method == "token_identity":
            readers[method] = build_prompt_reader(placeholder_target(model, build_token_identity_prompt()), batch_size)
        elif method in FutureLensConfig.METHODS:
            raise PatchscopesError(f"{method} must be learned first: see scripts/train_lens.py")
        else:
            raise PatchscopesError(f"no method is called {method!r}; choose from {', '.join(FutureLensConfig.METHODS)}")
    return readers


def run(
    model: LensModel,
    texts: TextSet,
    config: FutureLensConfig,
    store: ChunkStore,
    *,
    maps: Mapping[MapKey, AffineMap] | None = None,
    soft_prompt: SoftPrompt | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> tuple[Json, Json]:
    """Run the experiment, going on from the chunks in `store`.

    Args:
        maps: for `linear`: to the last layer, for tokens 0, 1 and 2 ahead.
        soft_prompt: for `learned_prompt`.
        progress: wraps the iteration over chunks, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file. Each metric's `mean` is `[ahead, layer]`.

    Raises:
        PatchscopesError: a method or layer does not exist, or the texts have too few positions.
    """
    readers = build_readers(model, config.methods, maps, soft_prompt, config.batch_size)
    layers = resolve_layers(model, config.layers)
    drawn = draw_positions(model, texts, config.n_samples, config.seed, room=N_TOKENS - 1)

    def measure(chunk: Sequence[Sample]) -> Json:
        return _measure(model, drawn, chunk, layers, readers)

    finished = measure_chunks(drawn.chunks(), store, measure, progress)
    results = {
        "layers": layers,
        "ahead": list(range(1, N_TOKENS + 1)),
        "n_samples": len(drawn.samples),
        "n_texts": len(np.unique(drawn.groups)),
        "methods": {
            method: {
                metric: summarise_metric(finished, method, metric, drawn.groups, config.seed) for metric in METRICS
            }
            for method in config.methods
        },
    }
    return results, sum_timing(finished)


def _measure(
    model: LensModel,
    drawn: DrawnSamples,
    chunk: Sequence[Sample],
    layers: Sequence[int],
    readers: Mapping[str, Reader],
) -> Json:
    """All metrics, `[sample, ahead, layer]`, of each method for a chunk, and the seconds that each step took."""
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    texts, positions = [drawn.tokens[sample.text] for sample in chunk], [sample.position for sample in chunk]
    source = read_with_continuation(model, texts, positions, layers, N_TOKENS)
    own = torch.log_softmax(check_finite(model, logit_lens(model, source.final)).float(), dim=-1)
    rows = source.representations.flatten(0, 1)
    of_rows = torch.tensor(layers, device=rows.device).repeat(len(chunk))
    samples = torch.arange(len(chunk), device=rows.device).repeat_interleave(len(layers))
    seconds["sources"] = time.perf_counter() - started

    measured: Json = {}
    for method, read in readers.items():
        started = time.perf_counter()
        ranks, surprisals = [], []
        done = 0
        for logits in read(rows, of_rows):
            of_batch = samples[done : done + len(logits)]
            done += len(logits)
            flat = logits.flatten(0, 1)
            ranks.append(rank(flat, source.tokens[of_batch].flatten()))
            predicted = logits.argmax(dim=-1)
            surprisals.append(-own[of_batch[:, None], torch.arange(N_TOKENS, device=own.device), predicted])
        by_layer = (len(chunk), len(layers), N_TOKENS)
        all_ranks = torch.cat(ranks).view(by_layer).transpose(1, 2)
        measured[method] = {f"precision_at_{k}": (all_ranks < k).int().tolist() for k in PRECISION_AT}
        measured[method]["surprisal"] = torch.cat(surprisals).view(by_layer).transpose(1, 2).tolist()
        seconds[method] = time.perf_counter() - started
    return {"measured": measured, "seconds": seconds}
