"""Layers by number: ℓ is the residual stream after block ℓ, and -1 what enters block 0."""

from collections.abc import Sequence

from patchscopes.errors import PatchscopesError
from patchscopes.model.lens_model import LensModel

EMBEDDING = -1


def check_layer(model: LensModel, layer: int) -> int:
    """`layer` if the model has it.

    Raises:
        PatchscopesError: it has not.
    """
    if not EMBEDDING <= layer < model.cfg.n_layers:
        raise PatchscopesError(
            f"layer {layer} does not exist: the model has layers 0 to {model.cfg.n_layers - 1} and EMBEDDING (-1)"
        )
    return layer


def get_hook_name(layer: int) -> str:
    """The TransformerLens hook point whose value is the representation at `layer`."""
    return "blocks.0.hook_resid_pre" if layer == EMBEDDING else f"blocks.{layer}.hook_resid_post"


def resolve_target_layers(model: LensModel, source_layers: Sequence[int], target_layer: str) -> list[int]:
    """ℓ* for each ℓ, from one of `same`, `embedding`, `last` or a number.

    Raises:
        PatchscopesError: none of these, or no such layer.
    """
    fixed = {"embedding": EMBEDDING, "last": model.cfg.n_layers - 1}
    if target_layer == "same":
        return list(source_layers)
    if target_layer not in fixed and not target_layer.lstrip("-").isdecimal():
        raise PatchscopesError(f"target layer must be same, embedding, last or a number, got {target_layer!r}")
    layer = fixed[target_layer] if target_layer in fixed else int(target_layer)
    return [check_layer(model, layer)] * len(source_layers)


def spread_layers(model: LensModel, n_layers: int) -> list[int]:
    """At most `n_layers` blocks of the model at equal distances, its first and last among them."""
    last = model.cfg.n_layers - 1
    n_layers = min(n_layers, model.cfg.n_layers)
    return sorted({round(number * last / max(1, n_layers - 1)) for number in range(n_layers)})
