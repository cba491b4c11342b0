"""Which target prompt reads the next token best: chosen for each band of layers on train texts, scored on others."""

import argparse
from dataclasses import asdict
from pathlib import Path

from learned import load_train_texts
from options import build_common_parser, read_chat
from parsing import positive
from skeleton import load_chosen_model, run_experiment, run_script
from texts import load_chosen_texts

from patchscopes.data.target_prompts import OWN_CANDIDATES, Candidate, load_candidates
from patchscopes.experiments.config import TargetPromptsConfig
from patchscopes.plots.text import show_whitespace
from patchscopes.prompts import SIMPLESCOPE_PROMPT, build_token_identity_prompt


def main() -> None:
    options = build_parser().parse_args()
    chat = read_chat(options)
    candidates = add_compared(load_candidates(options.prompts))
    train, texts = load_train_texts(options), load_chosen_texts(options, limit=options.samples)

    from patchscopes.experiments import target_prompts
    from patchscopes.model.environment import describe_environment, describe_texts
    from patchscopes.plots.target_prompts import plot_target_prompts

    model = load_chosen_model(options)
    config = TargetPromptsConfig(
        layers=options.layers,
        n_bands=options.bands,
        n_train_samples=options.train_samples,
        n_samples=options.samples,
        seed=options.seed,
        batch_size=options.batch_size,
        chat=chat,
    )
    run_experiment(
        options,
        "target_prompts",
        lambda store, progress: target_prompts.run(model, candidates, train, texts, config, store, progress=progress),
        config={
            "model": options.model,
            "dataset": options.dataset,
            "prompts": options.prompts.name,
            **asdict(config),
        },
        environment=describe_environment(model, texts) | {"train_dataset": describe_texts(train)},
        plot=plot_target_prompts,
        print_table=print_table,
        inputs={"prompts": [asdict(candidate) for candidate in candidates]},
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "target_prompts",
        methods=TargetPromptsConfig.METHODS,
        samples=TargetPromptsConfig.n_samples,
        samples_are="positions in evaluation texts that the chosen prompts are scored on",
        unused=("methods", "max-new-tokens"),
    )
    group = parser.add_argument_group("target prompts")
    group.add_argument(
        "prompts",
        type=Path,
        nargs="?",
        default=OWN_CANDIDATES,
        metavar="FILE",
        help="candidates as .json or .csv with `prompt`, and perhaps `placeholder` and `family`, or as .txt with one a "
        "line; token identity and Simplescope are tried too (default: data/target_prompts.json)",
    )
    group.add_argument(
        "--train-samples",
        type=positive,
        default=TargetPromptsConfig.n_train_samples,
        metavar="N",
        help="positions in train texts that the candidates are tried on (default: %(default)s)",
    )
    group.add_argument(
        "--bands",
        type=positive,
        default=TargetPromptsConfig.n_bands,
        metavar="N",
        help="parts of the depth, each with a prompt of its own (default: %(default)s)",
    )
    return parser


def add_compared(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """The candidates, and behind them what they are compared with, unless it is among them."""
    tried = {(candidate.prompt, candidate.placeholder) for candidate in candidates}
    compared = (
        Candidate(prompt=prompt, family="compared with")
        for prompt in (build_token_identity_prompt(), SIMPLESCOPE_PROMPT)
    )
    return (*candidates, *(one for one in compared if (one.prompt, one.placeholder) not in tried))


def print_table(document: dict) -> None:
    """The prompt of each band with its Precision@1 on evaluation texts, and how far that lies above the others'."""
    results = document["results"]
    train, by_band = results["train"], results["by_band"]
    print(
        f"{len(train['candidates'])} prompts tried on {train['n_samples']} train positions; Precision@1 on "
        f"{results['n_samples']} evaluation positions, the mean over the layers of a band that are read"
    )
    for reason in results["left_out"]:
        print(show_whitespace(f"left out: {reason}"))
    for number, band in enumerate(results["bands"]):
        score = show(by_band["methods"]["best_prompt"]["precision_at_1"], number)
        print(
            f"layers {band['first']}–{band['last']}: {band['prompt']!r} {score}, chosen in "
            f"{band['chosen_in']:.0%} of resamples"
        )
        for method, difference in by_band["differences"].items():
            other = show(by_band["methods"][method]["precision_at_1"], number)
            above = show(difference["precision_at_1"], number, sign="+")
            print(f"    {method:>14} {other}, difference {above}")


def show(measure: dict, number: int, sign: str = "") -> str:
    """A mean and the ends of its interval."""
    low, high = measure["ci95"][number]
    return f"{measure['mean'][number]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


if __name__ == "__main__":
    run_script(main)
