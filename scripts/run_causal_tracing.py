"""Causal tracing: which states carry a fact from subject to answer, in its original form and as a Patchscope."""

import argparse
from dataclasses import asdict

from options import add_facts_file, add_noise_options, build_common_parser, read_chat
from parsing import positive
from skeleton import load_chosen_model, run_experiment, run_script

from patchscopes.data.facts import load_facts, load_own_facts
from patchscopes.experiments.config import CausalTracingConfig
from patchscopes.model.layer_names import name_layer


def main() -> None:
    options = build_parser().parse_args()
    chat = read_chat(options, one_prompt=True)
    facts = load_facts(options.facts) if options.facts else load_own_facts()

    from patchscopes.experiments import causal_tracing
    from patchscopes.model.environment import describe_environment
    from patchscopes.plots.causal_tracing import plot_causal_tracing

    model = load_chosen_model(options)
    config = CausalTracingConfig(
        methods=options.methods,
        layers=options.layers,
        n_samples=options.samples,
        n_original=options.original_samples,
        noise=options.noise,
        n_noise_samples=options.noise_samples,
        window=options.window,
        seed=options.seed,
        batch_size=options.batch_size,
        chat=chat,
    )
    run_experiment(
        options,
        "causal_tracing",
        lambda store, progress: causal_tracing.run(model, facts, config, store, progress=progress),
        config={
            "model": options.model,
            "dataset": options.facts.name if options.facts else "relations",
            **asdict(config),
        },
        environment=describe_environment(model),
        plot=plot_causal_tracing,
        print_table=print_table,
        inputs={"facts": [asdict(fact) for fact in facts]},
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "causal_tracing",
        methods=CausalTracingConfig.METHODS,
        samples=CausalTracingConfig.n_samples,
        samples_are="facts, of those that the model knows",
        unused=("dataset", "max-new-tokens"),
    )
    group = parser.add_argument_group(
        "causal tracing", f"Of the layers, `all` takes {CausalTracingConfig.N_LAYERS} at equal distances."
    )
    add_facts_file(group)
    add_noise_options(group, noise=CausalTracingConfig.noise, n_noise_samples=CausalTracingConfig.n_noise_samples)
    group.add_argument(
        "--window",
        type=positive,
        default=CausalTracingConfig.window,
        metavar="N",
        help="consecutive blocks whose MLPs, or attention, are restored together (default: %(default)s)",
    )
    group.add_argument(
        "--original-samples",
        type=positive,
        default=CausalTracingConfig.n_original,
        metavar="N",
        help="of the facts, how many the original form is run on beside the Patchscope (default: %(default)s)",
    )
    return parser


def print_table(document: dict) -> None:
    """The total effect by each method, and where the average indirect effects at each site are largest."""
    results = document["results"]
    print(f"{results['n_known']} of {results['n_facts']} facts are known; {results['n_samples']} of them:")
    for method, measures in results["methods"].items():
        low, high = measures["total_effect"]["ci95"]
        print(
            f"{method} ({measures['n_samples']} facts): p {measures['clean']['mean']:.3f}, corrupted "
            f"{measures['corrupted']['mean']:.3f}; total effect {measures['total_effect']['mean']:.3f}  "
            f"[{low:.3f}, {high:.3f}]; largest average indirect effects:"
        )
        for site, classes in measures["indirect_effect"].items():
            for token_class, effect in classes.items():
                row = effect["mean"].index(max(effect["mean"]))
                low, high = effect["ci95"][row]
                print(
                    f"{site:>14} {token_class:<15} {effect['mean'][row]:6.3f}  [{low:.3f}, {high:.3f}] at "
                    f"ℓ = {name_layer(results['layers'][row])}"
                )
    difference = results["largest_probability_difference"]
    if difference is not None:
        speed = document["timing"]["both_forms"]
        print(
            f"both forms on {speed['n_facts']} facts: probabilities differ by at most {difference:.1e}; the Patchscope "
            f"is {speed['speed_up']:.1f} times faster"
        )


if __name__ == "__main__":
    run_script(main)
