"""How the end of a prompt depends on one of its tokens: ∂o/∂s at every layer, from one batched backward pass.

s is the representation of a token at layer ℓ, o that of the prompt's last token after the last block, before the final
norm (Hernandez et al. 2023, section 3). As in the fast engine, tokens before s are run once and their keys and values
kept, because nothing that they are depends on s; and the gradient on its way down from o passes the representations of
all layers, so one backward pass serves them all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.engine.batching import RowSize, run_in_batches
from patchscopes.engine.building import get_twin
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.hooks import build_writing_hooks
from patchscopes.engine.overflow import check_finite
from patchscopes.engine.prefix import cache_in_use
from patchscopes.engine.proof import Engine, choose_engine
from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.model.devices import require_memory_for_layers
from patchscopes.model.layers import get_hook_name, resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.model.offloading import check_gradients_fit
from patchscopes.tokens import Text

# Dimensions of o times tokens that the gradient passes: more at a time take memory and no less time.
TOKENS_AT_A_TIME = 2048


@dataclass(frozen=True, eq=False)
class Jacobians:
    """∂o/∂s at some layers of one prompt, and where it was taken.

    Attributes:
        jacobians: ∂o/∂s for each ℓ; rows are the dimensions of o.
        representations: s at each ℓ.
        output: o, the last token's residual after the last block, before the final norm.
    """

    jacobians: Float[Tensor, "layer d_model d_model"]
    representations: Float[Tensor, "layer d_model"]
    output: Float[Tensor, " d_model"]


def compute_jacobians(
    model: LensModel, prompt: Text, position: int, layers: Sequence[int] | None = None, *, engine: Engine = "auto"
) -> Jacobians:
    """∂o/∂s for the representation s of token `position` at each of `layers` (all blocks unless given).

    The model's parameters get no gradient, and it does not matter whether gradients are switched off around the call.

    Args:
        engine: `"fast"` runs the tokens from `position` on once, and one backward pass for all layers; `"hooks"` the
            whole prompt for each layer, with TransformerLens hooks and one backward pass for each dimension of o;
            `"auto"` chooses as `patch_logits` does.

    Raises:
        PatchscopesError: the position or a layer does not exist, no layer is given, `engine="fast"` cannot run this
            model, states or Jacobians hold NaN or infinity, or they need clearly more memory than there is.
    """
    layers = resolve_layers(model, layers)
    if not layers:
        raise PatchscopesError("no layer to differentiate at; give at least one, or None for all blocks")
    check_gradients_fit(model)
    require_memory_for_layers(
        f"the Jacobians of width {model.cfg.d_model}",
        len(layers),
        model.cfg.d_model**2 * model.cfg.dtype.itemsize,
        model.cfg.device,
        "load the model on the CPU (--device cpu)",
    )
    # Tensors that inference mode makes cannot be differentiated through.
    with torch.inference_mode(False):
        target = TargetPrompt(model, prompt, position)
        compute = _compute_in_one_pass if choose_engine(target, engine) == "fast" else _compute_with_hooks
        with torch.enable_grad():
            found = compute(target, layers)
    check_finite(found.output, model.cfg.dtype)
    check_finite(found.jacobians, model.cfg.dtype, "Jacobians")
    return found


def _compute_in_one_pass(target: TargetPrompt, layers: Sequence[int]) -> Jacobians:
    """Walk the blocks from the lowest layer on once, and back once."""
    twin, clean, lowest = get_twin(target.model), target.clean_run, min(layers)
    passed: dict[int, Float[Tensor, "1 1 d_model"]] = {}

    def pass_by(layer: int, hidden: Float[Tensor, "1 suffix d_model"]) -> Float[Tensor, "1 suffix d_model"]:
        """The same numbers, in which s at this layer is a tensor of its own: gradients are asked for it alone."""
        if layer not in layers:
            return hidden
        passed[layer] = hidden[:, :1]
        return torch.cat([passed[layer], hidden[:, 1:]], dim=1)

    cache = twin.new_cache(clean.prefixes)
    hidden = pass_by(lowest, clean.residuals[lowest + 1].detach().clone().requires_grad_())
    with cache_in_use(cache):
        for layer in range(lowest + 1, len(twin.blocks)):
            hidden = pass_by(layer, clean.calls[layer](twin.blocks[layer], hidden, cache))
    output = hidden[0, -1]
    jacobians = _new_jacobians(target, layers)
    dimensions = torch.eye(len(output), dtype=output.dtype, device=output.device)

    def differentiate(rows: slice) -> tuple[Float[Tensor, "dimension 1 1 d_model"], ...]:
        at = [passed[layer] for layer in layers]
        return torch.autograd.grad(output, at, dimensions[rows], retain_graph=True, is_grads_batched=True)

    row, size = RowSize(run=target.suffix_length, unembedded=0), max(1, TOKENS_AT_A_TIME // target.suffix_length)
    for rows, gradients in run_in_batches(target.model, len(output), differentiate, row=row, batch_size=size):
        for slot, gradient in enumerate(gradients):
            jacobians[slot, rows] = gradient[:, 0, 0].to(jacobians)
    representations = torch.stack([passed[layer].detach()[0, 0].to(jacobians) for layer in layers])
    return Jacobians(jacobians, representations, output.detach().to(jacobians))


def _compute_with_hooks(target: TargetPrompt, layers: Sequence[int]) -> Jacobians:
    """The plain twin: the whole prompt through the whole model for each layer, s written by a hook."""
    last = target.model.cfg.n_layers - 1
    representations, output = (
        extract_representations(target.model, [target.tokens], [position], of)[0]
        for position, of in ((target.position, layers), (-1, [last]))
    )
    jacobians = _new_jacobians(target, layers)
    for slot, layer in enumerate(layers):
        continue_from = partial(_continue_from, target, layer)
        jacobians[slot] = torch.autograd.functional.jacobian(continue_from, representations[slot])
    return Jacobians(jacobians, representations, output[0])


def _continue_from(
    target: TargetPrompt, layer: int, representation: Float[Tensor, " d_model"]
) -> Float[Tensor, " d_model"]:
    """o when s is this representation."""
    outputs: list[Tensor] = []

    def read(residual: Float[Tensor, "1 pos d_model"], hook: Any) -> None:
        outputs.append(residual[0, -1])

    writing = build_writing_hooks(target.position, representation[None], torch.tensor([layer]))
    reading = get_hook_name(target.model.cfg.n_layers - 1), read
    target.model.run_with_hooks(target.tokens[None], return_type=None, fwd_hooks=[*writing, reading])
    return outputs[0]


def _new_jacobians(target: TargetPrompt, layers: Sequence[int]) -> Float[Tensor, "layer d_model d_model"]:
    cfg = target.model.cfg
    return torch.empty(len(layers), cfg.d_model, cfg.d_model, dtype=cfg.dtype, device=cfg.device)
