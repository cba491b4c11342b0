"""Figure 2: Precision@1 and Surprisal of next-token prediction from one hidden state, over all layers."""

from dataclasses import asdict

from learned import add_learned_options, described, tuned_lens
from options import common_parser, run_script
from tqdm import tqdm

from patchscopes.data import load_texts
from patchscopes.experiments import next_token
from patchscopes.model import load_model
from patchscopes.plots import plot_next_token, save_png
from patchscopes.results import ChunkStore, environment, result_document, write_json


def main() -> None:
    parser = common_parser(
        __doc__,
        "fig2",
        methods=next_token.METHODS,
        default_methods=next_token.DEFAULT_METHODS,
        samples=1000,
        unused=("max-new-tokens",),
    )
    add_learned_options(parser, "tuned-lens", "tuned-lens-kl")
    options = parser.parse_args()
    texts = load_texts(options.dataset, limit=options.samples)
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    config = next_token.NextTokenConfig(
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
    surroundings = environment(model, texts) | described(
        {method: next(iter(of_method.values())).provenance for method, of_method in maps.items()}
    )
    store = ChunkStore.beside(options.output_json, options_described, surroundings)
    if options.fresh:
        store.clear()
    results, timing = next_token.run(
        model, texts, config, store, maps=maps, progress=lambda chunks: tqdm(chunks, desc="fig2", unit="chunk")
    )
    document = result_document("next_token", options_described, surroundings, results, timing)
    write_json(options.output_json, document)
    save_png(plot_next_token(document), options.output_plot)
    print_table(document)
    seconds, memory = document["timing"]["seconds"]["total"], document["timing"]["peak_memory_gib"]
    print(f"wrote {options.output_plot} and {options.output_json}")
    print(f"{seconds:.0f} s of computing, peak memory {memory:.1f} GiB")


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
