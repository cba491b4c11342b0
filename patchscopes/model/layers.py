"""Layers by number: ℓ is the residual stream after block ℓ, and -1 what enters block 0."""

from collections.abc import Sequence

from patchscopes.errors import PatchscopesError
from patchscopes.given import AnyNumbers, is_number, to_numbers
from patchscopes.model.layer_names import EMBEDDING, name_layer, parse_layer, thin_out
from patchscopes.model.lens_model import LensModel


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


def resolve_layers(model: LensModel, layers: AnyNumbers | None, n_default: int | None = None) -> list[int]:
    """The given layers, or the one; if none are given, `n_default` of them at equal distances, or all blocks.

    Raises:
        PatchscopesError: the model has no such layer.
    """
    if layers is not None:
        return [check_layer(model, layer) for layer in to_numbers(layers, "layers")]
    return list(range(model.cfg.n_layers)) if n_default is None else spread_layers(model, n_default)


def resolve_target_layers(model: LensModel, source_layers: Sequence[int], target_layers: str | AnyNumbers) -> list[int]:
    """ℓ* for each ℓ, from one of `same`, `embedding`, `last`, a number (also as text), or one number for each ℓ.

    Raises:
        PatchscopesError: none of these, or no such layer.
    """
    if not isinstance(target_layers, str):
        layers = [check_layer(model, layer) for layer in to_numbers(target_layers, "target layers")]
        if is_number(target_layers):
            return layers * len(source_layers)
        if len(layers) != len(source_layers):
            raise PatchscopesError(
                f"{len(layers)} target layers were given for {len(source_layers)} source layers; give one for each, or "
                "same, embedding, last or one number"
            )
        return layers
    if target_layers == "same":
        return [check_layer(model, layer) for layer in source_layers]
    fixed = {"embedding": EMBEDDING, "last": model.cfg.n_layers - 1}
    if target_layers not in fixed and parse_layer(target_layers.removeprefix("-")) is None:
        raise PatchscopesError(f"target layer must be same, embedding, last or a number, got {target_layers!r}")
    layer = fixed[target_layers] if target_layers in fixed else int(target_layers)
    return [check_layer(model, layer)] * len(source_layers)


def spread_layers(model: LensModel, n_layers: int) -> list[int]:
    """At most `n_layers` blocks of the model at equal distances, its first and last among them."""
    return thin_out(range(model.cfg.n_layers), n_layers)


def describe_layers(layers: Sequence[int]) -> str:
    """Layers as one writes them: 0–29, or one by one."""
    numbers = list(layers)
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{name_layer(numbers[0])}–{numbers[-1]}"
    return ", ".join(map(name_layer, numbers))


def find_window(layer: int, window: int, n_layers: int) -> range:
    """The blocks of a window around a layer, clipped at both ends; an even one begins one block farther away."""
    start = layer - window // 2
    return range(max(0, start), min(n_layers, start + window))
