"""`--estimate`: what a run would take, from a small part of it that is measured on this machine. Nothing is written."""

import argparse
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from patchscopes.errors import PatchscopesError
from patchscopes.estimating.steps import NotMeasuredError, measure_step
from patchscopes.estimating.tally import ESTIMATE, NOTHING, Estimate, Step, Tally
from patchscopes.model.sources import find_source
from patchscopes.results import ChunkStore, Json, peak_memory_gib

# Seconds to measure each step of a run, and a run that has none.
SECONDS_PER_STEP = 16.0
SECONDS_OF_ALL = 12.0
# What lies in the cache folder under names that begin so.
LEARNED = {
    "affine": "affine maps",
    "jacobian": "Jacobian Lens",
    "lre": "LRE",
    "soft": "soft prompt",
    "tuned": "Tuned Lens by KL",
}
COLUMNS = "{:<24} {:>8} {:>9} {:>9} {:>10} {:>9} {:>8}"
GIB = 2**30


def add_estimate_option(group: argparse._ActionsContainer) -> None:
    """`--estimate`, for whatever runs long."""
    group.add_argument(
        "--estimate",
        action="store_true",
        help="say what time and memory the run would take on this machine, from a small part of it (in 15 s to "
        "three minutes with the embedded model), and write nothing",
    )


def begin_estimate(options: argparse.Namespace, model: str, revision: str | None) -> bool:
    """Whether an estimate is asked for, which is being made from here on.

    Raises:
        PatchscopesError: the model would have to be fetched first.
    """
    if not getattr(options, "estimate", False):
        return False
    source = find_source(model)
    if source.kind == "hub" and not is_in_cache(source.place, revision):
        raise PatchscopesError(
            f"--estimate measures the model itself, and {model!r} is not on this machine: fetch it first (hf download "
            f"{source.place}), or estimate another model"
        )
    if ESTIMATE.get() is None:
        ESTIMATE.set(Estimate(seconds_per_step=SECONDS_PER_STEP))
    return True


def is_in_cache(hub_id: str, revision: str | None) -> bool:
    """Whether the hub's local cache has a model: its configuration and (the first of) its weights."""
    from huggingface_hub import try_to_load_from_cache
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

    adapter = "adapter_model.safetensors", "adapter_model.bin"
    weights = SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME, *adapter
    return any(isinstance(try_to_load_from_cache(hub_id, name, revision=revision), str) for name in weights)


def estimate_run(
    estimate: Estimate, name: str, store: ChunkStore, run: Callable[[], object], n_processes: int = 1
) -> None:
    """Print what an experiment would take.

    Args:
        store: the finished chunks, which are looked at and left as they are.
        run: the experiment.
        n_processes: among which its chunks are shared out.
    """
    estimate.name, estimate.folder = name, store.folder
    memory = psutil.Process().memory_info().rss
    # What is made of all results is not: there are none.
    with suppress(NotMeasuredError), redirect_stdout(StringIO()):
        run()
    print_steps(estimate)
    print_learned(estimate)
    print_memory(estimate, memory)
    seconds = sum(step.missing.seconds for step in estimate.steps.values()) + estimate.prepared
    print_time(estimate, seconds, n_processes)


def estimate_whole(estimate: Estimate, run: Callable[[], Json]) -> tuple[Json, Json]:
    """Measure an experiment that has no chunks.

    Raises:
        NotMeasuredError: always, since there are no results.
    """
    estimate.seconds_per_step = SECONDS_OF_ALL
    taken, _ = measure_step(estimate, {estimate.name: run})
    estimate.steps[estimate.name] = Step(members=1, missing=taken)
    raise NotMeasuredError


def estimate_learning(estimate: Estimate, options: argparse.Namespace, learn: Callable[[], None]) -> None:
    """Print what it would take to learn something and write it to `--output`."""
    memory = psutil.Process().memory_info().rss
    before = estimate.read()
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        options.output = Path(folder) / options.output.name
        learn()
    taken = estimate.read() - before
    if not estimate.learned:
        print("in the cache folder, or published: there is nothing to learn")
    print_memory(estimate, memory)
    print_time(estimate, taken.seconds)


def print_steps(estimate: Estimate) -> None:
    """What is missing of each step, and in sum."""
    print(COLUMNS.format("step", "members", "finished", "rows", "tokens", "TFLOP", "seconds"))
    steps = dict(estimate.steps)
    if estimate.prepared > 0:
        steps["proof of the engine"] = Step(members=1, missing=Tally(seconds=estimate.prepared))
    for name, step in steps.items():
        print_tally(name, step.missing, f"{step.members}", f"{step.finished}")
    print_tally("in all", sum((step.missing for step in steps.values()), NOTHING))


def print_tally(name: str, taken: Tally, members: str = "", finished: str = "") -> None:
    """A line of the table."""
    flop = f"{taken.flop / 1e12:.3g}"
    print(
        COLUMNS.format(
            name, members, finished, f"{taken.rows:.0f}", f"{taken.tokens:.0f}", flop, f"{taken.seconds:.1f}"
        )
    )


def print_learned(estimate: Estimate) -> None:
    """What is learned before anything is measured, and kept for the next run."""
    for path, learned in estimate.learned.items():
        if not learned.in_step:
            what = LEARNED[path.name.partition("-")[0]]
            print(f"before that, {what} are learned and kept in the cache folder: about {learned.taken.seconds:.0f} s")


def print_memory(estimate: Estimate, before: int) -> None:
    """The memory at the peak: what there was, or what is there with the largest batch."""
    import torch

    batch = estimate.largest_batch / GIB
    peak = max(peak_memory_gib(), before / GIB + (0 if torch.cuda.is_available() else batch))
    print(f"memory: about {peak:.1f} GiB at the peak; the largest batch takes {batch:.2g} GiB", end="")
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        print(f" of the GPU's, beside {torch.cuda.memory_allocated() / GIB:.1f} GiB", end="")
    print()


def print_time(estimate: Estimate, seconds: float, n_processes: int = 1) -> None:
    """The time in words and in seconds."""
    if n_processes > 1:
        print(
            f"time: {say(seconds / n_processes)} for each of {n_processes} processes with a machine like this; ", end=""
        )
        print(f"{say(seconds)} for one", end="")
    else:
        print(f"time: {say(seconds)}", end="")
    print(f", from {time.perf_counter() - estimate.started:.0f} s of measuring; nothing was written")


def say(seconds: float) -> str:
    """About how long it takes."""
    for unit, length in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.1f} {unit} ({seconds:.0f} s)"
    return f"about {seconds:.0f} s"
