"""How well `--estimate` tells what the runs of the figures take: each is estimated, and then run, into a folder that is
thrown away. The table is that of the README."""

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from patchscopes.errors import PatchscopesError

ROOT = Path(__file__).parent.parent
# How the Makefile runs a script.
RUN = "\t$(RUN) scripts/"
# What `--estimate` prints.
MEMORY, TIME = (
    re.compile(r"^memory: about ([\d.]+) GiB", re.MULTILINE),
    re.compile(r"^time: about .*?(\d+) s\)?,", re.M),
)


def main() -> None:
    options = build_parser().parse_args()
    commands = find_commands(ROOT / "Makefile", options.only)
    print(
        "| run | estimated | in | took | took / estimated | memory estimated | taken |\n|---|---|---|---|---|---|---|"
    )
    for command in commands:
        with TemporaryDirectory() as folder:
            print(describe(command, *check(command, Path(folder))), flush=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("only", nargs="*", metavar="SCRIPT", help="only these, such as run_fig2.py")
    return parser


def find_commands(makefile: Path, only: list[str]) -> list[list[str]]:
    """The commands of the Makefile that write a figure, without where they write it.

    Raises:
        PatchscopesError: none of them runs such a script.
    """
    lines = [line.removeprefix(RUN) for line in makefile.read_text().splitlines() if line.startswith(RUN)]
    commands = [shlex.split(re.sub(r" --output-\w+ \S+", "", line)) for line in lines]
    of_figures = [command for command in commands if command[0] != "tutorial.py"]
    chosen = [command for command in of_figures if not only or command[0] in only]
    if not chosen:
        names = ", ".join(dict.fromkeys(command[0] for command in of_figures))
        raise PatchscopesError(f"no figure is drawn by {' or '.join(only)}: choose from {names}")
    return chosen


def check(command: list[str], folder: Path) -> tuple[float, float, float, float, float]:
    """Seconds and memory as estimated, the seconds that this took, and seconds and memory of the run."""
    output = ["--output-json", folder / "out.json", "--output-plot", folder / "out.png"]
    if command[0] == "run_layer_grid.py":
        output += ["--history-file", folder / "history.jsonl"]
    started = time.perf_counter()
    printed = run_script([*command, *output, "--estimate"])
    in_seconds = time.perf_counter() - started
    run_script([*command, *output])
    timing = json.loads((folder / "out.json").read_text())["timing"]
    found = TIME.search(printed), MEMORY.search(printed)
    seconds, memory = (float(one[1]) if one else float("nan") for one in found)
    return seconds, memory, in_seconds, timing["seconds"]["total"], timing["peak_memory_gib"]


def run_script(command: list) -> str:
    """What a script prints."""
    done = subprocess.run(
        [sys.executable, *map(str, [ROOT / "scripts" / command[0], *command[1:]])],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"error: {command[0]} failed")
    return done.stdout


def describe(command: list[str], seconds: float, memory: float, in_seconds: float, took: float, taken: float) -> str:
    """A line of the table."""
    cells = [
        f"`{shlex.join(command)}`",
        f"{seconds:.0f} s",
        f"{in_seconds:.0f} s",
        f"{took:.0f} s",
        f"{took / seconds:.2f}",
        f"{memory:.1f} GiB",
        f"{taken:.1f} GiB",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    from skeleton import run_script as run_main

    run_main(main)
