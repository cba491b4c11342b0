"""Figure 2: how early can each lens read the model's next token out of a representation? (Paper, section 4.1)

For one random position in each text, every method reads the representation of that token at every layer and says
which token the model will predict next. Compared with the model's own prediction at that position, that gives
Precision@1 and Surprisal per layer.

All methods are instances of one Patchscope with ℓ* = ℓ:

* `logit_lens`: the representation goes straight to the unembedding;
* `tuned_lens`: an affine map to the last layer, fitted by least squares on other texts, comes before that;
* `tuned_lens_kl`: the same with maps trained by KL;
* `jacobian_lens`: the same with the mean Jacobian of the last layer;
* `token_identity`: it is written over the placeholder of the token-identity prompt;
* `simplescope`: it is written over the placeholder of the prompt `?`;
* `best_prompt`: the same with the prompt that `target_prompts` chose for the layer.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.baselines import AffineLens, Lens, LogitLens, PatchscopeLens, build_best_prompt_lens
from patchscopes.data.target_prompts import PromptBand
from patchscopes.data.texts import Sample, TextSet
from patchscopes.engine.batching import run_in_batches
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import placeholder_target
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.checks import check_methods
from patchscopes.experiments.chunks import Progress, StopWatch, measure_chunks, split_into_chunks, sum_timing
from patchscopes.experiments.config import NextTokenConfig
from patchscopes.experiments.sampling import (
    CHUNK_SAMPLES,
    METRICS,
    SampledPositions,
    sample_positions,
    score_predictions,
    summarise_samples,
)
from patchscopes.learned.mappings import AffineMap, LayerMapping, MapKey
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.prompts import NO_CHAT, SIMPLESCOPE_PROMPT, ChatForm, build_token_identity_prompt
from patchscopes.results import ChunkStore, Json


def run(
    model: LensModel,
    texts: TextSet,
    config: NextTokenConfig,
    store: ChunkStore,
    *,
    maps: Mapping[str, Mapping[MapKey, AffineMap]] | None = None,
    prompts: Sequence[PromptBand] = (),
    progress: Progress = iter,
) -> tuple[Json, Json]:
    """Run the experiment, going on from the chunks in `store`.

    Args:
        maps, prompts: as for `build_lenses`.
        progress: wraps the iteration over chunks, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file. Seconds are summed over all chunks, those of earlier
        runs included, by what they were spent on.

    Raises:
        PatchscopesError: as `build_lenses`, a layer does not exist, or the texts have too few positions.
    """
    lenses = build_lenses(model, config.methods, maps or {}, prompts, config.chat)
    layers = resolve_layers(model, config.layers)
    drawn = sample_positions(model, texts, config.n_samples, config.seed, chat=config.chat)

    def measure(samples: Sequence[Sample]) -> Json:
        return measure_samples(model, drawn, samples, layers, lenses, config.batch_size)

    finished = measure_chunks(split_into_chunks(drawn.samples, CHUNK_SAMPLES), store, measure, progress)
    summary = summarise_samples(finished, drawn.samples, config.methods, METRICS, config.seed)
    return {"layers": layers} | summary, sum_timing(finished)


def build_lenses(
    model: LensModel,
    methods: Sequence[str],
    maps: Mapping[str, Mapping[MapKey, AffineMap]],
    prompts: Sequence[PromptBand] = (),
    chat: ChatForm = NO_CHAT,
) -> dict[str, Lens]:
    """The lens of each method.

    Args:
        maps: for `tuned_lens`, `tuned_lens_kl` and `jacobian_lens`, if they are among the methods, their maps to the
            last layer.
        prompts: for `best_prompt`, if it is among them, the prompts of all layers.
        chat: in which form the model reads target prompts.

    Raises:
        PatchscopesError: a method does not exist, has no maps or prompts, or those of another model.
    """
    check_methods(methods, NextTokenConfig.METHODS)
    lenses: dict[str, Lens] = {}
    for method in methods:
        if method == "logit_lens":
            lenses[method] = LogitLens(model)
        elif method == "token_identity":
            lenses[method] = PatchscopeLens(placeholder_target(model, chat.of_target(build_token_identity_prompt())))
        elif method == "simplescope":
            lenses[method] = PatchscopeLens(placeholder_target(model, chat.of_target(SIMPLESCOPE_PROMPT)))
        elif method == "best_prompt":
            lenses[method] = build_best_prompt_lens(model, prompts, chat)
        elif method in maps:
            lenses[method] = AffineLens(model, LayerMapping.to_last(model, maps[method]))
        else:
            raise PatchscopesError(f"{method} needs its maps: learn them with patchscopes.learned or train_lens.py")
    return lenses


def measure_samples(
    model: LensModel,
    drawn: SampledPositions,
    samples: Sequence[Sample],
    layers: Sequence[int],
    lenses: Mapping[str, Lens],
    batch_size: int | None,
) -> Json:
    """Both metrics of each method for each sample of a chunk, and the seconds that each step took."""
    watch = StopWatch()
    with watch.time("sources"):
        representations = extract_representations(
            model, *drawn.get_sources(samples), [*layers, model.cfg.n_layers - 1], batch_size=batch_size or 32
        )
        final_logits = logit_lens(model, representations[:, -1])
    measured: Json = {}
    for method, lens in lenses.items():
        with watch.time(method):
            predicted = read_tokens(model, lens, representations[:, :-1], layers, batch_size)
            measured[method] = score_predictions(predicted, final_logits)
    return {"measured": measured, "seconds": watch.seconds}


def read_tokens(
    model: LensModel,
    lens: Lens,
    representations: Float[Tensor, "sample layer d_model"],
    layers: Sequence[int],
    batch_size: int | None,
) -> Int[Tensor, "sample layer"]:
    """The most likely next token, by a lens, for each representation; logits exist for one batch of rows at a time."""
    vectors = representations.flatten(0, 1)
    row_layers = torch.tensor(layers, device=vectors.device).repeat(len(representations))

    def read(rows: slice) -> Int[Tensor, " batch"]:
        return lens(vectors[rows], row_layers[rows]).argmax(dim=-1)

    batches = run_in_batches(model, len(vectors), read, batch_size=batch_size)
    return torch.cat([tokens for _, tokens in batches]).view(representations.shape[:2])
