"""What a lens reads after every token of a prompt at every layer, beside what the model itself predicts."""

import argparse
from dataclasses import asdict

from learned import (
    MAPPED,
    add_best_prompt_option,
    add_learned_options,
    describe_learned,
    describe_prompts,
    get_maps,
    get_provenance,
    load_chosen_prompts,
)
from options import build_common_parser, read_chat
from skeleton import load_chosen_model, run_experiment, run_script, time_total

from patchscopes.experiments.config import PromptTableConfig
from patchscopes.model.layer_names import name_layer
from patchscopes.plots.text import shorten, show_whitespace
from patchscopes.results import Json


def main() -> None:
    options = build_parser().parse_args()
    chat = read_chat(options)
    prompts = load_chosen_prompts(options, [options.lens])

    from patchscopes.experiments import prompt_table
    from patchscopes.model.environment import describe_environment
    from patchscopes.plots.prompt_table import plot_prompt_table

    model = load_chosen_model(options)
    config = PromptTableConfig(
        prompt=options.prompt,
        lens=options.lens,
        color=options.color,
        layers=options.layers,
        bos=options.bos,
        batch_size=options.batch_size,
        chat=chat,
    )
    # Before anything is learned, which takes longer than to see a mistake.
    prompt_table.check_options(model, config)
    maps = get_maps(model, options, [options.lens])
    provenances = {lens: get_provenance(of_lens) for lens, of_lens in maps.items()}
    run_experiment(
        options,
        "prompt_table",
        lambda store, progress: time_total(lambda: prompt_table.run(model, config, maps=maps, prompts=prompts)),
        config={"model": options.model, **asdict(config), **describe_prompts(prompts)},
        environment=describe_environment(model) | describe_learned(provenances),
        plot=plot_prompt_table,
        print_table=print_table,
        shared=False,
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "prompt_table",
        methods=PromptTableConfig.LENSES,
        unused=("methods", "samples", "max-new-tokens", "fresh", "shard"),
    )
    group = parser.add_argument_group("prompt table")
    group.add_argument("prompt", type=prompt_text, nargs="?", default=PromptTableConfig.prompt, help="a text")
    group.add_argument(
        "--lens",
        choices=PromptTableConfig.LENSES,
        default=PromptTableConfig.lens,
        help="what reads the states (default: %(default)s)",
    )
    group.add_argument(
        "--color",
        choices=PromptTableConfig.COLORS,
        default=PromptTableConfig.color,
        help="of the cells: the probability that the lens gives to its token, the rank that it gives to the model's "
        "own choice, or its KL from the model's own prediction (default: %(default)s)",
    )
    group.add_argument("--bos", action="store_true", help="with the BOS token that is put in front of the prompt")
    add_learned_options(parser, *(lens.replace("_", "-") for lens in MAPPED))
    add_best_prompt_option(parser)
    return parser


def prompt_text(text: str) -> str:
    """A text with a sign in it."""
    if not text:
        raise argparse.ArgumentTypeError("the prompt is empty; give at least one character")
    return text


def print_table(document: dict) -> None:
    """For each token what the model itself predicts, and the layer from which on the lens says so."""
    results = document["results"]
    (read,) = results["methods"].values()
    print(f"{'position':>8} {'token':<14} {'the model says':<14} {'probability':>11} {'the lens, from layer on':>24}")
    for place, (position, token) in enumerate(zip(results["positions"], results["tokens"], strict=True)):
        said, probability = results["own"]["top"][place], results["own"]["probability"][place]
        texts = " ".join(f"{shorten(show_whitespace(text), 14):<14}" for text in (token, said))
        print(f"{position:>8} {texts} {probability:>11.2f} {find_first_layer(results['layers'], read, place):>24}")


def find_first_layer(layers: list[int], read: Json, place: int) -> str:
    """The first layer from which on the lens says at every later one what the model says, or a dash."""
    first = "-"
    for layer, ranks in zip(reversed(layers), reversed(read["rank"]), strict=True):
        if ranks[place] > 0:
            break
        first = name_layer(layer)
    return first


if __name__ == "__main__":
    run_script(main)
