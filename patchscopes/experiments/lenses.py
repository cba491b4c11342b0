"""Seven ways to read the next token from one hidden state, side by side on the same samples (paper, section 3.2).

Logit Lens, Tuned Lens and Future Lens, each in its original form and as the Patchscope that computes the same, and the
token-identity Patchscope. An original and its twin take different ways through the code: the originals are a formula
or plain TransformerLens hooks, the twins write into a target prompt and let the fast engine go on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.baselines import AffineLens, Lens, LogitLens, PatchscopeLens, source_patchscope
from patchscopes.data.texts import Sample, TextSet
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import placeholder_target
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.checks import check_finite
from patchscopes.experiments.chunks import Progress, StopWatch, measure_chunks, split_into_chunks, sum_timing
from patchscopes.experiments.config import FutureForm, LensesConfig
from patchscopes.experiments.sampling import (
    CHUNK_SAMPLES,
    METRICS,
    SampledPositions,
    sample_positions,
    score_predictions,
    summarise_samples,
)
from patchscopes.learned.future_lens import SoftPrompt, build_fixed_prompt_target
from patchscopes.learned.mappings import AffineMap, LayerMapping, MapKey
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.prompts import build_token_identity_prompt
from patchscopes.results import ChunkStore, Json

# A lens bound to one sample, S and i: with T = S it needs them.
LensOfSample: TypeAlias = Callable[[Int[Tensor, " pos"], int], Lens]


def run(
    model: LensModel,
    texts: TextSet,
    config: LensesConfig,
    store: ChunkStore,
    *,
    maps: Mapping[MapKey, AffineMap],
    soft_prompt: SoftPrompt | None = None,
    progress: Progress = iter,
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
    drawn = sample_positions(model, texts, config.n_samples, config.seed)
    step = max(1, len(drawn.samples) // max(1, config.n_checked_with_hooks))
    checked = set(drawn.samples[::step][: config.n_checked_with_hooks])

    def measure(samples: Sequence[Sample]) -> Json:
        return _measure(model, drawn, samples, layers, lenses, checked)

    finished = measure_chunks(split_into_chunks(drawn.samples, CHUNK_SAMPLES), store, measure, progress)
    summary = summarise_samples(finished, drawn.samples, LensesConfig.METHODS, METRICS, config.seed)
    twins = {original: _summarise_twin(finished, original) for original in LensesConfig.ORIGINALS}
    return {"layers": layers} | summary | {"twins": twins}, sum_timing(finished)


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


def ignore_sample(lens: Lens) -> LensOfSample:
    """A lens that no sample changes."""
    return lambda text, position: lens


@dataclass
class Twin:
    """How far an original and its Patchscope are apart, over the rows that were compared so far."""

    largest_difference: float = 0.0
    largest_difference_hooks: float | None = None
    largest_logit: float = 0.0
    same: int = 0
    rows: int = 0

    def compare(self, patchscope: Float[Tensor, "row d_vocab"], original: Float[Tensor, "row d_vocab"]) -> None:
        """Add the logits of some rows."""
        self.largest_difference = max(self.largest_difference, float((patchscope - original).abs().max()))
        self.largest_logit = max(self.largest_logit, float(original.abs().max()))
        self.same += int((patchscope.argmax(dim=-1) == original.argmax(dim=-1)).sum())
        self.rows += len(original)

    def compare_hooks(self, patchscope: Float[Tensor, "row d_vocab"], original: Float[Tensor, "row d_vocab"]) -> None:
        """Add the logits of some rows for which the Patchscope ran with plain hooks."""
        difference = float((patchscope - original).abs().max())
        self.largest_difference_hooks = max(self.largest_difference_hooks or 0.0, difference)


def _measure(
    model: LensModel,
    drawn: SampledPositions,
    samples: Sequence[Sample],
    layers: Sequence[int],
    lenses: Mapping[str, LensOfSample],
    checked: set[Sample],
) -> Json:
    """Metrics, twins and seconds of a chunk. Logits exist for the layers of one sample at a time."""
    watch = StopWatch()
    texts, positions = drawn.get_sources(samples)
    with watch.time("sources"):
        states = extract_representations(model, texts, positions, [*layers, model.cfg.n_layers - 1])
    row_layers = torch.tensor(layers, device=states.device)
    predicted: dict[str, list[Tensor]] = {method: [] for method in LensesConfig.METHODS}
    twins = {original: Twin() for original in LensesConfig.ORIGINALS}
    for sample, text, rows in zip(samples, texts, states[:, :-1], strict=True):
        logits: dict[str, Tensor] = {}
        for method in LensesConfig.METHODS:
            with watch.time(method):
                logits[method] = check_finite(model, lenses[method](text, sample.position)(rows, row_layers))
                predicted[method].append(logits[method].argmax(dim=-1))
        for original, twin in twins.items():
            twin.compare(logits[f"{original}_patchscope"], logits[original])
            if sample in checked and f"{original}_hooks" in lenses:
                with watch.time("checks with hooks"):
                    with_hooks = lenses[f"{original}_hooks"](text, sample.position)(rows, row_layers)
                    twin.compare_hooks(with_hooks, logits[original])
    final_logits = logit_lens(model, states[:, -1])
    return {
        "measured": {
            method: score_predictions(torch.stack(tokens), final_logits) for method, tokens in predicted.items()
        },
        "twins": {original: asdict(twin) for original, twin in twins.items()},
        "seconds": watch.seconds,
    }


def _summarise_twin(finished: Sequence[Json], original: str) -> Json:
    """How far an original and its Patchscope are apart, over all chunks."""
    twins = [Twin(**chunk["twins"][original]) for chunk in finished]
    with_hooks = [twin.largest_difference_hooks for twin in twins if twin.largest_difference_hooks is not None]
    return {
        "largest_difference": max(twin.largest_difference for twin in twins),
        "largest_difference_hooks": max(with_hooks, default=None),
        "largest_logit": max(twin.largest_logit for twin in twins),
        "same_token": sum(twin.same for twin in twins) / sum(twin.rows for twin in twins),
    }
