"""The engine: write hidden states into a target prompt, and let the model go on from there.

A Patchscope (Ghandeharioun et al., ICML 2024, section 3) takes the representation of token i at layer ℓ of a
source prompt, and writes it over token i* at layer ℓ* of a target prompt. Every experiment of the library asks one
question of this module: *here are R vectors and R target layers; what does the model say after the target prompt
when vector r is written at (i*, layer r)?*

Layer ℓ means the residual stream after block ℓ (`blocks.{ℓ}.hook_resid_post`); `EMBEDDING` is what enters block 0.
Vectors come from `extract_representations`; any function of them (the mapping f) can be applied in between.

Two engines answer. `"hooks"` (`patchscopes.hooks`) is the plain one: a full forward pass with TransformerLens hooks
for each batch of rows. `"fast"` (`patchscopes.fast`) computes the same and skips what rows have in common. `"auto"`
uses the fast engine once it has given the same answers as hooks on this model (`patchscopes.proof`), and otherwise
warns and uses hooks.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes import fast, hooks
from patchscopes.errors import PatchscopesError
from patchscopes.extract import extract_representation, extract_representations
from patchscopes.generation import Stop, generate, most_likely, whole
from patchscopes.layers import EMBEDDING, check_layer
from patchscopes.lens_model import LensModel
from patchscopes.proof import Engine, chosen_engine
from patchscopes.target import TargetPrompt
from patchscopes.tokens import Text, end_tokens, to_token_ids, token_texts

__all__ = [
    "EMBEDDING",
    "TargetPrompt",
    "extract_representation",
    "extract_representations",
    "generate_after",
    "generate_with_patch",
    "patch_generate",
    "patch_logits",
    "patch_logits_ahead_in_batches",
    "patch_logits_in_batches",
    "rows_per_batch",
    "run_with_patch",
]


@torch.no_grad()
def patch_logits(
    target: TargetPrompt,
    vectors: Float[Tensor, "row d_model"],
    layers: Sequence[int] | Int[Tensor, " row"],
    *,
    engine: Engine = "auto",
    batch_size: int | None = None,
) -> Float[Tensor, "row d_vocab"]:
    """Logits of the token after the target prompt, for each row patched at (i*, its layer).

    Args:
        target: the prompt T and the position i*.
        vectors: what to write over the representation of token i*, one row each.
        layers: the target layer ℓ* of each row, in any order and mix; `EMBEDDING` is what enters block 0.
        engine: `"hooks"` runs the whole prompt through the whole model, and every hook that the user put on the
            model fires. `"fast"` shares what rows have in common; it runs the model's own modules without the
            bridge around them, so **no TransformerLens hook fires in it**, and it is used unproved. `"auto"` takes
            hooks when the model has hooks of the user's on it; otherwise fast, once it has given the same answers
            as hooks on this model, and hooks with a warning where it has not.
        batch_size: rows at a time; chosen by size unless given. Results do not depend on it beyond rounding.

    Raises:
        PatchscopesError: shapes or layers do not fit the model, or `engine="fast"` cannot run this model.
    """
    batches = list(patch_logits_in_batches(target, vectors, layers, engine=engine, batch_size=batch_size))
    return torch.cat(batches) if batches else vectors.new_empty(0, target.model.cfg.d_vocab)


def patch_logits_in_batches(
    target: TargetPrompt,
    vectors: Float[Tensor, "row d_model"],
    layers: Sequence[int] | Int[Tensor, " row"],
    *,
    engine: Engine = "auto",
    batch_size: int | None = None,
) -> Iterator[Float[Tensor, "batch d_vocab"]]:
    """`patch_logits`, one batch of rows at a time: for more rows than their logits would fit into memory."""
    vectors, layers = _checked_rows(target, vectors, layers)
    chosen = chosen_engine(target, engine)
    size = _batch_size(target, chosen, batch_size, new_tokens=0)
    ask = fast.first_logits if chosen == "fast" else hooks.first_logits

    @torch.no_grad()
    def batches() -> Iterator[Float[Tensor, "batch d_vocab"]]:
        for start in range(0, len(vectors), size):
            yield ask(target, vectors[start : start + size], layers[start : start + size])

    return batches()


def patch_logits_ahead_in_batches(
    target: TargetPrompt,
    vectors: Float[Tensor, "row d_model"],
    layers: Sequence[int] | Int[Tensor, " row"],
    n_tokens: int,
    *,
    engine: Engine = "auto",
    batch_size: int | None = None,
) -> Iterator[Float[Tensor, "batch n_tokens d_vocab"]]:
    """Logits of each of the next `n_tokens` tokens, while every row goes on with its own most likely ones.

    An end-of-sequence token is gone on from like any other. Args and errors: as for `patch_logits`.
    """
    vectors, layers = _checked_rows(target, vectors, layers)
    _check_length(target, n_tokens)
    chosen = chosen_engine(target, engine)
    size = _batch_size(target, chosen, batch_size, n_tokens, unembedded=n_tokens)
    start = fast.start if chosen == "fast" else hooks.start

    @torch.no_grad()
    def batches() -> Iterator[Float[Tensor, "batch n_tokens d_vocab"]]:
        for first in range(0, len(vectors), size):
            logits, advance = start(target, vectors[first : first + size], layers[first : first + size])
            ahead = [whole(logits)]
            everyone = torch.ones(len(ahead[0]), dtype=torch.bool, device=ahead[0].device)
            while len(ahead) < n_tokens:
                ahead.append(whole(advance(most_likely(ahead[-1]), everyone)))
            yield torch.stack(ahead, dim=1)

    return batches()


@torch.no_grad()
def patch_generate(
    target: TargetPrompt,
    vectors: Float[Tensor, "row d_model"],
    layers: Sequence[int] | Int[Tensor, " row"],
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
        stop: given the new tokens of some rows so far, says which of them need not go on (they have answered, say);
            such a row is padded with the end-of-sequence token.

    Other args and errors: as for `patch_logits`.
    """
    vectors, layers = _checked_rows(target, vectors, layers)
    if temperature < 0:
        raise PatchscopesError(f"temperature must be at least 0, got {temperature}")
    _check_length(target, max_new_tokens)
    chosen = chosen_engine(target, engine)
    size = _batch_size(target, chosen, batch_size, max_new_tokens, unembedded=0)
    start = fast.start if chosen == "fast" else hooks.start
    draws = torch.rand(len(vectors), max_new_tokens) if temperature > 0 else None
    out = torch.empty(len(vectors), max_new_tokens, dtype=torch.long, device=vectors.device)
    for first in range(0, len(vectors), size):
        rows = slice(first, first + size)
        logits, advance = start(target, vectors[rows], layers[rows])
        some_draws = None if draws is None else draws[rows]
        ends = end_tokens(target.model)
        n_rows = len(vectors[rows])
        out[rows] = generate(n_rows, logits, advance, ends, max_new_tokens, temperature, some_draws, stop=stop)
    return out


@torch.no_grad()
def generate_after(
    model: LensModel,
    prompts: Sequence[Text],
    *,
    max_new_tokens: int = 20,
    engine: Engine = "auto",
    batch_size: int | None = None,
) -> Int[Tensor, "prompt new_token"]:
    """What the model says after each prompt, greedily, with nothing patched: the baselines of a generating Patchscope.

    The fast engine runs prompts once as far as they begin alike: the beginning that all share, and then, within a
    batch, each different one, token by token, as if the model had chosen its tokens. A row that has produced an
    end-of-sequence token is padded with it.

    Raises:
        PatchscopesError: a prompt has no room for the new tokens.
    """
    ids = [to_token_ids(model, prompt).tolist() for prompt in prompts]
    if not ids:
        return torch.empty(0, max_new_tokens, dtype=torch.long, device=model.cfg.device)
    n_shared = next((n for n, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1), min(map(len, ids)))
    if n_shared == 0:
        # Without a BOS token prompts may have nothing in common: those that do go together.
        out = torch.empty(len(ids), max_new_tokens, dtype=torch.long, device=model.cfg.device)
        for first in sorted({tokens[0] for tokens in ids}):
            alike = [number for number, tokens in enumerate(ids) if tokens[0] == first]
            some = [ids[number] for number in alike]
            out[alike] = generate_after(
                model, some, max_new_tokens=max_new_tokens, engine=engine, batch_size=batch_size
            )
        return out
    own = [tokens[n_shared:] for tokens in ids]
    longest = max(map(len, own))
    target = TargetPrompt(model, ids[0][:n_shared], -1)
    _check_length(target, longest + max_new_tokens)
    # A state that is written over itself changes nothing; and below the layer of the patch, rows share what they can.
    last = model.cfg.n_layers - 1
    vectors = extract_representations(model, [target.tokens], [-1], [last])[0].expand(len(ids), -1)
    layers = torch.full((len(ids),), last, device=vectors.device)
    padded = [[*tokens, *[-1] * (longest - len(tokens))] for tokens in own]
    forced = torch.tensor(padded, dtype=torch.long, device=vectors.device)
    chosen = chosen_engine(target, engine)
    size = _batch_size(target, chosen, batch_size, longest + max_new_tokens, unembedded=0)
    start = fast.start if chosen == "fast" else hooks.start
    out = torch.empty(len(ids), max_new_tokens, dtype=torch.long, device=vectors.device)
    for first in range(0, len(ids), size):
        rows = slice(first, first + size)
        logits, advance = start(target, vectors[rows], layers[rows])
        n_rows, n_new = len(vectors[rows]), longest + max_new_tokens
        said = generate(n_rows, logits, advance, end_tokens(model), n_new, 0.0, None, forced[rows])
        for row, tokens, of_row in zip(out[rows], said, own[rows], strict=True):
            row.copy_(tokens[len(of_row) : len(of_row) + max_new_tokens])
    return out


@torch.no_grad()
def run_with_patch(
    model: LensModel,
    target_text: Text,
    target_position: int,
    source_vec: Float[Tensor, " d_model"],
    layer: int = EMBEDDING,
) -> Float[Tensor, "1 pos d_vocab"]:
    """Logits at every position of the target prompt, with `source_vec` written at (`target_position`, `layer`).

    Raises:
        PatchscopesError: the position or layer does not exist, or the vector is not as wide as the model.
    """
    target = TargetPrompt(model, target_text, target_position)
    vectors, layers = _checked_rows(target, source_vec[None], [layer])
    return model.run_with_hooks(target.tokens[None], fwd_hooks=hooks.writing_hooks(target.position, vectors, layers))


def generate_with_patch(
    model: LensModel,
    target_text: Text,
    target_position: int,
    source_vec: Float[Tensor, " d_model"],
    max_new_tokens: int = 5,
    layer: int = EMBEDDING,
    temperature: float = 0.0,
) -> tuple[list[str], Int[Tensor, " new_token"]]:
    """Continue the target prompt with `source_vec` written at (`target_position`, `layer`).

    Returns the new tokens, each as text and as id, up to and including the first end-of-sequence token.

    Raises:
        PatchscopesError: as for `run_with_patch`.
    """
    target = TargetPrompt(model, target_text, target_position)
    rows = patch_generate(target, source_vec[None], [layer], max_new_tokens=max_new_tokens, temperature=temperature)
    tokens = rows[0]
    ended = torch.isin(tokens, end_tokens(model)).nonzero()
    if len(ended) > 0:
        tokens = tokens[: int(ended[0]) + 1]
    return token_texts(model, tokens), tokens


def rows_per_batch(model: LensModel, *, run: int = 1, unembedded: int = 1, cached: int = 0) -> int:
    """Rows to compute at a time: enough to keep matrix products efficient, few enough to fit into memory.

    Measured on two cores with a 135M model, time per row falls until about 500 rows and is flat from there. The
    bounds are 2,048 tokens, 64 Mi logits, and 256 Mi numbers in the caches of rows that generate.

    Args:
        run: tokens that each row runs at once.
        unembedded: tokens of each row whose logits are held at once; none where they are only chosen from.
        cached: tokens of each row whose keys and values are kept.
    """
    cfg = model.cfg
    kv_width = 2 * (getattr(cfg, "n_key_value_heads", None) or cfg.n_heads) * cfg.d_head
    by_tokens = fast.TOKENS_AT_A_TIME // run
    by_logits = 2**26 // (cfg.d_vocab * unembedded) if unembedded > 0 else by_tokens
    by_cache = 2**28 // (cfg.n_layers * kv_width * max(1, cached))
    return max(1, min(by_tokens, by_logits, by_cache))


def _check_length(target: TargetPrompt, new_tokens: int) -> None:
    """Refuse to generate nothing, or more than the model's context holds."""
    if new_tokens < 1:
        raise PatchscopesError(f"at least 1 token must be generated, got {new_tokens}")
    if len(target.tokens) + new_tokens - 1 > target.model.cfg.n_ctx:
        raise PatchscopesError(
            f"the target prompt's {len(target.tokens)} tokens and {new_tokens} new ones do not fit the model's "
            f"context of {target.model.cfg.n_ctx}; shorten either"
        )


def _batch_size(
    target: TargetPrompt,
    engine: Literal["fast", "hooks"],
    batch_size: int | None,
    new_tokens: int,
    unembedded: int = 1,
) -> int:
    """The given batch size, if it is one, or the one that suits the engine."""
    if batch_size is not None and batch_size < 1:
        raise PatchscopesError(f"batch_size must be at least 1, or None to choose by size; got {batch_size}")
    if batch_size is not None:
        return batch_size
    if engine == "hooks":
        whole = len(target.tokens) + new_tokens
        return rows_per_batch(target.model, run=whole, unembedded=whole)
    if new_tokens == 0:
        return rows_per_batch(target.model, run=target.suffix_length, unembedded=unembedded)
    # The engine itself reads the prompts in smaller parts.
    return rows_per_batch(target.model, unembedded=unembedded, cached=target.suffix_length + new_tokens)


def _checked_rows(
    target: TargetPrompt, vectors: Float[Tensor, "row d_model"], layers: Sequence[int] | Int[Tensor, " row"]
) -> tuple[Float[Tensor, "row d_model"], Int[Tensor, " row"]]:
    """Vectors and layers on the model's device, if they fit the model and each other."""
    cfg = target.model.cfg
    if vectors.ndim != 2 or vectors.shape[1] != cfg.d_model:
        raise PatchscopesError(
            f"vectors must be [row, d_model] with d_model = {cfg.d_model}, got shape {tuple(vectors.shape)}"
        )
    layers = torch.as_tensor(layers, device=cfg.device)
    if len(layers) > 0 and layers.is_floating_point():
        raise PatchscopesError(f"layers must be whole numbers, got {layers.dtype}")
    layers = layers.long()
    if layers.shape != vectors.shape[:1]:
        raise PatchscopesError(f"{vectors.shape[0]} vectors need as many layers, got {tuple(layers.shape)}")
    for layer in layers.unique().tolist():
        check_layer(target.model, layer)
    return vectors.to(cfg.device), layers
