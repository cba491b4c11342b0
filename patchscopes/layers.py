"""Layers by number: ℓ is the residual stream after block ℓ, and -1 what enters block 0."""

from patchscopes.errors import PatchscopesError
from patchscopes.lens_model import LensModel

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


def hook_name(layer: int) -> str:
    """The TransformerLens hook point whose value is the representation at `layer`."""
    return "blocks.0.hook_resid_pre" if layer == EMBEDDING else f"blocks.{layer}.hook_resid_post"
