"""What the model takes one name for, layer by layer, in a table that grows while it is computed."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from live_grid import make_console
from options import add_layer_range_option, add_target_layer_option, build_common_parser, read_chat
from parsing import entity_name
from skeleton import load_chosen_model, run_experiment, run_script, time_total

from patchscopes.experiments.config import EntityConfig
from patchscopes.model.layer_names import name_layer
from patchscopes.plots.text import show_whitespace
from patchscopes.results import Json

if TYPE_CHECKING:
    from patchscopes.experiments.entity_layers import LayerDescription
    from patchscopes.model.lens_model import LensModel


# Two columns of the table, by the measure that fills them.
RESOLVED = "words resolved (by probability)"
MOST_ALIKE = "most alike (by ROUGE-L)"


def main() -> None:
    options = build_parser().parse_args()
    chat = read_chat(options)

    from patchscopes.model.environment import describe_environment
    from patchscopes.plots.entity_layers import plot_entity_layers

    model = load_chosen_model(options)
    config = EntityConfig(
        layers=options.layers,
        target_layer=options.target_layer,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        chat=chat,
    )
    run_experiment(
        options,
        "entity_layers",
        lambda store, progress: time_total(lambda: describe_layers(model, options.name, config)),
        config={"model": options.model, "name": options.name, **asdict(config)},
        environment=describe_environment(model),
        plot=plot_entity_layers,
        print_table=print_table,
        shared=False,
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "entity_diana",
        methods=("patchscope",),
        max_new_tokens=EntityConfig.max_new_tokens,
        unused=("dataset", "samples", "seed", "methods", "fresh", "shard"),
    )
    group = parser.add_argument_group("entity")
    group.add_argument(
        "name", type=entity_name, nargs="?", default="Diana, Princess of Wales", help="(default: %(default)s)"
    )
    add_layer_range_option(group)
    add_target_layer_option(group, EntityConfig.target_layer)
    return parser


def describe_layers(model: "LensModel", name: str, config: EntityConfig) -> Json:
    """Run the experiment while its table grows."""
    from rich.live import Live
    from rich.table import Table

    from patchscopes.experiments import entity_layers

    headings = ("layer", "what the model says", RESOLVED, MOST_ALIKE)
    table = Table(*headings, title=show_whitespace(name), title_justify="left")
    console = make_console()

    def show(one: "LayerDescription") -> None:
        texts = map(show_whitespace, (one.description, one.resolved or "-", one.most_alike or "-"))
        table.add_row(name_layer(one.layer), *texts)
        live.refresh()

    with Live(table, console=console, auto_refresh=False) as live:
        results = entity_layers.run(model, name, config, show)
    if not console.is_terminal:
        # Without a terminal a live table ends without a newline.
        print()
    return results


def print_table(document: dict) -> None:
    """What the model says of the endings of the name; the layers are in the live table."""
    print(f"{RESOLVED}: the state makes what is said of these words in clear most likely, beside no state")
    print(f"{MOST_ALIKE}: what is said shares most words with that; a hint, no judgement")
    print("what it says of these words in clear:")
    for ending in document["results"]["endings"]:
        print(f"  {show_whitespace(ending['ending'])}: {show_whitespace(ending['description'])}")


if __name__ == "__main__":
    run_script(main)
