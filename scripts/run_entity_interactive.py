"""What the model takes one name for, layer by layer, in a table that grows while it is computed."""

import time
from dataclasses import asdict

from options import common_parser, layer_list, run_script, write_results
from rich.console import Console
from rich.live import Live
from rich.table import Table

from patchscopes.experiments import entity_layers
from patchscopes.experiments.config import EntityConfig
from patchscopes.model.environment import describe_environment
from patchscopes.model.loading import load_model
from patchscopes.plots.all import plot_entity_layers, show_whitespace
from patchscopes.results import build_document


def main() -> None:
    parser = common_parser(
        __doc__,
        "entity_diana",
        methods=("patchscope",),
        unused=("dataset", "samples", "seed", "methods", "fresh"),
    )
    parser.set_defaults(max_new_tokens=20)
    own = parser.add_argument_group("entity")
    own.add_argument("name", nargs="?", default="Diana, Princess of Wales", help="(default: %(default)s)")
    own.add_argument("--layer-range", dest="layers", type=layer_list, metavar="LAYERS", help="the same as --layers")
    own.add_argument(
        "--target-layer",
        default=EntityConfig.target_layer,
        help="ℓ*: same, embedding, last or a number (default: %(default)s)",
    )
    options = parser.parse_args()
    config = EntityConfig(
        layers=options.layers,
        target_layer=options.target_layer,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
    )
    entity_layers.list_name_endings(options.name)
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    table = Table("layer", "what the model says", "words resolved", title=options.name, title_justify="left")

    def show(one: entity_layers.LayerDescription) -> None:
        table.add_row(str(one.layer), show_whitespace(one.description), one.resolved or "-")
        live.refresh()

    started = time.perf_counter()
    console = Console(markup=False)
    with Live(table, console=console, auto_refresh=False) as live:
        results = entity_layers.run(model, options.name, config, show)
    if not console.is_terminal:
        # Without a terminal a live table ends without a newline.
        print()
    print("what it says of these words in clear:")
    for ending in results["endings"]:
        print(f"  {ending['ending']}: {show_whitespace(ending['description'])}")
    seconds = {"total": time.perf_counter() - started}
    described = {"model": options.model, "name": options.name, **asdict(config)}
    document = build_document("entity_layers", described, describe_environment(model), results, {"seconds": seconds})
    write_results(options, document, plot_entity_layers)
    print(f"wrote {options.output_plot} and {options.output_json}")


if __name__ == "__main__":
    run_script(main)
