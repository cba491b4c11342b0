"""Attention knockout: in which layers the last position reads the subject, by cut edges and by states of zero."""

import argparse
from dataclasses import asdict

from options import add_facts_file, build_common_parser, read_chat
from parsing import positive
from skeleton import load_chosen_model, run_experiment, run_script

from patchscopes.data.facts import load_facts, load_own_facts
from patchscopes.experiments.config import AttentionKnockoutConfig
from patchscopes.model.layer_names import name_layer


def main() -> None:
    options = build_parser().parse_args()
    chat = read_chat(options, one_prompt=True)
    facts = load_facts(options.facts) if options.facts else load_own_facts()

    from patchscopes.experiments import attention_knockout
    from patchscopes.model.environment import describe_environment
    from patchscopes.plots.attention_knockout import plot_attention_knockout

    model = load_chosen_model(options)
    config = AttentionKnockoutConfig(
        methods=options.methods,
        layers=options.layers,
        window=options.window,
        n_samples=options.samples,
        seed=options.seed,
        batch_size=options.batch_size,
        chat=chat,
    )
    run_experiment(
        options,
        "attention_knockout",
        lambda store, progress: attention_knockout.run(model, facts, config, store, progress=progress),
        config={
            "model": options.model,
            "dataset": options.facts.name if options.facts else "relations",
            **asdict(config),
        },
        environment=describe_environment(model),
        plot=plot_attention_knockout,
        print_table=print_table,
        inputs={"facts": [asdict(fact) for fact in facts]},
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "attention_knockout",
        methods=AttentionKnockoutConfig.METHODS,
        samples=AttentionKnockoutConfig.n_samples,
        samples_are="facts, at most, drawn from those that the model knows",
        unused=("dataset", "max-new-tokens"),
    )
    group = parser.add_argument_group("attention knockout")
    add_facts_file(group)
    group.add_argument(
        "--window",
        type=positive,
        metavar="N",
        help=f"layers of a window around each layer (default: {AttentionKnockoutConfig.WINDOW}, and in a shallow model "
        "about a third of its layers)",
    )
    return parser


def print_table(document: dict) -> None:
    """The change of the answer's probability in percent without each set of keys, at each layer, by method."""
    results = document["results"]
    print(
        f"{results['n_samples']} of {results['n_known']} known facts, windows of {results['window']} layers; change of "
        "the answer's probability in %"
    )
    if results["n_left_out"]:
        print(f"left out: {results['n_left_out']} facts whose prompts end with the subject")
    columns = [(method, keys) for method in results["methods"] for keys in AttentionKnockoutConfig.KEYS]
    print(f"{'layer':>8} " + " ".join(f"{method:>18}" for method, _ in columns))
    print(f"{'without':>8} " + " ".join(f"{keys:>18}" for _, keys in columns))
    for row, layer in enumerate(results["layers"]):
        cells = [show_change(results["methods"][method]["relative_change"][keys], row) for method, keys in columns]
        print(f"{name_layer(layer):>8} " + " ".join(f"{cell:>18}" for cell in cells))


def show_change(change: dict, row: int) -> str:
    """A mean and the ends of its interval."""
    low, high = change["ci95"][row]
    return f"{change['mean'][row]:.0f} [{low:.0f}, {high:.0f}]"


if __name__ == "__main__":
    run_script(main)
