"""Figure 2: Precision@1 and Surprisal of next-token prediction from one hidden state, over all layers."""

import argparse
from dataclasses import asdict

from learned import (
    MAPPED,
    add_best_prompt_option,
    add_learned_options,
    describe_learned,
    describe_prompts,
    get_maps,
    get_provenance,
    load_chosen_prompts,
)
from options import build_common_parser, read_chat
from skeleton import load_chosen_model, run_experiment, run_script
from texts import load_chosen_texts

from patchscopes.experiments.config import NextTokenConfig
from patchscopes.model.layer_names import name_layer


def main() -> None:
    options = build_parser().parse_args()
    chat = read_chat(options)
    texts = load_chosen_texts(options, limit=options.samples)
    prompts = load_chosen_prompts(options, options.methods)

    from patchscopes.experiments import next_token
    from patchscopes.model.environment import describe_environment
    from patchscopes.model.layers import resolve_layers
    from patchscopes.plots.next_token import plot_next_token

    model = load_chosen_model(options)
    # Before anything is learned, which takes longer than to see a mistake.
    resolve_layers(model, options.layers)
    config = NextTokenConfig(
        methods=options.methods,
        n_samples=options.samples,
        layers=options.layers,
        seed=options.seed,
        batch_size=options.batch_size,
        chat=chat,
    )
    maps = get_maps(model, options, options.methods)
    provenances = {method: get_provenance(of_method) for method, of_method in maps.items()}
    run_experiment(
        options,
        "next_token",
        lambda store, progress: next_token.run(
            model, texts, config, store, maps=maps, prompts=prompts, progress=progress
        ),
        config={"model": options.model, "dataset": options.dataset, **asdict(config), **describe_prompts(prompts)},
        environment=describe_environment(model, texts) | describe_learned(provenances),
        plot=plot_next_token,
        print_table=print_table,
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "fig2",
        methods=NextTokenConfig.METHODS,
        default_methods=NextTokenConfig.methods,
        samples=NextTokenConfig.n_samples,
        unused=("max-new-tokens",),
    )
    add_learned_options(parser, *(method.replace("_", "-") for method in MAPPED))
    add_best_prompt_option(parser)
    return parser


def print_table(document: dict) -> None:
    """Both metrics at a few layers."""
    results = document["results"]
    layers = results["layers"]
    shown = sorted({round(place * (len(layers) - 1) / 6) for place in range(7)})
    for metric in ("precision_at_1", "surprisal"):
        print(f"{metric:>16} " + " ".join(f"layer {name_layer(layers[slot]):>3}" for slot in shown))
        for method, metrics in results["methods"].items():
            print(f"{method:>16} " + " ".join(f"{metrics[metric]['mean'][slot]:9.3f}" for slot in shown))


if __name__ == "__main__":
    run_script(main)
