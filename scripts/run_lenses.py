"""Logit Lens, Tuned Lens and Future Lens, each original and via Patchscope, and token identity, on the same samples."""

from dataclasses import asdict

from learned import add_learned_options, bar, described, soft_prompt, tuned_lens
from options import chunk_store, common_parser, natural, print_files, run_script, write_results

from patchscopes.data.texts import load_texts
from patchscopes.experiments import lenses
from patchscopes.experiments.config import LensesConfig
from patchscopes.experiments.sampling import resolve_layers
from patchscopes.model.environment import describe_environment
from patchscopes.model.loading import load_model
from patchscopes.plots.all import plot_lenses
from patchscopes.results import build_document


def main() -> None:
    parser = common_parser(
        __doc__,
        "lenses",
        methods=LensesConfig.METHODS,
        samples=100,
        unused=("methods", "batch-size", "max-new-tokens"),
    )
    parser.add_argument(
        "--future-lens",
        choices=("learned_prompt", "fixed_prompt"),
        default="learned_prompt",
        help="the prompt of the Future Lens (default: %(default)s)",
    )
    parser.add_argument(
        "--checked-with-hooks",
        type=natural,
        default=4,
        metavar="N",
        help="samples for which T = S is also run with plain hooks, slowly (default: %(default)s)",
    )
    add_learned_options(parser, "tuned-lens", "soft-prompt")
    options = parser.parse_args()
    texts = load_texts(options.dataset, limit=options.samples)
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    # Before anything is learned, which takes longer than to see a mistake.
    resolve_layers(model, options.layers)
    config = LensesConfig(
        future_lens=options.future_lens,
        n_samples=options.samples,
        n_checked_with_hooks=options.checked_with_hooks,
        layers=options.layers,
        seed=options.seed,
    )
    maps = tuned_lens(model, options, "tuned_lens", options.tuned_lens)
    made = {"tuned_lens": next(iter(maps.values())).provenance}
    prompt = None
    if options.future_lens == "learned_prompt":
        prompt = soft_prompt(model, options, options.soft_prompt)
        made["learned_prompt"] = prompt.provenance
    options_described = {"model": options.model, "dataset": options.dataset, **asdict(config)}
    surroundings = describe_environment(model, texts) | described(made)
    store = chunk_store(options, options_described, surroundings)
    results, timing = lenses.run(model, texts, config, store, maps=maps, soft_prompt=prompt, progress=bar("lenses"))
    document = build_document("lenses", options_described, surroundings, results, timing)
    write_results(options, document, plot_lenses)
    print_twins(document)
    print_files(options, document)


def print_twins(document: dict) -> None:
    """How far each original and its Patchscope are apart."""
    print(f"{'largest logit difference':>28} {'fast engine':>12} {'plain hooks':>12} {'same token':>11}")
    for original, twin in document["results"]["twins"].items():
        plainly = twin["largest_difference_hooks"]
        shown = "itself" if original == "future_lens" else "not run" if plainly is None else f"{plainly:.1e}"
        print(f"{original:>28} {twin['largest_difference']:12.1e} {shown:>12} {twin['same_token']:11.4f}")


if __name__ == "__main__":
    run_script(main)
