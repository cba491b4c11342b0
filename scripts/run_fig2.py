"""Figure 2: Precision@1 and Surprisal of next-token prediction from one hidden state, over all layers."""

from dataclasses import asdict

from learned import add_learned_options, described, tuned_lens
from options import chunk_store, common_parser, print_files, run_script, write_results
from tqdm import tqdm

from patchscopes.data.texts import load_texts
from patchscopes.experiments import next_token
from patchscopes.experiments.config import NextTokenConfig
from patchscopes.experiments.sampling import resolve_layers
from patchscopes.model.environment import describe_environment
from patchscopes.model.loading import load_model
from patchscopes.plots.all import plot_next_token
from patchscopes.results import build_document


def main() -> None:
    parser = common_parser(
        __doc__,
        "fig2",
        methods=NextTokenConfig.METHODS,
        default_methods=NextTokenConfig.methods,
        samples=1000,
        unused=("max-new-tokens",),
    )
    add_learned_options(parser, "tuned-lens", "tuned-lens-kl")
    options = parser.parse_args()
    texts = load_texts(options.dataset, limit=options.samples)
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    # Before anything is learned, which takes longer than to see a mistake.
    resolve_layers(model, options.layers)
    config = NextTokenConfig(
        methods=options.methods,
        n_samples=options.samples,
        layers=options.layers,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    files = {"tuned_lens": options.tuned_lens, "tuned_lens_kl": options.tuned_lens_kl}
    maps = {
        method: tuned_lens(model, options, method, file) for method, file in files.items() if method in options.methods
    }
    options_described = {"model": options.model, "dataset": options.dataset, **asdict(config)}
    surroundings = describe_environment(model, texts) | described(
        {method: next(iter(of_method.values())).provenance for method, of_method in maps.items()}
    )
    store = chunk_store(options, options_described, surroundings)
    results, timing = next_token.run(
        model, texts, config, store, maps=maps, progress=lambda chunks: tqdm(chunks, desc="fig2", unit="chunk")
    )
    document = build_document("next_token", options_described, surroundings, results, timing)
    write_results(options, document, plot_next_token)
    print_table(document)
    print_files(options, document)


def print_table(document: dict) -> None:
    """Both metrics at a few layers."""
    results = document["results"]
    layers = results["layers"]
    shown = sorted({round(place * (len(layers) - 1) / 6) for place in range(7)})
    for metric in ("precision_at_1", "surprisal"):
        print(f"{metric:>16} " + " ".join(f"layer {layers[slot]:>3}" for slot in shown))
        for method, metrics in results["methods"].items():
            print(f"{method:>16} " + " ".join(f"{metrics[metric]['mean'][slot]:9.3f}" for slot in shown))


if __name__ == "__main__":
    run_script(main)
