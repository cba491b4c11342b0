"""The staggered engine: what `hooks` computes with one full forward per row, at a fraction of the cost.

Nearly everything in a patched forward pass is the same for every row. This engine runs it once:

1. tokens before the target position i* never see the patch: their keys and values (the *prefix*) are computed
   once and shared by all rows (`prefix`);
2. up to block ℓ* the *suffix* (tokens from i* on) is the clean run too: it is recorded once (`clean_run`), and a row
   joins the batch only after its own block ℓ*;
3. only the token that is read is unembedded;
4. generation goes on from the keys and values of the patched run: its effect lives in them. What rows that have
   generated the same have in common is again run once (`decoding`).
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchscopes.engine.building import get_twin
from patchscopes.engine.clean_run import CleanRun
from patchscopes.engine.decoding import decode_step, empty_generation, join_caches
from patchscopes.engine.generation import Advance, LogitsInParts
from patchscopes.engine.prefix import PrefixCache, cache_in_use
from patchscopes.engine.target import TargetPrompt
from patchscopes.engine.twin import Twin
from patchscopes.engine.unembedding import unembed
from patchscopes.model.devices import send

# More tokens than this at a time fall out of the caches of a processor; fewer spend more time between the operations.
TOKENS_AT_A_TIME = 2048
# Logits of more rows take memory and no less time; of half as many, 20 % more.
ROWS_UNEMBEDDED_AT_A_TIME = 256


# Appends the chosen tokens to the rows that go on (a mask over the rows so far) and returns their final residuals.
AdvanceResidual: TypeAlias = Callable[
    [Int[Tensor, " kept_row"], Bool[Tensor, " row"]], Float[Tensor, "kept_row d_model"]
]


def first_logits(
    target: TargetPrompt, vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, " row"]
) -> Float[Tensor, "row d_vocab"]:
    """Logits of the token after the target prompt, each row patched at (i*, its layer)."""
    return unembed(get_twin(target.model), first_residual(target, vectors, layers))


def first_residual(
    target: TargetPrompt, vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, " row"]
) -> Float[Tensor, "row d_model"]:
    """The final residual of the target prompt's last token, each row patched at (i*, its layer)."""
    residual, _, order = staggered_forward(get_twin(target.model), target.clean_run, vectors, layers)
    return restore_order(residual, order)


def start_generation(
    target: TargetPrompt, vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, " row"]
) -> tuple[LogitsInParts, Advance]:
    """First logits, and a way to go on that appends one new token to each row."""
    twin = get_twin(target.model)
    residual, advance_residual = start_residuals(target, vectors, layers)

    def advance(chosen: Int[Tensor, " kept_row"], kept: Bool[Tensor, " row"]) -> LogitsInParts:
        return unembed_in_parts(twin, advance_residual(chosen, kept))

    return unembed_in_parts(twin, residual), advance


def start_residuals(
    target: TargetPrompt, vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, " row"]
) -> tuple[Float[Tensor, "row d_model"], AdvanceResidual]:
    """The final residuals behind the logits of `start_generation`.

    Prompts are read for some rows at a time, those with near target layers together; all rows then go on together.
    """
    twin, clean = get_twin(target.model), target.clean_run
    # Which row is where is worked out on the CPU: it takes no time, and operations that not every device has.
    on_cpu = layers.cpu()
    order = torch.argsort(on_cpu, stable=True)
    sizes = choose_part_sizes(on_cpu[order], max(1, TOKENS_AT_A_TIME // target.suffix_length))
    # In order of their layers already, so the order that comes back is this one.
    parts = [
        staggered_forward(twin, clean, vectors[send(rows, vectors.device)], on_cpu[rows]) for rows in order.split(sizes)
    ]
    cache = join_caches(twin, clean, [part_cache for _, part_cache, _ in parts])
    generated = empty_generation(on_cpu[order])

    def advance(chosen: Int[Tensor, " kept_row"], kept: Bool[Tensor, " row"]) -> Float[Tensor, "kept_row d_model"]:
        nonlocal order, generated
        chosen, kept = chosen.cpu(), kept.cpu()
        positions = kept[order].nonzero()[:, 0]
        order = (kept.cumsum(dim=0) - 1)[order[positions]]
        residual, generated = decode_step(twin, cache, generated, positions, chosen[order])
        return restore_order(residual, order)

    return restore_order(torch.cat([residual for residual, _, _ in parts]), order), advance


def choose_part_sizes(layers: Int[Tensor, " row"], most: int) -> list[int]:
    """How many rows to read at a time: at most so many, and all rows of a layer together if they are no more.

    Rows of a regular grid then come in few sizes (see `decoding.pad_rows`).
    """
    sizes: list[int] = []
    for n_rows in layers.unique_consecutive(return_counts=True)[1].tolist():
        if sizes and sizes[-1] + n_rows <= most:
            sizes[-1] += n_rows
        else:
            sizes += [most] * (n_rows // most) + [n_rows % most] * (n_rows % most > 0)
    return sizes


def unembed_in_parts(twin: Twin, residual: Float[Tensor, "row d_model"]) -> LogitsInParts:
    """`unembed`, some rows at a time."""
    return (unembed(twin, rows) for rows in residual.split(ROWS_UNEMBEDDED_AT_A_TIME))


def staggered_forward(
    twin: Twin, clean: CleanRun, vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, " row"]
) -> tuple[Float[Tensor, "row d_model"], PrefixCache, Int[Tensor, " row"]]:
    """Walk the blocks once; a row joins after its target layer, patched at the first token of the suffix.

    Returns:
        the final residual of the last token; the cache, in which each block has only the rows that joined before
        it; and the order of the rows in both (rows that joined earlier come first), on the CPU.
    """
    # A GPU is waited for here, if layers are on it, and not again until all blocks have run.
    layers = layers.cpu()
    order = torch.argsort(layers, stable=True)
    n_joining = torch.bincount(layers + 1, minlength=len(twin.blocks) + 1).tolist()
    joining = vectors[send(order, vectors.device)].split(n_joining)
    cache = twin.new_cache(clean.prefixes)
    hidden = write_vectors(clean.residuals[0], joining[0])
    with cache_in_use(cache):
        for layer, (block, call) in enumerate(zip(twin.blocks, clean.calls, strict=True)):
            if len(hidden) > 0:
                hidden = call(block, hidden, cache)
            newcomers = write_vectors(clean.residuals[layer + 1], joining[layer + 1])
            hidden = torch.cat([hidden.to(newcomers.device), newcomers])
    return hidden[:, -1], cache, order


def restore_order(rows: Float[Tensor, "row d_model"], order: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
    """Rows that are in this `order`, in their first order again."""
    return rows[send(order.argsort(), rows.device)]


def write_vectors(
    residual: Float[Tensor, "1 suffix d_model"], vectors: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row suffix d_model"]:
    """The clean residual of the suffix, once per row, with the row's vector in place of its first token."""
    rows = residual.expand(len(vectors), -1, -1).clone()
    rows[:, 0] = vectors.to(rows)
    return rows
