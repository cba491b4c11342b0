"""What all scripts do around their experiment: a script states its options, its experiment, its plot and its table.

`torch`, TransformerLens and `matplotlib` take seconds to import, so scripts import them, and the modules that do,
inside functions: once the options are parsed and the files that they name are read.
"""

import argparse
import io
import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import copy_context
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, TextIO

from estimate import begin_estimate, estimate_run, estimate_whole
from processes import (
    choose_device,
    choose_share,
    fall_silent,
    is_main,
    name_process,
    speak_up,
    start_over,
    stop_when_asked,
)

from patchscopes.errors import PatchscopesError, PatchscopesWarning
from patchscopes.estimating.tally import ESTIMATE
from patchscopes.prompts import NO_CHAT, as_chat
from patchscopes.results import ChunkStore, Json, build_document, check_writable, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from patchscopes.experiments.chunks import Progress
    from patchscopes.model.lens_model import LensModel


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`: a user's mistake, or what the system refuses, ends it with one line instead of a
    traceback, and each warning of the library is one line too."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Not every terminal, and on Windows no file, has a sign for ℓ.
            stream.reconfigure(errors="replace")
    try:
        with stop_when_asked(), warnings.catch_warnings():
            warnings.simplefilter("always", PatchscopesWarning)
            warnings.showwarning = partial(show_warning, warnings.showwarning)
            if not is_main():
                fall_silent()
            # An estimate that is made in it ends with it.
            copy_context().run(main)
            # What cannot be printed shows here, and not when Python has ended.
            sys.stdout.flush()
    except PatchscopesError as error:
        sys.exit(f"error{name_process()}: {error}")
    except RuntimeError as error:
        import torch

        if not isinstance(error, torch.OutOfMemoryError):
            raise
        sys.exit(
            f"error{name_process()}: out of memory on the device; try a smaller --batch-size or --dtype bfloat16 "
            f"({error})"
        )
    except BrokenPipeError:
        # Whoever read what is printed has seen enough: `| head`.
        drop_output()
        sys.exit(1)
    except OSError as error:
        drop_output()
        sys.exit(
            f"error{name_process()}: a file or stream cannot be used ({error}): make room or choose other folders, "
            "then run the same command again to go on from what is finished"
        )
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: run the same command again to go on from what is finished" if is_main() else 1)


def drop_output() -> None:
    """If what was printed cannot be written, send it nowhere: Python would try again when it ends, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_warning(
    show_any: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of the library without the place in the code that gave it, above the progress bars; others as ever."""
    if not issubclass(category, PatchscopesWarning):
        show_any(message, category, filename, lineno, file, line)
        return
    from tqdm import tqdm

    tqdm.write(f"warning: {message}", file=sys.stderr)


def load_chosen_model(
    options: argparse.Namespace, name: str | None = None, revision: str | None = None, *, reads_chats: bool = True
) -> "LensModel":
    """The model of `--model` and `--revision`, or of other options that name one, loaded in the chosen way.

    Args:
        reads_chats: whether with `--chat` this model reads some; if it has no template for them, that is told at once.
    """
    # Before the model, which takes longer than to see that its results cannot be written.
    if not begin_estimate(options, name or options.model, revision if name else options.revision):
        for path in ("output_json", "output_plot", "output", "history_file"):
            if getattr(options, path, None) is not None:
                check_writable(getattr(options, path))

    from patchscopes.engine.memory import keep_freed_memory
    from patchscopes.model.loading import load_model

    keep_freed_memory()
    model = load_model(
        name or options.model,
        device=choose_device(options.device),
        dtype=options.dtype,
        revision=revision if name else options.revision,
        trust_remote_code=options.trust_remote_code,
        quantization=options.quantization,
    )
    if reads_chats and getattr(options, "chat", None) is not None:
        as_chat(model, "x", options.system)
    speak_up()
    return model


def progress_bar(description: str) -> "Progress":
    """A progress bar around any iteration, in the main process."""
    from tqdm import tqdm

    return partial(tqdm, desc=description, disable=not is_main() or ESTIMATE.get() is not None)


def run_experiment(
    options: argparse.Namespace,
    name: str,
    run: "Callable[[ChunkStore, Progress], tuple[Json, Json]]",
    *,
    config: Json,
    environment: Json,
    plot: "Callable[[Json], Figure]",
    print_table: Callable[[Json], None],
    inputs: Json | None = None,
    shared: bool = True,
) -> None:
    """Run an experiment, write its numbers and the figure that is drawn from them, and print its table.

    Several processes share out its chunks; the main process writes and prints, or of jobs with `--shard` the last.

    Args:
        run: from the finished chunks and a progress bar to the `results` and the `timing` of the result file.
        config, environment: of the result file; other ones have other chunks.
        plot, print_table: of the whole document.
        inputs: what chunks depend on too, in the place of options of that name: entities, say, which stand in the
            result file with their results already.
        shared: whether it has chunks to share out; otherwise one process does all.
    """
    from patchscopes.experiments.claims import claim
    from patchscopes.plots.style import save_png

    share = choose_share(options)
    if not shared and share.index > 0:
        print("there are no chunks to share out here; the first process does all")
        return
    if config.get("chat") == asdict(NO_CHAT):
        # The options of earlier result files, so that their chunks can be gone on from.
        config = {name: value for name, value in config.items() if name != "chat"}
    store = ChunkStore.beside(options.output_json, config | (inputs or {}), environment, share)
    if (estimate := ESTIMATE.get()) is not None:
        if is_main():
            kept = store.at("nothing") if options.fresh else store
            estimate_run(estimate, name, kept, lambda: run(kept, iter), share.count)
            print(f"the run would write {options.output_plot} and {options.output_json}")
        return
    if options.fresh and shared:
        start_over(store)
    started = time.perf_counter()
    results, timing = run(store, progress_bar(name))
    if not is_main():
        return
    # Seconds of computing are those of all runs and processes; these are what this run took.
    timing |= {"wall_seconds": time.perf_counter() - started}
    document = build_document(name, config, environment, results, timing)
    # Jobs that do not know each other find all chunks finished at about the same time.
    is_job = shared and getattr(options, "shard", None) is not None
    with claim(store.folder / "summary") if is_job else nullcontext(True) as mine:
        if not mine:
            print(f"all chunks are finished; another process writes {options.output_json}")
            return
        write_json(options.output_json, document)
        save_png(plot(document), options.output_plot)
    print_table(document)
    seconds, memory = document["timing"]["seconds"]["total"], document["timing"]["peak_memory_gib"]
    print(f"wrote {options.output_plot} and {options.output_json}")
    print(f"{seconds:.0f} s of computing, peak memory {memory:.1f} GiB")


def time_total(run: Callable[[], Json]) -> tuple[Json, Json]:
    """What `run` gives, and the `timing` of an experiment that is not measured in chunks."""
    if (estimate := ESTIMATE.get()) is not None:
        return estimate_whole(estimate, run)
    started = time.perf_counter()
    results = run()
    return results, {"seconds": {"total": time.perf_counter() - started}}
