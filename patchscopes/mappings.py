"""Affine mappings f between the representations of two layers, fitted by ridge least squares.

The paper's Tuned Lens baseline, and Din et al. 2023 before it, map a layer's representation to the last layer's by an
affine function; Pal et al. 2023 map it to the last layer's representation of a *later* token; the paper (section 4.4)
maps it to a layer of *another model*. All are sums over positions, so one pass over the texts serves all layers, and
no hidden state is kept.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.alignment import aligned_positions
from patchscopes.data import TextSet
from patchscopes.errors import PatchscopesError
from patchscopes.extract import extract_representations
from patchscopes.layers import check_layer
from patchscopes.learned import (
    Provenance,
    cached_path,
    check_model,
    forget,
    from_cache,
    load_tensors,
    provenance,
    save_tensors,
)
from patchscopes.least_squares import RIDGE, Moments
from patchscopes.lens_model import LensModel
from patchscopes.tokens import to_token_ids

# Texts read together while fitting: their hidden states are all that is in memory at a time.
TEXTS_AT_A_TIME = 8


# A text, and positions in the tokens of two models at which both have read the same part of it.
AlignedText: TypeAlias = tuple[str, list[tuple[int, int]]]


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
        for made in {id(f.provenance): f.provenance for f in chosen.values()}.values():
            check_model(made.source_model, model)
            if made.target_model != made.source_model:
                check_model(made.target_model, model)
        return cls(chosen)

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


# --- Fitting --------------------------------------------------------------------------------------------------


@torch.no_grad()
def fit_affine_maps(
    model: LensModel,
    texts: TextSet,
    source_layers: Sequence[int] | None = None,
    target_layers: Sequence[int] | None = None,
    *,
    ahead: Sequence[int] = (0,),
    n_positions: int | None = None,
    ridge: float = RIDGE,
    seed: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[MapKey, AffineMap]:
    """Ridge least squares from each source layer to each target layer, at the same token or some tokens later.

    One pass over the texts. Memory holds the moments (float64, `d_model`² numbers for each source layer, and for each
    pair) and the hidden states of a few texts, however many positions there are.

    Args:
        texts: of the train split, which no evaluation uses.
        source_layers: all blocks unless given.
        target_layers: the last block unless given.
        ahead: how many tokens after the source's the target is.
        n_positions: at most; fewer are used where the texts have fewer. They are all those of some texts. By width
            unless given: see `default_positions`.
        ridge: see `Moments.solve`.
        progress: wraps the iteration over groups of texts, `tqdm` for instance.

    Raises:
        PatchscopesError: texts of another split, no position in them, or too few for the ridge.
    """
    _check_train(texts)
    n_positions = default_positions(model) if n_positions is None else n_positions
    if n_positions < 1 or not ahead or min(ahead) < 0:
        raise PatchscopesError(
            f"n_positions must be at least 1, and ahead some numbers from 0 on; got {n_positions} and {tuple(ahead)}"
        )
    last = model.cfg.n_layers - 1
    sources = list(range(model.cfg.n_layers)) if source_layers is None else list(source_layers)
    targets = [last] if target_layers is None else list(target_layers)
    for layer in [*sources, *targets]:
        check_layer(model, layer)

    runs = _whole_texts(model, texts, n_positions, max(ahead), seed)
    keys = [MapKey(source, target, later) for source in sources for later in ahead for target in targets]

    def read(group: Sequence[tuple[Int[Tensor, " _"], range]]) -> tuple[Tensor, Tensor]:
        return _read_pairs(model, group, sources, targets, ahead)

    moments = _moments_of(runs, read, (model, len(sources)), (model, len(targets) * len(ahead)), texts, progress)
    options = {
        "source_layers": sources,
        "target_layers": targets,
        "ahead": list(ahead),
        "asked_positions": n_positions,
        "ridge": ridge,
        "seed": seed,
    }
    return _solved(moments, ridge, keys, provenance("least_squares", model, texts, moments.n, options))


@torch.no_grad()
def fit_cross_model_maps(
    source_model: LensModel,
    target_model: LensModel,
    texts: TextSet,
    source_layers: Sequence[int],
    target_layers: Sequence[int],
    *,
    n_positions: int | None = None,
    ridge: float = RIDGE,
    seed: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[MapKey, AffineMap]:
    """Ridge least squares from each source layer of one model to each target layer of another, at the positions where
    both have read the same part of a text (see `patchscopes.alignment`).

    How many such positions there were is in the maps' provenance. Memory, args and errors: as for `fit_affine_maps`.
    """
    _check_train(texts)
    n_positions = default_positions(source_model) if n_positions is None else n_positions
    if n_positions < 1:
        raise PatchscopesError(f"n_positions must be at least 1, got {n_positions}")
    for model, layers in ((source_model, source_layers), (target_model, target_layers)):
        for layer in layers:
            check_layer(model, layer)
    runs: list[AlignedText] = []
    missing = n_positions
    n_tokens = 0
    for index in np.random.default_rng(seed).permutation(len(texts.texts)):
        text = texts.texts[index]
        # Never at the first token: nothing comes before it.
        aligned = [pair for pair in aligned_positions(source_model, target_model, text) if min(pair) > 0][:missing]
        if aligned:
            runs.append((text, aligned))
            n_tokens += aligned[-1][0]
            missing -= len(aligned)
        if missing == 0:
            break

    def states(model: LensModel, layers: Sequence[int], group: Sequence[AlignedText], side: int) -> Tensor:
        runs = [(to_token_ids(model, text, truncate=True), pairs) for text, pairs in group]
        tokens = [ids for ids, pairs in runs for _ in pairs]
        positions = [pair[side] for _, pairs in runs for pair in pairs]
        return extract_representations(model, tokens, positions, layers)

    def read(group: Sequence[AlignedText]) -> tuple[Tensor, Tensor]:
        return states(source_model, source_layers, group, 0), states(target_model, target_layers, group, 1)

    moments = _moments_of(
        runs, read, (source_model, len(source_layers)), (target_model, len(target_layers)), texts, progress
    )
    options = {
        "source_layers": list(source_layers),
        "target_layers": list(target_layers),
        "asked_positions": n_positions,
        "source_positions_in_the_same_texts": n_tokens,
        "ridge": ridge,
        "seed": seed,
    }
    made = provenance("least_squares", source_model, texts, moments.n, options, target_model=target_model)
    return _solved(
        moments, ridge, [MapKey(source, target) for source in source_layers for target in target_layers], made
    )


def _check_train(texts: TextSet) -> None:
    if texts.split != "train":
        raise PatchscopesError(f"maps are fitted on texts of the train split, got {texts.split!r} of {texts.name!r}")


def _moments_of(
    runs: Sequence[Any],
    read: Callable[[Sequence[Any]], tuple[Tensor, Tensor]],
    sources: tuple[LensModel, int],
    targets: tuple[LensModel, int],
    texts: TextSet,
    progress: Callable[[Iterable[Any]], Iterable[Any]],
) -> Moments:
    """The sums over what `read` gives of some texts at a time.

    Args:
        sources, targets: the model, and how many representations of it each position has.
    """
    if not runs:
        raise PatchscopesError(f"the train texts of {texts.name!r} have no position to fit on; give more texts")
    (source_model, n_sources), (target_model, n_targets) = sources, targets
    shape = (n_sources, source_model.cfg.d_model, n_targets, target_model.cfg.d_model)
    moments = Moments.zero(*shape, _moments_device(source_model, *shape))
    for group in progress([runs[start : start + TEXTS_AT_A_TIME] for start in range(0, len(runs), TEXTS_AT_A_TIME)]):
        moments.add(*read(group))
    if moments.n < 5 * source_model.cfg.d_model:
        warnings.warn(
            f"maps of width {source_model.cfg.d_model} are fitted on only {moments.n} positions: give more texts, or a "
            "larger ridge",
            stacklevel=3,
        )
    return moments


def _solved(moments: Moments, ridge: float, keys: Sequence[MapKey], made: Provenance) -> dict[MapKey, AffineMap]:
    """The maps that the sums determine: `keys` has all targets of the first source, then all of the second, …"""
    weights, biases = (part.cpu().flatten(0, 1) for part in moments.solve(ridge))
    return {
        key: AffineMap(weight=weight, bias=bias, key=key, provenance=made)
        for key, weight, bias in zip(keys, weights, biases, strict=True)
    }


def default_positions(model: LensModel) -> int:
    """Positions that maps are fitted on unless told: 20,000, or 20 for each dimension where that is more."""
    return max(20_000, 20 * model.cfg.d_model)


def _moments_device(model: LensModel, n_sources: int, d_in: int, n_targets: int, d_out: int) -> torch.device:
    """The model's device if it has float64 and memory to spare, otherwise the CPU."""
    device = torch.device(model.cfg.device)
    if device.type == "cuda":
        n_bytes = 8 * n_sources * d_in * (d_in + n_targets * d_out)
        free, _ = torch.cuda.mem_get_info(device)
        if n_bytes < free / 2:
            return device
    return torch.device("cpu")


def _whole_texts(
    model: LensModel, texts: TextSet, n_positions: int, ahead: int, seed: int
) -> list[tuple[Int[Tensor, " _"], range]]:
    """Texts in random order, each with all its positions but the first and the last `ahead`, until there are enough.

    A text costs the same to run for one position as for all.
    """
    runs: list[tuple[Tensor, range]] = []
    missing = n_positions
    for index in np.random.default_rng(seed).permutation(len(texts.texts)):
        ids = to_token_ids(model, texts.texts[index], truncate=True)
        positions = range(1, len(ids) - ahead)[:missing]
        if len(positions) > 0:
            runs.append((ids, positions))
            missing -= len(positions)
        if missing == 0:
            break
    return runs


def _read_pairs(
    model: LensModel,
    wanted: Sequence[tuple[Int[Tensor, " _"], range]],
    sources: Sequence[int],
    targets: Sequence[int],
    ahead: Sequence[int],
) -> tuple[Float[Tensor, "position source d_model"], Float[Tensor, "position target d_model"]]:
    """What goes in and should come out, at the given positions of some texts. Each text is run once."""
    layers = sorted({*sources, *targets})
    places = [(text, position) for text, (_, positions) in enumerate(wanted) for position in positions]
    read = sorted({(text, position + later) for text, position in places for later in (0, *ahead)})
    states = extract_representations(
        model, [wanted[text][0] for text, _ in read], [position for _, position in read], layers
    )
    row_of = {place: row for row, place in enumerate(read)}

    def at(later: int, chosen: Sequence[int]) -> Float[Tensor, "position chosen d_model"]:
        rows = [row_of[text, position + later] for text, position in places]
        return states[rows][:, [layers.index(layer) for layer in chosen]]

    return at(0, sources), torch.cat([at(later, targets) for later in ahead], dim=1)


# --- The cache ------------------------------------------------------------------------------------------------

# Whose code decides what a map is.
_MODULES = ["mappings", "least_squares", "alignment", "positions"]


def cached_affine_maps(
    model: LensModel,
    texts: TextSet,
    *,
    ahead: Sequence[int] = (0,),
    n_positions: int | None = None,
    ridge: float = RIDGE,
    seed: int = 0,
    fresh: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[MapKey, AffineMap]:
    """`fit_affine_maps` from all layers to the last one, or what an earlier call with the same arguments left in the
    cache folder (unless `fresh`).

    Raises:
        PatchscopesError: as `fit_affine_maps`, or the model has hooks on it.
    """
    options = {"ahead": list(ahead), "n_positions": n_positions, "ridge": ridge, "seed": seed}
    path = cached_path("affine", [model], texts, options, _MODULES)
    if fresh:
        forget(path)
    return _kept(
        path,
        lambda: fit_affine_maps(
            model, texts, ahead=ahead, n_positions=n_positions, ridge=ridge, seed=seed, progress=progress
        ),
    )


def cached_cross_model_maps(
    source_model: LensModel,
    target_model: LensModel,
    texts: TextSet,
    source_layers: Sequence[int],
    target_layers: Sequence[int],
    *,
    n_positions: int | None = None,
    ridge: float = RIDGE,
    seed: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[MapKey, AffineMap]:
    """`fit_cross_model_maps`, or what an earlier call with the same arguments left in the cache folder.

    Raises:
        PatchscopesError: as `fit_cross_model_maps`, or a model has hooks on it.
    """
    layers = {"source_layers": list(source_layers), "target_layers": list(target_layers)}
    options = layers | {"n_positions": n_positions, "ridge": ridge, "seed": seed}
    path = cached_path("affine", [source_model, target_model], texts, options, _MODULES)
    return _kept(
        path,
        lambda: fit_cross_model_maps(
            source_model,
            target_model,
            texts,
            source_layers,
            target_layers,
            n_positions=n_positions,
            ridge=ridge,
            seed=seed,
            progress=progress,
        ),
    )


def _kept(path: Path, fit: Callable[[], dict[MapKey, AffineMap]]) -> dict[MapKey, AffineMap]:
    """The maps in a cached file, which is written first if it is not there."""
    maps = from_cache(path, load_maps)
    if maps is None:
        maps = fit()
        save_maps(path, maps)
    return maps
