"""Affine mappings and LREs from the user's cache folder, where they are fitted at most once."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from patchscopes.data.relations import Relation, RelationSample
from patchscopes.data.texts import TextSet
from patchscopes.learned.config import RIDGE
from patchscopes.learned.files import ONLY_LOOK, NotLearnedError, get_cached_path, learn_once
from patchscopes.learned.fitting import fit_affine_maps, fit_cross_model_maps
from patchscopes.learned.lre import BETAS, LRE, build_training_prompts, describe_fit, fit_lre
from patchscopes.learned.mappings import AffineMap, MapKey, load_maps, save_maps
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel

# Whose code decides what a map is.
_MODULES = ["learned/fitting", "learned/mappings", "learned/least_squares", "alignment", "positions"]
_LRE_MODULES = [
    "learned/lre",
    "learned/mappings",
    "data/relations",
    "positions",
    "engine/jacobian",
    "engine/hooks",
    "engine/target",
    "engine/clean_run",
    "engine/prefix",
    "engine/twin",
    "engine/building",
    "engine/unembedding",
]

Learned = TypeVar("Learned")


def load_if_learned(fit: Callable[..., Learned]) -> Learned | None:
    """What an earlier `fit` left in the cache folder, or None: nothing is learned now.

    Args:
        fit: `fit_or_load_…`, `train_soft_prompt` or `fit_jacobian_lens` with its arguments, as by `functools.partial`.

    Raises:
        PatchscopesError: as `fit`.
    """
    # Nor does anybody wait for another process that learns it just now.
    before = ONLY_LOOK.set(True)
    try:
        return fit(progress=iter)
    except NotLearnedError:
        return None
    finally:
        ONLY_LOOK.reset(before)


def fit_or_load_affine_maps(
    model: LensModel,
    texts: TextSet,
    source_layers: Sequence[int] | None = None,
    *,
    ahead: Sequence[int] = (0,),
    n_positions: int | None = None,
    ridge: float = RIDGE,
    seed: int = 0,
    fresh: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[MapKey, AffineMap]:
    """`fit_affine_maps` from all blocks (or other layers) to the last one, or what an earlier call with the same
    arguments left in the cache folder (unless `fresh`).

    Raises:
        PatchscopesError: as `fit_affine_maps`, or the model has hooks on it.
    """
    options: dict[str, Any] = {"ahead": list(ahead), "n_positions": n_positions, "ridge": ridge, "seed": seed}
    if source_layers is not None:
        options["source_layers"] = list(source_layers)
    return learn_once(
        get_cached_path("affine", [model], texts, options, _MODULES),
        load_maps,
        lambda _: fit_affine_maps(
            model, texts, source_layers, ahead=ahead, n_positions=n_positions, ridge=ridge, seed=seed, progress=progress
        ),
        save_maps,
        fresh=fresh,
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
    return learn_once(
        get_cached_path("affine", [source_model, target_model], texts, options, _MODULES),
        load_maps,
        lambda _: fit_cross_model_maps(
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
        save_maps,
    )


def fit_or_load_lre(
    model: LensModel,
    relation: Relation,
    train: Sequence[RelationSample],
    layers: Sequence[int] | None = None,
    *,
    betas: Sequence[float] = BETAS,
    fresh: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> LRE:
    """`fit_lre`, or what an earlier call with the same arguments left in the cache folder (unless `fresh`).

    Raises:
        PatchscopesError: as `fit_lre`, or the model has hooks on it.
    """
    layers = resolve_layers(model, layers)
    texts, options = build_training_prompts(relation, train), describe_fit(relation, train, layers, betas)
    return learn_once(
        get_cached_path("lre", [model], texts, options, _LRE_MODULES),
        LRE.load,
        lambda _: fit_lre(model, relation, train, layers, betas=betas, progress=progress),
        lambda path, lre: lre.save(path),
        fresh=fresh,
    )
