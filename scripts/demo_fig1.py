"""Figure 1: what the representation of one token says at each layer, through the token-identity Patchscope."""

import argparse
from dataclasses import asdict

from options import add_target_layer_option, build_common_parser, read_chat
from parsing import positive
from skeleton import load_chosen_model, run_experiment, run_script, time_total

from patchscopes.experiments.config import LayerReadoutConfig
from patchscopes.model.layer_names import name_layer


def main() -> None:
    options = build_parser().parse_args()
    chat = read_chat(options)

    from patchscopes.experiments import layer_readout
    from patchscopes.model.environment import describe_environment
    from patchscopes.plots.layer_readout import plot_layer_readout

    model = load_chosen_model(options)
    config = LayerReadoutConfig(
        source_prompt=options.source_text,
        source_word=options.target_word,
        target_prompt=options.target_prompt,
        placeholder=options.placeholder,
        layers=options.layers,
        target_layer=options.target_layer,
        mode=options.mode,
        k=options.top_k,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        chat=chat,
    )
    run_experiment(
        options,
        "layer_readout",
        lambda store, progress: time_total(lambda: layer_readout.run(model, config)),
        config={"model": options.model, **asdict(config)},
        environment=describe_environment(model),
        plot=plot_layer_readout,
        print_table=print_table,
        shared=False,
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__, "fig1", methods=("token_identity",), unused=("dataset", "samples", "seed", "fresh", "shard")
    )
    group = parser.add_argument_group("figure 1")
    group.add_argument(
        "--mode", choices=("generate", "top_k", "both"), default="both", help="what to ask at each layer"
    )
    group.add_argument("--source-text", default=LayerReadoutConfig.source_prompt, help="source prompt S")
    group.add_argument(
        "--target-word", default=LayerReadoutConfig.source_word, help="word in S to read (its last token)"
    )
    group.add_argument(
        "--target-prompt",
        default=LayerReadoutConfig.target_prompt,
        metavar="TEXT",
        help="target prompt T, with the placeholder in it (default: the token-identity prompt)",
    )
    group.add_argument(
        "--placeholder",
        default=LayerReadoutConfig.placeholder,
        metavar="WORD",
        help="what in T is replaced, one token; the last one counts (default: %(default)s)",
    )
    add_target_layer_option(group, LayerReadoutConfig.target_layer)
    group.add_argument("--top-k", type=positive, default=LayerReadoutConfig.k, metavar="K", help="most likely tokens")
    return parser


def print_table(document: dict) -> None:
    """One line per layer."""
    results = document["results"]
    readout = results["methods"]["token_identity"]
    for slot, layer in enumerate(results["layers"]):
        tokens = [f"{entry['token']!r} {entry['probability']:.2f}" for entry in readout.get("top_k", {slot: []})[slot]]
        generation = [repr(readout["generations"][slot])] if "generations" in readout else []
        print(f"layer {name_layer(layer):>2}: {'; '.join([', '.join(tokens)] * bool(tokens) + generation)}")


if __name__ == "__main__":
    run_script(main)
