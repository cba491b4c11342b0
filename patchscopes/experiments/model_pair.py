"""Two models: one whose states are read, and one that explains them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import CrossModelConfig
from patchscopes.learned.mappings import AffineMap, MapKey
from patchscopes.learned.provenance import check_model
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel


@dataclass(frozen=True, eq=False)
class ModelPair:
    """The source model M, the target model M*, their layers in use, and f.

    Attributes:
        maps: f for each pair (ℓ, ℓ*); None for the identity.
    """

    source: LensModel
    target: LensModel
    layers: list[int]
    target_layers: list[int]
    maps: Mapping[MapKey, AffineMap] | None

    def map_representations(
        self, representations: Float[Tensor, "sample layer d_in"], pairs: Sequence[tuple[int, int]]
    ) -> Float[Tensor, "sample pair d_out"]:
        """f of the representations at ℓ, for each pair (ℓ, ℓ*)."""
        # In float32: what f gives may not fit into the source model's type.
        at = {layer: representations[:, slot].float() for slot, layer in enumerate(self.layers)}
        if self.maps is None:
            return torch.stack([at[layer] for layer, _ in pairs], dim=1)
        return torch.stack([self.maps[MapKey(*pair)](at[pair[0]]) for pair in pairs], dim=1)

    @property
    def grid(self) -> list[tuple[int, int]]:
        """All pairs (ℓ, ℓ*)."""
        return [(layer, target_layer) for layer in self.layers for target_layer in self.target_layers]

    @property
    def diagonal(self) -> list[tuple[int, int]]:
        """For each ℓ the chosen ℓ* that is nearest at the same relative depth."""
        last, target_last = self.source.cfg.n_layers - 1, self.target.cfg.n_layers - 1

        def nearest(layer: int) -> int:
            depth = layer / max(1, last) * target_last
            return min(self.target_layers, key=lambda target_layer: abs(target_layer - depth))

        return [(layer, nearest(layer)) for layer in self.layers]


def resolve_layer_grid(source: LensModel, target: LensModel, config: CrossModelConfig) -> tuple[list[int], list[int]]:
    """The source and target layers of the configuration.

    Raises:
        PatchscopesError: a layer does not exist.
    """
    return (
        resolve_layers(source, config.layers, CrossModelConfig.N_SOURCE_LAYERS),
        resolve_layers(target, config.target_layers, CrossModelConfig.N_TARGET_LAYERS),
    )


def pair_models(
    source: LensModel, target: LensModel, config: CrossModelConfig, maps: Mapping[MapKey, AffineMap] | None
) -> ModelPair:
    """The two models and f.

    Raises:
        PatchscopesError: a layer or such an f does not exist, or f does not fit the two models.
    """
    layers, target_layers = resolve_layer_grid(source, target, config)
    if config.mapping == "identity":
        if source.cfg.d_model != target.cfg.d_model:
            raise PatchscopesError(
                f"f can be the identity only between models of one width: {source.cfg.model_name} has "
                f"{source.cfg.d_model}, {target.cfg.model_name} {target.cfg.d_model}; use the affine mapping"
            )
        return ModelPair(source, target, layers, target_layers, None)
    if config.mapping != "affine":
        raise PatchscopesError(f"mapping must be affine or identity, got {config.mapping!r}")
    pair = ModelPair(source, target, layers, target_layers, maps)
    missing = [f"{key[0]}→{key[1]}" for key in pair.grid if maps is None or MapKey(*key) not in maps]
    if maps is None or missing:
        raise PatchscopesError(
            f"f is missing for the layers {', '.join(missing[:5])}: fit it with fit_cross_model_maps"
        )
    made = maps[MapKey(*pair.grid[0])].provenance
    check_model(made.source_model, source)
    check_model(made.target_model, target)
    return pair
