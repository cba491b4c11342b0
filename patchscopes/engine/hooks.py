"""The plain engine, and the oracle of the fast one: full forward passes with TransformerLens hooks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchscopes.engine.generation import Advance, LogitsInParts
from patchscopes.engine.overflow import check_finite
from patchscopes.engine.target import TargetPrompt
from patchscopes.model.layers import EMBEDDING, check_layer, get_hook_name


def build_writing_hooks(
    position: int, vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, " row"]
) -> list[tuple[str, Callable[..., Tensor]]]:
    """TransformerLens hooks that write each row's vector at (`position`, its layer) of that row's forward pass."""

    def writing(layer: int) -> Callable[..., Tensor]:
        # On the CPU: the blocks of a spread model are on several devices.
        rows = (layers.cpu() == layer).nonzero()[:, 0]

        def write(residual: Float[Tensor, "row pos d_model"], hook: Any) -> Float[Tensor, "row pos d_model"]:
            residual = residual.clone()
            residual[rows, position] = vectors[rows].to(residual)
            return residual

        return write

    return [(get_hook_name(layer), writing(layer)) for layer in layers.unique().tolist()]


def first_logits(
    target: TargetPrompt, vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, " row"]
) -> Float[Tensor, "row d_vocab"]:
    """Logits of the token after the target prompt, each row patched at (i*, its layer)."""
    return last_logits(target, target.tokens.expand(len(vectors), -1), vectors, layers)


def start_generation(
    target: TargetPrompt, vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, " row"]
) -> tuple[LogitsInParts, Advance]:
    """First logits, and a way to go on that runs the whole sequence again for every token."""
    sequences = target.tokens.expand(len(vectors), -1)

    def advance(chosen: Int[Tensor, " kept_row"], kept: Bool[Tensor, " row"]) -> LogitsInParts:
        nonlocal sequences, vectors, layers
        added = chosen[:, None].to(sequences.device)
        sequences, vectors, layers = torch.cat([sequences[kept], added], dim=1), vectors[kept], layers[kept]
        return [last_logits(target, sequences, vectors, layers)]

    return [first_logits(target, vectors, layers)], advance


def last_logits(
    target: TargetPrompt,
    sequences: Int[Tensor, "row pos"],
    vectors: Float[Tensor, "row d_model"],
    layers: Int[Tensor, " row"],
) -> Float[Tensor, "row d_vocab"]:
    """A full forward pass over whole sequences that start with the target prompt, patched at (i*, its layer).

    Raises:
        Overflow: logits hold NaN or infinity.
    """
    fwd_hooks = build_writing_hooks(target.position, vectors, layers)
    if target.soft_prompt is not None:
        fwd_hooks = [(get_hook_name(EMBEDDING), build_soft_prompt_hook(target.soft_prompt)), *fwd_hooks]
    logits = target.model.run_with_hooks(sequences, fwd_hooks=fwd_hooks)[:, -1]
    return check_finite(logits, target.model.cfg.dtype, "logits")


def build_soft_prompt_hook(soft_prompt: Float[Tensor, "soft d_model"]) -> Callable[..., Tensor]:
    """A TransformerLens hook that writes a soft prompt over the first tokens of every row."""

    def write(residual: Float[Tensor, "row pos d_model"], hook: Any) -> Float[Tensor, "row pos d_model"]:
        residual = residual.clone()
        residual[:, : len(soft_prompt)] = soft_prompt.to(residual)
        return residual

    return write


@torch.no_grad()
def extract_replaced(target: TargetPrompt, layers: Sequence[int]) -> Float[Tensor, "layer d_model"]:
    """What stands at (i*, ℓ*) of the unpatched target prompt for each ℓ*: what a vector written there replaces.

    Raises:
        PatchscopesError: a layer does not exist.
    """
    states: dict[int, Tensor] = {}

    def reading(layer: int) -> Callable[..., None]:
        def read(residual: Float[Tensor, "1 pos d_model"], hook: Any) -> None:
            states[layer] = residual[0, -1].to(target.model.cfg.device)

        return read

    # Nothing after i* is seen there.
    n_tokens = target.position + 1
    fwd_hooks: list[tuple[str, Callable[..., Any]]] = []
    if target.soft_prompt is not None:
        fwd_hooks = [(get_hook_name(EMBEDDING), build_soft_prompt_hook(target.soft_prompt[:n_tokens]))]
    fwd_hooks += [(get_hook_name(check_layer(target.model, layer)), reading(layer)) for layer in set(layers)]
    target.model.run_with_hooks(target.tokens[None, :n_tokens], return_type=None, fwd_hooks=fwd_hooks)
    return torch.stack([states[layer] for layer in layers])
