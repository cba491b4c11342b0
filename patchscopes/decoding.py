"""Generating on from patched prompts: each new token is run once for all rows as far as they have it in common.

In the blocks up to its target layer ℓ*, a row's new token sees nothing of the patch: it is there what it is after the
unpatched prompt and the row's *text*, the tokens that the row has generated before. Rows of one prompt generate few
different texts. So each different text is run once, up to the largest ℓ* of the rows that have generated it, and a row
joins the batch after its own block ℓ*, as it did when the prompt was read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.layers import EMBEDDING
from patchscopes.lens_model import is_16_bit
from patchscopes.prefix import KeysValues, PrefixCache, using
from patchscopes.twin import CleanRun, Twin, begin_step


@dataclass(frozen=True)
class Generated:
    """What the rows have generated so far. They are in the order of their target layers. (On the CPU, all of it.)

    Attributes:
        layers: the target layer ℓ* of each row, ascending.
        texts: which text each row has generated.
        highest: the largest ℓ* of the rows of each text, descending: no block after it needs to run the text.
    """

    layers: Int[Tensor, " row"]
    texts: Int[Tensor, " row"]
    highest: Int[Tensor, " text"]

    def rows_in_blocks(self, n_blocks: int) -> list[int]:
        """For each block, how many rows have joined before it (the first ones), and how many have after the last."""
        return n_below(self.layers, n_blocks)

    def texts_in_blocks(self, n_blocks: int) -> list[int]:
        """For each block, how many texts it runs (the first ones)."""
        return [len(self.highest) - n for n in n_below(self.highest, n_blocks)]


def n_below(layers: Int[Tensor, " _"], n_blocks: int) -> list[int]:
    """How many of `layers` are below 0, 1, …, `n_blocks`."""
    counts: list[int] = torch.bincount(layers + 1, minlength=n_blocks + 1).cumsum(dim=0).tolist()
    return counts


def nothing_yet(layers: Int[Tensor, " row"]) -> Generated:
    """The state before the first token: all rows have the one empty text."""
    return Generated(layers, torch.zeros_like(layers), layers[-1:])


def decoding_cache(twin: Twin, clean: CleanRun, caches: Sequence[PrefixCache]) -> PrefixCache:
    """The cache to decode on: in each block the rows that have joined before it, then the texts.

    Args:
        caches: of `staggered_forward`, in the order of the rows' target layers. They are empty afterwards, so that
            memory never holds the rows of more than one block twice.
    """
    whole = twin.new_cache(clean.prefixes)
    for number, (layer, empty_text) in enumerate(zip(whole.prefix_layers, clean.suffixes, strict=True)):
        parts = [cache.prefix_layers[number].drop_own() for cache in caches]
        owns = [part for part in parts if part is not None] + [empty_text]
        layer.own = cast(KeysValues, tuple(torch.cat(of_rows) for of_rows in zip(*owns, strict=True)))
    return whole


def decode_step(
    twin: Twin,
    cache: PrefixCache,
    before: Generated,
    kept: Int[Tensor, " kept_row"],
    tokens: Int[Tensor, " kept_row"],
) -> tuple[Float[Tensor, "kept_row d_model"], Generated]:
    """Append a token to some of the rows and drop the others; the final residual of it, and what is generated now.

    Args:
        kept: which rows go on, ascending.
    """
    now, parents, new_tokens = appended(before, kept, tokens)
    n_blocks = len(twin.blocks)
    n_rows, n_texts = now.rows_in_blocks(n_blocks), now.texts_in_blocks(n_blocks)
    n_rows_before = before.rows_in_blocks(n_blocks)
    for number, layer in enumerate(cache.prefix_layers):
        of_texts = n_rows_before[number] + parents[: n_texts[number]]
        layer.keep_rows(filled_up(torch.cat([kept[: n_rows[number]], of_texts]), twin))

    entering, calls = begin_step(twin, new_tokens.to(twin.device), cache)
    rows, texts = entering[now.texts[: n_rows[0]].to(entering.device)], entering[: n_texts[0]]
    with using(cache):
        for number, (block, call) in enumerate(zip(twin.blocks, calls, strict=True)):
            both = call(block, filled_up(torch.cat([rows, texts]), twin), cache)
            rows, texts = both[: n_rows[number]], both[n_rows[number] :][: n_texts[number]]
            joining = now.texts[n_rows[number] : n_rows[number + 1]]
            rows = torch.cat([rows, texts[joining.to(texts.device)]])
            texts = texts[: n_texts[number + 1]]
    return rows[:, -1], now


def appended(
    before: Generated, kept: Int[Tensor, " kept_row"], tokens: Int[Tensor, " kept_row"]
) -> tuple[Generated, Int[Tensor, " text"], Int[Tensor, " text"]]:
    """What is generated once these rows have these new tokens; for each text, which it goes on, and its last token."""
    layers = before.layers[kept]
    continued, texts = torch.stack([before.texts[kept], tokens], dim=1).unique(dim=0, return_inverse=True)
    highest = torch.full_like(continued[:, 0], EMBEDDING).scatter_reduce(0, texts, layers, "amax")
    order = highest.argsort(descending=True, stable=True)
    parents, new_tokens = continued[order].unbind(dim=1)
    return Generated(layers, order.argsort()[texts], highest[order]), parents, new_tokens


def filled_up(rows: Tensor, twin: Twin) -> Tensor:
    """The rows, and copies of the first one up to a round number, where batches of new sizes are slow.

    On a CPU, oneDNN makes a kernel of its own for every new size of a matrix product of 16-bit numbers, which takes
    about as long as to run it. With sixteen sizes between one power of two and the next most are known.
    """
    if twin.device.type != "cpu" or not is_16_bit(twin.causal_lm.dtype):
        return rows
    unit = max(1, 2 ** (len(rows).bit_length() - 5))
    n_spare = -len(rows) % unit
    return torch.cat([rows, rows[:1].expand(n_spare, *rows.shape[1:])]) if n_spare > 0 else rows
