"""Generating on from patched prompts: each new token is run once for all rows as far as they have it in common.

In the blocks up to its target layer ℓ*, a row's new token sees nothing of the patch: it is there what it is after the
unpatched prompt and the row's *continuation*, the tokens that the row has generated before. Rows of one prompt generate
few different continuations. So each different one is run once, up to the largest ℓ* of the rows that have generated it,
and a row joins the batch after its own block ℓ*, as it did when the prompt was read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.engine.clean_run import BlockCall, CleanRun, enter_blocks
from patchscopes.engine.prefix import KeysValues, PrefixCache, cache_in_use
from patchscopes.engine.twin import Twin, block_forwards, unwrap_hidden_states
from patchscopes.model.devices import send
from patchscopes.model.layers import EMBEDDING
from patchscopes.model.lens_model import is_16_bit


@dataclass(frozen=True)
class Generation:
    """What the rows have generated so far. They are in the order of their target layers. (On the CPU, all of it.)

    Attributes:
        layers: the target layer ℓ* of each row, ascending.
        continuations: which continuation each row has generated.
        highest_layers: the largest ℓ* of the rows of each continuation, descending: no block after it needs to run it.
    """

    layers: Int[Tensor, " row"]
    continuations: Int[Tensor, " row"]
    highest_layers: Int[Tensor, " continuation"]

    def count_rows_in_blocks(self, n_blocks: int) -> list[int]:
        """For each block, how many rows have joined before it (the first ones), and how many have after the last."""
        return count_below(self.layers, n_blocks)

    def count_continuations_in_blocks(self, n_blocks: int) -> list[int]:
        """For each block, how many continuations it runs (the first ones)."""
        return [len(self.highest_layers) - n for n in count_below(self.highest_layers, n_blocks)]


def count_below(layers: Int[Tensor, " _"], n_blocks: int) -> list[int]:
    """How many of `layers` are below 0, 1, …, `n_blocks`."""
    counts: list[int] = torch.bincount(layers + 1, minlength=n_blocks + 1).cumsum(dim=0).tolist()
    return counts


def empty_generation(layers: Int[Tensor, " row"]) -> Generation:
    """The state before the first token: all rows have the one empty continuation."""
    return Generation(layers, torch.zeros_like(layers), layers[-1:])


def join_caches(twin: Twin, clean: CleanRun, caches: Sequence[PrefixCache]) -> PrefixCache:
    """The cache to decode on: in each block the rows that have joined before it, then the continuations.

    Args:
        caches: of `staggered_forward`, in the order of the rows' target layers. They are empty afterwards, so that
            memory never holds the rows of more than one block twice.
    """
    joined = twin.new_cache(clean.prefixes)
    for number, (layer, unpatched) in enumerate(zip(joined.prefix_layers, clean.suffixes, strict=True)):
        parts = [cache.prefix_layers[number].take_rows() for cache in caches]
        joined_rows = [*(part for part in parts if part is not None), unpatched]
        layer.row_keys_values = cast(KeysValues, tuple(torch.cat(some) for some in zip(*joined_rows, strict=True)))
    return joined


def decode_step(
    twin: Twin,
    cache: PrefixCache,
    before: Generation,
    kept: Int[Tensor, " kept_row"],
    tokens: Int[Tensor, " kept_row"],
) -> tuple[Float[Tensor, "kept_row d_model"], Generation]:
    """Append a token to some of the rows and drop the others; the final residual of it, and what is generated now.

    Args:
        kept: which rows go on, ascending.
    """
    now, parents, new_tokens = append_tokens(before, kept, tokens)
    n_blocks = len(twin.blocks)
    n_rows, n_running = now.count_rows_in_blocks(n_blocks), now.count_continuations_in_blocks(n_blocks)
    n_rows_before = before.count_rows_in_blocks(n_blocks)
    # Once, not in every block.
    kept_there, parents_there = send(kept, twin.device), send(parents, twin.device)
    for number, layer in enumerate(cache.prefix_layers):

        def choose(kept: Tensor, parents: Tensor, number: int = number) -> Tensor:
            running = n_rows_before[number] + parents[: n_running[number]]
            return pad_rows(torch.cat([kept[: n_rows[number]], running]), twin)

        layer.keep_rows(choose(kept, parents), choose(kept_there, parents_there))

    entering, calls = begin_step(twin, send(new_tokens, twin.device), cache)
    continuations = send(now.continuations, entering.device)
    rows, running = entering[continuations[: n_rows[0]]], entering[: n_running[0]]
    with cache_in_use(cache):
        for number, (block, call) in enumerate(zip(twin.blocks, calls, strict=True)):
            both = call(block, pad_rows(torch.cat([rows, running]), twin), cache)
            rows, running = both[: n_rows[number]], both[n_rows[number] :][: n_running[number]]
            joining = continuations[n_rows[number] : n_rows[number + 1]]
            rows = torch.cat([rows, running[joining.to(running.device)]])
            running = running[: n_running[number + 1]]
    return rows[:, -1], now


def append_tokens(
    before: Generation, kept: Int[Tensor, " kept_row"], tokens: Int[Tensor, " kept_row"]
) -> tuple[Generation, Int[Tensor, " continuation"], Int[Tensor, " continuation"]]:
    """What is generated once these rows have these new tokens; for each continuation, which earlier
    one it goes on, and its last token."""
    layers = before.layers[kept]
    pairs, continuations = torch.stack([before.continuations[kept], tokens], dim=1).unique(dim=0, return_inverse=True)
    highest = torch.full_like(pairs[:, 0], EMBEDDING).scatter_reduce(0, continuations, layers, "amax")
    order = highest.argsort(descending=True, stable=True)
    parents, new_tokens = pairs[order].unbind(dim=1)
    return Generation(layers, order.argsort()[continuations], highest[order]), parents, new_tokens


def pad_rows(rows: Tensor, twin: Twin) -> Tensor:
    """The rows, and copies of the first one up to a round number, where batches of new sizes are slow.

    On a CPU, oneDNN makes a kernel of its own for every new size of a matrix product of 16-bit numbers, which takes
    about as long as to run it. With sixteen sizes between one power of two and the next most are known.
    """
    if twin.device.type != "cpu" or not is_16_bit(twin.causal_lm.dtype):
        return rows
    unit = max(1, 2 ** (len(rows).bit_length() - 5))
    n_spare = -len(rows) % unit
    return torch.cat([rows, rows[:1].expand(n_spare, *rows.shape[1:])]) if n_spare > 0 else rows


def decode_next_residual(twin: Twin, tokens: Int[Tensor, " row"], cache: PrefixCache) -> Float[Tensor, "row d_model"]:
    """One decoding step: append one token to each row of the cache; its final residual, for `unembed`."""
    residuals: list[Tensor] = []
    *others, last = (block.forward for block in twin.blocks)

    def reading(*args: Any, **kwargs: Any) -> Any:
        output = last(*args, **kwargs)
        residuals.append(unwrap_hidden_states(output)[:, -1])
        return output

    with cache_in_use(cache), block_forwards(twin, [*others, reading]):
        twin.causal_lm.base_model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True)
    return residuals[0]


def begin_step(
    twin: Twin, tokens: Int[Tensor, " row"], cache: PrefixCache
) -> tuple[Float[Tensor, "row 1 d_model"], list[BlockCall]]:
    """What enters block 0 for a new token of each row, and how the family's forward calls the blocks for one of them.

    The blocks do not run (see `enter_blocks`).
    """
    hidden, _ = enter_blocks(twin, tokens[:, None], cache)
    _, calls = enter_blocks(twin, tokens[:1, None], cache)
    return hidden, calls
