"""Several processes that do one script together: those of a launcher (accelerate, torchrun), or jobs with `--shard`.

All that they exchange is what stands in the folder of the finished chunks, so that none waits for one that is gone.
"""

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import NoReturn

from patchscopes.errors import PatchscopesError
from patchscopes.results import ChunkStore, Share

# By launcher, the variables in which it tells a process its number and how many there are: torchrun and accelerate,
# Open MPI, and those that speak PMI.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)
# The same among those of one machine.
LOCAL = (
    ("LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


def read_launch() -> Share:
    """Which process this is of those that a launcher started, or the only one."""
    return _read_first(LAUNCHERS)


def _read_first(variables: tuple[tuple[str, str], ...]) -> Share:
    for index, count in variables:
        if os.environ.get(index, "").isdecimal() and os.environ.get(count, "").isdecimal():
            return Share(index=int(os.environ[index]), count=int(os.environ[count]))
    return Share()


def is_main() -> bool:
    """Whether this process writes, draws and prints what several of a launcher have found."""
    return read_launch().index == 0


def name_process() -> str:
    """For messages: which of several processes this one is."""
    launched = read_launch()
    return f" in process {launched.index} of 0 to {launched.count - 1}" if launched.count > 1 else ""


def choose_share(options: argparse.Namespace) -> Share:
    """What `--shard` or the launcher makes this process's share.

    Raises:
        PatchscopesError: both are given, or `--fresh` would throw away what other jobs have finished.
    """
    launched, shard = read_launch(), getattr(options, "shard", None)
    if shard is None:
        return launched
    if launched.count > 1:
        raise PatchscopesError(
            f"the launcher shares out the chunks over {launched.count} processes; leave out --shard "
            f"{shard.index + 1}/{shard.count}, or start the script without a launcher"
        )
    if options.fresh:
        raise PatchscopesError(
            "--fresh would throw away what other jobs of --shard have finished; leave one of them out, or choose "
            "another --output-json"
        )
    return shard


def start_over(store: ChunkStore) -> None:
    """Forget the finished chunks: one of the processes does it, before any of them begins."""
    launched = read_launch()
    if launched.index == 0:
        store.clear()
    if launched.count > 1:
        import torch.distributed

        # The one time that they have to wait for each other: on the CPU, whatever the model is on.
        torch.distributed.init_process_group("gloo", rank=launched.index, world_size=launched.count)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


@cache
def choose_device(device: str | None) -> str | None:
    """The device of this process, of several on one machine: each has its own GPU, or with `auto` its part of them."""
    local = _read_first(LOCAL)
    if local.count < 2 or device not in (None, "auto", "cuda"):
        return device
    import torch

    n_gpus = torch.cuda.device_count()
    if n_gpus == 0:
        return device
    if device != "auto":
        return f"cuda:{local.index % n_gpus}"
    if n_gpus < local.count:
        raise PatchscopesError(
            f"--device auto would spread {local.count} models over {n_gpus} GPUs; start at most {n_gpus} processes"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(n_gpus)))
    # Before CUDA starts, which it has not.
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[local.index :: local.count])
    return device


def fall_silent() -> None:
    """Let the main process alone say what all would: what is printed, warnings, and what is wrong with the options.

    `speak_up` brings errors back, from where on they may be this process's own.
    """
    # Open until the process ends.
    sys.stdout = sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    warnings.simplefilter("ignore")


def speak_up() -> None:
    """Let errors be seen again."""
    if not is_main():
        sys.stderr = sys.__stderr__


@contextmanager
def stop_when_asked() -> Iterator[None]:
    """Inside the `with` block, let a process that a launcher or a queue of jobs asks to end clear up first."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
