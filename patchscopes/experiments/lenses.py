"""Seven ways to read the next token from one hidden state, side by side on the same samples (paper, section 3.2).

Logit Lens, Tuned Lens and Future Lens, each in its original form and as the Patchscope that computes the same, and the
token-identity Patchscope. An original and its twin take different ways through the code: the originals are a formula
or plain TransformerLens hooks, the twins write into a target prompt and let the fast engine go on.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from patchscopes.baselines import AffineLens, Lens, LogitLens, PatchscopeLens, source_patchscope
from patchscopes.data.texts import Sample, TextSet
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import placeholder_target
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import FutureForm, LensesConfig
from patchscopes.experiments.sampling import (
    DrawnSamples,
    check_finite,
    draw_positions,
    measure_chunks,
    resolve_layers,
    sum_timing,
    summarise_metric,
)
from patchscopes.learned.future_lens import SoftPrompt, build_fixed_prompt_target
from patchscopes.learned.mappings import AffineMap, LayerMapping, MapKey
from patchscopes.metrics import precision_at_1, surprisal
from patchscopes.model.lens_model import LensModel
from patchscopes.prompts import build_token_identity_prompt
from patchscopes.results import ChunkStore, Json

# A lens bound to one sample: T = S needs the source prompt and i.
LensOfSample: TypeAlias = Callable[[Int[Tensor, " pos"], int], Lens]


def ignore_sample(lens: Lens) -> LensOfSample:
    """A lens that no sample changes."""
    return lambda text, position: lens


def build_lenses(
    model: LensModel,
    future_lens: FutureForm,
    maps: Mapping[MapKey, AffineMap],
    soft_prompt: SoftPrompt | None,
) -> dict[str, LensOfSample]:
    """All seven, in the order of LensesConfig.METHODS, and under `…_hooks` those with T = S by plain hooks.

    Raises:
        PatchscopesError: the Future Lens has no such form, or is to be the learned prompt and none is given.
    """
    if future_lens == "fixed_prompt":
        future_target = build_fixed_prompt_target(model)
    elif future_lens == "learned_prompt" and soft_prompt is not None:
        future_target = soft_prompt.target(model)
    else:
        raise PatchscopesError(f"the Future Lens is fixed_prompt, or learned_prompt with a prompt; got {future_lens!r}")
    mapping = LayerMapping.to_last(model, maps)
    originals: dict[str, Lens] = {
        "logit_lens": LogitLens(model),
        "tuned_lens": AffineLens(model, mapping),
        "future_lens": PatchscopeLens(future_target, engine="hooks"),
    }
    future_twin = PatchscopeLens(future_target)
    token_identity = PatchscopeLens(placeholder_target(model, build_token_identity_prompt()))
    return {
        **{name: ignore_sample(lens) for name, lens in originals.items()},
        "logit_lens_patchscope": lambda text, position: source_patchscope(model, text, position),
        "tuned_lens_patchscope": lambda text, position: source_patchscope(model, text, position, mapping),
        "future_lens_patchscope": ignore_sample(future_twin),
        "token_identity": ignore_sample(token_identity),
        "logit_lens_hooks": lambda text, position: source_patchscope(model, text, position, engine="hooks"),
        "tuned_lens_hooks": lambda text, position: source_patchscope(model, text, position, mapping, engine="hooks"),
    }


def run(
    model: LensModel,
    texts: TextSet,
    config: LensesConfig,
    store: ChunkStore,
    *,
    maps: Mapping[MapKey, AffineMap],
    soft_prompt: SoftPrompt | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> tuple[Json, Json]:
    """Run the experiment, going on from the chunks in `store`.

    Args:
        maps: the Tuned Lens.
        soft_prompt: the Future Lens, if it is the learned prompt.
        progress: wraps the iteration over chunks, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file. `results["twins"]` holds, for each original, the largest
        difference of any logit from its Patchscope's, the largest logit, and how often both say the same token.

    Raises:
        PatchscopesError: as `build_lenses`, a layer does not exist, or the texts have too few positions.
    """
    lenses = build_lenses(model, config.future_lens, maps, soft_prompt)
    layers = resolve_layers(model, config.layers)
    drawn = draw_positions(model, texts, config.n_samples, config.seed)
    every = max(1, len(drawn.samples) // max(1, config.n_checked_with_hooks))
    checked = set(drawn.samples[::every][: config.n_checked_with_hooks])

    def measure(chunk: Sequence[Sample]) -> Json:
        return _measure(model, drawn, chunk, layers, lenses, checked)

    finished = measure_chunks(drawn.chunks(), store, measure, progress)
    results = {
        "layers": layers,
        "n_samples": len(drawn.samples),
        "n_texts": len(np.unique(drawn.groups)),
        "methods": {
            method: {
                metric: summarise_metric(finished, method, metric, drawn.groups, config.seed)
                for metric in ("precision_at_1", "surprisal")
            }
            for method in LensesConfig.METHODS
        },
        "twins": {original: _compare_twins(finished, original) for original in LensesConfig.ORIGINALS},
    }
    return results, sum_timing(finished)


def _compare_twins(finished: Sequence[Json], original: str) -> Json:
    """How far an original and its Patchscope are apart, over all chunks."""
    compared = [chunk["twins"][original] for chunk in finished]
    with_hooks = [one["largest_difference_hooks"] for one in compared if one["largest_difference_hooks"] is not None]
    return {
        "largest_difference": max(one["largest_difference"] for one in compared),
        "largest_difference_hooks": max(with_hooks, default=None),
        "largest_logit": max(one["largest_logit"] for one in compared),
        "same_token": sum(one["same"] for one in compared) / sum(one["rows"] for one in compared),
    }


def _measure(
    model: LensModel,
    drawn: DrawnSamples,
    chunk: Sequence[Sample],
    layers: Sequence[int],
    lenses: Mapping[str, LensOfSample],
    checked: set[Sample],
) -> Json:
    """Metrics, twins and seconds of a chunk. Logits exist for the layers of one sample at a time."""
    seconds = dict.fromkeys(["sources", *LensesConfig.METHODS, "checks with hooks"], 0.0)
    started = time.perf_counter()
    texts, positions = [drawn.tokens[sample.text] for sample in chunk], [sample.position for sample in chunk]
    states = extract_representations(model, texts, positions, [*layers, model.cfg.n_layers - 1])
    seconds["sources"] = time.perf_counter() - started
    of_rows = torch.tensor(layers, device=states.device)
    predicted: dict[str, list[Tensor]] = {method: [] for method in LensesConfig.METHODS}
    twins: Json = {
        original: {
            "largest_difference": 0.0,
            "largest_difference_hooks": None,
            "largest_logit": 0.0,
            "same": 0,
            "rows": 0,
        }
        for original in LensesConfig.ORIGINALS
    }
    for sample, text, rows in zip(chunk, texts, states[:, :-1], strict=True):
        logits: dict[str, Tensor] = {}
        for method in LensesConfig.METHODS:
            started = time.perf_counter()
            logits[method] = check_finite(model, lenses[method](text, sample.position)(rows, of_rows))
            predicted[method].append(logits[method].argmax(dim=-1))
            seconds[method] += time.perf_counter() - started
        for original, twin in twins.items():
            ours, theirs = logits[f"{original}_patchscope"], logits[original]
            twin["largest_difference"] = max(twin["largest_difference"], float((ours - theirs).abs().max()))
            twin["largest_logit"] = max(twin["largest_logit"], float(theirs.abs().max()))
            twin["same"] += int((ours.argmax(dim=-1) == theirs.argmax(dim=-1)).sum())
            twin["rows"] += len(theirs)
            if sample in checked and f"{original}_hooks" in lenses:
                started = time.perf_counter()
                plainly = lenses[f"{original}_hooks"](text, sample.position)(rows, of_rows)
                difference = float((plainly - theirs).abs().max())
                twin["largest_difference_hooks"] = max(twin["largest_difference_hooks"] or 0.0, difference)
                seconds["checks with hooks"] += time.perf_counter() - started
    final_logits = logit_lens(model, states[:, -1])
    measured = {
        method: {
            "precision_at_1": precision_at_1(torch.stack(tokens), final_logits).int().tolist(),
            "surprisal": surprisal(torch.stack(tokens), final_logits).tolist(),
        }
        for method, tokens in predicted.items()
    }
    return {"measured": measured, "twins": twins, "seconds": seconds}
