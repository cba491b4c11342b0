"""Time experiments in several processes of one thread and in one of as many threads, and see what samples cost."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from options import add_output_options
from parsing import at_least, model_name, name_list, number_list
from skeleton import progress_bar, run_script

from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.texts import PASSAGES
from patchscopes.errors import PatchscopesError
from patchscopes.model.registry import EMBEDDED_MODEL
from patchscopes.results import ChunkStore, Json, build_document, check_writable, code_sha256, write_json

SCRIPTS = Path(__file__).parent
# In the data folder.
FACTS, MORE_FACTS = "relations/capital.json", "relations/currency.json"
PASSAGES_FILE = DATA_FOLDER / f"{PASSAGES}.jsonl"
FEW_LAYERS = ("--layers", "0,10,20")
# Each experiment at a size that takes two cores some 10 to 100 seconds, with nothing to learn before it.
EXPERIMENTS: dict[str, list[str]] = {
    "fig2": ["--samples", "64", "--methods", "logit_lens,token_identity,simplescope"],
    "target_prompts": ["--samples", "64", "--train-samples", "64", *FEW_LAYERS],
    "future_lens": ["--samples", "64", "--methods", "fixed_prompt,token_identity", *FEW_LAYERS],
    "lenses": ["--samples", "64", "--methods", "logit_lens,logit_lens_patchscope,token_identity", *FEW_LAYERS],
    "entity": ["--layers", "0,15"],
    # Two relations, since the parts of one wait for each other.
    "attributes": [FACTS, MORE_FACTS, "--methods", "patchscope,probe"],
    "causal_tracing": [FACTS, "--samples", "4", "--original-samples", "2"],
    "attention_knockout": [FACTS, "--samples", "16"],
    "entity_resolution": [FACTS, "--samples", "4", "--methods", "description,tracing,knockout"],
    "cross_model": [
        *("--mapping", "identity", "--layers", "0,20", "--target-layers", "0,20"),
        *("--samples", "64", "--entity-samples", "64"),
    ],
    "multi_hop": ["--samples", "4"],
    "layer_grid": ["--mode", "quick"],
}
# How the cost of samples is measured: the next token from one hidden state, at three layers. The most samples are of
# all embedded texts, fewer of as many fewer: a text is read once, however many samples it has.
GROWING = ["--methods", "token_identity", "--layers", "0,10,20"]


def main() -> None:
    options = build_parser().parse_args()
    for path in (options.output_json, options.output_plot):
        check_writable(path)
    config = {
        "model": options.model,
        "processes": options.processes,
        "experiments": {name: EXPERIMENTS[name] for name in options.experiments},
        "samples": list(options.samples),
        "growing": GROWING,
    }

    from patchscopes.experiments.chunks import measure_parts
    from patchscopes.experiments.scaling import summarise_scaling
    from patchscopes.plots.scaling import plot_scaling
    from patchscopes.plots.style import save_png

    runs = [(experiment, way) for experiment in options.experiments for way in ("threads", "processes")]
    parts = {f"{experiment}/{way}": partial(time_experiment, experiment, way, options) for experiment, way in runs}
    parts |= {f"growth/{n_samples:05d}": partial(time_samples, n_samples, options) for n_samples in options.samples}
    store = ChunkStore.beside(options.output_json, config, {"code_sha256": code_sha256()})
    if options.fresh:
        store.clear()
    timed = list(measure_parts(parts, store, progress_bar("scale")).values())
    measured, grown = dict(zip(runs, timed[: len(runs)], strict=True)), timed[len(runs) :]
    document = build_document(
        "scale",
        config,
        timed[0]["environment"],
        summarise_scaling(measured, dict(zip(options.samples, grown, strict=True))),
        {"seconds": {"total": sum(one["command_seconds"] for one in timed)}},
    )
    # This process has only waited for others.
    document["timing"]["peak_memory_gib"] = max(one["peak_memory_gib"] for one in timed)
    write_json(options.output_json, document)
    save_png(plot_scaling(document), options.output_plot)
    print_table(document)
    print(f"wrote {options.output_plot} and {options.output_json}")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--model", type=model_name, default=EMBEDDED_MODEL, help="of more than 20 blocks (default: %(default)s)"
    )
    parser.add_argument(
        "--processes",
        type=at_least(2),
        default=2,
        metavar="N",
        help="processes of one thread, and threads of the one process (default: %(default)s)",
    )
    parser.add_argument(
        "--experiments",
        type=name_list(tuple(EXPERIMENTS)),
        default=tuple(EXPERIMENTS),
        metavar="NAMES",
        help=f"some of {','.join(EXPERIMENTS)} (default: all)",
    )
    parser.add_argument(
        "--samples",
        type=number_list,
        default=(250, 500, 1000, 2000, 4000),
        metavar="NUMBERS",
        help="numbers of samples whose cost is compared (default: 250,500,1000,2000,4000)",
    )
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on from finished runs")
    add_output_options(parser, "scale")
    return parser


def time_experiment(experiment: str, way: str, options: argparse.Namespace) -> Json:
    """One experiment of the table, in one of the two ways."""
    in_threads, n_processes = way == "threads", options.processes
    arguments = [str(DATA_FOLDER / part) if part.endswith(".json") else part for part in EXPERIMENTS[experiment]]
    # A model that explains itself.
    names = ("--source-model", "--target-model") if experiment == "cross_model" else ("--model",)
    return time_script(
        experiment,
        [*arguments, *(part for name in names for part in (name, options.model))],
        n_processes=1 if in_threads else n_processes,
        n_threads=n_processes if in_threads else 1,
    )


def time_samples(n_samples: int, options: argparse.Namespace) -> Json:
    """The growing run at one number of samples, and as many texts in proportion."""
    texts = PASSAGES_FILE.read_text(encoding="utf-8").splitlines()
    n_texts = max(1, len(texts) * n_samples // max(options.samples))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.jsonl"
        file.write_text("\n".join(texts[len(texts) * number // n_texts] for number in range(n_texts)), encoding="utf-8")
        arguments = ["--samples", str(n_samples), "--dataset", str(file), *GROWING, "--model", options.model]
        return time_script("fig2", arguments, n_threads=options.processes)


def time_script(experiment: str, arguments: Sequence[str], *, n_processes: int = 1, n_threads: int) -> Json:
    """Run a script in a folder of its own, and read how long it took from its result file.

    Returns:
        `seconds` from the first chunk to the last, `command_seconds` of the whole command, what it found (`results`),
        `peak_memory_gib` and `environment`.

    Raises:
        PatchscopesError: it fails.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    with tempfile.TemporaryDirectory() as folder:
        output = ["--output-json", f"{folder}/out.json", "--output-plot", f"{folder}/out.png"]
        if experiment == "layer_grid":
            output += ["--history-file", f"{folder}/runs.jsonl"]
        command = [sys.executable, *(launcher if n_processes > 1 else []), str(SCRIPTS / f"run_{experiment}.py")]
        started = time.perf_counter()
        done = subprocess.run(
            [*command, *arguments, *output],
            env=os.environ | {"OMP_NUM_THREADS": str(n_threads)},
            capture_output=True,
            text=True,
            check=False,
        )
        command_seconds = time.perf_counter() - started
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise PatchscopesError(f"run_{experiment}.py failed: {last}")
        document = json.loads(Path(folder, "out.json").read_text(encoding="utf-8"))
    timing = document["timing"]
    return {
        "seconds": timing["wall_seconds"],
        "command_seconds": command_seconds,
        "peak_memory_gib": timing["peak_memory_gib"],
        "results": document["results"],
        "environment": document["environment"],
    }


def print_table(document: dict) -> None:
    """Both ways of each experiment; the cost of samples, and the line through it."""
    n, results = document["config"]["processes"], document["results"]
    if results["experiments"]:
        print(f"{'':<20} {f'1 × {n} threads':>15} {f'{n} × 1 thread':>15} {'throughput':>11}  same results")
    for name, one in results["experiments"].items():
        print(
            f"{name:<20} {one['threads_seconds']:>13.1f} s {one['processes_seconds']:>13.1f} s "
            f"{one['throughput']:>9.2f} ×  {describe_difference(one['largest_difference'])}"
        )
    growth = results["growth"]
    for n_samples, seconds, memory in zip(
        *(growth[name] for name in ("samples", "seconds", "peak_memory_gib")), strict=True
    ):
        print(f"{n_samples:>6} samples {seconds:>8.1f} s {memory:>6.1f} GiB")
    if growth["line"] is not None:
        line = growth["line"]
        print(
            f"the line: {line['intercept']:.1f} s + {1000 * line['slope']:.2f} ms per sample; off it at most "
            f"{100 * line['largest_deviation']:.1f} % of what it says"
        )


def describe_difference(largest: float | None) -> str:
    """How well the results of both ways agree."""
    if largest is None:
        return "no: words differ"
    return "yes" if largest == 0 else f"to {largest:.1g}"


if __name__ == "__main__":
    run_script(main)
