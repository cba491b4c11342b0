"""Future Lens: Precision@1, @5, @10 and Surprisal for the next three tokens from one hidden state, over all layers."""

from dataclasses import asdict

from learned import add_learned_options, bar, described, linear_future_lens, soft_prompt
from options import chunk_store, common_parser, print_files, run_script, write_results

from patchscopes.data.texts import load_texts
from patchscopes.experiments import future_lens
from patchscopes.experiments.config import FutureLensConfig
from patchscopes.experiments.sampling import resolve_layers
from patchscopes.model.environment import describe_environment
from patchscopes.model.loading import load_model
from patchscopes.plots.all import plot_future_lens
from patchscopes.results import build_document


def main() -> None:
    parser = common_parser(
        __doc__, "future_lens", methods=FutureLensConfig.METHODS, samples=200, unused=("max-new-tokens",)
    )
    add_learned_options(parser, "linear-maps", "soft-prompt")
    options = parser.parse_args()
    texts = load_texts(options.dataset, limit=options.samples)
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    # Before anything is learned, which takes longer than to see a mistake.
    resolve_layers(model, options.layers)
    config = FutureLensConfig(
        methods=options.methods,
        n_samples=options.samples,
        layers=options.layers,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    maps = linear_future_lens(model, options, options.linear_maps) if "linear" in options.methods else None
    prompt = soft_prompt(model, options, options.soft_prompt) if "learned_prompt" in options.methods else None
    made = {"linear": next(iter(maps.values())).provenance} if maps else {}
    made |= {"learned_prompt": prompt.provenance} if prompt else {}
    options_described = {"model": options.model, "dataset": options.dataset, **asdict(config)}
    surroundings = describe_environment(model, texts) | described(made)
    store = chunk_store(options, options_described, surroundings)
    results, timing = future_lens.run(
        model, texts, config, store, maps=maps, soft_prompt=prompt, progress=bar("future_lens")
    )
    document = build_document("future_lens", options_described, surroundings, results, timing)
    write_results(options, document, plot_future_lens)
    print_table(document)
    print_files(options, document)


def print_table(document: dict) -> None:
    """For each method, metric and token ahead, the best layer."""
    results = document["results"]
    print("best layer, and the value there")
    print(f"{'':>16} {'':>16} " + " ".join(f"{f't+{ahead}':>14}" for ahead in results["ahead"]))
    for metric in future_lens.METRICS:
        best = min if metric == "surprisal" else max
        for method, metrics in results["methods"].items():
            cells = []
            for values in metrics[metric]["mean"]:
                value = best(values)
                cells.append(f"{value:7.3f} at {results['layers'][values.index(value)]:>3}")
            print(f"{metric:>16} {method:>16} " + " ".join(cells))


if __name__ == "__main__":
    run_script(main)
