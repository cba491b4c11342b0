"""Figure 2: how early can each lens read the model's next token out of a representation? (Paper, section 4.1)

For one random position in each text, every method reads the representation of that token at every layer and says
which token the model will predict next. Compared with the model's own prediction at that position, that gives
Precision@1 and Surprisal per layer.

All methods are instances of one Patchscope with ℓ* = ℓ:

* `logit_lens`: the representation goes straight to the unembedding;
* `token_identity`: it is written over the placeholder of the token-identity prompt;
* `simplescope`: it is written over the placeholder of the prompt `?`.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.baselines import logit_lens
from patchscopes.data import Sample, TextSet, draw_samples
from patchscopes.errors import PatchscopesError
from patchscopes.extract import extract_representations
from patchscopes.layers import check_layer
from patchscopes.lens_model import LensModel
from patchscopes.metrics import mean_with_interval, precision_at_1, surprisal
from patchscopes.patch import patch_logits_in_batches, rows_per_batch
from patchscopes.prompts import SIMPLESCOPE_PROMPT, build_token_identity_prompt, placeholder_target
from patchscopes.results import ChunkStore, Json
from patchscopes.target import TargetPrompt
from patchscopes.tokens import to_token_ids

# Representations of some samples at some layers in, the most likely next tokens out.
Reader: TypeAlias = Callable[[Float[Tensor, "sample layer d_model"]], Int[Tensor, "sample layer"]]

# Samples that are finished, and kept, together.
CHUNK_SAMPLES = 32


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    """Options of the experiment.

    Attributes:
        layers: source layers ℓ; None for all blocks.
        batch_size: texts, and rows, at a time; None to choose by size.
    """

    methods: tuple[str, ...] = ("logit_lens", "token_identity", "simplescope")
    n_samples: int = 500
    layers: tuple[int, ...] | None = None
    seed: int = 0
    batch_size: int | None = None


def logit_lens_reader(model: LensModel, layers: Sequence[int], batch_size: int | None) -> Reader:
    """The logit lens: unembed the representation as it is."""

    def read(representations: Float[Tensor, "sample layer d_model"]) -> Int[Tensor, "sample layer"]:
        rows = representations.flatten(0, 1).split(batch_size or rows_per_batch(model))
        return torch.cat([logit_lens(model, some).argmax(dim=-1) for some in rows]).view(representations.shape[:2])

    return read


def patchscope_reader(target: TargetPrompt, layers: Sequence[int], batch_size: int | None) -> Reader:
    """A Patchscope with ℓ* = ℓ: the most likely token after the target prompt."""

    def read(representations: Float[Tensor, "sample layer d_model"]) -> Int[Tensor, "sample layer"]:
        rows, target_layers = representations.flatten(0, 1), list(layers) * len(representations)
        batches = patch_logits_in_batches(target, rows, target_layers, batch_size=batch_size)
        return torch.cat([logits.argmax(dim=-1) for logits in batches]).view(representations.shape[:2])

    return read


def token_identity_reader(model: LensModel, layers: Sequence[int], batch_size: int | None) -> Reader:
    """The Patchscope with the token-identity prompt."""
    return patchscope_reader(placeholder_target(model, build_token_identity_prompt()), layers, batch_size)


def simplescope_reader(model: LensModel, layers: Sequence[int], batch_size: int | None) -> Reader:
    """The Patchscope whose whole prompt is the placeholder."""
    return patchscope_reader(placeholder_target(model, SIMPLESCOPE_PROMPT), layers, batch_size)


METHODS: dict[str, Callable[[LensModel, Sequence[int], int | None], Reader]] = {
    "logit_lens": logit_lens_reader,
    "token_identity": token_identity_reader,
    "simplescope": simplescope_reader,
}


def run(
    model: LensModel,
    texts: TextSet,
    config: NextTokenConfig,
    store: ChunkStore,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> tuple[Json, Json]:
    """Run the experiment, going on from the chunks in `store`.

    Args:
        progress: wraps the iteration over chunks, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file. Seconds are summed over all chunks, those of earlier
        runs included, by what they were spent on.

    Raises:
        PatchscopesError: a method or layer does not exist, or the texts have too few positions.
    """
    for method in config.methods:
        if method not in METHODS:
            raise PatchscopesError(f"no method is called {method!r}; choose from {', '.join(METHODS)}")
    last_layer = model.cfg.n_layers - 1
    layers = list(range(model.cfg.n_layers)) if config.layers is None else list(config.layers)
    for layer in layers:
        check_layer(model, layer)

    tokens = [to_token_ids(model, text, truncate=True) for text in texts.texts]
    samples = draw_samples([len(ids) for ids in tokens], texts.texts, config.n_samples, config.seed)
    # Samples of one text stand together, so that it is read once.
    samples = sorted(samples, key=lambda sample: (sample.text, sample.position))
    chunks = [samples[start : start + CHUNK_SAMPLES] for start in range(0, len(samples), CHUNK_SAMPLES)]
    readers = {method: METHODS[method](model, layers, config.batch_size) for method in config.methods}

    finished: list[Json] = []
    for number, chunk in enumerate(progress(chunks)):
        name = f"{number:05d}"
        measured = store.load(name)
        if measured is None:
            measured = _measure(model, tokens, chunk, layers, last_layer, readers, config.batch_size)
            store.save(name, measured)
        finished.append(measured)
    return _summary(finished, samples, layers, config), _timing(finished)


def _measure(
    model: LensModel,
    tokens: Sequence[Int[Tensor, " _"]],
    chunk: Sequence[Sample],
    layers: Sequence[int],
    last_layer: int,
    readers: dict[str, Reader],
    batch_size: int | None,
) -> Json:
    """Both metrics of each method for each sample of a chunk, and the seconds that each step took."""
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    representations = extract_representations(
        model,
        [tokens[sample.text] for sample in chunk],
        [sample.position for sample in chunk],
        [*layers, last_layer],
        batch_size=batch_size or 32,
    )
    final_logits = logit_lens(model, representations[:, -1])
    if not bool(torch.isfinite(final_logits).all()):
        raise PatchscopesError(f"the model's logits overflow in {model.cfg.dtype}: use float32 or bfloat16")
    seconds["sources"] = time.perf_counter() - started
    measured: Json = {}
    for method, read in readers.items():
        started = time.perf_counter()
        predicted = read(representations[:, :-1])
        measured[method] = {
            "precision_at_1": precision_at_1(predicted, final_logits).int().tolist(),
            "surprisal": surprisal(predicted, final_logits).tolist(),
        }
        seconds[method] = time.perf_counter() - started
    return {"measured": measured, "seconds": seconds}


def _summary(
    finished: Sequence[Json], samples: Sequence[Sample], layers: Sequence[int], config: NextTokenConfig
) -> Json:
    """Means and intervals per method, metric and layer; several positions of one text are resampled together."""
    groups = np.array([sample.text for sample in samples])

    def summary(method: str, metric: str) -> Json:
        values = np.array([row for chunk in finished for row in chunk["measured"][method][metric]], dtype=float)
        return mean_with_interval(values, groups=groups, seed=config.seed).as_json()

    return {
        "layers": list(layers),
        "n_samples": len(samples),
        "n_texts": len(np.unique(groups)),
        "methods": {
            method: {metric: summary(method, metric) for metric in ("precision_at_1", "surprisal")}
            for method in config.methods
        },
    }


def _timing(finished: Sequence[Json]) -> Json:
    steps = finished[0]["seconds"]
    seconds = {step: sum(chunk["seconds"][step] for chunk in finished) for step in steps}
    return {"seconds": seconds | {"total": sum(seconds.values())}}
