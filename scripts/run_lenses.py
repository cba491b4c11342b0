"""Logit Lens, Tuned Lens, Future Lens and (only if it is among the methods) Jacobian Lens, each original and via
Patchscope, and token identity, on the same samples."""

import argparse
from dataclasses import asdict
from typing import get_args

from learned import (
    add_learned_options,
    describe_learned,
    get_jacobian_lens,
    get_provenance,
    get_soft_prompt,
    get_tuned_lens,
)
from options import build_common_parser, read_chat
from parsing import natural
from skeleton import load_chosen_model, run_experiment, run_script
from texts import load_chosen_texts

from patchscopes.experiments.config import FutureForm, LensesConfig


def main() -> None:
    options = build_parser().parse_args()
    chat = read_chat(options)
    texts = load_chosen_texts(options, limit=options.samples)

    from patchscopes.experiments import lenses
    from patchscopes.model.environment import describe_environment
    from patchscopes.model.layers import resolve_layers
    from patchscopes.plots.lenses import plot_lenses

    model = load_chosen_model(options)
    # Before anything is learned, which takes longer than to see a mistake.
    resolve_layers(model, options.layers)
    config = LensesConfig(
        methods=options.methods,
        future_lens=options.future_lens,
        n_samples=options.samples,
        n_checked_with_hooks=options.checked_with_hooks,
        layers=options.layers,
        seed=options.seed,
        chat=chat,
    )
    chosen = {method.removesuffix("_patchscope") for method in options.methods}
    maps = get_tuned_lens(model, options, "tuned_lens", options.tuned_lens) if "tuned_lens" in chosen else None
    jacobian_maps = get_jacobian_lens(model, options, options.jacobian_lens) if "jacobian_lens" in chosen else None
    is_learned = "future_lens" in chosen and options.future_lens == "learned_prompt"
    prompt = get_soft_prompt(model, options, options.soft_prompt) if is_learned else None
    provenances = {
        name: get_provenance(of_lens)
        for name, of_lens in (("tuned_lens", maps), ("jacobian_lens", jacobian_maps))
        if of_lens
    } | ({"learned_prompt": prompt.provenance} if prompt else {})
    run_experiment(
        options,
        "lenses",
        lambda store, progress: lenses.run(
            model,
            texts,
            config,
            store,
            maps=maps,
            jacobian_maps=jacobian_maps,
            soft_prompt=prompt,
            progress=progress,
        ),
        config={"model": options.model, "dataset": options.dataset, **asdict(config)},
        environment=describe_environment(model, texts) | describe_learned(provenances),
        plot=plot_lenses,
        print_table=print_table,
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "lenses",
        methods=LensesConfig.METHODS,
        default_methods=LensesConfig.methods,
        samples=LensesConfig.n_samples,
        unused=("batch-size", "max-new-tokens"),
    )
    parser.add_argument(
        "--future-lens",
        choices=get_args(FutureForm),
        default=LensesConfig.future_lens,
        help="the prompt of the Future Lens (default: %(default)s)",
    )
    parser.add_argument(
        "--checked-with-hooks",
        type=natural,
        default=LensesConfig.n_checked_with_hooks,
        metavar="N",
        help="samples for which T = S is also run with plain hooks, slowly (default: %(default)s)",
    )
    add_learned_options(parser, "tuned-lens", "jacobian-lens", "soft-prompt")
    return parser


def print_table(document: dict) -> None:
    """How far each original and its Patchscope are apart."""
    print(f"{'largest logit difference':>28} {'fast engine':>12} {'plain hooks':>12} {'same token':>11}")
    for original, twin in document["results"]["twins"].items():
        with_hooks = twin["largest_difference_hooks"]
        shown = "itself" if original == "future_lens" else "not run" if with_hooks is None else f"{with_hooks:.1e}"
        print(f"{original:>28} {twin['largest_difference']:12.1e} {shown:>12} {twin['same_token']:11.4f}")


if __name__ == "__main__":
    run_script(main)
