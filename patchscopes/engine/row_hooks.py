"""The plain engine for rows, and the oracle of the fast one: full forward passes with TransformerLens hooks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchscopes.engine.generation import Advance, LogitsInParts
from patchscopes.engine.overflow import check_finite
from patchscopes.engine.rows import Placement, Row, check_keys_left, place_cuts, place_writes
from patchscopes.engine.sublayers import check_plain_hooks, get_added_hook_name, get_scores_hook_name
from patchscopes.model.layers import EMBEDDING, get_hook_name

FwdHook = tuple[str, Callable[..., Tensor]]


def first_logits(rows: Sequence[Row]) -> Float[Tensor, "row d_vocab"]:
    """Logits of the token after each row's target prompt. All prompts have the same number of tokens."""
    return _last_logits(rows, torch.stack([row.target.tokens for row in rows]))


def start_generation(rows: Sequence[Row]) -> tuple[LogitsInParts, Advance]:
    """First logits, and a way to go on that runs the whole sequence again for every token."""
    sequences = torch.stack([row.target.tokens for row in rows])

    def advance(chosen: Int[Tensor, " kept_row"], kept: Bool[Tensor, " row"]) -> LogitsInParts:
        nonlocal sequences, rows
        sequences = torch.cat([sequences[kept], chosen[:, None].to(sequences.device)], dim=1)
        rows = [row for row, goes_on in zip(rows, kept.tolist(), strict=True) if goes_on]
        return [_last_logits(rows, sequences)]

    return [first_logits(rows)], advance


def _last_logits(rows: Sequence[Row], sequences: Int[Tensor, "row pos"]) -> Float[Tensor, "row d_vocab"]:
    """A full forward pass over whole sequences that start with the rows' target prompts.

    Raises:
        Overflow: logits hold NaN or infinity.
    """
    model = rows[0].target.model
    for feature in sorted(frozenset().union(*(row.features for row in rows))):
        check_plain_hooks(model, feature)
    logits = model.run_with_hooks(sequences, fwd_hooks=[*build_soft_prompt_hooks(rows), *build_row_hooks(rows)])[:, -1]
    return check_finite(logits, model.cfg.dtype, "logits")


def build_row_hooks(rows: Sequence[Row]) -> list[FwdHook]:
    """TransformerLens hooks that do what each row says in that row of a forward pass."""
    hooks: list[FwdHook] = []
    for (layer, site), placement in place_writes(rows).items():
        name = get_hook_name(layer) if site == "resid" else get_added_hook_name(layer, site)
        hooks.append((name, _writing(placement)))
    hooks += [(get_scores_hook_name(layer), _cutting(layer, edges)) for layer, edges in place_cuts(rows).items()]
    return hooks


def build_soft_prompt_hooks(rows: Sequence[Row]) -> list[FwdHook]:
    """A hook that writes each row's soft prompt, if its target has one, over what enters block 0."""
    soft_prompts = {
        number: row.target.soft_prompt for number, row in enumerate(rows) if row.target.soft_prompt is not None
    }

    def write(residual: Float[Tensor, "row pos d_model"], hook: Any) -> Float[Tensor, "row pos d_model"]:
        residual = residual.clone()
        for number, soft_prompt in soft_prompts.items():
            residual[number, : len(soft_prompt)] = soft_prompt.to(residual)
        return residual

    return [(get_hook_name(EMBEDDING), write)] if soft_prompts else []


def _writing(placement: Placement) -> Callable[..., Tensor]:
    def write(values: Float[Tensor, "row pos d_model"], hook: Any) -> Float[Tensor, "row pos d_model"]:
        return placement.write_into(values)

    return write


def _cutting(layer: int, edges: Int[Tensor, "row_query_key edge"]) -> Callable[..., Tensor]:
    def cut(scores: Float[Tensor, "row head query key"], hook: Any) -> Float[Tensor, "row head query key"]:
        scores = scores.clone()
        rows, queries, keys = edges.to(scores.device)
        scores[rows, :, queries, keys] = -torch.inf
        check_keys_left(layer, edges, scores <= torch.finfo(scores.dtype).min)
        return scores

    return cut
