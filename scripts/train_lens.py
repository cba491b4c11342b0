"""Fit or train a Tuned, Jacobian or Future Lens for any model, and save it as safetensors for the other scripts.

What is learned is also kept in the user's cache folder: with the default settings, the figures find it there. An
interrupted training goes on from its last measurement, and the fit of a Jacobian Lens from its last text, when the same
command is run again.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from estimate import add_estimate_option, estimate_learning
from learned import choose_mapped_layers, get_provenance, load_train_texts
from options import add_data_options, add_layers_option, add_model_options
from parsing import file_name, natural, positive, real_from_zero
from processes import is_main
from skeleton import load_chosen_model, progress_bar, run_script

from patchscopes.data.texts import TextSet
from patchscopes.errors import PatchscopesError
from patchscopes.estimating.tally import ESTIMATE
from patchscopes.learned.config import (
    FIXED_PROMPT,
    N_TOKENS,
    N_TRAIN_SAMPLES,
    RIDGE,
    SOFT_PROMPT_TRAINING,
    JacobianLensConfig,
    TrainingConfig,
)
from patchscopes.model.layer_names import EMBEDDING

if TYPE_CHECKING:
    from patchscopes.learned.mappings import AffineMap, MapKey
    from patchscopes.model.lens_model import LensModel

LENSES = {
    "tuned_lens": "affine maps to the last layer, by least squares",
    "tuned_lens_kl": "the same by KL training (Belrose et al. 2023)",
    "jacobian_lens": "mean Jacobians of the last layer (Gurnee et al. 2026)",
    "linear": "Future Lens: affine maps to the last layer of this token and the next two (Pal et al. 2023)",
    "learned_prompt": "Future Lens: a soft prompt (Pal et al. 2023)",
}
TRAINING_OPTIONS = (
    "optimizer",
    "learning_rate",
    "weight_decay",
    "n_steps",
    "batch_size",
    "evaluate_every",
    "patience",
)
JACOBIAN_OPTIONS = ("n_texts", "max_tokens", "skip_first", "dim_batch")
# Lenses by least squares; and those that are trained, with their default settings.
FITTED = ("tuned_lens", "linear")
DEFAULTS = {"tuned_lens_kl": TrainingConfig(), "learned_prompt": SOFT_PROMPT_TRAINING}


def main() -> None:
    options = build_parser().parse_args()
    refuse_options_of_other_lenses(options)
    if not is_main():
        return
    texts = load_train_texts(options)
    learn = LEARN[options.lens] if options.pretrained is None else take_pretrained
    model = load_chosen_model(options)
    if (estimate := ESTIMATE.get()) is not None:
        estimate_learning(estimate, options, lambda: learn(model, texts, options))
        return
    learn(model, texts, options)
    print(f"wrote {options.output}")


def fit_maps(model: "LensModel", texts: TextSet, options: argparse.Namespace) -> None:
    """The Tuned Lens or the linear Future Lens by least squares."""
    from patchscopes.learned.cached_fits import fit_or_load_affine_maps
    from patchscopes.learned.mappings import save_maps

    maps = fit_or_load_affine_maps(
        model,
        texts,
        choose_mapped_layers(model, options),
        ahead=tuple(range(N_TOKENS)) if options.lens == "linear" else (0,),
        n_positions=options.train_positions,
        ridge=RIDGE if options.ridge is None else options.ridge,
        seed=options.seed,
        fresh=options.fresh,
        progress=progress_bar("fitting"),
    )
    save_maps(options.output, maps)
    print(f"{len(maps)} maps from {get_provenance(maps).n_positions} positions")


def train_maps(model: "LensModel", texts: TextSet, options: argparse.Namespace) -> None:
    """The Tuned Lens by KL."""
    from patchscopes.learned.mappings import save_maps
    from patchscopes.learned.tuned_lens import train_tuned_lens

    maps = train_tuned_lens(
        model,
        texts,
        options.layers,
        choose_training_config(options),
        fresh=options.fresh,
        progress=progress_bar("training"),
    )
    save_maps(options.output, maps)
    print_held_out(get_provenance(maps).options["held_out"])


def fit_jacobians(model: "LensModel", texts: TextSet, options: argparse.Namespace) -> None:
    """The Jacobian Lens."""
    from patchscopes.learned.jacobian_lens import fit_jacobian_lens
    from patchscopes.learned.mappings import save_maps

    given = {name: getattr(options, name) for name in JACOBIAN_OPTIONS if getattr(options, name) is not None}
    config = JacobianLensConfig(seed=options.seed, **given)
    maps = fit_jacobian_lens(model, texts, config, fresh=options.fresh, progress=progress_bar("fitting"))
    save_maps(options.output, centre_if_asked(model, maps, texts, options))
    made = get_provenance(maps)
    print(f"{len(maps)} maps from {made.n_positions} positions in {made.options['metadata']['n_prompts']} texts")


def centre_if_asked(
    model: "LensModel", maps: Mapping["MapKey", "AffineMap"], texts: TextSet, options: argparse.Namespace
) -> Mapping["MapKey", "AffineMap"]:
    """A Jacobian Lens with the bias of `centre_maps`, if the option says so."""
    from patchscopes.learned.jacobian_lens import centre_maps

    return centre_maps(model, maps, texts, seed=options.seed) if options.centred else maps


def take_pretrained(model: "LensModel", texts: TextSet, options: argparse.Namespace) -> None:
    """A published Jacobian Lens, in a file like the others."""
    from patchscopes.learned.jacobian_lens import load_pretrained_jacobian_lens
    from patchscopes.learned.mappings import save_maps

    maps = load_pretrained_jacobian_lens(model, options.pretrained or None)
    save_maps(options.output, centre_if_asked(model, maps, texts, options))
    made = get_provenance(maps)
    print(f"{len(maps)} maps from {made.options['n_texts']} texts: {made.options['pretrained']}")


def train_prompt(model: "LensModel", texts: TextSet, options: argparse.Namespace) -> None:
    """The soft prompt of the Future Lens."""
    from patchscopes.learned.future_lens import train_soft_prompt

    prompt = train_soft_prompt(
        model,
        texts,
        options.layers,
        choose_training_config(options),
        prompt=options.prompt or FIXED_PROMPT,
        n_samples=options.train_samples or N_TRAIN_SAMPLES,
        fresh=options.fresh,
        progress=progress_bar("learning"),
    )
    prompt.save(options.output)
    print_held_out(prompt.provenance.options["held_out"])


LEARN = {
    "tuned_lens": fit_maps,
    "tuned_lens_kl": train_maps,
    "jacobian_lens": fit_jacobians,
    "linear": fit_maps,
    "learned_prompt": train_prompt,
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--lens",
        choices=tuple(LENSES),
        default="tuned_lens",
        help="; ".join(f"{name}: {what}" for name, what in LENSES.items()) + " (default: %(default)s)",
    )
    parser.add_argument("--output", type=file_name(".safetensors"), required=True, metavar="FILE")
    parser.add_argument("--fresh", action="store_true", help="learn again, whatever the cache folder holds")
    add_estimate_option(parser)
    add_model_options(parser)
    add_data_options(parser)
    fit = parser.add_argument_group("tuned_lens and linear")
    fit.add_argument("--train-positions", type=positive, metavar="N", help="at most (default: by the model's width)")
    fit.add_argument(
        "--ridge",
        type=real_from_zero,
        metavar="X",
        help=f"penalty on weights of inputs of unit variance (default: {RIDGE})",
    )
    jacobian = parser.add_argument_group("jacobian_lens")
    for name, kind, what in (
        ("n_texts", positive, "to fit on, at most"),
        ("max_tokens", positive, "of each text, from its start on"),
        ("skip_first", natural, "of these tokens, those at the start that are left out"),
        ("dim_batch", positive, "output dimensions, and copies of the text in memory, at a time"),
    ):
        jacobian.add_argument(
            f"--{name.removeprefix('n_').replace('_', '-')}",
            dest=name,
            type=kind,
            metavar="N",
            help=f"{what} (default: {getattr(JacobianLensConfig, name)})",
        )
    jacobian.add_argument(
        "--pretrained",
        nargs="?",
        const="",
        metavar="NAME",
        help="take a published one instead: a name of TransformerLens's registry of lenses, or a .pt file (without "
        "NAME: by the model's own hub id)",
    )
    jacobian.add_argument(
        "--centred",
        action="store_const",
        const=True,
        help="with a bias: an expansion around the mean representation of train texts, whether fitted or published",
    )
    train = parser.add_argument_group("tuned_lens_kl and learned_prompt (defaults of each in this order)")
    add_layers_option(train)

    def show_defaults(name: str) -> str:
        return ", ".join(str(getattr(config, name)) for config in DEFAULTS.values())

    train.add_argument("--optimizer", choices=("sgd", "adamw"), help=f"(default: {show_defaults('optimizer')})")
    for name, kind, what in (
        ("learning_rate", real_from_zero, "at its largest"),
        ("weight_decay", real_from_zero, ""),
        ("n_steps", positive, "at most"),
        ("batch_size", positive, "representations a step"),
        ("evaluate_every", positive, "steps between two measurements of the held-out KL"),
        ("patience", positive, "measurements without improvement after which training ends"),
    ):
        option = f"--{name.removeprefix('n_').replace('_', '-')}"
        train.add_argument(
            option, dest=name, type=kind, metavar="N", help=f"{what} (default: {show_defaults(name)})".strip()
        )
    prompt = parser.add_argument_group("learned_prompt")
    prompt.add_argument("--prompt", help=f"the text that it begins as (default: {FIXED_PROMPT})")
    prompt.add_argument(
        "--train-samples",
        type=positive,
        metavar="N",
        help=f"representations that batches are drawn from (default: {N_TRAIN_SAMPLES})",
    )
    return parser


def refuse_options_of_other_lenses(options: argparse.Namespace) -> None:
    """An option that has no effect on the chosen lens is a mistake."""
    allowed = dict.fromkeys(("train_positions", "ridge"), FITTED)
    # Maps by least squares are of all blocks at once, and of the embedding only if it is asked for.
    of_embedding = FITTED if EMBEDDING in (options.layers or ()) else ()
    allowed |= {"layers": (*DEFAULTS, *of_embedding)} | dict.fromkeys(TRAINING_OPTIONS, tuple(DEFAULTS))
    allowed |= dict.fromkeys((*JACOBIAN_OPTIONS, "pretrained", "centred"), ("jacobian_lens",))
    allowed |= dict.fromkeys(("prompt", "train_samples"), ("learned_prompt",))
    for name, lenses in allowed.items():
        if getattr(options, name) is not None and options.lens not in lenses:
            option = name.removeprefix("n_").replace("_", "-")
            raise PatchscopesError(f"--{option} is for {' and '.join(lenses)}; leave it out for {options.lens}")
    for name in JACOBIAN_OPTIONS:
        if options.pretrained is not None and getattr(options, name) is not None:
            option = name.removeprefix("n_").replace("_", "-")
            raise PatchscopesError(f"--{option} is for fitting; leave it out with --pretrained")


def choose_training_config(options: argparse.Namespace) -> TrainingConfig:
    """The lens's own default settings, with what was given."""
    default = DEFAULTS[options.lens]
    given = {name: getattr(options, name) for name in TRAINING_OPTIONS if getattr(options, name) is not None}
    if given.get("optimizer", default.optimizer) != default.optimizer:
        # Another optimizer has a rate of its own.
        given = {"learning_rate": None} | given
    return replace(default, seed=options.seed, **given)


def print_held_out(held_out: list) -> None:
    """The held-out KL, averaged over layers, at each measurement."""
    print("   steps  held-out KL (nats)")
    for steps, losses in held_out:
        print(f"{steps:8}  {sum(losses) / len(losses):.3f}")


if __name__ == "__main__":
    run_script(main)
