"""One two-hop question: the model's own answer, its chain of thought, and a grid of patched answers that fills up."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from live_grid import LiveGrid
from options import add_layer_range_option, add_target_layers_option, build_common_parser, read_chat
from parsing import positive
from skeleton import load_chosen_model, run_experiment, run_script, time_total

from patchscopes.data.files import DATA_FOLDER, PLACE
from patchscopes.data.questions import CUE, TwoHopQuestion, build_question, complete_cue, find_question, load_questions
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import MultiHopConfig
from patchscopes.model.layer_names import name_layer
from patchscopes.plots.text import show_whitespace
from patchscopes.results import Json

if TYPE_CHECKING:
    from patchscopes.model.lens_model import LensModel

# Of `MultiHopConfig`, those that have an effect here.
USED_OPTIONS = ("layers", "target_layers", "max_new_tokens", "cot_new_tokens", "batch_size", "chat")


def main() -> None:
    options = build_parser().parse_args()
    chat = read_chat(options, one_prompt=True)
    question = choose_question(options)

    from patchscopes.experiments.multi_hop import resolve_layer_grid
    from patchscopes.model.environment import describe_environment
    from patchscopes.plots.multi_hop_grid import plot_multi_hop_grid

    model = load_chosen_model(options)
    default_layers, _ = resolve_layer_grid(model, MultiHopConfig())
    config = MultiHopConfig(
        layers=options.layers,
        target_layers=options.target_layers or tuple(default_layers),
        max_new_tokens=options.max_new_tokens,
        cot_new_tokens=options.cot_new_tokens,
        batch_size=options.batch_size,
        chat=chat,
    )
    print(show_whitespace(question.combined_question))
    run_experiment(
        options,
        "multi_hop_grid",
        lambda store, progress: time_total(lambda: fill_grid(model, question, config)),
        config={"model": options.model, "question": asdict(question)}
        | {name: value for name, value in asdict(config).items() if name in USED_OPTIONS},
        environment=describe_environment(model),
        plot=plot_multi_hop_grid,
        print_table=print_table,
        shared=False,
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "multi_hop_example",
        methods=("patchscope",),
        unused=("dataset", "samples", "seed", "methods", "fresh", "shard"),
    )
    group = parser.add_argument_group("question")
    group.add_argument(
        "--questions",
        type=Path,
        default=DATA_FOLDER / "multihop_examples.json",
        help="JSON file or table of two-hop questions (default: data/multihop_examples.json)",
    )
    group.add_argument(
        "--example-id", default="0", metavar="ID", help="one of them: its id, or its number from 0 on (default: 0)"
    )
    group.add_argument(
        "--hop2",
        metavar="TEXT",
        help="or in your own words: 'The official currency of'; {} in it is the place of the first hop if that is not "
        "its end",
    )
    group.add_argument("--hop1", metavar="TEXT", help="... 'the country whose capital is Tokyo'")
    group.add_argument("--cue", metavar="TEXT", help=f"... what asks for the answer at its end (default: {CUE!r})")
    group.add_argument("--answer", default="", metavar="TEXT", help="... 'yen' (answers with it are marked)")
    add_layer_range_option(group)
    add_target_layers_option(group, "(default: some at equal distances)")
    group.add_argument("--cot-new-tokens", type=positive, default=MultiHopConfig.cot_new_tokens, metavar="N")
    return parser


def choose_question(options: argparse.Namespace) -> TwoHopQuestion:
    """The user's own question, or one of a file."""
    if options.hop1 is None and options.hop2 is None:
        return find_question(load_questions(options.questions), options.example_id)
    hop1, hop2 = ((hop or "").strip() for hop in (options.hop1, options.hop2))
    if not hop1 or not hop2:
        raise PatchscopesError("a question in your own words needs both --hop2 and --hop1, each with some words")
    cue = CUE if options.cue is None else complete_cue(options.cue)
    hop2 = hop2 if PLACE in hop2 else f"{hop2} {PLACE}"
    return build_question(
        "--hop2, --hop1, --answer",
        id=0,
        hop1_prompt=hop1[0].upper() + hop1[1:],
        hop1_answer="",
        hop2_prompt=hop2,
        hop2_answer=options.answer,
        combined_question=hop2.removesuffix(cue).replace(PLACE, hop1.removesuffix(cue)),
        cue=options.cue,
    )


def fill_grid(model: "LensModel", question: TwoHopQuestion, config: MultiHopConfig) -> Json:
    """Run the experiment while its grid fills up."""
    from patchscopes.experiments import multi_hop_grid

    with LiveGrid(config.target_layers) as grid:
        return multi_hop_grid.run(model, question, config, grid.show_unpatched, grid.show_layer)


def print_table(document: dict) -> None:
    """The first answer of each source layer that is right, in full; the grid itself is in the live table."""
    results = document["results"]
    patched = results["methods"]["patchscope"]
    for layer, texts, solved in zip(results["layers"], patched["texts"], patched["solved"], strict=True):
        for target_layer, text, right in zip(results["target_layers"], texts, solved, strict=True):
            if right:
                print(f"ℓ = {name_layer(layer)}, ℓ* = {name_layer(target_layer)}: {show_whitespace(text)}")
                break


if __name__ == "__main__":
    run_script(main)
