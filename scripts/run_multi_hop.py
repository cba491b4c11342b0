"""Multi-hop reasoning: questions of two hops that fail alone, repaired by patching, with a control for chance."""

import argparse
from dataclasses import asdict
from pathlib import Path

from learned import bar
from options import chunk_store, common_parser, layer_list, positive, print_files, run_script, write_results

from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.questions import load_questions
from patchscopes.experiments import multi_hop
from patchscopes.experiments.config import MultiHopConfig
from patchscopes.model.environment import describe_environment
from patchscopes.model.loading import load_model
from patchscopes.plots.all import plot_multi_hop
from patchscopes.results import build_document


def main() -> None:
    options = parser().parse_args()
    questions = load_questions(options.questions)
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    every = tuple(range(model.cfg.n_layers)) if options.full_grid else None
    config = MultiHopConfig(
        methods=options.methods,
        layers=options.layers or every,
        target_layers=options.target_layers or every,
        n_samples=options.samples,
        max_new_tokens=options.max_new_tokens,
        cot_new_tokens=options.cot_new_tokens,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    described = {
        "model": options.model,
        "dataset": options.questions.name,
        "questions": [asdict(one) for one in questions],
        **asdict(config),
    }
    surroundings = describe_environment(model)
    store = chunk_store(options, described, surroundings)
    results, timing = multi_hop.run(model, questions, config, store, progress=bar("multi-hop"))
    # Those that were patched stand with their results already.
    del described["questions"]
    document = build_document("multi_hop", described, surroundings, results, timing)
    write_results(options, document, plot_multi_hop)
    print_table(document)
    print_files(options, document)


def parser() -> argparse.ArgumentParser:
    parser = common_parser(__doc__, "multi_hop", methods=MultiHopConfig.METHODS, samples=100, unused=("dataset",))
    own = parser.add_argument_group("multi-hop")
    own.add_argument(
        "questions",
        type=Path,
        nargs="?",
        default=DATA_FOLDER / "multihop_examples.json",
        help="JSON file of two-hop questions (default: data/multihop_examples.json); --samples of those whose hops the "
        "model answers one by one are patched",
    )
    own.add_argument(
        "--target-layers",
        type=layer_list,
        metavar="LAYERS",
        help="target layers ℓ*, as --layers; of both, `all` takes some at equal distances "
        f"({MultiHopConfig.N_LAYERS}) unless there is --full-grid",
    )
    own.add_argument("--full-grid", action="store_true", help="every pair of layers (ℓ, ℓ*)")
    own.add_argument(
        "--cot-new-tokens",
        type=positive,
        default=MultiHopConfig.cot_new_tokens,
        metavar="N",
        help="length of a chain of thought with its answer (default: %(default)s)",
    )
    return parser


def print_table(document: dict) -> None:
    """The three measures of each method, with their intervals, and one repaired question."""
    results = document["results"]
    if results["n_unpatchable"]:
        print(
            f"left out: {results['n_unpatchable']} questions in which no token of this model ends with the first part"
        )
    print(
        f"{results['n_passed']} of {results['n_questions']} questions have both hops answered one by one; "
        f"{results['n_samples']} of them:"
    )
    labels = {
        "accuracy": "",
        "any": "any (ℓ, ℓ*)",
        "any_upwards": "any with ℓ < ℓ*",
        "held_out": "held-out (ℓ, ℓ*)",
        "held_out_gain": "held-out, above vanilla",
        "any_above_control": "any, above control",
        "any_upwards_above_control": "any with ℓ < ℓ*, above control",
        "held_out_above_control": "held-out, above control",
    }
    for method, measures in results["methods"].items():
        for measure, label in labels.items():
            of = measures.get(measure)
            if of is not None and isinstance(of["mean"], float):
                low, high = of["ci95"]
                print(f"{method:>12} {label:<32} {of['mean']:6.3f}  [{low:.3f}, {high:.3f}]")
        if "n_repaired" in measures:
            print(f"{'':>12} repaired by any (ℓ, ℓ*): {measures['n_repaired']} of {measures['n_failed']} failures")
    for question in results["questions"]:
        solved = question.get("patchscope", {}).get("solved")
        if solved and not question["vanilla"]["solved"]:
            text = question["patchscope"]["texts"][0]
            print(
                f"for instance {question['combined_question']!r}: {question['vanilla']['text']!r}; patched from "
                f"ℓ = {text['layer']} to ℓ* = {text['target_layer']}: {text['text']!r}"
            )
            break


if __name__ == "__main__":
    run_script(main)
