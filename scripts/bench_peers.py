"""Time this library beside its peers, on the same model, prompts and layers (`make bench-peers`)."""

import argparse
from dataclasses import asdict
from importlib.util import find_spec

from options import build_common_parser
from parsing import positive
from skeleton import load_chosen_model, run_experiment, run_script, time_total

from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import PeersConfig


def main() -> None:
    options = build_parser().parse_args()
    if find_spec("nnterp") is None:
        raise PatchscopesError(
            "nnterp is not installed here: run `make bench-peers`, which makes an environment for it"
        )

    import torch
    from transformers.utils import logging as transformers_logging

    from patchscopes.experiments import peers
    from patchscopes.model.environment import describe_environment
    from patchscopes.plots.benchmark import plot_benchmark

    transformers_logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = load_chosen_model(options, reads_chats=False)
    config = PeersConfig(
        n_samples=options.samples,
        n_entities=options.entities,
        max_new_tokens=options.max_new_tokens,
        methods=options.methods,
    )
    others = peers.load_peers(model, options.model)
    run_experiment(
        options,
        "bench_peers",
        lambda store, progress: time_total(lambda: peers.run(model, others, config, progress=progress)),
        config={"model": options.model, **asdict(config)},
        environment=describe_environment(model),
        plot=plot_benchmark,
        print_table=print_table,
        shared=False,
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "bench_peers",
        methods=PeersConfig.METHODS,
        samples=PeersConfig.n_samples,
        samples_are="source prompts of the next token",
        max_new_tokens=PeersConfig.max_new_tokens,
        unused=("layers", "batch-size", "fresh", "shard", "chat", "system", "dataset", "seed"),
    )
    parser.add_argument(
        "--entities",
        type=positive,
        default=PeersConfig.n_entities,
        metavar="N",
        help="names to describe (default: %(default)s)",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="torch threads (default: torch's own choice)")
    return parser


def print_table(document: dict) -> None:
    """For each task the time of each peer, and which part of its tokens are those of this library."""
    for task in document["results"]["tasks"]:
        print(f"\n{task['title']} ({task['n_rows']} rows)")
        for way in task["ways"]:
            seconds, same = way["ms_per_row"] * task["n_rows"] / 1000, way.get("same_tokens")
            agreement = "" if same is None else f"   {100 * same:.1f} % of tokens the same"
            print(
                f"  {way['name']:<40} {way['ms_per_row']:>9.3f} ms per row {seconds:>7.2f} s "
                f"{way['times_fast_engine']:>7.2f} × fast engine{agreement}"
            )
    print()


if __name__ == "__main__":
    run_script(main)
