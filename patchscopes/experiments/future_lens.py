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

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.baselines import AffineLens
from patchscopes.data.texts import Sample, TextSet
from patchscopes.engine.batching import RowSize, run_in_batches
from patchscopes.engine.proof import Engine
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.checks import check_methods
from patchscopes.experiments.chunks import Progress, StopWatch, measure_chunks, split_into_chunks, sum_timing
from patchscopes.experiments.config import FutureLensConfig
from patchscopes.experiments.sampling import CHUNK_SAMPLES, SampledPositions, sample_positions, summarise_samples
from patchscopes.learned.config import FIXED_PROMPT, N_TOKENS
from patchscopes.learned.continuation import Continued, read_with_continuation
from patchscopes.learned.future_lens import SoftPrompt, build_fixed_prompt_target
from patchscopes.learned.mappings import AffineMap, LayerMapping, MapKey
from patchscopes.metrics import rank
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import patch_logits_ahead_in_batches
from patchscopes.prompts import NO_CHAT, ChatForm, build_token_identity_prompt
from patchscopes.results import ChunkStore, Json

# Representations and their layers in; logits of tokens t+1, t+2, t+3 out, batch by batch.
Reader: TypeAlias = Callable[
    [Float[Tensor, "row d_model"], Int[Tensor, " row"]], Iterator[Float[Tensor, "batch ahead d_vocab"]]
]


def run(
    model: LensModel,
    texts: TextSet,
    config: FutureLensConfig,
    store: ChunkStore,
    *,
    maps: Mapping[MapKey, AffineMap] | None = None,
    soft_prompt: SoftPrompt | None = None,
    progress: Progress = iter,
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
    readers = build_readers(model, config.methods, maps, soft_prompt, config.batch_size, config.chat)
    layers = resolve_layers(model, config.layers)
    drawn = sample_positions(model, texts, config.n_samples, config.seed, room=N_TOKENS - 1, chat=config.chat)

    def measure(samples: Sequence[Sample]) -> Json:
        return _measure(model, drawn, samples, layers, readers)

    finished = measure_chunks(split_into_chunks(drawn.samples, CHUNK_SAMPLES), store, measure, progress)
    summary = summarise_samples(finished, drawn.samples, config.methods, FutureLensConfig.METRICS, config.seed)
    return {"layers": layers, "ahead": list(range(1, N_TOKENS + 1))} | summary, sum_timing(finished)


def build_readers(
    model: LensModel,
    methods: Sequence[str],
    maps: Mapping[MapKey, AffineMap] | None,
    soft_prompt: SoftPrompt | None,
    batch_size: int | None,
    chat: ChatForm = NO_CHAT,
) -> dict[str, Reader]:
    """The reader of each method.

    Args:
        chat: in which form the model reads target prompts; a learned one stays as it was learned.

    Raises:
        PatchscopesError: a method does not exist, or lacks what it has to learn first.
    """
    check_methods(methods, FutureLensConfig.METHODS)
    readers: dict[str, Reader] = {}
    for method in methods:
        if method == "linear" and maps is not None:
            readers[method] = build_linear_reader(model, maps, batch_size)
        elif method == "learned_prompt" and soft_prompt is not None:
            readers[method] = build_prompt_reader(soft_prompt.target(model), batch_size)
        elif method == "fixed_prompt":
            target = build_fixed_prompt_target(model, chat.of_target(FIXED_PROMPT))
            readers[method] = build_prompt_reader(target, batch_size)
        elif method == "token_identity":
            target = placeholder_target(model, chat.of_target(build_token_identity_prompt()))
            readers[method] = build_prompt_reader(target, batch_size)
        else:
            raise PatchscopesError(f"{method} must be learned first: see scripts/train_lens.py")
    return readers


def build_prompt_reader(
    target: TargetPrompt, batch_size: int | None, n_tokens: int = N_TOKENS, *, engine: Engine = "auto"
) -> Reader:
    """A Patchscope with ℓ* = ℓ that goes on for three tokens, or another number of them."""

    def read(
        vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, " row"]
    ) -> Iterator[Float[Tensor, "batch ahead d_vocab"]]:
        return patch_logits_ahead_in_batches(target, vectors, layers, n_tokens, engine=engine, batch_size=batch_size)

    return read


def build_linear_reader(model: LensModel, maps: Mapping[MapKey, AffineMap], batch_size: int | None) -> Reader:
    """Affine maps to the last layer of the same token and of the next two."""
    lenses = [AffineLens(model, LayerMapping.to_last(model, maps, ahead)) for ahead in range(N_TOKENS)]

    def read(
        vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, " row"]
    ) -> Iterator[Float[Tensor, "batch ahead d_vocab"]]:
        def run(rows: slice) -> Float[Tensor, "batch ahead d_vocab"]:
            return torch.stack([lens(vectors[rows], layers[rows]) for lens in lenses], dim=1)

        row = RowSize(unembedded=N_TOKENS)
        return (logits for _, logits in run_in_batches(model, len(vectors), run, row=row, batch_size=batch_size))

    return read


def _measure(
    model: LensModel,
    drawn: SampledPositions,
    samples: Sequence[Sample],
    layers: Sequence[int],
    readers: Mapping[str, Reader],
) -> Json:
    """All metrics, `[sample, ahead, layer]`, of each method for a chunk, and the seconds that each step took."""
    watch = StopWatch()
    with watch.time("sources"):
        source = read_with_continuation(model, *drawn.get_sources(samples), layers, N_TOKENS)
        log_probabilities = torch.log_softmax(logit_lens(model, source.final).float(), dim=-1)
    measured: Json = {}
    for method, read in readers.items():
        with watch.time(method):
            measured[method] = _score_reader(read, source, layers, log_probabilities)
    return {"measured": measured, "seconds": watch.seconds}


def _score_reader(
    read: Reader,
    source: Continued,
    layers: Sequence[int],
    log_probabilities: Float[Tensor, "sample ahead d_vocab"],
) -> Json:
    """All metrics of one method, each as a table `[sample, ahead, layer]`.

    Args:
        source: the representations that are read, and the model's own continuation.
        log_probabilities: what the model itself predicts at each token of its continuation.
    """
    vectors, n_samples = source.representations.flatten(0, 1), len(source.tokens)
    row_layers = torch.tensor(layers, device=vectors.device).repeat(n_samples)
    row_samples = torch.arange(n_samples, device=vectors.device).repeat_interleave(len(layers))
    ahead = torch.arange(N_TOKENS, device=vectors.device)
    ranks, surprisals = [], []
    n_read = 0
    for logits in read(vectors, row_layers):
        batch_samples = row_samples[n_read : n_read + len(logits)]
        n_read += len(logits)
        ranks.append(rank(logits.flatten(0, 1), source.tokens[batch_samples].flatten()))
        surprisals.append(-log_probabilities[batch_samples[:, None], ahead, logits.argmax(dim=-1)])

    def tabulate(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts).view(n_samples, len(layers), N_TOKENS).transpose(1, 2)

    table_of_ranks = tabulate(ranks)
    scores: Json = {f"precision_at_{k}": (table_of_ranks < k).int().tolist() for k in FutureLensConfig.PRECISION_AT}
    return scores | {"surprisal": tabulate(surprisals).tolist()}
