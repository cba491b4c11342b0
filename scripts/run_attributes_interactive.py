"""One subject's attribute: what the model says of it from each layer, in a live table over (ℓ, ℓ*)."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from live_grid import LiveGrid
from options import add_layer_range_option, add_target_layers_option, build_common_parser, read_chat
from parsing import entity_name
from skeleton import load_chosen_model, run_experiment, run_script, time_total

from patchscopes.data.relations import (
    PLACE,
    RELATIONS_FOLDER,
    Relation,
    RelationSample,
    find_relation_files,
    load_carriers,
    load_relations,
)
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import AttributesConfig
from patchscopes.model.layer_names import name_layer
from patchscopes.plots.text import show_whitespace
from patchscopes.results import Json

if TYPE_CHECKING:
    from patchscopes.model.lens_model import LensModel

# Of `AttributesConfig`, those that have an effect here.
USED_OPTIONS = ("layers", "target_layers", "max_new_tokens", "batch_size", "chat")
# Target layers, unless told: a table with more columns does not fit into a terminal.
N_TARGET_LAYERS = 6


def main() -> None:
    options = build_parser().parse_args()
    chat = read_chat(options)
    relation = choose_relation(options.relation)
    sample = choose_sample(relation, options.subject, options.answer)
    source_prompt = choose_source_prompt(relation, options.subject, options.source_text)

    from patchscopes.model.environment import describe_environment
    from patchscopes.model.layers import spread_layers
    from patchscopes.plots.attribute_layers import plot_attribute_layers

    model = load_chosen_model(options)
    config = AttributesConfig(
        layers=options.layers or tuple(range(model.cfg.n_layers)),
        target_layers=options.target_layers or tuple(spread_layers(model, N_TARGET_LAYERS)),
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        chat=chat,
    )
    print(f"S: {show_whitespace(source_prompt)}\nT: {show_whitespace(relation.fill('x'))}")
    run_experiment(
        options,
        "attribute_layers",
        lambda store, progress: time_total(lambda: fill_table(model, relation, sample, source_prompt, config)),
        config={
            "model": options.model,
            "relation": relation.name,
            "prompt": relation.prompt,
            "sample": asdict(sample),
            "source_prompt": source_prompt,
        }
        | {name: value for name, value in asdict(config).items() if name in USED_OPTIONS},
        environment=describe_environment(model),
        plot=plot_attribute_layers,
        print_table=print_table,
        shared=False,
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "attribute_example",
        methods=("patchscope",),
        max_new_tokens=AttributesConfig.max_new_tokens,
        unused=("dataset", "samples", "seed", "methods", "fresh", "shard"),
    )
    group = parser.add_argument_group("attribute")
    group.add_argument("subject", type=entity_name, nargs="?", default="Canada", help="(default: %(default)s)")
    group.add_argument(
        "--relation",
        default="capital",
        metavar="NAME",
        help="a relation of data/relations, or a relation file of your own (default: %(default)s)",
    )
    group.add_argument("--source-text", metavar="TEXT", help="S, with the subject in it (default: a carrier sentence)")
    group.add_argument("--answer", metavar="TEXT", help="to mark (default: the object in the relation's file, if any)")
    add_layer_range_option(group)
    add_target_layers_option(group, f"(default: {N_TARGET_LAYERS} at equal distances)")
    return parser


def choose_relation(name: str) -> Relation:
    """A relation by its name or its file."""
    if Path(name).suffix:
        relations = load_relations([Path(name)])
        if len(relations) > 1:
            raise PatchscopesError(
                f"{name} has {len(relations)} target prompts, each a relation of its own; give a file with one"
            )
        return relations[0]
    names = [path.stem for path in find_relation_files()]
    if name not in names:
        raise PatchscopesError(f"no relation is called {name!r}: choose from {', '.join(names)}, or give a .json file")
    return load_relations([RELATIONS_FOLDER / f"{name}.json"])[0]


def choose_sample(relation: Relation, subject: str, answer: str | None) -> RelationSample:
    """The subject with its object: the given one, that of the relation's file, or "" where neither says."""
    if answer is not None:
        return RelationSample(subject=subject, object=answer)
    found = [sample for sample in relation.samples if sample.subject.casefold() == subject.casefold()]
    return found[0] if found else RelationSample(subject=subject, object="")


def choose_source_prompt(relation: Relation, subject: str, text: str | None) -> str:
    """The given text, or the first carrier sentence of the relation's kind of subject."""
    if text is not None:
        if subject.casefold() not in text.casefold():
            raise PatchscopesError(f"the subject {subject!r} does not stand in --source-text {text!r}; put it there")
        return text
    carriers = load_carriers()
    return carriers.get(relation.subject_kind, carriers["unspecified"])[0].replace(PLACE, subject)


def fill_table(
    model: "LensModel", relation: Relation, sample: RelationSample, source_prompt: str, config: AttributesConfig
) -> Json:
    """Run the experiment while its table fills up."""
    from patchscopes.experiments import attribute_layers

    with LiveGrid(config.target_layers) as grid:
        return attribute_layers.run(
            model, relation, sample, source_prompt, config, grid.show_unpatched, grid.show_layer
        )


def print_table(document: dict) -> None:
    """From how many layers, and first where, the object is said; the table itself has been shown."""
    patched = document["results"]["methods"]["patchscope"]
    layers, target_layers = document["results"]["layers"], document["results"]["target_layers"]
    answering = [layer for layer, of_layer in zip(layers, patched["solved"], strict=True) if any(of_layer)]
    if not document["results"]["object"]:
        return
    print(f"said by some ℓ* from {len(answering)} of {len(layers)} source layers")
    if answering:
        row = layers.index(answering[0])
        column = patched["solved"][row].index(1)
        text = show_whitespace(patched["texts"][row][column])
        print(f"for instance ℓ = {name_layer(layers[row])}, ℓ* = {name_layer(target_layers[column])}: {text}")


if __name__ == "__main__":
    run_script(main)
