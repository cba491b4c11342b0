"""Multi-hop reasoning: questions of two hops that fail alone, repaired by patching, with a control for chance."""

import argparse
from dataclasses import asdict
from pathlib import Path

from options import add_target_layers_option, build_common_parser, read_chat
from parsing import positive
from skeleton import load_chosen_model, run_experiment, run_script

from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.questions import load_questions
from patchscopes.experiments.config import MultiHopConfig
from patchscopes.model.layer_names import name_layer

OWN_QUESTIONS = DATA_FOLDER / "multihop_examples.json"
# What the table calls the measures of a method.
MEASURES = {
    "accuracy": "",
    "any": "any (ℓ, ℓ*)",
    "any_upwards": "any with ℓ < ℓ*",
    "held_out": "held-out (ℓ, ℓ*)",
    "held_out_gain": "held-out, above vanilla",
    "any_above_control": "any, above control",
    "any_upwards_above_control": "any with ℓ < ℓ*, above control",
    "held_out_above_control": "held-out, above control",
}


def main() -> None:
    options = build_parser().parse_args()
    chat = read_chat(options, one_prompt=True)
    questions = load_questions(options.questions)
    if options.questions != OWN_QUESTIONS:
        print(f"{len(questions)} questions; the first is asked {questions[0].combined_question!r}", end="")
        print(f" and patched as {questions[0].query!r}")

    from patchscopes.experiments import multi_hop
    from patchscopes.model.environment import describe_environment
    from patchscopes.plots.multi_hop import plot_multi_hop

    model = load_chosen_model(options)
    all_layers = tuple(range(model.cfg.n_layers)) if options.full_grid else None
    config = MultiHopConfig(
        methods=options.methods,
        layers=options.layers or all_layers,
        target_layers=options.target_layers or all_layers,
        n_samples=options.samples,
        max_new_tokens=options.max_new_tokens,
        cot_new_tokens=options.cot_new_tokens,
        seed=options.seed,
        batch_size=options.batch_size,
        chat=chat,
    )
    run_experiment(
        options,
        "multi_hop",
        lambda store, progress: multi_hop.run(model, questions, config, store, progress=progress),
        config={"model": options.model, "dataset": options.questions.name, **asdict(config)},
        environment=describe_environment(model),
        plot=plot_multi_hop,
        print_table=print_table,
        inputs={"questions": [asdict(one) for one in questions]},
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "multi_hop",
        methods=MultiHopConfig.METHODS,
        samples=MultiHopConfig.n_samples,
        samples_are="questions to patch, of those whose hops the model answers one by one",
        unused=("dataset",),
    )
    group = parser.add_argument_group("multi-hop")
    group.add_argument(
        "questions",
        type=Path,
        nargs="?",
        default=OWN_QUESTIONS,
        help="JSON file or table of two-hop questions (default: data/multihop_examples.json)",
    )
    add_target_layers_option(
        group, f"(of both, `all` takes {MultiHopConfig.N_LAYERS} at equal distances unless there is --full-grid)"
    )
    group.add_argument("--full-grid", action="store_true", help="every pair of layers (ℓ, ℓ*)")
    group.add_argument(
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
    if results["unpatchable"]:
        first = results["unpatchable"][0]
        print(
            f"left out: {results['n_unpatchable']} questions that cannot be patched; {first['id']}: {first['reason']}"
        )
    n_asked = results["n_questions"] - results["n_unpatchable"]
    print(
        f"{results['n_passed']} of {n_asked} questions have both hops answered one by one; "
        f"{results['n_samples']} of them:"
    )
    for method, measures in results["methods"].items():
        for name, label in MEASURES.items():
            measure = measures.get(name)
            # Over all questions: `accuracy` of a patching method is a table of pairs of layers.
            if measure is not None and isinstance(measure["mean"], float):
                low, high = measure["ci95"]
                print(f"{method:>12} {label:<32} {measure['mean']:6.3f}  [{low:.3f}, {high:.3f}]")
        if "n_repaired" in measures:
            print(f"{'':>12} repaired by any (ℓ, ℓ*): {measures['n_repaired']} of {measures['n_failed']} failures")
    print_repaired_question(results["questions"])


def print_repaired_question(questions: list[dict]) -> None:
    """The first question that fails alone and is solved patched, if there is one."""
    for question in questions:
        if question.get("patchscope", {}).get("solved") and not question["vanilla"]["solved"]:
            text = question["patchscope"]["texts"][0]
            print(
                f"for instance {question['combined_question']!r}: {question['vanilla']['text']!r}; patched from "
                f"ℓ = {name_layer(text['layer'])} to ℓ* = {name_layer(text['target_layer'])}: {text['text']!r}"
            )
            return


if __name__ == "__main__":
    run_script(main)
