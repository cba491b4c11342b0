"""Fitting affine mappings by ridge least squares, within one model or from one model to another.

All that is kept are sums over positions, so one pass over the texts serves all layers, and no hidden state stays.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.alignment import align_positions
from patchscopes.data.texts import TextSet, check_train
from patchscopes.engine.extract import extract_representations
from patchscopes.errors import PatchscopesError, PatchscopesWarning
from patchscopes.estimating.tally import do_some
from patchscopes.learned.config import RIDGE
from patchscopes.learned.least_squares import Moments
from patchscopes.learned.mappings import AffineMap, MapKey
from patchscopes.learned.provenance import Provenance, describe_provenance
from patchscopes.model.devices import measure_free_memory_of, require_memory_for_layers
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.tokens import to_token_ids

# Texts read together while fitting: their hidden states are all that is in memory at a time.
TEXTS_AT_A_TIME = 8


# A text, and positions in the tokens of two models at which both have read the same part of it.
AlignedText: TypeAlias = tuple[str, list[tuple[int, int]]]


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
            unless given: see `choose_n_positions`.
        ridge: see `Moments.solve`.
        progress: wraps the iteration over groups of texts, `tqdm` for instance.

    Raises:
        PatchscopesError: texts of another split, no position in them, or too few for the ridge; or the moments need
            clearly more memory than there is.
    """
    check_train(texts)
    n_positions = choose_n_positions(model) if n_positions is None else n_positions
    if n_positions < 1 or not ahead or min(ahead) < 0:
        raise PatchscopesError(
            f"n_positions must be at least 1, and ahead some numbers from 0 on; got {n_positions} and {tuple(ahead)}"
        )
    last = model.cfg.n_layers - 1
    sources, targets = resolve_layers(model, source_layers), resolve_layers(model, target_layers or [last])

    runs = _choose_texts(model, texts, n_positions, max(ahead), seed)
    keys = [MapKey(source, target, later) for source in sources for later in ahead for target in targets]

    def read(group: Sequence[tuple[Int[Tensor, " _"], range]]) -> tuple[Tensor, Tensor]:
        return _read_pairs(model, group, sources, targets, ahead)

    moments = _sum_moments(runs, read, (model, len(sources)), (model, len(targets) * len(ahead)), texts, progress)
    options = {
        "source_layers": sources,
        "target_layers": targets,
        "ahead": list(ahead),
        "asked_positions": n_positions,
        "ridge": ridge,
        "seed": seed,
    }
    return _solve_maps(moments, ridge, keys, describe_provenance("least_squares", model, texts, moments.n, options))


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
    check_train(texts)
    n_positions = choose_n_positions(source_model) if n_positions is None else n_positions
    if n_positions < 1:
        raise PatchscopesError(f"n_positions must be at least 1, got {n_positions}")
    for model, layers in ((source_model, source_layers), (target_model, target_layers)):
        resolve_layers(model, layers)
    runs: list[AlignedText] = []
    missing = n_positions
    n_tokens = 0
    for index in np.random.default_rng(seed).permutation(len(texts.texts)):
        text = texts.texts[index]
        # Never at the first token: nothing comes before it.
        aligned = [pair for pair in align_positions(source_model, target_model, text) if min(pair) > 0][:missing]
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

    moments = _sum_moments(
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
    made = describe_provenance("least_squares", source_model, texts, moments.n, options, target_model=target_model)
    return _solve_maps(
        moments, ridge, [MapKey(source, target) for source in source_layers for target in target_layers], made
    )


def _sum_moments(
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
    device = _choose_device(source_model, *shape)
    require_memory_for_layers(
        f"the moments of maps of width {source_model.cfg.d_model}",
        n_sources,
        # The maps themselves, in float32, are made while the moments are there.
        count_moment_bytes(1, *shape[1:]) + 4 * shape[1] * n_targets * shape[3],
        device,
        "fit maps to fewer target layers at a time, or on a machine with more memory",
    )
    moments = Moments.zero(*shape, device)
    groups = [runs[start : start + TEXTS_AT_A_TIME] for start in range(0, len(runs), TEXTS_AT_A_TIME)]
    for group in do_some(groups, progress):
        moments.add(*read(group))
    if moments.n < 5 * source_model.cfg.d_model:
        warnings.warn(
            f"maps of width {source_model.cfg.d_model} are fitted on only {moments.n} positions: give more texts, or a "
            "larger ridge",
            PatchscopesWarning,
            stacklevel=3,
        )
    return moments


def _solve_maps(moments: Moments, ridge: float, keys: Sequence[MapKey], made: Provenance) -> dict[MapKey, AffineMap]:
    """The maps that the sums determine: `keys` has all targets of the first source, then all of the second, …"""
    weights, biases = (part.cpu().flatten(0, 1) for part in moments.solve(ridge))
    return {
        key: AffineMap(weight=weight, bias=bias, key=key, provenance=made)
        for key, weight, bias in zip(keys, weights, biases, strict=True)
    }


def choose_n_positions(model: LensModel) -> int:
    """Positions that maps are fitted on unless told: 20,000, or 20 for each dimension where that is more."""
    return max(20_000, 20 * model.cfg.d_model)


def _choose_device(model: LensModel, n_sources: int, d_in: int, n_targets: int, d_out: int) -> torch.device:
    """The model's device if it has float64 and memory to spare, otherwise the CPU."""
    device = torch.device(model.cfg.device)
    if device.type == "cuda":
        n_bytes = count_moment_bytes(n_sources, d_in, n_targets, d_out)
        if n_bytes < measure_free_memory_of(device) / 2:
            return device
    return torch.device("cpu")


def count_moment_bytes(n_sources: int, d_in: int, n_targets: int, d_out: int) -> int:
    """Bytes of the sums of `Moments`, in float64."""
    return 8 * n_sources * d_in * (d_in + n_targets * d_out)


def _choose_texts(
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
