"""Affine mappings from the user's cache folder, where they are fitted at most once."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from patchscopes.data.texts import TextSet
from patchscopes.learned.config import RIDGE
from patchscopes.learned.files import get_cached_path, load_cached, remove_files
from patchscopes.learned.fitting import fit_affine_maps, fit_cross_model_maps
from patchscopes.learned.mappings import AffineMap, MapKey, load_maps, save_maps
from patchscopes.model.lens_model import LensModel

# Whose code decides what a map is.
_MODULES = ["learned/fitting", "learned/mappings", "learned/least_squares", "alignment", "positions"]


def fit_or_load_affine_maps(
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
    path = get_cached_path("affine", [model], texts, options, _MODULES)
    if fresh:
        remove_files(path)
    return _load_or_fit(
        path,
        lambda: fit_affine_maps(
            model, texts, ahead=ahead, n_positions=n_positions, ridge=ridge, seed=seed, progress=progress
        ),
    )


def fit_or_load_cross_model_maps(
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
    path = get_cached_path("affine", [source_model, target_model], texts, options, _MODULES)
    return _load_or_fit(
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


def _load_or_fit(path: Path, fit: Callable[[], dict[MapKey, AffineMap]]) -> dict[MapKey, AffineMap]:
    """The maps in a cached file, which is written first if it is not there."""
    maps = load_cached(path, load_maps)
    if maps is None:
        maps = fit()
        save_maps(path, maps)
    return maps
