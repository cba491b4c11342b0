"""Two models: one whose states are read, and one that explains them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.alignment import align_positions
from patchscopes.data.texts import Sample, TextSet, draw_samples
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import CrossModelConfig
from patchscopes.learned.mappings import AffineMap, MapKey
from patchscopes.learned.provenance import check_model
from patchscopes.model.layers import check_layer, spread_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.tokens import to_token_ids


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

    def mapped(
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
    asked = (
        (source, config.layers, CrossModelConfig.N_SOURCE_LAYERS),
        (target, config.target_layers, CrossModelConfig.N_TARGET_LAYERS),
    )
    layers, target_layers = (
        spread_layers(model, n) if chosen is None else [check_layer(model, layer) for layer in chosen]
        for model, chosen, n in asked
    )
    return layers, target_layers


def check_pair(
    source: LensModel, target: LensModel, config: CrossModelConfig, maps: Mapping[MapKey, AffineMap] | None
) -> ModelPair:
    """The two models and f, if they fit each other and the configuration."""
    unknown = [method for method in config.methods if method not in CrossModelConfig.METHODS]
    if unknown:
        raise PatchscopesError(f"no method is called {unknown[0]!r}; choose from {', '.join(CrossModelConfig.METHODS)}")
    pair = ModelPair(source, target, *resolve_layer_grid(source, target, config), maps)
    if config.mapping == "identity":
        if source.cfg.d_model != target.cfg.d_model:
            raise PatchscopesError(
                f"f can be the identity only between models of one width: {source.cfg.model_name} has "
                f"{source.cfg.d_model}, {target.cfg.model_name} {target.cfg.d_model}; use the affine mapping"
            )
        return ModelPair(source, target, pair.layers, pair.target_layers, None)
    if config.mapping != "affine":
        raise PatchscopesError(f"mapping must be affine or identity, got {config.mapping!r}")
    missing = [f"{key[0]}→{key[1]}" for key in pair.grid if maps is None or MapKey(*key) not in maps]
    if maps is None or missing:
        raise PatchscopesError(
            f"f is missing for the layers {', '.join(missing[:5])}: fit it with learned.fitting.fit_cross_model_maps"
        )
    made = maps[MapKey(*pair.grid[0])].provenance
    check_model(made.source_model, source)
    check_model(made.target_model, target)
    return pair


def draw_aligned(
    source: LensModel, target: LensModel, texts: TextSet, config: CrossModelConfig
) -> tuple[list[Sample], dict[int, list[tuple[int, int]]], int]:
    """Random positions at which both models have read the same, sorted by text; all such positions of each text; and
    how many positions there are for the source model alone.

    The number in `Sample.position` counts the pairs of a text.
    """
    aligned = {
        number: [pair for pair in align_positions(source, target, text) if min(pair) > 0]
        for number, text in enumerate(texts.texts)
    }
    n_source = sum(len(to_token_ids(source, text, truncate=True)) - 1 for text in texts.texts)
    # draw_samples leaves out the first position of a text, which is not among the pairs.
    lengths = [len(pairs) + 1 for pairs in aligned.values()]
    samples = draw_samples(lengths, texts.texts, config.n_samples, config.seed)
    samples = [Sample(sample.text, sample.position - 1) for sample in samples]
    return sorted(samples, key=lambda sample: (sample.text, sample.position)), aligned, n_source
