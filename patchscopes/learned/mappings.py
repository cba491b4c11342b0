"""Mappings f: affine ones between the representations of two layers, and how strongly a vector is written.

The paper's Tuned Lens baseline, and Din et al. 2023 before it, map a layer's representation to the last layer's by an
affine function; Pal et al. 2023 map it to the last layer's representation of a *later* token; the paper (section 4.4)
maps it to a layer of *another model*. All are fitted by ridge least squares, from sums over positions, so one pass over
the texts serves all layers, and no hidden state is kept.

`scaled` and `norm_matched` have learned nothing: they choose the length of what is written, alone or after another f.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.engine.hooks import extract_replaced
from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.learned.files import load_tensors, save_tensors
from patchscopes.learned.provenance import Provenance, check_model
from patchscopes.model.lens_model import LensModel


class MapKey(NamedTuple):
    """Which representations a map connects: those of `source_layer` at a token with those of `target_layer`, `ahead`
    tokens later."""

    source_layer: int
    target_layer: int
    ahead: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class AffineMap:
    """An affine function of representations, `weight @ h + bias`, and where it comes from.

    It stays on the CPU and follows what it maps: the maps of all layers of a large model would fill a GPU.
    """

    weight: Float[Tensor, "d_out d_in"]
    bias: Float[Tensor, " d_out"]
    key: MapKey
    provenance: Provenance

    def __call__(self, representations: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Map representations, in the precision of the map; the result has the type of what was given.

        Raises:
            PatchscopesError: they are not as wide as those that the map was fitted on.
        """
        width = self.weight.shape[1]
        if representations.shape[-1] != width:
            raise PatchscopesError(
                f"this map takes representations of width {width} ({self.provenance.source_model['id']}), got width "
                f"{representations.shape[-1]}; use the map that was fitted on this model"
            )
        weight, bias = self.weight.to(representations.device), self.bias.to(representations.device)
        return torch.nn.functional.linear(representations.to(weight), weight, bias).to(representations.dtype)

    def save(self, path: Path) -> None:
        """Write the map and its provenance as safetensors. See `save_maps`."""
        save_maps(path, {self.key: self})

    @classmethod
    def load(cls, path: Path) -> "AffineMap":
        """Read the one map of a file. See `load_maps`.

        Raises:
            PatchscopesError: as `load_maps`, or the file holds several maps.
        """
        maps = load_maps(path)
        if len(maps) != 1:
            raise PatchscopesError(f"{path} holds {len(maps)} maps, expected one; read them with load_maps")
        return next(iter(maps.values()))


def save_maps(path: Path, maps: Mapping[MapKey, AffineMap]) -> None:
    """Write maps of one provenance into one safetensors file, atomically.

    Raises:
        PatchscopesError: no maps, maps of several provenances, or the folder cannot be written to.
    """
    made = [f.provenance for f in maps.values()]
    if not made or any(one != made[0] for one in made):
        raise PatchscopesError(f"a file holds maps that were learned together; got {len(maps)} that were not")
    tensors: dict[str, Tensor] = {}
    for key, affine in maps.items():
        name = "source{}.target{}.ahead{}".format(*key)
        tensors |= {f"{name}.weight": affine.weight.contiguous(), f"{name}.bias": affine.bias.contiguous()}
    save_tensors(path, tensors, made[0])


def load_maps(path: Path) -> dict[MapKey, AffineMap]:
    """Read the maps of a file written by `save_maps`.

    Raises:
        PatchscopesError: no such file, or not a file of maps.
    """
    tensors, made = load_tensors(path)
    maps: dict[MapKey, AffineMap] = {}
    for name in tensors:
        numbers = re.fullmatch(r"source(-?\d+)\.target(-?\d+)\.ahead(\d+)\.weight", name)
        bias = tensors.get(name.removesuffix("weight") + "bias")
        if numbers is not None and bias is not None:
            key = MapKey(*map(int, numbers.groups()))
            maps[key] = AffineMap(weight=tensors[name], bias=bias, key=key, provenance=made)
    if not maps:
        raise PatchscopesError(f"{path} is not a file of affine maps; write one with train_lens.py")
    return maps


@dataclass(frozen=True, eq=False)
class LayerMapping:
    """The f of rows that come from several source layers: each row goes through its own layer's map.

    Attributes:
        maps: by source layer.
    """

    maps: Mapping[int, AffineMap]

    @classmethod
    def to_last(cls, model: LensModel, maps: Mapping[MapKey, AffineMap], ahead: int = 0) -> "LayerMapping":
        """Those of `maps` that go from the layers of `model` to its last one, `ahead` tokens later.

        Raises:
            PatchscopesError: there are none, or they were fitted on another model.
        """
        last = model.cfg.n_layers - 1
        chosen = {key.source_layer: f for key, f in maps.items() if key[1:] == (last, ahead)}
        if not chosen:
            raise PatchscopesError(
                f"there is no map to layer {last}, {ahead} tokens ahead; those given go to (layer, tokens ahead) "
                f"{sorted({key[1:] for key in maps})}"
            )
        _check_models(chosen, model, model)
        return cls(chosen)

    @classmethod
    def between(
        cls,
        source_model: LensModel,
        target_model: LensModel,
        maps: Mapping[MapKey, AffineMap],
        target_layers: Mapping[int, int],
    ) -> "LayerMapping":
        """Those of `maps` that go from layers of one model to layers of another (or the same), at the same token.

        Args:
            target_layers: ℓ* for each ℓ.

        Raises:
            PatchscopesError: there is no map for a pair (ℓ, ℓ*), or they were fitted on other models.
        """
        missing = [pair for pair in target_layers.items() if MapKey(*pair) not in maps]
        if missing:
            raise PatchscopesError(
                f"there is no map from layer {missing[0][0]} to layer {missing[0][1]}; those given go from and to "
                f"{sorted({key[:2] for key in maps})}"
            )
        chosen = {source: maps[MapKey(source, target)] for source, target in target_layers.items()}
        _check_models(chosen, source_model, target_model)
        return cls(chosen)

    def check_pairs(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Refuse to map from ℓ to write at an ℓ* that the map does not go to.

        Raises:
            PatchscopesError: there is no map from a layer ℓ, or it goes to another layer than ℓ*.
        """
        for layer, target_layer in pairs:
            if layer not in self.maps:
                raise PatchscopesError(f"there is no map from layer {layer}, only from {sorted(self.maps)}")
            reached = self.maps[layer].key.target_layer
            if reached != target_layer:
                raise PatchscopesError(
                    f"the map from layer {layer} goes to layer {reached}, and its result would be written at layer "
                    f"{target_layer}: give the target layers that the maps go to"
                )

    def __call__(
        self, representations: Float[Tensor, "row d_in"], layers: Int[Tensor, " row"]
    ) -> Float[Tensor, "row d_out"]:
        """Map each row.

        Raises:
            PatchscopesError: there is no map from a layer.
        """
        out: Tensor | None = None
        for layer in layers.unique().tolist():
            if layer not in self.maps:
                raise PatchscopesError(f"there is no map from layer {layer}, only from {sorted(self.maps)}")
            rows = layers == layer
            mapped = self.maps[layer](representations[rows])
            out = mapped.new_empty(len(representations), mapped.shape[1]) if out is None else out
            out[rows] = mapped
        return representations if out is None else out


@dataclass(frozen=True)
class Scaling:
    """f(h) = αh. See `scaled`."""

    alpha: float

    @property
    def __name__(self) -> str:
        return f"scaled({self.alpha:g})"

    def __call__(self, representations: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Scale representations."""
        return self.alpha * representations


def scaled(alpha: float) -> Scaling:
    """The f that writes α times the vector; α = 1 is the identity.

    Raises:
        PatchscopesError: α is not finite.
    """
    if not math.isfinite(alpha):
        raise PatchscopesError(f"alpha must be a finite number, got {alpha}")
    return Scaling(alpha)


@dataclass(frozen=True, eq=False)
class NormMatching:
    """f(h) = nh / ‖h‖ with a norm n for each row. See `norm_matched`."""

    norms: Float[Tensor, " row"]

    def __call__(self, representations: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Give each row its norm; a row of zeros, which has no direction, stays as it is.

        Raises:
            PatchscopesError: there are more or fewer rows than norms.
        """
        if len(representations) != len(self.norms):
            raise PatchscopesError(
                f"the norms of what {len(self.norms)} vectors replace do not fit {len(representations)} vectors: give "
                "norm_matched the target layer of each row"
            )
        lengths = representations.float().norm(dim=-1)
        factors = torch.where(lengths > 0, self.norms.to(lengths) / lengths, 0.0)
        return (factors[:, None] * representations.float()).to(representations.dtype)


def norm_matched(target: TargetPrompt, layers: Sequence[int] | Int[Tensor, " row"]) -> NormMatching:
    """The f that gives each vector the norm of what it replaces: of the unpatched state at i* and the row's ℓ*.

    A `Patchscope` knows the two: it takes `mapping=norm_matched` itself.

    Args:
        layers: ℓ* of each row.

    Raises:
        PatchscopesError: a layer does not exist.
    """
    return NormMatching(extract_replaced(target, torch.as_tensor(layers).tolist()).float().norm(dim=-1))


# f: any function of representations, or one that goes by their source layers or (`norm_matched`) by what they replace.
RepresentationMapping: TypeAlias = (
    LayerMapping
    | Callable[[Float[Tensor, "row d_in"]], Float[Tensor, "row d_out"]]
    | Callable[[TargetPrompt, Sequence[int]], NormMatching]
)


def _check_models(maps: Mapping[int, AffineMap], source_model: LensModel, target_model: LensModel) -> None:
    """Refuse maps that were fitted on other models."""
    for made in {id(f.provenance): f.provenance for f in maps.values()}.values():
        check_model(made.source_model, source_model)
        if target_model is not source_model or made.target_model != made.source_model:
            check_model(made.target_model, target_model)
