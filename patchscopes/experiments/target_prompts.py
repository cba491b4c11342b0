"""Which target prompt reads best? Token identity (the paper's) and the Simplescope are two of many.

Candidates are tried as in Figure 2: a state is written over the placeholder at ℓ* = ℓ, and what the model says next is
compared with its own prediction. The best of many looks better than it is on the texts that it was chosen on. So the
prompt of each band of layers is chosen on train texts (`target_prompts_choice`), and what is reported of it is how well
it reads evaluation texts, beside token identity and Simplescope on the same positions.

Where the placeholder ends the prompt, nothing of it is left once a state is written over it, and no token comes after
it that could have read it: such candidates differ only in what stands before. With tokens behind it the placeholder
matters, since they read its keys and values in the blocks up to ℓ*.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from jaxtyping import Float, Int

from patchscopes.baselines import PatchscopeLens
from patchscopes.data.target_prompts import Candidate
from patchscopes.data.texts import Sample, TextSet, check_train
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.chunks import Progress, measure_chunks, split_into_chunks, sum_timing
from patchscopes.experiments.config import TargetPromptsConfig
from patchscopes.experiments.next_token import build_lenses, measure_samples
from patchscopes.experiments.sampling import CHUNK_SAMPLES, METRICS, SampledPositions, sample_positions
from patchscopes.experiments.target_prompts_choice import average_in_bands, choose_prompts, split_into_bands
from patchscopes.metrics import mean_with_interval
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.prompts import NO_CHAT, ChatForm
from patchscopes.results import ChunkStore, Json


def run(
    model: LensModel,
    candidates: Sequence[Candidate],
    train: TextSet,
    texts: TextSet,
    config: TargetPromptsConfig,
    store: ChunkStore,
    *,
    progress: Progress = iter,
) -> tuple[Json, Json]:
    """Run the experiment, going on from the chunks in `store`.

    Args:
        train: texts that the prompts are chosen on, and nothing else is.
        texts: what the chosen prompts are scored on.
        progress: wraps the iterations over chunks, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file.

    Raises:
        PatchscopesError: no candidate can be used, a layer does not exist, there is no band, the train texts are of
            another split, or texts have too few positions.
    """
    check_train(train)
    layers = resolve_layers(model, config.layers, TargetPromptsConfig.N_LAYERS)
    bands = split_into_bands(layers, model.cfg.n_layers, config.n_bands)
    targets, left_out = build_targets(model, candidates, config.chat)
    tried_on = sample_positions(model, train, config.n_train_samples, config.seed, chat=config.chat)
    scored_on = sample_positions(model, texts, config.n_samples, config.seed, chat=config.chat)

    tried = measure_chunks(
        split_into_chunks(tried_on.samples, CHUNK_SAMPLES),
        store.at("train"),
        lambda samples: try_candidates(model, tried_on, samples, layers, targets, config.batch_size),
        progress,
        decides=True,
    )
    trials = tabulate(tried, [str(number) for number in range(len(targets))])
    chosen = choose_prompts(trials, bands, list(targets), number_texts(tried_on), config.seed)

    prompts = [choice.prompt_band for choice in chosen]
    lenses = build_lenses(model, TargetPromptsConfig.METHODS, {}, prompts, config.chat)
    scored = measure_chunks(
        split_into_chunks(scored_on.samples, CHUNK_SAMPLES),
        store.at("evaluation"),
        lambda samples: measure_samples(model, scored_on, samples, layers, lenses, config.batch_size),
        progress,
    )
    scores = tabulate(scored, TargetPromptsConfig.METHODS)
    results = {
        "layers": layers,
        **count_samples(scored_on),
        **compare(scores, scored_on, config.seed),
        "by_band": compare(average_in_bands(scores, bands), scored_on, config.seed),
        "bands": [choice.as_json(layers) for choice in chosen],
        "train": count_samples(tried_on) | {"candidates": describe_trials(targets, trials, tried_on, config.seed)},
        "left_out": left_out,
    }
    return results, sum_timing([*tried, *scored])


def build_targets(
    model: LensModel, candidates: Sequence[Candidate], chat: ChatForm = NO_CHAT
) -> tuple[dict[Candidate, TargetPrompt], list[str]]:
    """The target prompt of each candidate, and why others cannot be used with this model.

    Args:
        chat: in which form the model reads them.

    Raises:
        PatchscopesError: none can.
    """
    targets: dict[Candidate, TargetPrompt] = {}
    left_out: list[str] = []
    for candidate in candidates:
        try:
            prompt = chat.of_target(candidate.prompt)
            targets[candidate] = placeholder_target(model, prompt, candidate.placeholder)
        except PatchscopesError as error:
            left_out.append(str(error))
    if not targets:
        raise PatchscopesError(f"none of the {len(candidates)} target prompts can be used: {'; '.join(left_out[:3])}")
    return targets, left_out


def try_candidates(
    model: LensModel,
    drawn: SampledPositions,
    samples: Sequence[Sample],
    layers: Sequence[int],
    targets: Mapping[Candidate, TargetPrompt],
    batch_size: int | None,
) -> Json:
    """Both metrics of each candidate, by its number, for each sample of a chunk; states are extracted once for all."""
    # One candidate after the other: as rows of several prompts in one call they took no less time.
    lenses = {str(number): PatchscopeLens(target) for number, target in enumerate(targets.values())}
    tried = measure_samples(model, drawn, samples, layers, lenses, batch_size)
    seconds = tried["seconds"]
    return tried | {"seconds": {"sources": seconds["sources"], "candidates": sum(seconds[number] for number in lenses)}}


def tabulate(finished: Sequence[Json], methods: Sequence[str]) -> dict[str, Float[np.ndarray, "sample method layer"]]:
    """Each metric of all samples."""
    return {
        metric: np.concatenate(
            [
                np.stack([np.array(chunk["measured"][method][metric], dtype=float) for method in methods], axis=1)
                for chunk in finished
            ]
        )
        for metric in METRICS
    }


def number_texts(drawn: SampledPositions) -> Int[np.ndarray, " sample"]:
    """The text of each sample: positions of one text are not independent, so they are resampled together."""
    return np.array([sample.text for sample in drawn.samples])


def count_samples(drawn: SampledPositions) -> Json:
    """How many positions there are, in how many texts."""
    return {"n_samples": len(drawn.samples), "n_texts": len(np.unique(number_texts(drawn)))}


def describe_trials(
    targets: Mapping[Candidate, TargetPrompt],
    tables: Mapping[str, Float[np.ndarray, "sample candidate layer"]],
    drawn: SampledPositions,
    seed: int,
) -> list[Json]:
    """Each candidate, with its measures on train texts."""
    measures = summarise(tables, drawn, seed)
    return [
        asdict(candidate) | {"n_tokens": len(target.tokens)} | of_candidate
        for (candidate, target), of_candidate in zip(targets.items(), measures, strict=True)
    ]


def compare(tables: Mapping[str, Float[np.ndarray, "sample method place"]], drawn: SampledPositions, seed: int) -> Json:
    """The measures of each method at each place (layer or band), and by how much the first is above each other one."""
    methods = TargetPromptsConfig.METHODS
    differences = {metric: table[:, :1] - table[:, 1:] for metric, table in tables.items()}
    return {
        "methods": dict(zip(methods, summarise(tables, drawn, seed), strict=True)),
        "differences": dict(zip(methods[1:], summarise(differences, drawn, seed), strict=True)),
    }


def summarise(
    tables: Mapping[str, Float[np.ndarray, "sample method place"]], drawn: SampledPositions, seed: int
) -> list[Json]:
    """Both metrics of each method: means over samples with their intervals over texts."""
    texts = number_texts(drawn)
    n_methods = next(iter(tables.values())).shape[1]
    return [
        {
            metric: mean_with_interval(table[:, method], groups=texts, seed=seed).as_json()
            for metric, table in tables.items()
        }
        for method in range(n_methods)
    ]
