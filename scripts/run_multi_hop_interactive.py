"""One two-hop question: the model's own answer, its chain of thought, and a grid of patched answers that fills up."""

import time
from dataclasses import asdict
from pathlib import Path

from options import common_parser, layer_list, natural, positive, run_script, write_results
from rich.console import Console
from rich.live import Live
from rich.table import Table

from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.questions import CUE, TwoHopQuestion, check_question, find_question, load_questions
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import multi_hop, multi_hop_grid
from patchscopes.experiments.config import MultiHopConfig
from patchscopes.model.environment import describe_environment
from patchscopes.model.loading import load_model
from patchscopes.plots.all import plot_multi_hop_grid, shorten, show_whitespace
from patchscopes.results import build_document

# With more target layers than this, a cell holds a sign instead of words.
COLUMNS_WITH_WORDS = 10


def main() -> None:
    parser = common_parser(
        __doc__,
        "multi_hop_example",
        methods=("patchscope",),
        unused=("dataset", "samples", "seed", "methods", "fresh"),
    )
    own = parser.add_argument_group("question")
    own.add_argument(
        "--questions",
        type=Path,
        default=DATA_FOLDER / "multihop_examples.json",
        help="JSON file of two-hop questions (default: data/multihop_examples.json)",
    )
    own.add_argument("--example-id", type=natural, default=0, metavar="ID", help="one of them (default: %(default)s)")
    own.add_argument("--hop2", metavar="TEXT", help="or in your own words: 'The official currency of'")
    own.add_argument("--hop1", metavar="TEXT", help="... 'the country whose capital is Tokyo'")
    own.add_argument("--answer", default="", metavar="TEXT", help="... 'yen' (answers with it are marked)")
    own.add_argument("--layer-range", dest="layers", type=layer_list, metavar="LAYERS", help="the same as --layers")
    own.add_argument("--target-layers", type=layer_list, metavar="LAYERS", help="ℓ* (default: some at equal distances)")
    own.add_argument("--cot-new-tokens", type=positive, default=MultiHopConfig.cot_new_tokens, metavar="N")
    options = parser.parse_args()
    question = asked(options.hop2, options.hop1, options.answer, options.questions, options.example_id)
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    spread = multi_hop.resolve_layer_grid(model, MultiHopConfig())[0]
    config = MultiHopConfig(
        layers=options.layers,
        target_layers=options.target_layers or tuple(spread),
        max_new_tokens=options.max_new_tokens,
        cot_new_tokens=options.cot_new_tokens,
        batch_size=options.batch_size,
    )
    console = Console(markup=False)
    print(question.combined_question)

    def show_unpatched(method: str, text: str, solved: bool) -> None:
        print(f"{method:>8} {'✓' if solved else ' '} {show_whitespace(text)}")

    with_words = len(config.target_layers) <= COLUMNS_WITH_WORDS
    table = Table("ℓ", *map(str, config.target_layers), title="patched, by target layer ℓ*", title_justify="left")
    live = Live(table, console=console, auto_refresh=False)

    def show_layer(layer: int, texts: list[str], solved: list[bool]) -> None:
        signs = ["✓" if right else "·" for right in solved]
        words = [
            f"{'✓ ' if right else ''}{shorten(show_whitespace(text.strip()), 16)}"
            for text, right in zip(texts, solved, strict=True)
        ]
        table.add_row(str(layer), *(words if with_words else signs))
        live.refresh()

    started = time.perf_counter()
    with live:
        results = multi_hop_grid.run(model, question, config, show_unpatched, show_layer)
    if not console.is_terminal:
        # Without a terminal a live table ends without a newline.
        print()
    found = results["methods"]["patchscope"]
    for layer, texts, solved in zip(results["layers"], found["texts"], found["solved"], strict=True):
        right = [pair for pair in zip(results["target_layers"], texts, solved, strict=True) if pair[2]]
        if right:
            print(f"ℓ = {layer}, ℓ* = {right[0][0]}: {show_whitespace(right[0][1])}")
    used = ("layers", "target_layers", "max_new_tokens", "cot_new_tokens", "batch_size")
    described = {"model": options.model, "question": asdict(question)} | {name: getattr(config, name) for name in used}
    seconds = {"total": time.perf_counter() - started}
    document = build_document("multi_hop_grid", described, describe_environment(model), results, {"seconds": seconds})
    write_results(options, document, plot_multi_hop_grid)
    print(f"wrote {options.output_plot} and {options.output_json}")


def asked(hop2: str | None, hop1: str | None, answer: str, path: Path, example_id: int) -> TwoHopQuestion:
    """The user's own question, or one of a file."""
    if hop1 is None and hop2 is None:
        return find_question(load_questions(path), example_id)
    if not hop1 or not hop2 or not hop1.strip() or not hop2.strip():
        raise PatchscopesError("a question in your own words needs both --hop2 and --hop1, each with some words")
    hop1, hop2 = hop1.strip().removesuffix(CUE), hop2.strip()
    question = TwoHopQuestion(
        id=0,
        hop1_prompt=f"{hop1[0].upper()}{hop1[1:]}{CUE}",
        hop1_answer="",
        hop2_prompt_prefix=hop2,
        hop2_answer=answer,
        combined_question=f"{hop2} {hop1}{CUE}",
    )
    return check_question(question, "--hop2, --hop1, --answer")


if __name__ == "__main__":
    run_script(main)
