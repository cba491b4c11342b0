"""The Jacobian Lens (Gurnee et al. 2026): a layer's mean Jacobian J to the last layer, then unembedding.

J is the mean, over texts and tokens, of ∂h'/∂h, where h is a token's representation at layer ℓ and h' what the last
block gives, summed over this token and all later ones. TransformerLens fits it (`JacobianLens.fit`, one forward pass a
text and `d_model` backward passes). Here it gets what the other lenses have: it is an affine map to the last layer
(weight J, no bias; the identity at the last layer), with its provenance, in a file or the cache folder, and an
interrupted fit goes on from the last text. `centre_maps` gives J the bias that a first-order expansion has.
"""

import io
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformer_lens.tools.analysis import JacobianLens

from patchscopes.data.texts import TextSet, check_train
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.overflow import check_finite
from patchscopes.errors import PatchscopesError
from patchscopes.estimating.tally import do_some
from patchscopes.learned.config import JacobianLensConfig
from patchscopes.learned.files import get_cached_path, learn_once
from patchscopes.learned.mappings import AffineMap, MapKey, load_maps, save_maps
from patchscopes.learned.provenance import Provenance, describe_provenance
from patchscopes.learned.tuned_lens import draw_at_most, split_held_out
from patchscopes.model.devices import require_memory
from patchscopes.model.lens_model import LensModel
from patchscopes.model.offloading import check_gradients_fit
from patchscopes.model.registry import MODELS
from patchscopes.results import write_atomically
from patchscopes.tokens import to_token_ids

ESTIMATOR = "jacobian_lens"
# Representations whose mean a lens is centred on, and how many of them are in memory.
N_CENTRE = 1000
AT_A_TIME = 64
# What the fitted maps depend on, beside TransformerLens: their cache keeps for as long as none of these changes.
_MODULES = ["learned/jacobian_lens", "learned/mappings"]
# What TransformerLens and PyTorch raise at a file that holds no lens.
_UNREADABLE = (EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError)


def fit_jacobian_lens(
    model: LensModel,
    texts: TextSet,
    config: JacobianLensConfig = JacobianLensConfig(),  # noqa: B008 (it is frozen)
    *,
    fresh: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[MapKey, AffineMap]:
    """The maps from all blocks to the last, from the cache folder if they were fitted before.

    Args:
        texts: of the train split.
        fresh: fit again, from the start.
        progress: wraps the iteration over texts, `tqdm` for instance.

    Returns:
        the maps. The `options` of their provenance hold TransformerLens's own account as `metadata`.

    Raises:
        PatchscopesError: texts of another split, none of them long enough, a model that TransformerLens fits no such
            lens on, Jacobians that need clearly more memory than there is, or a damaged checkpoint.
    """
    check_gradients_fit(model)
    require_memory(
        f"the Jacobians of {model.cfg.n_layers} layers of width {model.cfg.d_model}",
        # So far, of one text, and their mean.
        3 * 4 * (model.cfg.n_layers - 1) * model.cfg.d_model**2,
        "cpu",
        "this lens has one for every block, so fit a lens that has --layers, or fit it on a machine with more memory",
    )
    chosen, n_positions = _choose_texts(model, texts, config)
    options = asdict(config) | {"transformer_lens": version("transformer-lens")}

    def learn(checkpoint: Path) -> dict[MapKey, AffineMap]:
        lens = _load_checkpoint(checkpoint)
        n_done = 0 if lens is None else lens.n_prompts
        for text in do_some(chosen[n_done:], progress):
            of_text = _fit_text(model, text, f"{texts.name} {texts.sha256}", config)
            lens = of_text if lens is None else JacobianLens.merge([lens, of_text])
            _save_checkpoint(checkpoint, lens)
        assert lens is not None  # There is at least one text.
        made = describe_provenance(ESTIMATOR, model, texts, n_positions, options | {"metadata": lens.metadata})
        return to_maps(model, lens, made)

    path = get_cached_path("jacobian", [model], texts, options, _MODULES)
    return learn_once(path, load_maps, learn, save_maps, fresh=fresh)


def load_pretrained_jacobian_lens(
    model: LensModel, name: str | None = None, *, filename: str = "lens.pt", revision: str | None = None
) -> dict[MapKey, AffineMap]:
    """A lens that somebody has fitted on this model and published, as TransformerLens finds it.

    Such files rarely say which weights they belong to: that they are those of `model` is the caller's word, and only
    width, depth and what the file does say are checked. From here on the maps are bound to `model` as all others are.

    Args:
        name: a name in TransformerLens's registry of lenses (`gemma-2-2b`), a hub id of a model there, a hub repository
            of lenses, or a local file or folder. The hub id of the model itself unless given.
        filename: in a folder, or in a repository that is not of the registry.
        revision: of the repository; the one that the registry pins unless given.

    Raises:
        PatchscopesError: there is no such lens, the hub cannot be reached, or the lens is not one of this model.
    """
    own = str(model.cfg.model_name)
    name = name or (MODELS[own].hub_id if own in MODELS else own)
    try:
        lens = JacobianLens.from_pretrained(name, filename=filename, revision=revision, model=model)
    except (*_UNREADABLE, OSError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PatchscopesError(
            f"no Jacobian Lens {name!r} for {own!r} could be loaded ({reason}): give a name of TransformerLens's "
            "registry, a hub repository and its filename or a .pt file, or fit one with fit_jacobian_lens"
        ) from error
    options = {
        "pretrained": name,
        "filename": filename,
        "revision": revision,
        "n_texts": lens.n_prompts,
        "metadata": lens.metadata,
        "transformer_lens": version("transformer-lens"),
    }
    corpus = str(lens.metadata.get("corpus", "not recorded"))
    return to_maps(model, lens, describe_provenance(ESTIMATOR, model, corpus, 0, options))


def to_maps(model: LensModel, lens: JacobianLens, made: Provenance) -> dict[MapKey, AffineMap]:
    """A lens of TransformerLens as affine maps to the last layer, where it reads with the identity."""
    last, width = model.cfg.n_layers - 1, model.cfg.d_model
    weights = {**lens.jacobians, last: torch.eye(width)}
    return {
        (key := MapKey(layer, last)): AffineMap(weight=weight, bias=torch.zeros(width), key=key, provenance=made)
        for layer, weight in sorted(weights.items())
    }


def centre_maps(
    model: LensModel, maps: Mapping[MapKey, AffineMap], texts: TextSet, *, n_positions: int = N_CENTRE, seed: int = 0
) -> dict[MapKey, AffineMap]:
    """The maps as expansions around the mean representation: h ↦ J (h - μ) + μ', the means of ℓ and the last.

    J alone maps also what all representations of a layer have in common, and where that is large it covers the rest.

    Args:
        texts: of the train split.
        n_positions: drawn from them for the means, at most.

    Raises:
        PatchscopesError: texts of another split, or fewer than two with a position.
    """
    learn, _ = split_held_out(model, texts)
    samples = draw_at_most(learn, n_positions, seed)
    layers = sorted({layer for key in maps for layer in (key.source_layer, key.target_layer)})
    means = dict.fromkeys(layers, torch.zeros(model.cfg.d_model, dtype=torch.float64))
    for start in range(0, len(samples), AT_A_TIME):
        some = samples[start : start + AT_A_TIME]
        prompts, positions = [learn[sample.text][0] for sample in some], [sample.position for sample in some]
        states = extract_representations(model, prompts, positions, layers).cpu().double()
        for slot, layer in enumerate(layers):
            means[layer] = means[layer] + states[:, slot].sum(dim=0) / len(samples)
    centre = {"texts": texts.name, "texts_sha256": texts.sha256, "n_positions": len(samples), "seed": seed}
    centred = {}
    for key, one in maps.items():
        bias = (means[key.target_layer] - one.weight.double() @ means[key.source_layer]).float()
        made = replace(one.provenance, options=one.provenance.options | {"centred": centre})
        centred[key] = replace(one, bias=bias, provenance=made)
    return centred


def _choose_texts(model: LensModel, texts: TextSet, config: JacobianLensConfig) -> tuple[list[str], int]:
    """Texts in random order that are long enough to have a position, and how many positions all of them have."""
    check_train(texts)
    chosen: list[str] = []
    n_positions = 0
    for index in np.random.default_rng(config.seed).permutation(len(texts.texts)):
        n_tokens = len(to_token_ids(model, texts.texts[index], truncate=True)[: config.max_tokens])
        # The last token has no next one, so it is left out as the first ones are.
        if n_tokens > config.skip_first + 1:
            chosen.append(texts.texts[index])
            n_positions += n_tokens - config.skip_first - 1
        if len(chosen) == config.n_texts:
            break
    if not chosen:
        raise PatchscopesError(
            f"no train text of {texts.name!r} has more than {config.skip_first + 1} tokens, and the first "
            f"{config.skip_first} are left out: give longer texts, or a smaller skip_first"
        )
    return chosen, n_positions


def _fit_text(model: LensModel, text: str, corpus: str, config: JacobianLensConfig) -> JacobianLens:
    """The lens of one text."""
    try:
        # Tensors that inference mode makes cannot be differentiated through.
        with torch.inference_mode(False):
            lens = JacobianLens.fit(
                model,
                [text],
                corpus=corpus,
                dim_batch=min(config.dim_batch, model.cfg.d_model),
                max_seq_len=config.max_tokens,
                skip_first_positions=config.skip_first,
                show_progress=False,
            )
    except (TypeError, ValueError) as error:
        raise PatchscopesError(
            f"TransformerLens fits no Jacobian Lens on {model.cfg.model_name!r} ({error}); choose another lens"
        ) from error
    for jacobian in lens.jacobians.values():
        check_finite(jacobian, model.cfg.dtype, "Jacobians")
    return lens


def _save_checkpoint(path: Path, lens: JacobianLens) -> None:
    """Write the mean of the texts so far, in the file format of TransformerLens, without rounding it."""
    buffer = io.BytesIO()
    lens.save(buffer, dtype=torch.float32)
    write_atomically(path, buffer.getbuffer())


def _load_checkpoint(path: Path) -> JacobianLens | None:
    if not path.is_file():
        return None
    try:
        return JacobianLens.load(str(path))
    except _UNREADABLE as error:
        raise PatchscopesError(
            f"{path} is damaged, so fitting cannot go on from it: remove it to start over"
        ) from error
