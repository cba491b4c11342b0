"""The fast engine for rows: what `row_hooks` computes with a full forward pass for each.

It is the staggered engine of `fast`, for rows that do more: a row starts at the first token at which it does anything,
behind the keys and values of the tokens before it; it joins the batch at the first block in which it does anything,
as the unpatched run of its own target prompt; and what it does in later blocks is done as the blocks are walked
(`row_blocks`). Rows of different target prompts of one length walk together (`joint_run`).
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchscopes.engine.building import get_twin
from patchscopes.engine.clean_run import CleanRun
from patchscopes.engine.decoding import Generation, decode_step, join_caches
from patchscopes.engine.fast import (
    TOKENS_AT_A_TIME,
    AdvanceResidual,
    choose_part_sizes,
    restore_order,
    unembed_in_parts,
)
from patchscopes.engine.generation import Advance, LogitsInParts
from patchscopes.engine.joint_run import join_clean_runs, run_cleanly_together
from patchscopes.engine.prefix import PrefixCache, cache_in_use
from patchscopes.engine.row_blocks import collect_changes, cut_calls, run_block
from patchscopes.engine.rows import Row
from patchscopes.engine.twin import Twin
from patchscopes.engine.unembedding import unembed
from patchscopes.model.devices import send
from patchscopes.model.layers import EMBEDDING
from patchscopes.model.lens_model import LensModel


def first_logits(rows: Sequence[Row]) -> Float[Tensor, "row d_vocab"]:
    """Logits of the token after each row's target prompt. All prompts have the same number of tokens."""
    model = rows[0].target.model
    twin = get_twin(model)
    sorted_rows, order = sort_rows(rows)
    clean, target_of_row, start = join_targets(twin, sorted_rows)
    residual, _ = walk_rows(model, twin, clean, sorted_rows, target_of_row, start)
    return unembed(twin, restore_order(residual, order))


def start_generation(rows: Sequence[Row]) -> tuple[LogitsInParts, Advance]:
    """First logits, and a way to go on that appends one new token to each row."""
    twin = get_twin(rows[0].target.model)
    residual, advance_residual = start_residuals(rows)

    def advance(chosen: Int[Tensor, " kept_row"], kept: Bool[Tensor, " row"]) -> LogitsInParts:
        return unembed_in_parts(twin, advance_residual(chosen, kept))

    return unembed_in_parts(twin, residual), advance


def start_residuals(rows: Sequence[Row]) -> tuple[Float[Tensor, "row d_model"], AdvanceResidual]:
    """The final residuals behind the logits of `start_generation`.

    Prompts are read for some rows at a time, those that join at near blocks together; all rows then go on together.
    """
    model = rows[0].target.model
    twin = get_twin(model)
    sorted_rows, order = sort_rows(rows)
    clean, target_of_row, start = join_targets(twin, sorted_rows)
    layers = torch.tensor([row.first_block - 1 for row in sorted_rows])
    sizes = choose_part_sizes(layers, max(1, TOKENS_AT_A_TIME // (len(rows[0].target.tokens) - start)))
    residuals: list[Tensor] = []
    caches: list[PrefixCache] = []
    for numbers in torch.arange(len(rows)).split(sizes):
        some = sorted_rows[numbers[0] : numbers[-1] + 1]
        residual, cache = walk_rows(model, twin, clean, some, target_of_row[numbers], start)
        residuals.append(residual)
        caches.append(cache)
    generated = begin_generation(layers, target_of_row)
    cache = join_caches(twin, clean, caches)
    n_targets = len(generated.highest_layers)
    if n_targets > 1:
        n_rows, there = generated.count_rows_in_blocks(len(twin.blocks)), send(target_of_row, twin.device)
        for layer, n_in_block in zip(cache.prefix_layers, n_rows, strict=False):
            layer.prefix_of_row = torch.cat([there[:n_in_block], torch.arange(n_targets, device=there.device)])

    def advance(chosen: Int[Tensor, " kept_row"], kept: Bool[Tensor, " row"]) -> Float[Tensor, "kept_row d_model"]:
        nonlocal order, generated
        chosen, kept = chosen.cpu(), kept.cpu()
        positions = kept[order].nonzero()[:, 0]
        order = (kept.cumsum(dim=0) - 1)[order[positions]]
        residual, generated = decode_step(twin, cache, generated, positions, chosen[order])
        return restore_order(residual, order)

    return restore_order(torch.cat(residuals), order), advance


def begin_generation(layers: Int[Tensor, " row"], target_of_row: Int[Tensor, " row"]) -> Generation:
    """The state before the first token: the rows of each target have one empty continuation.

    The targets are in the order of `join_targets`.
    """
    highest = torch.full((int(target_of_row.max()) + 1,), EMBEDDING)
    return Generation(layers, target_of_row, highest.scatter_reduce(0, target_of_row, layers, "amax"))


def sort_rows(rows: Sequence[Row]) -> tuple[list[Row], Int[Tensor, " row"]]:
    """The rows in the order in which they join, and their numbers in the order in which they were given."""
    order = sorted(range(len(rows)), key=lambda number: rows[number].first_block)
    return [rows[number] for number in order], torch.tensor(order)


def join_targets(twin: Twin, sorted_rows: Sequence[Row]) -> tuple[CleanRun, Int[Tensor, " row"], int]:
    """The joined clean run of the rows' targets, which of them each row belongs to, and the first token to run.

    The target whose row joins last is the first: up to there its tokens must run unpatched when rows generate.
    """
    targets = list({id(row.target): row.target for row in reversed(sorted_rows)}.values())
    numbers = {id(target): number for number, target in enumerate(targets)}
    start = min(row.start for row in sorted_rows)
    run_cleanly_together(twin, targets)
    return join_clean_runs(twin, targets, start), torch.tensor([numbers[id(row.target)] for row in sorted_rows]), start


def walk_rows(
    model: LensModel,
    twin: Twin,
    clean: CleanRun,
    rows: Sequence[Row],
    target_of_row: Int[Tensor, " row"],
    start: int,
) -> tuple[Float[Tensor, "row d_model"], PrefixCache]:
    """Walk the blocks once; a row joins at the first block in which it does anything.

    Args:
        clean: the run of the rows' targets over the tokens from `start` on.
        rows: in the order in which they join.

    Returns:
        the final residual of the last token; and the cache, in which each block has only the rows that have joined.
    """
    changes = collect_changes(twin, rows, start)
    n_joining = torch.bincount(torch.tensor([row.first_block for row in rows]), minlength=len(twin.blocks) + 1).tolist()
    # Once, not in every block.
    target_of_row = send(target_of_row, twin.device)
    targets_of_joining = target_of_row.split(n_joining)
    calls = cut_calls(twin, clean.calls, list(accumulate(n_joining)), changes)
    several = len(clean.residuals[0]) > 1
    cache = twin.new_cache(clean.prefixes)

    def take_clean(number: int) -> Float[Tensor, "row suffix d_model"]:
        return clean.residuals[number][targets_of_joining[number].to(clean.residuals[number].device)]

    hidden = changes.write_residual(EMBEDDING, take_clean(0))
    with cache_in_use(cache):
        for number, call in enumerate(calls):
            if len(hidden) > 0:
                cache.prefix_layers[number].prefix_of_row = target_of_row[: len(hidden)] if several else None
                hidden = run_block(model, twin, number, call, hidden, cache, changes)
            newcomers = take_clean(number + 1)
            hidden = changes.write_residual(number, torch.cat([hidden.to(newcomers.device), newcomers]))
    return hidden[:, -1], cache
