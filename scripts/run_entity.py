"""Entity resolution: what the model takes a name for, layer by layer, scored by ROUGE against references."""

import argparse
from dataclasses import asdict
from pathlib import Path

from options import add_target_layer_option, build_common_parser, read_chat
from skeleton import load_chosen_model, run_experiment, run_script

from patchscopes.data.entities import load_entities
from patchscopes.data.files import DATA_FOLDER
from patchscopes.experiments.config import EntityConfig
from patchscopes.model.layer_names import name_layer
from patchscopes.plots.text import show_whitespace


def main() -> None:
    options = build_parser().parse_args()
    chat = read_chat(options)
    entities = load_entities(options.entities)[: options.samples]

    from patchscopes.experiments import entity
    from patchscopes.model.environment import describe_environment
    from patchscopes.plots.entity import plot_entity

    model = load_chosen_model(options)
    config = EntityConfig(
        layers=options.layers,
        target_layer=options.target_layer,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        seed=options.seed,
        chat=chat,
    )
    run_experiment(
        options,
        "entity",
        lambda store, progress: entity.run(model, entities, config, store, progress=progress),
        config={"model": options.model, "dataset": options.entities.name, **asdict(config)},
        environment=describe_environment(model),
        plot=plot_entity,
        print_table=print_table,
        inputs={"entities": [asdict(one) for one in entities]},
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "entity",
        methods=("patchscope",),
        samples=10_000,
        max_new_tokens=EntityConfig.max_new_tokens,
        unused=("dataset", "methods"),
    )
    group = parser.add_argument_group("entities")
    group.add_argument(
        "entities",
        type=Path,
        nargs="?",
        default=DATA_FOLDER / "entities.json",
        help="JSON or CSV file with `entity` and `reference` (or several `references`, of which the best counts), and "
        "perhaps `kind` and `popularity` (default: data/entities.json); --samples takes the first N",
    )
    add_target_layer_option(group, EntityConfig.target_layer)
    return parser


def print_table(document: dict) -> None:
    """ROUGE-L of the descriptions: the best layer of each group, and its baselines."""
    results = document["results"]
    metric = "rougeL_f1_of_description"
    print(f"{metric:>26} {'entities':>8} {'best layer':>14} {'name in clear':>14} {'unpatched':>10}")
    groups = {"all": results} | results["popularity"]
    for name, group in groups.items():
        means = group["methods"]["patchscope"][metric]["mean"]
        best = max(means)
        clear, unpatched = (group["methods"][one][metric]["mean"][0] for one in ("name_in_clear", "unpatched"))
        where = f"{best:.3f} at {name_layer(results['layers'][means.index(best)]):>3}"
        print(f"{show_whitespace(name):>26} {group['n_samples']:>8} {where:>14} {clear:14.3f} {unpatched:10.3f}")


if __name__ == "__main__":
    run_script(main)
