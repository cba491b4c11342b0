"""What the scripts fit or train before they measure: options, progress bars, and files in place of it."""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from options import output_file, positive
from tqdm import tqdm

from patchscopes.data import TextSet, load_texts
from patchscopes.future_lens import N_TOKENS, SoftPrompt, train_soft_prompt
from patchscopes.learned import Provenance
from patchscopes.lens_model import LensModel
from patchscopes.mappings import N_POSITIONS, AffineMap, MapKey, cached_affine_maps, load_maps
from patchscopes.tuned_lens import train_tuned_lens

# Texts of a streamed data set to learn from.
STREAMED_TRAIN_TEXTS = 400


def add_learned_options(parser: argparse.ArgumentParser, *files: str) -> None:
    """`--train-positions`, and for each name in `files` an option for a file to use instead of learning it here."""
    group = parser.add_argument_group("learned lenses (kept in the user's cache folder once they are learned)")
    group.add_argument(
        "--train-positions",
        type=positive,
        default=N_POSITIONS,
        metavar="N",
        help="positions that affine maps are fitted on, in texts that no evaluation uses (default: %(default)s)",
    )
    for name in files:
        group.add_argument(
            f"--{name}",
            type=output_file(".safetensors"),
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
        return load_maps(file, model=model)
    texts = train_texts(options.dataset)
    if method == "tuned_lens":
        return cached_affine_maps(
            model, texts, n_positions=options.train_positions, seed=options.seed, progress=bar("fitting the Tuned Lens")
        )
    return train_tuned_lens(model, texts, progress=bar("training the Tuned Lens"))


def linear_future_lens(model: LensModel, options: argparse.Namespace, file: Path | None) -> dict[MapKey, AffineMap]:
    """The maps to the last layer of the same token and of the next two."""
    if file is not None:
        return load_maps(file, model=model)
    return cached_affine_maps(
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
        return SoftPrompt.load(file, model=model)
    return train_soft_prompt(model, train_texts(options.dataset), progress=bar("learning the soft prompt"))


def described(made: dict[str, Provenance]) -> dict[str, Any]:
    """For the result file: what each learned lens was made from."""
    return {"learned": {name: asdict(one) for name, one in made.items()}}
