"""The rows primitive: write hidden states into a target prompt, and let the model go on from there.

A Patchscope (Ghandeharioun et al., ICML 2024, section 3) takes the representation of token i at layer ℓ of a
source prompt, and writes it over token i* at layer ℓ* of a target prompt. Every experiment of the library asks one
question of this module: *here are R vectors and R target layers; what does the model say after the target prompt
when vector r is written at (i*, layer r)?*

Layer ℓ means the residual stream after block ℓ (`blocks.{ℓ}.hook_resid_post`); `EMBEDDING` is what enters block 0.
Vectors come from `extract_representations`; any function of them (the mapping f) can be applied in between.

Two engines answer (`patchscopes.engine`). `"hooks"` is the plain one: a full forward pass with TransformerLens hooks
for each batch of rows. `"fast"` computes the same and skips what rows have in common. `"auto"` uses the fast engine
once it has been proved to do what hooks do on this model, and otherwise warns and uses hooks. A HookedTransformer of
TransformerLens 3 always runs on hooks: the fast engine takes a bridge's Hugging Face model apart, and it has none.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.engine import fast, hooks
from patchscopes.engine.batching import check_length, get_row_size, rows_per_batch, run_in_batches
from patchscopes.engine.extract import extract_representation, extract_representations
from patchscopes.engine.generation import Stop, concatenate_logits, find_most_likely, generate, number_rows
from patchscopes.engine.overflow import check_finite
from patchscopes.engine.proof import Engine, choose_engine
from patchscopes.engine.relevancy import generate_with_relevancy, score_tokens
from patchscopes.engine.row_patching import generate_rows, patch_rows, patch_rows_in_batches
from patchscopes.engine.rows import Cut, Row, Write
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.given import AnyModel, AnyNumber, AnyNumbers, AnyVector, AnyVectors, to_rows, to_tensor
from patchscopes.model.layers import EMBEDDING, check_layer
from patchscopes.tokens import Text, decode_each_token, get_end_tokens

__all__ = [
    "EMBEDDING",
    "Cut",
    "Row",
    "TargetPrompt",
    "Write",
    "extract_representation",
    "extract_representations",
    "generate_after",
    "generate_rows",
    "generate_with_patch",
    "generate_with_relevancy",
    "patch_generate",
    "patch_logits",
    "patch_logits_ahead_in_batches",
    "patch_logits_in_batches",
    "patch_rows",
    "patch_rows_in_batches",
    "placeholder_target",
    "rows_per_batch",
    "run_with_patch",
    "score_tokens",
]


@torch.no_grad()
def patch_logits(
    target: TargetPrompt,
    vectors: AnyVectors,
    layers: AnyNumbers,
    *,
    engine: Engine = "auto",
    batch_size: int | None = None,
) -> Float[Tensor, "row d_vocab"]:
    """Logits of the token after the target prompt, for each row patched at (i*, its layer).

    Args:
        target: the prompt T and the position i*.
        vectors: what to write over the representation of token i*, one row each; also of NumPy, or in lists.
        layers: the target layer ℓ* of each row, in any order and mix; `EMBEDDING` is what enters block 0.
        engine: `"hooks"` runs the whole prompt through the whole model, and every hook that the user put on the
            model fires. `"fast"` shares what rows have in common; it runs the model's own modules without the
            bridge around them, so **no TransformerLens hook fires in it**, and it is used unproved. `"auto"` takes
            hooks when the model has hooks of the user's on it; otherwise fast, once it has been proved on this model,
            and hooks with a warning where it fails the proof.
        batch_size: rows at a time; chosen by size unless given, and halved with a warning where they are out of memory.
            Results do not depend on it beyond rounding.

    Raises:
        PatchscopesError: shapes or layers do not fit the model, or `engine="fast"` cannot run this model.
    """
    cfg = target.model.cfg
    out, n_done = torch.empty(0, cfg.d_vocab, dtype=cfg.dtype, device=cfg.device), 0
    for logits in patch_logits_in_batches(target, vectors, layers, engine=engine, batch_size=batch_size):
        if len(logits) == len(vectors):
            # Logits of one batch need no copy; those of whole passes would keep those of all tokens in memory.
            return logits.contiguous()
        if n_done == 0:
            # All of it at once: where it does not fit, smaller batches would not help.
            out = logits.new_empty(len(vectors), logits.shape[-1])
        out[n_done : n_done + len(logits)] = logits
        n_done += len(logits)
    return out


def patch_logits_in_batches(
    target: TargetPrompt,
    vectors: AnyVectors,
    layers: AnyNumbers,
    *,
    engine: Engine = "auto",
    batch_size: int | None = None,
) -> Iterator[Float[Tensor, "batch d_vocab"]]:
    """`patch_logits`, one batch of rows at a time: for more rows than their logits would fit into memory."""
    vectors, layers = _check_rows(target, vectors, layers)
    chosen = choose_engine(target, engine)
    ask = fast.first_logits if chosen == "fast" else hooks.first_logits

    @torch.no_grad()
    def run(rows: slice) -> Float[Tensor, "batch d_vocab"]:
        return ask(target, vectors[rows], layers[rows])

    row = get_row_size(target, chosen)
    batches = run_in_batches(target.model, len(vectors), run, row=row, batch_size=batch_size)
    return (logits for _, logits in batches)


def patch_logits_ahead_in_batches(
    target: TargetPrompt,
    vectors: AnyVectors,
    layers: AnyNumbers,
    n_tokens: int,
    *,
    engine: Engine = "auto",
    batch_size: int | None = None,
) -> Iterator[Float[Tensor, "batch n_tokens d_vocab"]]:
    """Logits of each of the next `n_tokens` tokens, while every row goes on with its own most likely ones.

    An end-of-sequence token is gone on from like any other. Args and errors: as for `patch_logits`.
    """
    vectors, layers = _check_rows(target, vectors, layers)
    check_length(target, n_tokens)
    chosen = choose_engine(target, engine)
    start_generation = fast.start_generation if chosen == "fast" else hooks.start_generation

    @torch.no_grad()
    def run(rows: slice) -> Float[Tensor, "batch n_tokens d_vocab"]:
        logits, advance = start_generation(target, vectors[rows], layers[rows])
        ahead = [concatenate_logits(logits)]
        everyone = torch.ones(len(ahead[0]), dtype=torch.bool, device=ahead[0].device)
        while len(ahead) < n_tokens:
            ahead.append(concatenate_logits(advance(find_most_likely(ahead[-1]), everyone)))
        return torch.stack(ahead, dim=1)

    row = get_row_size(target, chosen, n_tokens, unembedded=n_tokens)
    batches = run_in_batches(target.model, len(vectors), run, row=row, batch_size=batch_size)
    return (logits for _, logits in batches)


@torch.no_grad()
def patch_generate(
    target: TargetPrompt,
    vectors: AnyVectors,
    layers: AnyNumbers,
    *,
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    stop: Stop | None = None,
    engine: Engine = "auto",
    batch_size: int | None = None,
) -> Int[Tensor, "row new_token"]:
    """What the model says after the target prompt, for each row patched at (i*, its layer).

    The patch is written once, while the prompt is read; generated tokens see it through the keys and values that
    it caused. A row that has produced an end-of-sequence token is padded with that token. With a `temperature`
    above 0 tokens are sampled; the draws come from torch's global generator (`torch.manual_seed`), and depend
    neither on the engine nor on the batch size.

    Args:
        stop: given the new tokens of some rows so far, and the numbers of these rows, says which of them need not go on
            (they have answered, say); such a row is padded with the end-of-sequence token.

    Other args and errors: as for `patch_logits`.
    """
    vectors, layers = _check_rows(target, vectors, layers)
    if temperature < 0:
        raise PatchscopesError(f"temperature must be at least 0, got {temperature}")
    check_length(target, max_new_tokens)
    chosen = choose_engine(target, engine)
    start_generation = fast.start_generation if chosen == "fast" else hooks.start_generation
    draws = torch.rand(len(vectors), max_new_tokens) if temperature > 0 else None
    ends = get_end_tokens(target.model)

    def run(rows: slice) -> Int[Tensor, "batch new_token"]:
        some_vectors = vectors[rows]
        logits, advance = start_generation(target, some_vectors, layers[rows])
        some_draws = None if draws is None else draws[rows]
        some_stop = None if stop is None else number_rows(stop, torch.arange(len(vectors), device=ends.device)[rows])
        return generate(
            len(some_vectors), logits, advance, ends, max_new_tokens, temperature, some_draws, stop=some_stop
        )

    row = get_row_size(target, chosen, max_new_tokens, unembedded=0)
    out = torch.empty(len(vectors), max_new_tokens, dtype=torch.long, device=vectors.device)
    for rows, tokens in run_in_batches(target.model, len(vectors), run, row=row, batch_size=batch_size):
        out[rows] = tokens
    return out


@torch.no_grad()
def run_with_patch(
    model: AnyModel,
    target_text: Text,
    target_position: AnyNumber,
    source_vec: AnyVector,
    layer: AnyNumber = EMBEDDING,
) -> Float[Tensor, "1 pos d_vocab"]:
    """Logits at every position of the target prompt, with `source_vec` written at (`target_position`, `layer`).

    Raises:
        PatchscopesError: the position or layer does not exist, or the vector is not as wide as the model.
    """
    target = TargetPrompt(model, target_text, target_position)
    vectors, layers = _check_rows(target, to_tensor(source_vec)[None], [layer])
    writing = hooks.build_writing_hooks(target.position, vectors, layers)
    logits = target.model.run_with_hooks(target.tokens[None], fwd_hooks=writing)
    return check_finite(logits, target.model.cfg.dtype, "logits")


def generate_with_patch(
    model: AnyModel,
    target_text: Text,
    target_position: AnyNumber,
    source_vec: AnyVector,
    max_new_tokens: int = 5,
    layer: AnyNumber = EMBEDDING,
    temperature: float = 0.0,
) -> tuple[list[str], Int[Tensor, " new_token"]]:
    """Continue the target prompt with `source_vec` written at (`target_position`, `layer`).

    Returns the new tokens, each as text and as id, up to and including the first end-of-sequence token.

    Raises:
        PatchscopesError: as for `run_with_patch`.
    """
    target = TargetPrompt(model, target_text, target_position)
    rows = patch_generate(
        target, to_tensor(source_vec)[None], [layer], max_new_tokens=max_new_tokens, temperature=temperature
    )
    tokens = rows[0]
    ended = torch.isin(tokens, get_end_tokens(target.model)).nonzero()
    if len(ended) > 0:
        tokens = tokens[: int(ended[0]) + 1]
    return decode_each_token(target.model, tokens), tokens


def _check_rows(
    target: TargetPrompt, vectors: AnyVectors, layers: AnyNumbers
) -> tuple[Float[Tensor, "row d_model"], Int[Tensor, " row"]]:
    """Vectors and layers on the model's device, if they fit the model and each other."""
    cfg = target.model.cfg
    rows, numbers = to_rows(target.model, vectors, layers)
    if rows.shape[1] != cfg.d_model:
        raise PatchscopesError(
            f"vectors must be [row, d_model] with d_model = {cfg.d_model}, got shape {tuple(rows.shape)}"
        )
    check_finite(rows, rows.dtype, "vectors")
    for layer in numbers.unique().tolist():
        check_layer(target.model, layer)
    return rows, numbers
