"""Time the fast engine beside plain hooks and the logit lens, on the same rows in one run."""

import argparse
from dataclasses import asdict

from options import build_common_parser
from parsing import positive
from skeleton import load_chosen_model, run_experiment, run_script, time_total
from texts import load_chosen_texts

from patchscopes.experiments.config import BenchmarkConfig


def main() -> None:
    options = build_parser().parse_args()
    texts = load_chosen_texts(options, limit=options.samples)

    import torch

    from patchscopes.experiments import benchmark
    from patchscopes.model.environment import describe_environment
    from patchscopes.plots.benchmark import plot_benchmark

    if options.threads:
        torch.set_num_threads(options.threads)
    model = load_chosen_model(options, reads_chats=False)
    config = BenchmarkConfig(
        n_samples=options.samples, max_new_tokens=options.max_new_tokens, seed=options.seed, methods=options.methods
    )
    run_experiment(
        options,
        "bench",
        lambda store, progress: time_total(lambda: benchmark.run(model, texts, config, progress=progress)),
        config={"model": options.model, "dataset": options.dataset, **asdict(config)},
        environment=describe_environment(model, texts),
        plot=plot_benchmark,
        print_table=print_table,
        shared=False,
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_common_parser(
        __doc__,
        "bench",
        methods=BenchmarkConfig.METHODS,
        samples=BenchmarkConfig.n_samples,
        max_new_tokens=BenchmarkConfig.max_new_tokens,
        unused=("layers", "batch-size", "fresh", "shard", "chat", "system"),
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="torch threads (default: torch's own choice)")
    return parser


def print_table(document: dict) -> None:
    """For each task the time of each way, and how well their answers agree."""
    for task in document["results"]["tasks"]:
        print(f"\n{task['title']} ({task['n_rows']} rows)")
        for way in task["ways"]:
            ms, times = way["ms_per_row"], way["times_fast_engine"]
            seconds = ms * task["n_rows"] / 1000
            print(f"  {way['name']:<30} {ms:>10.3f} ms per row {seconds:>8.1f} s {times:>8.2f} × fast engine")
            if "kernel_share" in way:
                print(f"  {'':<30} {way['kernel_share']:>10.0%} of its time kernels of the GPU run")
        for name, value in task.items():
            if isinstance(value, float):
                print(f"  {name.replace('_', ' '):<30} {value:>10.3g}")
    print()


if __name__ == "__main__":
    run_script(main)
