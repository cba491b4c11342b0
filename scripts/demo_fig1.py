"""Figure 1: what the representation of one token says at each layer, through the token-identity Patchscope."""

import time
from dataclasses import asdict

from options import common_parser, positive, run_script, write_results

from patchscopes.experiments import layer_readout
from patchscopes.experiments.config import LayerReadoutConfig
from patchscopes.model.environment import describe_environment
from patchscopes.model.loading import load_model
from patchscopes.plots.all import plot_layer_readout
from patchscopes.results import build_document


def main() -> None:
    parser = common_parser(__doc__, "fig1", methods=("token_identity",), unused=("dataset", "samples", "seed", "fresh"))
    own = parser.add_argument_group("figure 1")
    own.add_argument("--mode", choices=("generate", "top_k", "both"), default="both", help="what to ask at each layer")
    own.add_argument("--source-text", default=LayerReadoutConfig.source_prompt, help="source prompt S")
    own.add_argument("--target-word", default=LayerReadoutConfig.source_word, help="word in S to read (its last token)")
    own.add_argument(
        "--target-layer", default=LayerReadoutConfig.target_layer, help="ℓ*: same, embedding, last or a number"
    )
    own.add_argument("--top-k", type=positive, default=LayerReadoutConfig.k, metavar="K", help="most likely tokens")
    options = parser.parse_args()
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    config = LayerReadoutConfig(
        source_prompt=options.source_text,
        source_word=options.target_word,
        layers=options.layers,
        target_layer=options.target_layer,
        mode=options.mode,
        k=options.top_k,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
    )
    started = time.perf_counter()
    results = layer_readout.run(model, config)
    seconds = {"total": time.perf_counter() - started}
    described = {"model": options.model, **asdict(config)}
    document = build_document(
        "layer_readout", described, describe_environment(model), results, timing={"seconds": seconds}
    )
    write_results(options, document, plot_layer_readout)
    print_table(document)
    print(f"wrote {options.output_plot} and {options.output_json}")


def print_table(document: dict) -> None:
    """One line per layer."""
    results = document["results"]
    readout = results["methods"]["token_identity"]
    for slot, layer in enumerate(results["layers"]):
        tokens = [f"{entry['token']!r} {entry['probability']:.2f}" for entry in readout.get("top_k", {slot: []})[slot]]
        generation = [repr(readout["generations"][slot])] if "generations" in readout else []
        print(f"layer {layer:>2}: {'; '.join([', '.join(tokens)] * bool(tokens) + generation)}")


if __name__ == "__main__":
    run_script(main)
