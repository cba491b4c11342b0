"""Layer grids: from which layer, into which layer and by which template the model says what it knows of a name."""

import argparse
from dataclasses import asdict
from pathlib import Path

from layer_grid_tables import print_comparison, print_history, print_table, report_torn
from options import FIGURES, add_target_layers_option, build_common_parser, read_chat
from parsing import entity_name, file_name, natural
from skeleton import load_chosen_model, run_experiment, run_script

from patchscopes.data.entities import Entity, load_entities
from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.templates import FAMILIES, TEMPLATES_FILE, load_templates
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import LayerGridConfig

ENTITIES = DATA_FOLDER / "entities.json"
# Of the library's own names.
DEFAULT_NAME = "Albert Einstein"


def main() -> None:
    options = build_parser().parse_args()
    if options.history:
        print_history(options.history_file)
    elif options.compare:
        compare(options)
    else:
        run(options)


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "layer_grid",
        methods=("patchscope",),
        samples=LayerGridConfig.n_names,
        samples_are="names of multi and comprehensive, at most, drawn from those with two keywords",
        max_new_tokens=LayerGridConfig.max_new_tokens,
        unused=("dataset", "methods"),
    )
    add_study_options(parser)
    add_layer_options(parser)
    group = parser.add_argument_group("history")
    group.add_argument("--history", action="store_true", help="list all runs so far, and run nothing")
    group.add_argument(
        "--compare",
        type=int,
        nargs=2,
        metavar=("A", "B"),
        help="set two runs of the history side by side (1 is the oldest, -1 the newest), and run nothing; the figure "
        "is that of --output-plot with _compare in its name",
    )
    group.add_argument(
        "--history-file",
        type=file_name(".jsonl"),
        default=FIGURES / "layer_grid.history.jsonl",
        metavar="JSONL",
        help="every run appends a line to it (default: figures/layer_grid.history.jsonl)",
    )
    return parser


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """What is asked about whom, and by which templates."""
    group = parser.add_argument_group("study")
    group.add_argument(
        "--mode",
        choices=LayerGridConfig.MODES,
        default=LayerGridConfig.mode,
        metavar="MODE",
        help=f"{', '.join(LayerGridConfig.MODES)} (default: %(default)s)",
    )
    group.add_argument(
        "--source-prompt",
        type=entity_name,
        metavar="TEXT",
        help=f"a name, or a sentence with a name in it (default: {DEFAULT_NAME}, or the first name of your --entities)",
    )
    group.add_argument("--name", type=entity_name, help="the name in --source-prompt, where the file does not know it")
    group.add_argument(
        "--keywords",
        type=comma_separated,
        default=(),
        metavar="A,B,…",
        help="facts that a text which knows the name says, two or more (default: those of the file)",
    )
    group.add_argument(
        "--entities",
        type=Path,
        default=ENTITIES,
        metavar="FILE",
        help="names with `keywords` as .json, or .csv (default: data/entities.json)",
    )
    group.add_argument(
        "--templates",
        type=Path,
        default=TEMPLATES_FILE,
        metavar="FILE",
        help="templates as .json (default: data/templates.json)",
    )
    group.add_argument(
        "--template",
        default=LayerGridConfig.template,
        metavar="NAME",
        help="of modes that take one (default: %(default)s)",
    )
    group.add_argument(
        "--template-type",
        choices=FAMILIES,
        metavar="FAMILY",
        help=f"of the mode patchscope: {', '.join(FAMILIES)}",
    )
    group.add_argument(
        "--others",
        type=natural,
        default=LayerGridConfig.n_others,
        metavar="N",
        help="other names whose states are the control of one name (default: %(default)s)",
    )


def add_layer_options(parser: argparse.ArgumentParser) -> None:
    """Which pairs (ℓ, ℓ*)."""
    group = parser.add_argument_group("layers (default: those of the mode)")
    add_target_layers_option(group, "")
    for name, what in (("--shares", "source"), ("--target-shares", "target")):
        group.add_argument(
            name,
            type=share_list,
            default=(),
            metavar="SHARES",
            help=f"{what} layers as shares of the depth: 0,0.5,1 are the first block, the middle one and the last",
        )
    group.add_argument("--full-grid", action="store_true", help="all pairs of layers")


def comma_separated(text: str) -> tuple[str, ...]:
    """The parts of a text between commas."""
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise argparse.ArgumentTypeError(f"expected words with commas between them, got {text!r}")
    return parts


def share_list(text: str) -> tuple[float, ...]:
    """Numbers from 0 to 1 between commas."""
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = (-1.0,)
    if not all(0 <= share <= 1 for share in shares):
        raise argparse.ArgumentTypeError(f"expected shares of the depth from 0 to 1 like 0,0.5,1, got {text!r}")
    return shares


def run(options: argparse.Namespace) -> None:
    """Run a mode, and append it to the history."""
    entities = load_entities(options.entities)
    config = build_config(options, entities)

    from patchscopes.experiments.layer_grid_choices import choose_names, choose_templates

    names = choose_names(entities, config)
    templates = choose_templates(load_templates(options.templates), config)

    from patchscopes.experiments import layer_grid
    from patchscopes.experiments.layer_grid_history import append_entry, build_entry
    from patchscopes.model.environment import describe_environment
    from patchscopes.plots.layer_grid import plot_layer_grid

    model = load_chosen_model(options)

    def finish(document: dict) -> None:
        append_entry(options.history_file, build_entry(document, options.output_json, options.history_file))
        print_table(document)
        print(f"appended to {options.history_file}")

    run_experiment(
        options,
        "layer_grid",
        lambda store, progress: layer_grid.run(model, names, templates, config, store, progress=progress),
        config={
            "model": options.model,
            "dataset": options.entities.name,
            "templates": options.templates.name,
            **asdict(config),
        },
        environment=describe_environment(model),
        plot=plot_layer_grid,
        print_table=finish,
        inputs={"names": asdict(names), "templates": [asdict(template) for template in templates]},
    )


def build_config(options: argparse.Namespace, entities: tuple[Entity, ...]) -> LayerGridConfig:
    """The options of the experiment.

    Raises:
        PatchscopesError: options that have no use together.
    """
    if (options.mode == "patchscope") != (options.template_type is not None):
        raise PatchscopesError(
            f"--template-type says which family the mode patchscope runs: give both or neither; the families are "
            f"{', '.join(FAMILIES)}"
        )
    if options.name is not None and options.source_prompt is None:
        raise PatchscopesError("--name says where the name stands in --source-prompt; give that too")
    source_prompt = options.source_prompt
    if source_prompt is None and any(entity.name == DEFAULT_NAME for entity in entities):
        source_prompt = DEFAULT_NAME
    return LayerGridConfig(
        mode=options.mode,
        source_prompt=source_prompt,
        name=options.name,
        keywords=options.keywords,
        template=options.template,
        template_type=options.template_type,
        layers=options.layers,
        target_layers=options.target_layers,
        shares=options.shares,
        target_shares=options.target_shares,
        full_grid=options.full_grid,
        n_names=options.samples,
        n_others=options.others,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        batch_size=options.batch_size,
        chat=read_chat(options),
    )


def compare(options: argparse.Namespace) -> None:
    """Two runs side by side, as a table and a figure."""
    from patchscopes.experiments.layer_grid_history import compare_runs, find_run, load_history
    from patchscopes.plots.layer_grid_compare import plot_layer_grid_compare
    from patchscopes.plots.style import save_png

    history = load_history(options.history_file)
    report_torn(options.history_file, history.torn)
    first, second = (find_run(history, number) for number in options.compare)
    compared = compare_runs(first, second, options.seed)
    path = options.output_plot.with_name(f"{options.output_plot.stem}_compare.png")
    save_png(plot_layer_grid_compare(compared), path)
    print_comparison(compared)
    print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main)
