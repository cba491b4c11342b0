"""One model explains the hidden states of another: next tokens over all pairs of layers, and descriptions of names."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from learned import describe_learned, get_provenance, load_train_texts
from options import add_target_layers_option, build_common_parser, read_chat
from parsing import positive
from skeleton import load_chosen_model, progress_bar, run_experiment, run_script
from texts import load_chosen_texts

from patchscopes.data.entities import load_entities
from patchscopes.data.files import DATA_FOLDER
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import CrossModelConfig, EntityConfig
from patchscopes.model.layer_names import name_layer
from patchscopes.model.registry import EXPLAINED_BY

if TYPE_CHECKING:
    from patchscopes.learned.mappings import AffineMap, MapKey
    from patchscopes.model.lens_model import LensModel

# Of the options of the entity experiment, those that have an effect here.
ENTITY_OPTIONS = ("target_prompt", "placeholder", "separator", "max_new_tokens")


def main() -> None:
    options = build_parser().parse_args()
    chat = read_chat(options)
    target_name = choose_target_model(options)
    texts = load_chosen_texts(options, limit=options.samples)
    entities = load_entities(options.entities)[: options.entity_samples]

    from patchscopes.experiments import cross_model
    from patchscopes.experiments.sampling import sample_aligned_positions
    from patchscopes.model.environment import describe_environment
    from patchscopes.plots.cross_model import plot_cross_model

    # The one that may not be there first.
    target = load_chosen_model(options, target_name, options.target_revision, reads_chats=chat.target)
    source = load_chosen_model(options, options.source_model, options.source_revision)
    config = CrossModelConfig(
        methods=options.methods,
        n_samples=options.samples,
        layers=options.layers,
        target_layers=options.target_layers,
        mapping=options.mapping,
        entity=EntityConfig(
            max_new_tokens=options.max_new_tokens, batch_size=options.batch_size, seed=options.seed, chat=chat
        ),
        seed=options.seed,
        batch_size=options.batch_size,
        chat=chat,
    )
    # Too few positions are refused before f is fitted for minutes.
    sample_aligned_positions(source, target, texts, config.n_samples, config.seed, chat)
    environment = describe_environment(source, texts) | {"target_model": describe_environment(target)["model"]}
    maps = fit_maps(source, target, config, options) if config.mapping == "affine" else None
    if maps is not None:
        environment |= describe_learned({"f": get_provenance(maps)})
    run_experiment(
        options,
        "cross_model",
        lambda store, progress: cross_model.run(
            source, target, texts, entities, config, store, maps=maps, progress=progress
        ),
        config={
            "source_model": options.source_model,
            "target_model": target_name,
            "dataset": options.dataset,
            "entities": options.entities.name,
            **asdict(config),
            "entity": {name: getattr(config.entity, name) for name in ENTITY_OPTIONS},
        },
        environment=environment,
        plot=plot_cross_model,
        print_table=print_table,
        inputs={"entities": [asdict(one) for one in entities]},
    )


def fit_maps(
    source: "LensModel", target: "LensModel", config: CrossModelConfig, options: argparse.Namespace
) -> "dict[MapKey, AffineMap]":
    """f for each pair of layers, from the cache folder if it was fitted before."""
    from patchscopes.experiments.model_pair import resolve_layer_grid
    from patchscopes.learned.cached_fits import fit_or_load_cross_model_maps

    return fit_or_load_cross_model_maps(
        source,
        target,
        load_train_texts(options),
        *resolve_layer_grid(source, target, config),
        n_positions=options.train_positions,
        seed=options.seed,
        progress=progress_bar("fitting f"),
    )


def choose_target_model(options: argparse.Namespace) -> str:
    """The model that explains: the one that was asked for, or the usual one for this source model."""
    target_name = options.target_model or EXPLAINED_BY.get(options.source_model.lower())
    if target_name is None:
        raise PatchscopesError(
            f"which model should explain {options.source_model!r}? Give --target-model (by default "
            f"{', '.join(f'{source} is explained by {target}' for source, target in EXPLAINED_BY.items())})"
        )
    return target_name


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "cross_model",
        methods=CrossModelConfig.METHODS,
        samples=CrossModelConfig.n_samples,
        max_new_tokens=EntityConfig.max_new_tokens,
        models=("source-model", "target-model"),
    )
    parser.set_defaults(target_model=None)
    group = parser.add_argument_group("two models")
    add_target_layers_option(
        group,
        "(of both, `all` takes some at equal distances: "
        f"{CrossModelConfig.N_SOURCE_LAYERS} and {CrossModelConfig.N_TARGET_LAYERS})",
    )
    group.add_argument(
        "--mapping",
        choices=CrossModelConfig.MAPPINGS,
        default=CrossModelConfig.mapping,
        help="f (default: %(default)s; the identity needs models of one width)",
    )
    group.add_argument(
        "--train-positions",
        type=positive,
        metavar="N",
        help="positions to fit f on, in texts that no evaluation uses (default: by the source model's width)",
    )
    group.add_argument(
        "--entities",
        type=Path,
        default=DATA_FOLDER / "entities.json",
        help="JSON or CSV file of entities to describe (default: data/entities.json)",
    )
    group.add_argument("--entity-samples", type=positive, metavar="N", help="the first N of them (default: all)")
    return parser


def print_table(document: dict) -> None:
    """The best pair of layers of each method, and the descriptions."""
    results = document["results"]
    next_token = results["next_token"]
    shared = next_token["aligned_positions"] / next_token["source_positions"]
    print(f"both models have read the same at {shared:.0%} of the source model's positions in these texts")
    fitted = document["environment"].get("learned", {}).get("f")
    if fitted is not None:
        print(f"f was fitted on {fitted['n_positions']} such positions of other texts")
    for method in document["config"]["methods"]:
        table = next_token["methods"][method]["precision_at_1"]["mean"]
        intervals = next_token["methods"][method]["precision_at_1"]["ci95"]
        best, interval, layer, target_layer = max(
            (value, interval, layer, target_layer)
            for layer, row, row_intervals in zip(results["layers"], table, intervals, strict=True)
            for target_layer, value, interval in zip(results["target_layers"], row, row_intervals, strict=True)
        )
        low, high = interval
        where = f"at the best of all pairs, ℓ = {name_layer(layer)}, ℓ* = {name_layer(target_layer)}"
        print(f"{method:>20}: Precision@1 {best:.3f} [{low:.3f}, {high:.3f}] {where}")
    alone = next_token["methods"][CrossModelConfig.TARGET_MODEL_ALONE]["precision_at_1"]
    print(f"{'target model alone':>20}: {alone['mean']:.3f} [{alone['ci95'][0]:.3f}, {alone['ci95'][1]:.3f}]")
    methods = results["entity"]["methods"]
    print("ROUGE-L (F1) of descriptions: " + ", ".join(f"layer {name_layer(layer)}" for layer in results["layers"]))
    for method, scores in methods.items():
        print(f"{method:>28}: " + " ".join(f"{mean:.3f}" for mean in scores["rougeL_f1_of_description"]["mean"]))


if __name__ == "__main__":
    run_script(main)
