"""Entity resolution: what the model takes a name for, layer by layer, scored by ROUGE against references."""

import argparse
from dataclasses import asdict
from pathlib import Path

from learned import bar
from options import chunk_store, common_parser, print_files, run_script, write_results

from patchscopes.data.entities import load_entities
from patchscopes.data.files import DATA_FOLDER
from patchscopes.experiments import entity
from patchscopes.experiments.config import EntityConfig
from patchscopes.model.environment import describe_environment
from patchscopes.model.loading import load_model
from patchscopes.plots.all import plot_entity
from patchscopes.results import build_document


def main() -> None:
    options = parser().parse_args()
    entities = load_entities(options.entities)[: options.samples]
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    config = EntityConfig(
        layers=options.layers,
        target_layer=options.target_layer,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    described = {
        "model": options.model,
        "dataset": options.entities.name,
        "entities": [asdict(one) for one in entities],
        **asdict(config),
    }
    surroundings = describe_environment(model)
    store = chunk_store(options, described, surroundings)
    results, timing = entity.run(model, entities, config, store, progress=bar("entity"))
    # Every entity stands with its results already.
    del described["entities"]
    document = build_document("entity", described, surroundings, results, timing)
    write_results(options, document, plot_entity)
    print_table(document)
    print_files(options, document)


def parser() -> argparse.ArgumentParser:
    parser = common_parser(__doc__, "entity", methods=("patchscope",), samples=10_000, unused=("dataset", "methods"))
    parser.set_defaults(max_new_tokens=20)
    own = parser.add_argument_group("entities")
    own.add_argument(
        "entities",
        type=Path,
        nargs="?",
        default=DATA_FOLDER / "entities.json",
        help="JSON or CSV file with `entity` and `reference`, and perhaps `kind` and `popularity` "
        "(default: data/entities.json); --samples takes the first N",
    )
    own.add_argument(
        "--target-layer",
        default=EntityConfig.target_layer,
        help="ℓ*: same, embedding, last or a number (default: %(default)s)",
    )
    return parser


def print_table(document: dict) -> None:
    """ROUGE-L of the descriptions: the best layer of each group, and its baselines."""
    results = document["results"]
    metric = "rougeL_f1_of_description"
    print(f"{metric:>26} {'entities':>8} {'best layer':>14} {'name in clear':>14} {'unpatched':>10}")
    groups = {"all": results} | results["popularity"]
    for name, group in groups.items():
        means = group["methods"]["patchscope"][metric]["mean"]
        best = max(means)
        clear, unpatched = (group["methods"][one][metric]["mean"][0] for one in ("name_in_clear", "unpatched"))
        where = f"{best:.3f} at {results['layers'][means.index(best)]:>3}"
        print(f"{name:>26} {group['n_samples']:>8} {where:>14} {clear:14.3f} {unpatched:10.3f}")


if __name__ == "__main__":
    run_script(main)
