"""Attribute extraction: a subject's attribute read out of one hidden state, by four methods on the same samples."""

import argparse
from dataclasses import asdict
from pathlib import Path

from options import add_target_layers_option, build_common_parser, read_chat
from parsing import at_least, positive
from skeleton import load_chosen_model, run_experiment, run_script, time_total
from texts import load_chosen_texts

from patchscopes.data.files import get_suffix
from patchscopes.data.hub import TRAIN
from patchscopes.data.relations import CARRIERS, Relation, find_relation_files, load_carriers, load_relations
from patchscopes.data.texts import TEXT, TextSet
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import AttributesConfig
from patchscopes.model.layer_names import name_layer
from patchscopes.plots.text import show_whitespace
from patchscopes.prompts import ChatForm

# Texts of a streamed data set that subjects are looked for in.
STREAMED_TEXTS = 20_000
OUTPUT, LENS_OUTPUT = "attributes", "attribute_lens"
# Both forms read the same.
LRE_METHODS = ("lre", "lre_patchscope")


def main() -> None:
    parser = build_parser()
    options = parser.parse_args()
    chat = read_chat(options)
    relations = load_relations(options.files or find_relation_files())
    print_what_is_left_out(options.files, relations)
    if options.attribute_lens is not None:
        draw_attribute_lens(parser, options, chat, relations)
        return
    carriers = load_carriers()
    texts = load_source_texts(options, carriers)

    from patchscopes.experiments import attributes
    from patchscopes.model.environment import describe_environment
    from patchscopes.plots.attributes import plot_attributes

    model = load_chosen_model(options)
    config = read_config(options, chat)
    run_experiment(
        options,
        "attributes",
        lambda store, progress: attributes.run(
            model,
            relations,
            carriers,
            config,
            store,
            texts=None if options.dataset == CARRIERS else texts.texts,
            progress=progress,
        ),
        config={"model": options.model, "dataset": options.dataset, **asdict(config)},
        environment=describe_environment(model, texts),
        plot=plot_attributes,
        print_table=print_table,
        inputs={"relations": [asdict(relation) for relation in relations]},
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        OUTPUT,
        methods=AttributesConfig.METHODS,
        samples=AttributesConfig.n_subjects,
        samples_are="subjects of each task, at most",
        max_new_tokens=AttributesConfig.max_new_tokens,
        dataset=CARRIERS,
    )
    group = parser.add_argument_group("attributes")
    group.add_argument(
        "files",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="relations (.json, this project's or those of Hernandez et al.) or tables of samples (.tsv, .csv); all of "
        "data/relations unless given",
    )
    add_target_layers_option(
        group,
        "(of both, `all` takes some at equal distances: "
        f"{AttributesConfig.N_LAYERS} and {AttributesConfig.N_TARGET_LAYERS})",
    )
    group.add_argument(
        "--prompts",
        type=positive,
        default=AttributesConfig.n_prompts,
        metavar="N",
        help="source prompts of each subject, at most (default: %(default)s)",
    )
    group.add_argument(
        "--examples",
        type=at_least(2),
        default=AttributesConfig.n_examples,
        metavar="N",
        help="subjects that an LRE is estimated from (default: %(default)s)",
    )
    group.add_argument(
        "--attribute-lens",
        metavar="TEXT",
        help="instead of all this, draw what the LRE of one relation FILE reads at every token and layer of a text",
    )
    return parser


def read_config(options: argparse.Namespace, chat: ChatForm) -> AttributesConfig:
    """The options of the experiment."""
    return AttributesConfig(
        methods=options.methods,
        layers=options.layers,
        target_layers=options.target_layers,
        n_subjects=options.samples,
        n_prompts=options.prompts,
        max_new_tokens=options.max_new_tokens,
        n_examples=options.examples,
        seed=options.seed,
        batch_size=options.batch_size,
        chat=chat,
    )


def load_source_texts(options: argparse.Namespace, carriers: dict[str, tuple[str, ...]]) -> TextSet:
    """The texts that source prompts are cut from; the carriers themselves, with the subjects' places in them."""
    if options.dataset == CARRIERS:
        if (options.text_column, options.split) != (TEXT, TRAIN):
            raise PatchscopesError("--text-column and --split are for a --dataset with texts, not for carriers")
        return TextSet(CARRIERS, "evaluation", tuple(sentence for of_kind in carriers.values() for sentence in of_kind))
    return load_chosen_texts(options, limit=STREAMED_TEXTS)


def print_what_is_left_out(files: list[Path], relations: tuple[Relation, ...]) -> None:
    """What is not taken from files as it stands there."""
    if any(get_suffix(path) != ".json" for path in files):
        print(
            "tables: position_source and position_target are not read, since they count another model's tokens; the "
            "subject is found in prompt_source, and the x in prompt_target"
        )
    for relation in relations:
        if relation.n_left_out > 0:
            left_out = f"{relation.n_left_out} samples left out; the first: {relation.left_out[0]}"
            print(show_whitespace(f"{relation.name}: {left_out}"))


def draw_attribute_lens(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    chat: ChatForm,
    relations: tuple[Relation, ...],
) -> None:
    """The picture of one relation's LRE over the tokens and layers of a text."""
    if len(relations) != 1:
        raise PatchscopesError(
            f"the Attribute Lens asks for one relation, and {len(relations)} were given: name one file, as in "
            'scripts/run_attributes.py data/relations/capital.json --attribute-lens "We met in Canada"'
        )
    for output in ("output_plot", "output_json"):
        default = parser.get_default(output)
        if getattr(options, output) == default:
            setattr(options, output, default.with_stem(LENS_OUTPUT))

    from patchscopes.experiments import attribute_lens
    from patchscopes.model.environment import describe_environment
    from patchscopes.plots.attribute_lens import plot_attribute_lens

    model = load_chosen_model(options)
    config = read_config(options, chat)
    run_experiment(
        options,
        "attribute_lens",
        lambda store, progress: time_total(
            lambda: attribute_lens.run(model, relations[0], options.attribute_lens, config, progress)
        ),
        config={
            "model": options.model,
            "text": options.attribute_lens,
            "relation": relations[0].name,
            "layers": options.layers,
            "n_examples": options.examples,
            "seed": options.seed,
            "chat": asdict(chat),
        },
        environment=describe_environment(model),
        plot=plot_attribute_lens,
        print_table=print_lens_table,
        shared=False,
    )


def print_table(document: dict) -> None:
    """The accuracy of each task by method, in the form of the paper's Table 2: averaged over ℓ."""
    results = document["results"]
    columns = {
        "Patchscope": ("patchscope", "any"),
        "other's": ("patchscope", "control_any"),
        "held-out": ("patchscope", "held_out"),
        "probe": ("probe", "mean_accuracy"),
        "by sample": ("probe_by_sample", "mean_accuracy"),
        "LRE": ("lre", "mean_faithfulness"),
        "constant": ("most_frequent", "accuracy"),
    }
    print("share right in %, averaged over ℓ (held-out: at one pair (ℓ, ℓ*)); * p < 0.05 over layers, + over subjects")
    print(f"{'task':<22} {'samples':>7} " + " ".join(f"{name:>11}" for name in columns))
    for name, task in sorted(results["tasks"].items()):
        cells = []
        for method, measure in columns.values():
            if method == "lre" and method not in task["methods"]:
                method = "lre_patchscope"
            found = task["methods"].get(method, {}).get(measure)
            mark = mark_difference(task["patchscope_against"].get(method))
            cells.append("-" if found is None else f"{100 * found['mean']:.1f}{mark}")
        print(f"{show_whitespace(name)[:22]:<22} {task['n_samples']:>7} " + " ".join(f"{cell:>11}" for cell in cells))
    asked = {*LRE_METHODS} & {*document["config"]["methods"]}
    without = [name for name, task in results["tasks"].items() if asked and not asked & {*task["methods"]}]
    if without:
        names = show_whitespace(", ".join(without))
        print(f"no LRE of {names}: it takes {document['config']['n_examples']} subjects and tests others")
    for task in results["dropped"]:
        print(
            f"dropped: {show_whitespace(task['name'])}, {task['n_samples']} samples (the model knows "
            f"{task['n_known']} of {task['n_subjects']} subjects)"
        )


def mark_difference(against: dict | None) -> str:
    """Signs for a difference to the Patchscope that is more than chance, over layers and over subjects."""
    if against is None:
        return "  "
    low, high = against["difference"]["ci95"]
    t_test = against["t_test_over_layers"]
    over_layers = t_test is not None and t_test["p_bonferroni"] < 0.05
    return f"{'*' if over_layers else ' '}{' ' if low <= 0 <= high else '+'}"


def print_lens_table(document: dict) -> None:
    """For each token, the layer at which the lens is surest, and what it reads there."""
    results = document["results"]
    for column, token in enumerate(results["tokens"]):
        probabilities = [of_layer[column] for of_layer in results["probability"]]
        row = probabilities.index(max(probabilities))
        print(
            f"{token!r:>16} {results['top'][row][column]!r} at ℓ = {name_layer(results['layers'][row])} "
            f"(probability {probabilities[row]:.2f})"
        )


if __name__ == "__main__":
    run_script(main)
