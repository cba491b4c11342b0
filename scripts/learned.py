"""What the scripts fit or train before they measure, or read from a file in place of it."""

import argparse
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parsing import existing_file, positive
from skeleton import progress_bar
from texts import load_chosen_texts

from patchscopes.data.target_prompts import PromptBand, load_best_prompts
from patchscopes.data.texts import TextSet
from patchscopes.errors import PatchscopesError
from patchscopes.learned.config import N_TOKENS, SOFT_PROMPT_TRAINING, JacobianLensConfig, TrainingConfig
from patchscopes.model.layer_names import EMBEDDING

if TYPE_CHECKING:
    from patchscopes.learned.future_lens import SoftPrompt
    from patchscopes.learned.mappings import AffineMap, MapKey
    from patchscopes.learned.provenance import Provenance
    from patchscopes.model.lens_model import LensModel

# Methods of Figure 2 that are maps to the last layer; each has an option for a file of them (`add_learned_options`).
MAPPED = ("tuned_lens", "tuned_lens_kl", "jacobian_lens")
# Texts of a streamed data set to learn from.
STREAMED_TRAIN_TEXTS = 400


def add_learned_options(parser: argparse.ArgumentParser, *files: str) -> None:
    """`--train-positions`, and for each name in `files` an option for a file to use instead of learning it here."""
    group = parser.add_argument_group("learned lenses (kept in the user's cache folder once they are learned)")
    group.add_argument(
        "--train-positions",
        type=positive,
        metavar="N",
        help="positions to fit affine maps on, in texts that no evaluation uses (default: by the model's width)",
    )
    for name in files:
        group.add_argument(
            f"--{name}",
            type=existing_file(".safetensors", "write one with scripts/train_lens.py"),
            metavar="FILE",
            help="written by train_lens.py, to use instead of learning it here",
        )


def add_best_prompt_option(parser: argparse.ArgumentParser) -> None:
    """`--best-prompt`, which the lens `best_prompt` needs."""
    parser.add_argument_group("best prompt").add_argument(
        "--best-prompt",
        type=existing_file(".json", "write one with scripts/run_target_prompts.py"),
        metavar="FILE",
        help="written by run_target_prompts.py: the target prompts that best_prompt reads the layers with",
    )


def load_chosen_prompts(options: argparse.Namespace, methods: Collection[str]) -> tuple[PromptBand, ...]:
    """The target prompts of `best_prompt`, if it is among the methods."""
    if "best_prompt" not in methods:
        return ()
    if options.best_prompt is None:
        raise PatchscopesError("best_prompt needs --best-prompt FILE; write one with scripts/run_target_prompts.py")
    return load_best_prompts(options.best_prompt)


def describe_prompts(prompts: tuple[PromptBand, ...]) -> dict[str, Any]:
    """For the options in the result file: the target prompts of `best_prompt`, if there are any."""
    return {"best_prompt": [asdict(band) for band in prompts]} if prompts else {}


def load_train_texts(options: argparse.Namespace) -> TextSet:
    """The texts to learn from: never those that are evaluated on."""
    return load_chosen_texts(options, "train", limit=STREAMED_TRAIN_TEXTS)


def choose_mapped_layers(model: "LensModel", options: argparse.Namespace) -> list[int] | None:
    """The layers that maps are learned from: all blocks (None), and what enters block 0 only if it is asked for."""
    return [EMBEDDING, *range(model.cfg.n_layers)] if EMBEDDING in (options.layers or ()) else None


def get_tuned_lens(
    model: "LensModel", options: argparse.Namespace, method: str, file: Path | None
) -> "dict[MapKey, AffineMap]":
    """The maps of `tuned_lens` or `tuned_lens_kl`, from a file if one is given."""
    from patchscopes.learned.cached_fits import fit_or_load_affine_maps
    from patchscopes.learned.tuned_lens import train_tuned_lens

    if file is not None:
        return load_maps_made_by("kl" if method == "tuned_lens_kl" else "least_squares", file)
    texts = load_train_texts(options)
    layers = choose_mapped_layers(model, options)
    if method == "tuned_lens_kl":
        config = TrainingConfig(seed=options.seed)
        return train_tuned_lens(model, texts, layers, config, progress=progress_bar("training the Tuned Lens"))
    return fit_or_load_affine_maps(
        model,
        texts,
        layers,
        n_positions=options.train_positions,
        seed=options.seed,
        progress=progress_bar("fitting the Tuned Lens"),
    )


def get_jacobian_lens(model: "LensModel", options: argparse.Namespace, file: Path | None) -> "dict[MapKey, AffineMap]":
    """The maps of `jacobian_lens`, from a file if one is given."""
    from patchscopes.learned.jacobian_lens import fit_jacobian_lens

    if file is not None:
        return load_maps_made_by("jacobian_lens", file)
    if EMBEDDING in (options.layers or ()):
        raise PatchscopesError(
            "jacobian_lens has no map from what enters block 0: leave embedding out of --layers, or choose another lens"
        )
    config = JacobianLensConfig(seed=options.seed)
    texts = load_train_texts(options)
    return fit_jacobian_lens(model, texts, config, progress=progress_bar("fitting the Jacobian Lens"))


def get_maps(
    model: "LensModel", options: argparse.Namespace, methods: Collection[str]
) -> "dict[str, dict[MapKey, AffineMap]]":
    """The maps to the last layer of those methods that have some, from the file that the option of this name gives."""
    maps = {}
    for method in MAPPED:
        if method in methods:
            file = getattr(options, method)
            if method == "jacobian_lens":
                maps[method] = get_jacobian_lens(model, options, file)
            else:
                maps[method] = get_tuned_lens(model, options, method, file)
    return maps


def get_linear_future_lens(
    model: "LensModel", options: argparse.Namespace, file: Path | None
) -> "dict[MapKey, AffineMap]":
    """The maps to the last layer of the same token and of the next two, from a file if one is given."""
    from patchscopes.learned.cached_fits import fit_or_load_affine_maps

    if file is not None:
        return load_maps_made_by("least_squares", file)
    return fit_or_load_affine_maps(
        model,
        load_train_texts(options),
        choose_mapped_layers(model, options),
        ahead=tuple(range(N_TOKENS)),
        n_positions=options.train_positions,
        seed=options.seed,
        progress=progress_bar("fitting the linear Future Lens"),
    )


def get_soft_prompt(model: "LensModel", options: argparse.Namespace, file: Path | None) -> "SoftPrompt":
    """The learned prompt of the Future Lens, from a file if one is given."""
    from patchscopes.learned.future_lens import SoftPrompt, train_soft_prompt

    if file is not None:
        return SoftPrompt.load(file)
    config = replace(SOFT_PROMPT_TRAINING, seed=options.seed)
    texts = load_train_texts(options)
    return train_soft_prompt(model, texts, config=config, progress=progress_bar("learning the soft prompt"))


def load_maps_made_by(estimator: str, file: Path) -> "dict[MapKey, AffineMap]":
    """The maps of a file, if they were made in the way that the option is for."""
    from patchscopes.learned.mappings import load_maps

    maps = load_maps(file)
    made_by = get_provenance(maps).estimator
    if made_by != estimator:
        raise PatchscopesError(f"{file} holds maps made by {made_by}; this option is for maps made by {estimator}")
    return maps


def get_provenance(maps: "Mapping[MapKey, AffineMap]") -> "Provenance":
    """Where maps that were learned together come from."""
    return next(iter(maps.values())).provenance


def describe_learned(provenances: "Mapping[str, Provenance]") -> dict[str, Any]:
    """For the result file: what each learned lens was made from."""
    return {"learned": {name: asdict(provenance) for name, provenance in provenances.items()}}
