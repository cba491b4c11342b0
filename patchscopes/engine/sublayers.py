"""What plain hooks can do inside the blocks of a model: write what a sublayer adds, and cut edges of attention.

A TransformerBridge has hook points for both on every model, but on some they do not fire, fire on something else, or
come too late. So each is tried once for a model, on its own terms.
"""

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.engine.overflow import check_finite
from patchscopes.errors import PatchscopesError
from patchscopes.model.layers import EMBEDDING, get_hook_name
from patchscopes.model.lens_model import LensModel

# Whether hooks do what they say, of a residual's norm: far above rounding, far below what anything else would give.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def get_added_hook_name(layer: int, site: str) -> str:
    """The hook point whose value is what `"attn_out"` or `"mlp_out"` adds to the residual stream."""
    return f"blocks.{layer}.hook_{site}"


def get_scores_hook_name(layer: int) -> str:
    """The hook point of a block's attention scores, `[row, head, query, key]`, before the softmax."""
    return f"blocks.{layer}.attn.hook_attn_scores"


_failures: weakref.WeakKeyDictionary[LensModel, dict[str, str | None]] = weakref.WeakKeyDictionary()


def check_plain_hooks(model: LensModel, feature: str) -> None:
    """Refuse what hooks cannot do on this model.

    Args:
        feature: `"attn_out"`, `"mlp_out"` or `"cuts"`.

    Raises:
        PatchscopesError: they cannot.
    """
    failures = _failures.setdefault(model, {})
    kind = "cuts" if feature == "cuts" else "sites"
    if kind not in failures:
        failures[kind] = _try_cutting(model) if kind == "cuts" else _try_writing(model)
    failure = failures[kind]
    if failure is not None:
        raise PatchscopesError(failure)


@torch.no_grad()
def _try_writing(model: LensModel) -> str | None:
    """With both sublayers written over, a block must add their sum."""
    tokens = torch.arange(3, device=model.cfg.device)[None]
    generator = torch.Generator().manual_seed(0)
    written = {site: torch.randn(model.cfg.d_model, generator=generator) for site in ("attn_out", "mlp_out")}
    residuals: dict[int, Tensor] = {}

    def read(layer: int) -> Callable[..., None]:
        def hook_function(residual: Float[Tensor, "row pos d_model"], hook: Any) -> None:
            residuals[layer] = check_finite(residual[0, 1], model.cfg.dtype).float().cpu()

        return hook_function

    def write(vector: Tensor) -> Callable[..., Tensor]:
        def hook_function(added: Float[Tensor, "row pos d_model"], hook: Any) -> Float[Tensor, "row pos d_model"]:
            added = added.clone()
            added[:, 1] = vector.to(added)
            return added

        return hook_function

    layers = range(model.cfg.n_layers)
    reading = [(get_hook_name(layer), read(layer)) for layer in (EMBEDDING, *layers)]
    writing = [
        (get_added_hook_name(layer, site), write(vector)) for layer in layers for site, vector in written.items()
    ]
    advice = (
        f"on this {_name_family(model)} TransformerLens has no hook on what attention and MLP add to the residual "
        "stream; write to site 'resid'"
    )
    if any(name not in model.hook_dict for name, _ in writing):
        return advice
    model.run_with_hooks(tokens, fwd_hooks=[*reading, *writing])
    total = written["attn_out"] + written["mlp_out"]
    for layer in layers:
        error = residuals[layer] - residuals[layer - 1] - total
        if not bool(error.norm() <= TOLERANCE[model.cfg.dtype] * (residuals[layer].norm() + total.norm())):
            return advice
    return None


@torch.no_grad()
def _try_cutting(model: LensModel) -> str | None:
    """A token that is cut off from the first one must not see which token that is."""
    tokens = torch.tensor([[1, 2], [3, 2]], device=model.cfg.device)
    layers = range(model.cfg.n_layers)
    failure = (
        f"on this {_name_family(model)} TransformerLens has no hook that cuts edges of attention before the softmax; "
        "write zero over the states of the keys instead"
    )
    if any(get_scores_hook_name(layer) not in model.hook_dict for layer in layers):
        return failure

    def cut(scores: Float[Tensor, "row head query key"], hook: Any) -> Float[Tensor, "row head query key"]:
        scores = scores.clone()
        scores[:, :, 1, 0] = -torch.inf
        return scores

    def read_second_token(cutting: bool) -> list[Tensor]:
        residuals: list[Tensor] = []
        hooks: list[tuple[str, Callable[..., Any]]] = [
            (
                get_hook_name(layer),
                lambda residual, hook: residuals.append(check_finite(residual[:, 1], model.cfg.dtype).float().cpu()),
            )
            for layer in layers
        ]
        if cutting:
            hooks += [(get_scores_hook_name(layer), cut) for layer in layers]
        with warnings.catch_warnings():
            # TransformerLens warns where the hook comes too late.
            warnings.simplefilter("ignore", UserWarning)
            model.run_with_hooks(tokens, fwd_hooks=hooks)
        return residuals

    for (first, second), (whole, other) in zip(read_second_token(True), read_second_token(False), strict=True):
        seen = TOLERANCE[model.cfg.dtype] * first.norm()
        if not bool((first - second).norm() <= seen) or torch.equal(whole, other):
            return failure
    return None


def _name_family(model: LensModel) -> str:
    return type(getattr(model, "original_model", model)).__name__
