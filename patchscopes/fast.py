"""The staggered engine: what `patchscopes.hooks` computes with one full forward per row, at a fraction of the cost.

Nearly everything in a patched forward pass is the same for every row. This engine runs it once:

1. tokens before the target position i* never see the patch: their keys and values (the *prefix*) are computed
   once and shared by all rows (`patchscopes.prefix`);
2. up to block ℓ* the *suffix* (tokens from i* on) is the clean run too: it is recorded once (`patchscopes.twin`),
   and a row joins the batch only after its own block ℓ*;
3. only the token that is read is unembedded;
4. generation goes on from the keys and values of the patched run: its effect lives in them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchscopes.generation import Advance
from patchscopes.prefix import PrefixCache, using
from patchscopes.target import TargetPrompt
from patchscopes.twin import CleanRun, Twin, next_token_logits, twin_of, unembed

# More tokens than this at a time fall out of the caches of a processor.
TOKENS_AT_A_TIME = 1024


def first_logits(
    target: TargetPrompt, vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, " row"]
) -> Float[Tensor, "row d_vocab"]:
    """Logits of the token after the target prompt, each row patched at (i*, its layer)."""
    twin = twin_of(target.model)
    residual, _, order = staggered_forward(twin, target.clean_run, vectors, layers)
    return unembed(twin, in_first_order(residual, order))


def start(
    target: TargetPrompt, vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, " row"]
) -> tuple[Float[Tensor, "row d_vocab"], Advance]:
    """First logits, and a way to go on that runs one new token per row on the cache.

    Prompts are read for some rows at a time, those with near target layers together; all rows then go on together.
    (Two cores, 135M model, 900 rows, a suffix of 11 tokens and 8 new ones: 17.5 s instead of 29.5 for batches of 93.)
    """
    twin, clean = twin_of(target.model), target.clean_run
    order = torch.argsort(layers, stable=True)
    size = max(1, TOKENS_AT_A_TIME // target.suffix_length)
    residuals, caches = [], []
    for rows in order.split(size):
        # In order of their layers already, so the order that comes back is this one.
        residual, cache, _ = staggered_forward(twin, clean, vectors[rows], layers[rows])
        complete_cache(clean, cache, len(rows))
        residuals.append(residual)
        caches.append(cache)
    cache = caches[0]
    cache.append_rows(caches[1:], order.argsort())

    def advance(chosen: Int[Tensor, " kept_row"], kept: Bool[Tensor, " row"]) -> Float[Tensor, "kept_row d_vocab"]:
        if not bool(kept.all()):
            cache.keep_rows(kept.nonzero()[:, 0])
        return next_token_logits(twin, chosen, cache)

    return unembed(twin, in_first_order(torch.cat(residuals), order)), advance


def staggered_forward(
    twin: Twin, clean: CleanRun, vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, " row"]
) -> tuple[Float[Tensor, "row d_model"], PrefixCache, Int[Tensor, " row"]]:
    """Walk the blocks once; a row joins after its target layer, patched at the first token of the suffix.

    Returns:
        the final residual of the last token; the cache, in which each block has only the rows that joined before
        it; and the order of the rows in both (rows that joined earlier come first).
    """
    order = torch.argsort(layers, stable=True)
    n_joining = torch.bincount(layers + 1, minlength=len(twin.blocks) + 1).tolist()
    joining = vectors[order].split(n_joining)
    cache = twin.new_cache(clean.prefixes)
    hidden = patched(clean.residuals[0], joining[0])
    with using(cache):
        for layer, (block, call) in enumerate(zip(twin.blocks, clean.calls, strict=True)):
            if len(hidden) > 0:
                hidden = call(block, hidden, cache)
            newcomers = patched(clean.residuals[layer + 1], joining[layer + 1])
            hidden = torch.cat([hidden.to(newcomers.device), newcomers])
    return hidden[:, -1], cache, order


def in_first_order(rows: Float[Tensor, "row d_model"], order: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
    """Undo the reordering of `staggered_forward`."""
    return rows[order.argsort().to(rows.device)]


def patched(
    residual: Float[Tensor, "1 suffix d_model"], vectors: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row suffix d_model"]:
    """The clean residual of the suffix, once per row, with the row's vector in place of its first token."""
    rows = residual.expand(len(vectors), -1, -1).clone()
    rows[:, 0] = vectors.to(rows)
    return rows


def complete_cache(clean: CleanRun, cache: PrefixCache, n_rows: int) -> None:
    """Make the cache of `staggered_forward` fit for decoding: every row in every block, in the order of joining.

    In the blocks up to its target layer, a row's suffix is that of the clean run.
    """
    for layer, suffix in zip(cache.prefix_layers, clean.suffixes, strict=True):
        early: Sequence[Tensor] = layer.own or tuple(part[:0] for part in suffix)
        n_late = n_rows - len(early[0])
        keys, values = (
            torch.cat([computed, part.expand(n_late, -1, -1, -1)]) for computed, part in zip(early, suffix, strict=True)
        )
        layer.own = keys, values
