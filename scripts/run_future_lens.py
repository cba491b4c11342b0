"""Future Lens: Precision@1, @5, @10 and Surprisal for the next three tokens from one hidden state, over all layers."""

import argparse
from dataclasses import asdict

from learned import (
    add_learned_options,
    describe_learned,
    get_linear_future_lens,
    get_provenance,
    get_soft_prompt,
)
from options import build_common_parser, read_chat
from skeleton import load_chosen_model, run_experiment, run_script
from texts import load_chosen_texts

from patchscopes.experiments.config import FutureLensConfig
from patchscopes.model.layer_names import name_layer


def main() -> None:
    options = build_parser().parse_args()
    chat = read_chat(options)
    texts = load_chosen_texts(options, limit=options.samples)

    from patchscopes.experiments import future_lens
    from patchscopes.model.environment import describe_environment
    from patchscopes.model.layers import resolve_layers
    from patchscopes.plots.future_lens import plot_future_lens

    model = load_chosen_model(options)
    # Before anything is learned, which takes longer than to see a mistake.
    resolve_layers(model, options.layers)
    config = FutureLensConfig(
        methods=options.methods,
        n_samples=options.samples,
        layers=options.layers,
        seed=options.seed,
        batch_size=options.batch_size,
        chat=chat,
    )
    maps = get_linear_future_lens(model, options, options.linear_maps) if "linear" in options.methods else None
    prompt = get_soft_prompt(model, options, options.soft_prompt) if "learned_prompt" in options.methods else None
    provenances = {"linear": get_provenance(maps)} if maps else {}
    provenances |= {"learned_prompt": prompt.provenance} if prompt else {}
    run_experiment(
        options,
        "future_lens",
        lambda store, progress: future_lens.run(
            model, texts, config, store, maps=maps, soft_prompt=prompt, progress=progress
        ),
        config={"model": options.model, "dataset": options.dataset, **asdict(config)},
        environment=describe_environment(model, texts) | describe_learned(provenances),
        plot=plot_future_lens,
        print_table=print_table,
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "future_lens",
        methods=FutureLensConfig.METHODS,
        samples=FutureLensConfig.n_samples,
        unused=("max-new-tokens",),
    )
    add_learned_options(parser, "linear-maps", "soft-prompt")
    return parser


def print_table(document: dict) -> None:
    """For each method, metric and token ahead, the best layer."""
    results = document["results"]
    print("best layer, and the value there")
    print(f"{'':>16} {'':>16} " + " ".join(f"{f't+{ahead}':>14}" for ahead in results["ahead"]))
    for metric in FutureLensConfig.METRICS:
        best = min if metric == "surprisal" else max
        for method, metrics in results["methods"].items():
            cells = []
            for values in metrics[metric]["mean"]:
                value = best(values)
                cells.append(f"{value:7.3f} at {name_layer(results['layers'][values.index(value)]):>3}")
            print(f"{metric:>16} {method:>16} " + " ".join(cells))


if __name__ == "__main__":
    run_script(main)
