"""Ways to read the next token from one hidden state, side by side on the same samples (paper, section 3.2).

Logit Lens, Tuned Lens and Future Lens, and if asked for the Jacobian Lens, each in its original form and as the
Patchscope that computes the same, and the token-identity Patchscope. An original and its twin take different ways
through the code: the originals are a formula or plain TransformerLens hooks, the twins write into a target prompt and
let the fast engine go on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.baselines import AffineLens, Lens, LogitLens, PatchscopeLens, source_patchscope
from patchscopes.data.texts import Sample, TextSet
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.checks import check_methods
from patchscopes.experiments.chunks import (
    Progress,
    StopWatch,
    measure_chunks,
    measure_parts,
    split_into_chunks,
    sum_timing,
)
from patchscopes.experiments.config import LensesConfig
from patchscopes.experiments.sampling import (
    CHUNK_SAMPLES,
    METRICS,
    SampledPositions,
    sample_positions,
    score_predictions,
    summarise_samples,
)
from patchscopes.learned.config import FIXED_PROMPT
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
    maps: Mapping[MapKey, AffineMap] | None = None,
    jacobian_maps: Mapping[MapKey, AffineMap] | None = None,
    soft_prompt: SoftPrompt | None = None,
    progress: Progress = iter,
) -> tuple[Json, Json]:
    """Run the experiment, going on from the chunks in `store`.

    Args:
        maps, jacobian_maps, soft_prompt: as for `build_lenses`.
        progress: wraps the iteration over chunks, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file. `results["twins"]` holds, for each original whose Patchscope
        is among the methods too, the largest difference of any logit between the two, the largest logit, and how often
        both say the same token.

    Raises:
        PatchscopesError: as `build_lenses`, a layer does not exist, or the texts have too few positions.
    """
    lenses = build_lenses(model, config, maps, jacobian_maps, soft_prompt)
    layers = resolve_layers(model, config.layers)
    drawn = sample_positions(model, texts, config.n_samples, config.seed, chat=config.chat)

    def measure(samples: Sequence[Sample]) -> Json:
        return _measure(model, drawn, samples, layers, lenses, config.methods)

    finished = measure_chunks(split_into_chunks(drawn.samples, CHUNK_SAMPLES), store, measure, progress)
    # A step of its own: the whole passes of a few samples take as long as all else of many.
    step = max(1, len(drawn.samples) // max(1, config.n_checked_with_hooks))
    pairs = [
        (original, sample)
        for original in find_originals(config.methods)
        if f"{original}_hooks" in lenses
        for sample in drawn.samples[::step][: config.n_checked_with_hooks]
    ]
    checks = {
        f"{number:05d}": partial(_check_with_hooks, model, drawn, sample, layers, lenses, original)
        for number, (original, sample) in enumerate(pairs)
    }
    checked = list(measure_parts(checks, store.at("checks_with_hooks"), iter).values())
    summary = summarise_samples(finished, drawn.samples, config.methods, METRICS, config.seed)
    with_hooks: dict[str, float] = {}
    for (original, _), one in zip(pairs, checked, strict=True):
        with_hooks[original] = max(with_hooks.get(original, 0.0), one["difference"])
    twins = {
        original: summarise_twins([Twin(**chunk["twins"][original]) for chunk in finished])
        | {"largest_difference_hooks": with_hooks.get(original)}
        for original in find_originals(config.methods)
    }
    return {"layers": layers} | summary | {"twins": twins}, sum_timing([*finished, *checked])


def build_lenses(
    model: LensModel,
    config: LensesConfig,
    maps: Mapping[MapKey, AffineMap] | None = None,
    jacobian_maps: Mapping[MapKey, AffineMap] | None = None,
    soft_prompt: SoftPrompt | None = None,
) -> dict[str, LensOfSample]:
    """Those of the methods; and with an original, its Patchscope, and under `…_hooks` the same by plain hooks.

    Args:
        maps: the Tuned Lens.
        jacobian_maps: the Jacobian Lens.
        soft_prompt: the Future Lens, if it is the learned prompt.

    Raises:
        PatchscopesError: there is no such method, or it has no maps or no prompt, or those of another model.
    """
    check_methods(config.methods, LensesConfig.METHODS)
    lenses: dict[str, LensOfSample] = {}
    learned = {"tuned_lens": maps, "jacobian_lens": jacobian_maps}
    for method in dict.fromkeys(name.removesuffix("_patchscope") for name in config.methods):
        if method == "logit_lens":
            lenses |= _build_forms(model, method, LogitLens(model), None)
        elif method == "token_identity":
            identity = config.chat.of_target(build_token_identity_prompt())
            lenses[method] = ignore_sample(PatchscopeLens(placeholder_target(model, identity)))
        elif method == "future_lens":
            target = _build_future_target(model, config, soft_prompt)
            lenses[method] = ignore_sample(PatchscopeLens(target, engine="hooks"))
            lenses[f"{method}_patchscope"] = ignore_sample(PatchscopeLens(target))
        else:
            of_method = learned[method]
            if of_method is None:
                raise PatchscopesError(f"{method} needs its maps: learn them with patchscopes.learned or train_lens.py")
            mapping = LayerMapping.to_last(model, of_method)
            lenses |= _build_forms(model, method, AffineLens(model, mapping), mapping)
    return lenses


def _build_forms(
    model: LensModel, method: str, original: Lens, mapping: LayerMapping | None
) -> dict[str, LensOfSample]:
    """The original, and the Patchscope T = S, i* = i, ℓ* = last with the mapping, by the fast engine and by hooks."""
    return {
        method: ignore_sample(original),
        f"{method}_patchscope": lambda text, position: source_patchscope(model, text, position, mapping),
        f"{method}_hooks": lambda text, position: source_patchscope(model, text, position, mapping, engine="hooks"),
    }


def _build_future_target(model: LensModel, config: LensesConfig, soft_prompt: SoftPrompt | None) -> TargetPrompt:
    form = config.future_lens
    if form == "fixed_prompt":
        return build_fixed_prompt_target(model, config.chat.of_target(FIXED_PROMPT))
    if form == "learned_prompt" and soft_prompt is not None:
        return soft_prompt.target(model)
    raise PatchscopesError(f"the Future Lens is fixed_prompt, or learned_prompt with a prompt; got {form!r}")


def find_originals(methods: Sequence[str]) -> list[str]:
    """The originals among the methods whose Patchscope is there too."""
    return [name for name in LensesConfig.ORIGINALS if {name, f"{name}_patchscope"} <= set(methods)]


def ignore_sample(lens: Lens) -> LensOfSample:
    """A lens that no sample changes."""
    return lambda text, position: lens


@dataclass
class Twin:
    """How far an original and its Patchscope are apart, over the rows that were compared so far."""

    largest_difference: float = 0.0
    largest_logit: float = 0.0
    same: int = 0
    rows: int = 0

    def compare(self, patchscope: Float[Tensor, "row d_vocab"], original: Float[Tensor, "row d_vocab"]) -> None:
        """Add the logits of some rows."""
        self.largest_difference = max(self.largest_difference, float((patchscope - original).abs().max()))
        self.largest_logit = max(self.largest_logit, float(original.abs().max()))
        self.same += int((patchscope.argmax(dim=-1) == original.argmax(dim=-1)).sum())
        self.rows += len(original)


def _measure(
    model: LensModel,
    drawn: SampledPositions,
    samples: Sequence[Sample],
    layers: Sequence[int],
    lenses: Mapping[str, LensOfSample],
    methods: Sequence[str],
) -> Json:
    """Metrics, twins and seconds of a chunk. Logits exist for the layers of one sample at a time."""
    watch = StopWatch()
    texts, positions = drawn.get_sources(samples)
    with watch.time("sources"):
        states = extract_representations(model, texts, positions, [*layers, model.cfg.n_layers - 1])
    row_layers = torch.tensor(layers, device=states.device)
    predicted: dict[str, list[Tensor]] = {method: [] for method in methods}
    twins = {original: Twin() for original in find_originals(methods)}
    for sample, text, rows in zip(samples, texts, states[:, :-1], strict=True):
        logits: dict[str, Tensor] = {}
        for method in methods:
            with watch.time(method):
                logits[method] = lenses[method](text, sample.position)(rows, row_layers)
                predicted[method].append(logits[method].argmax(dim=-1))
        for original, twin in twins.items():
            twin.compare(logits[f"{original}_patchscope"], logits[original])
    final_logits = logit_lens(model, states[:, -1])
    return {
        "measured": {
            method: score_predictions(torch.stack(tokens), final_logits) for method, tokens in predicted.items()
        },
        "twins": {original: asdict(twin) for original, twin in twins.items()},
        "seconds": watch.seconds,
    }


def _check_with_hooks(
    model: LensModel,
    drawn: SampledPositions,
    sample: Sample,
    layers: Sequence[int],
    lenses: Mapping[str, LensOfSample],
    original: str,
) -> Json:
    """The largest difference of any logit between an original and its Patchscope with plain hooks, on one sample."""
    watch = StopWatch()
    (text,), (position,) = drawn.get_sources([sample])
    with watch.time("checks with hooks"):
        (states,) = extract_representations(model, [text], [position], layers)
        ours, theirs = (
            lenses[name](text, position)(states, torch.tensor(layers, device=states.device))
            for name in (f"{original}_hooks", original)
        )
    return {"difference": float((ours - theirs).abs().max()), "seconds": watch.seconds}


def summarise_twins(twins: Sequence[Twin]) -> Json:
    """How far an original and its Patchscope are apart, over all rows of several comparisons."""
    return {
        "largest_difference": max(twin.largest_difference for twin in twins),
        "largest_logit": max(twin.largest_logit for twin in twins),
        "same_token": sum(twin.same for twin in twins) / sum(twin.rows for twin in twins),
    }
