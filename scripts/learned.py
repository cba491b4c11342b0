"""What the scripts fit or train before they measure: options, progress bars, and files in place of it."""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from options import file_name, positive
from tqdm import tqdm

from patchscopes.data.texts import TextSet, load_texts
from patchscopes.errors import PatchscopesError
from patchscopes.learned.config import N_TOKENS, SOFT_PROMPT_TRAINING, TrainingConfig
from patchscopes.learned.fitting import fit_or_load_affine_maps
from patchscopes.learned.future_lens import SoftPrompt, train_soft_prompt
from patchscopes.learned.mappings import AffineMap, MapKey, load_maps
from patchscopes.learned.provenance import Provenance
from patchscopes.learned.tuned_lens import train_tuned_lens
from patchscopes.model.lens_model import LensModel

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
            type=file_name(".safetensors"),
            metavar="FILE",
            help="written by train_lens.py, to use instead of learning it here",
        )


def bar(description: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A progress bar around any iteration."""
    return partial(tqdm, desc=description)


def train_texts(dataset: str) -> TextSet:
    """The texts to learn from: never those that are evaluated on."""
    return load_texts(dataset, "train", limit=STREAMED_TRAIN_TEXTS)


def tuned_lens(
    model: LensModel, options: argparse.Namespace, method: str, file: Path | None
) -> dict[MapKey, AffineMap]:
    """The maps of `tuned_lens` or `tuned_lens_kl`."""
    if file is not None:
        return maps_of(file, "kl" if method == "tuned_lens_kl" else "least_squares")
    texts = train_texts(options.dataset)
    if method == "tuned_lens":
        return fit_or_load_affine_maps(
            model, texts, n_positions=options.train_positions, seed=options.seed, progress=bar("fitting the Tuned Lens")
        )
    config = TrainingConfig(seed=options.seed)
    return train_tuned_lens(model, texts, config=config, progress=bar("training the Tuned Lens"))


def maps_of(file: Path, estimator: str) -> dict[MapKey, AffineMap]:
    """The maps of a file, if they were made in the way that the option is for."""
    maps = load_maps(file)
    made = next(iter(maps.values())).provenance.estimator
    if made != estimator:
        raise PatchscopesError(f"{file} holds maps made by {made}; this option is for maps made by {estimator}")
    return maps


def linear_future_lens(model: LensModel, options: argparse.Namespace, file: Path | None) -> dict[MapKey, AffineMap]:
    """The maps to the last layer of the same token and of the next two."""
    if file is not None:
        return maps_of(file, "least_squares")
    return fit_or_load_affine_maps(
        model,
        train_texts(options.dataset),
        ahead=tuple(range(N_TOKENS)),
        n_positions=options.train_positions,
        seed=options.seed,
        progress=bar("fitting the linear Future Lens"),
    )


def soft_prompt(model: LensModel, options: argparse.Namespace, file: Path | None) -> SoftPrompt:
    """The learned prompt of the Future Lens."""
    if file is not None:
        return SoftPrompt.load(file)
    config = replace(SOFT_PROMPT_TRAINING, seed=options.seed)
    return train_soft_prompt(
        model, train_texts(options.dataset), config=config, progress=bar("learning the soft prompt")
    )


def described(made: dict[str, Provenance]) -> dict[str, Any]:
    """For the result file: what each learned lens was made from."""
    return {"learned": {name: asdict(one) for name, one in made.items()}}
