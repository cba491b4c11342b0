"""Entity resolution in one picture: descriptions, causal tracing, attention knockout and LREs on the same facts."""

import argparse
from dataclasses import asdict

from options import add_facts_file, add_noise_options, build_common_parser, read_chat
from parsing import at_least, positive
from skeleton import load_chosen_model, run_experiment, run_script

from patchscopes.data.facts import load_facts, load_own_facts
from patchscopes.experiments.config import EntityResolutionConfig
from patchscopes.model.layer_names import name_layer

RELATIONS = ("capital", "currency", "language")


def main() -> None:
    options = build_parser().parse_args()
    chat = read_chat(options, one_prompt=True)
    facts = load_facts(options.facts) if options.facts else load_own_facts(*RELATIONS)

    from patchscopes.experiments import entity_resolution
    from patchscopes.model.environment import describe_environment
    from patchscopes.plots.entity_resolution import plot_entity_resolution

    model = load_chosen_model(options)
    config = EntityResolutionConfig(
        methods=options.methods,
        layers=options.layers,
        n_samples=options.samples,
        n_examples=options.examples,
        noise=options.noise,
        n_noise_samples=options.noise_samples,
        window=options.window,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        batch_size=options.batch_size,
        chat=chat,
    )
    run_experiment(
        options,
        "entity_resolution",
        lambda store, progress: entity_resolution.run(model, facts, config, store, progress=progress),
        config={
            "model": options.model,
            "dataset": options.facts.name if options.facts else ",".join(RELATIONS),
            **asdict(config),
        },
        environment=describe_environment(model),
        plot=plot_entity_resolution,
        print_table=print_table,
        inputs={"facts": [asdict(fact) for fact in facts]},
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "entity_resolution",
        methods=EntityResolutionConfig.METHODS,
        samples=EntityResolutionConfig.n_samples,
        samples_are="facts, at most, drawn from those that the model knows",
        max_new_tokens=EntityResolutionConfig.max_new_tokens,
        unused=("dataset",),
    )
    group = parser.add_argument_group("entity resolution")
    add_facts_file(group, *RELATIONS)
    group.add_argument(
        "--examples",
        type=at_least(2),
        default=EntityResolutionConfig.n_examples,
        metavar="N",
        help="known facts that the LRE of a prompt is estimated from; prompts without more known facts than that are "
        "left out, and if none has more, the LRE (default: %(default)s)",
    )
    add_noise_options(group, noise=EntityResolutionConfig.noise, n_noise_samples=EntityResolutionConfig.n_noise_samples)
    group.add_argument(
        "--window",
        type=positive,
        metavar="N",
        help="layers of a window in which the last position does not read the subject (default: "
        f"{EntityResolutionConfig.WINDOW}, and in a shallow model about a third of its layers)",
    )
    return parser


def print_table(document: dict) -> None:
    """Of each measure the largest mean, the layers between which it changes most, and where it is half way."""
    results = document["results"]
    print(
        f"{results['n_samples']} of {results['n_known']} known facts, about {results['n_subjects']} subjects; windows "
        f"of {results['window']} layers"
    )
    if results["n_left_out"]:
        print(f"left out: {results['n_left_out']} facts whose prompts end with the subject")
    if "lre" in document["config"]["methods"] and "lre" not in results["measures"]:
        print(f"no LRE: no prompt has more than {document['config']['n_examples']} subjects that the model knows")
    headings = ("largest mean", "at ℓ", "changes most", "half way up", "half way down")
    print(f"{'':16} " + " ".join(f"{heading:>22}" for heading in headings) + "  unit")
    for name, measure in results["measures"].items():
        low, high = measure["ci95"][results["layers"].index(measure["largest_at"])]
        cells = [
            f"{max(measure['mean']):.3g} [{low:.3g}, {high:.3g}]",
            name_layer(measure["largest_at"]),
            show_steepest(measure["steepest"]),
            show_half_way(measure["rises"]),
            show_half_way(measure["falls"]),
        ]
        print(f"{name:16} " + " ".join(f"{cell:>22}" for cell in cells) + f"  {measure['unit']}")


def show_steepest(steepest: dict | None) -> str:
    """The layers between which a measure changes most, and by how much from one to the next."""
    if steepest is None:
        return "-"
    start, end = steepest["layers"]
    return f"{name_layer(start)} to {name_layer(end)} ({steepest['change_per_layer']:+.3g})"


def show_half_way(found: dict | None) -> str:
    """A layer and the ends of its interval."""
    return "-" if found is None else f"{found['layer']:.1f} [{found['ci95'][0]:.1f}, {found['ci95'][1]:.1f}]"


if __name__ == "__main__":
    run_script(main)
