"""Draw the figures as the Makefile does, each after its `--estimate`, and see how well that told what it then took."""

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from options import FIGURES
from parsing import file_name
from skeleton import progress_bar, run_script

from patchscopes.errors import PatchscopesError
from patchscopes.results import ChunkStore, Json, build_document, check_writable, code_sha256, write_json

ROOT = Path(__file__).parent.parent
# How the Makefile runs a script.
RUN = "\t$(RUN) scripts/"
# What a script prints with `--estimate`.
MEMORY = re.compile(r"^memory: about ([\d.]+) GiB", re.MULTILINE)
TIME = re.compile(r"^time: about .*?(\d+) s\)?, from", re.MULTILINE)
OUTPUT = re.compile(r"^the run would write .* and (.+\.json)$", re.MULTILINE)
COLUMNS = "{:<24} {:>10} {:>6} {:>8} {:>6} {:>14} {:>10}"


def main() -> None:
    options = build_parser().parse_args()
    check_writable(options.output_json)
    commands = find_commands(ROOT / "Makefile", options.only)

    from patchscopes.experiments.chunks import measure_parts

    # Kept one by one, whichever others are asked for.
    store = ChunkStore.beside(options.output_json, {"drawn": options.drawn}, {"code_sha256": code_sha256()})
    if options.fresh:
        store.clear()
    parts = {name: partial(check, command, options.drawn) for name, command in commands.items()}
    checked = list(measure_parts(parts, store, progress_bar("figures")).values())
    document = build_document(
        "estimates",
        {"commands": [shlex.join(command) for command in commands.values()]},
        checked[0]["environment"],
        {"figures": {one["figure"]: one["check"] for one in checked}},
        {"seconds": {"total": sum(one["check"]["seconds"] + one["check"]["estimate_seconds"] for one in checked)}},
    )
    write_json(options.output_json, document)
    print_table(document["results"]["figures"])
    print(f"wrote {options.output_json}")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("only", nargs="*", metavar="SCRIPT", help="only these, such as run_fig2.py")
    parser.add_argument(
        "--drawn", action="store_true", help="compare with what the figures took that are there, and draw none"
    )
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on from finished figures")
    parser.add_argument(
        "--output-json",
        type=file_name(".json"),
        default=FIGURES / "estimates.json",
        metavar="JSON",
        help="all numbers; what is finished is kept beside it (default: figures/estimates.json)",
    )
    return parser


def find_commands(makefile: Path, only: list[str]) -> dict[str, list[str]]:
    """The commands of the Makefile that draw a figure, by the script's name and how often it was run before.

    Raises:
        PatchscopesError: none of them runs such a script.
    """
    commands: dict[str, list[str]] = {}
    for line in makefile.read_text(encoding="utf-8").splitlines():
        if line.startswith(RUN):
            script, *arguments = shlex.split(line.removeprefix(RUN))
            n_before = sum(name.startswith(f"{script}/") for name in commands)
            commands[f"{script}/{n_before}"] = [script, *arguments]
    of_figures = {name: command for name, command in commands.items() if command[0] != "tutorial.py"}
    chosen = {name: command for name, command in of_figures.items() if not only or command[0] in only}
    if not chosen:
        names = ", ".join(dict.fromkeys(script for script, *_ in of_figures.values()))
        raise PatchscopesError(f"no figure is drawn by {' or '.join(only)}: choose from {names}")
    return chosen


def check(command: list[str], drawn: bool) -> Json:
    """What is estimated of a command, and what it takes.

    Args:
        drawn: whether it has taken that already.

    Returns:
        `figure`: its name; `check`: seconds and memory (GiB) as estimated, the seconds that the estimate took, and
        those that the figure took, without what is learned or loaded before; and its `environment`.

    Raises:
        PatchscopesError: the command fails, prints other lines than it used to, or should have drawn a figure before.
    """
    # An earlier run may have left some chunks, which an estimate would not count.
    command = [*command, "--fresh"]
    started = time.perf_counter()
    printed = run([*command, "--estimate"])
    estimate_seconds = time.perf_counter() - started
    seconds, memory, output = (pattern.search(printed) for pattern in (TIME, MEMORY, OUTPUT))
    if seconds is None or memory is None or output is None:
        raise PatchscopesError(f"{shlex.join(command)} has not printed what this script reads; bring both together")
    path = Path(output[1])
    if not drawn:
        run(command)
    elif not path.is_file():
        raise PatchscopesError(f"there is no {path}: leave out --drawn")
    figure = json.loads(path.read_text(encoding="utf-8"))
    return {
        "figure": path.stem,
        "check": {
            "estimated_seconds": float(seconds[1]),
            "estimated_memory_gib": float(memory[1]),
            "estimate_seconds": estimate_seconds,
            "seconds": figure["timing"]["seconds"]["total"],
            "peak_memory_gib": figure["timing"]["peak_memory_gib"],
        },
        "environment": figure["environment"],
    }


def run(command: list[str]) -> str:
    """What a script prints.

    Raises:
        PatchscopesError: it fails.
    """
    script, *arguments = command
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode != 0:
        raise PatchscopesError(f"{shlex.join(command)} failed; see above")
    return done.stdout


def print_table(figures: Json) -> None:
    """A line for each figure."""
    print(COLUMNS.format("figure", "estimated", "in", "took", "ratio", "GiB estimated", "GiB taken"))
    for name, one in figures.items():
        print(
            COLUMNS.format(
                name,
                f"{one['estimated_seconds']:.0f} s",
                f"{one['estimate_seconds']:.0f} s",
                f"{one['seconds']:.0f} s",
                f"{one['seconds'] / one['estimated_seconds']:.2f}",
                f"{one['estimated_memory_gib']:.1f}",
                f"{one['peak_memory_gib']:.1f}",
            )
        )


if __name__ == "__main__":
    run_script(main)
