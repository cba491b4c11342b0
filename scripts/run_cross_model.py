"""One model explains the hidden states of another: next tokens over all pairs of layers, and descriptions of names."""

import argparse
from dataclasses import asdict
from pathlib import Path

from learned import bar, described, train_texts
from options import chunk_store, common_parser, layer_list, positive, print_files, run_script, write_results

from patchscopes.data.entities import load_entities
from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.texts import load_texts
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import cross_model
from patchscopes.experiments.config import CrossModelConfig, EntityConfig
from patchscopes.learned.fitting import fit_or_load_cross_model_maps
from patchscopes.model.environment import describe_environment
from patchscopes.model.loading import load_model
from patchscopes.model.registry import EXPLAINED_BY
from patchscopes.plots.all import plot_cross_model
from patchscopes.results import build_document

# Of the options of the entity experiment, those that have an effect here.
DESCRIBED = ("target_prompt", "placeholder", "separator", "max_new_tokens")


def main() -> None:
    options = parser().parse_args()
    target_name = options.target_model or EXPLAINED_BY.get(options.source_model.lower())
    if target_name is None:
        raise PatchscopesError(
            f"which model should explain {options.source_model!r}? Give --target-model (by default "
            f"{', '.join(f'{source} is explained by {target}' for source, target in EXPLAINED_BY.items())})"
        )
    texts = load_texts(options.dataset, limit=options.samples)
    entities = load_entities(options.entities)[: options.entity_samples]
    # The one that may not be there first.
    target = load_model(target_name, device=options.device, dtype=options.dtype)
    source = load_model(options.source_model, device=options.device, dtype=options.dtype)
    config = CrossModelConfig(
        methods=options.methods,
        n_samples=options.samples,
        layers=options.layers,
        target_layers=options.target_layers,
        mapping=options.mapping,
        entity=EntityConfig(max_new_tokens=options.max_new_tokens, batch_size=options.batch_size, seed=options.seed),
        seed=options.seed,
        batch_size=options.batch_size,
    )
    # Too few positions are refused before f is fitted for minutes.
    cross_model.draw_aligned(source, target, texts, config)
    maps = None
    surroundings = describe_environment(source, texts) | {"target_model": describe_environment(target)["model"]}
    if options.mapping == "affine":
        maps = fit_or_load_cross_model_maps(
            source,
            target,
            train_texts(options.dataset),
            *cross_model.resolve_layer_grid(source, target, config),
            n_positions=options.train_positions,
            seed=options.seed,
            progress=bar("fitting f"),
        )
        surroundings |= described({"f": next(iter(maps.values())).provenance})
    chosen = {
        "source_model": options.source_model,
        "target_model": target_name,
        "dataset": options.dataset,
        "entities": [asdict(one) for one in entities],
        **asdict(config),
        "entity": {name: value for name, value in asdict(config.entity).items() if name in DESCRIBED},
    }
    store = chunk_store(options, chosen, surroundings)
    results, timing = cross_model.run(
        source, target, texts, entities, config, store, maps=maps, progress=bar("cross-model")
    )
    # Every entity stands with its results already.
    chosen["entities"] = options.entities.name
    document = build_document("cross_model", chosen, surroundings, results, timing)
    write_results(options, document, plot_cross_model)
    print_table(document)
    print_files(options, document)


def parser() -> argparse.ArgumentParser:
    parser = common_parser(
        __doc__, "cross_model", methods=CrossModelConfig.METHODS, samples=200, models=("source-model", "target-model")
    )
    parser.set_defaults(target_model=None, max_new_tokens=20)
    own = parser.add_argument_group("two models")
    own.add_argument(
        "--target-layers",
        type=layer_list,
        default="all",
        metavar="LAYERS",
        help="target layers ℓ*, as --layers; of both, `all` takes some at equal distances "
        f"({CrossModelConfig.N_SOURCE_LAYERS} and {CrossModelConfig.N_TARGET_LAYERS})",
    )
    own.add_argument(
        "--mapping",
        choices=CrossModelConfig.MAPPINGS,
        default=CrossModelConfig.mapping,
        help="f (default: %(default)s; the identity needs models of one width)",
    )
    own.add_argument(
        "--train-positions",
        type=positive,
        metavar="N",
        help="positions to fit f on, in texts that no evaluation uses (default: by the source model's width)",
    )
    own.add_argument(
        "--entities",
        type=Path,
        default=DATA_FOLDER / "entities.json",
        help="JSON or CSV file of entities to describe (default: data/entities.json)",
    )
    own.add_argument("--entity-samples", type=positive, metavar="N", help="the first N of them (default: all)")
    return parser


def print_table(document: dict) -> None:
    """The best pair of layers of each method, and the descriptions."""
    results = document["results"]
    of_tokens = results["next_token"]
    shared = of_tokens["aligned_positions"] / of_tokens["source_positions"]
    print(f"both models have read the same at {shared:.0%} of the source model's positions in these texts")
    fitted = document["environment"].get("learned", {}).get("f")
    if fitted is not None:
        print(f"f was fitted on {fitted['n_positions']} such positions of other texts")
    for method in document["config"]["methods"]:
        table = of_tokens["methods"][method]["precision_at_1"]["mean"]
        intervals = of_tokens["methods"][method]["precision_at_1"]["ci95"]
        best, interval, layer, target_layer = max(
            (value, interval, layer, target_layer)
            for layer, row, of_row in zip(results["layers"], table, intervals, strict=True)
            for target_layer, value, interval in zip(results["target_layers"], row, of_row, strict=True)
        )
        low, high = interval
        where = f"at the best of all pairs, ℓ = {layer}, ℓ* = {target_layer}"
        print(f"{method:>20}: Precision@1 {best:.3f} [{low:.3f}, {high:.3f}] {where}")
    alone = of_tokens["methods"][cross_model.TARGET_MODEL_ALONE]["precision_at_1"]
    print(f"{'target model alone':>20}: {alone['mean']:.3f} [{alone['ci95'][0]:.3f}, {alone['ci95'][1]:.3f}]")
    methods = results["entity"]["methods"]
    print("ROUGE-L (F1) of descriptions: " + ", ".join(f"layer {layer}" for layer in results["layers"]))
    for method, scores in methods.items():
        print(f"{method:>28}: " + " ".join(f"{mean:.3f}" for mean in scores["rougeL_f1_of_description"]["mean"]))


if __name__ == "__main__":
    run_script(main)
