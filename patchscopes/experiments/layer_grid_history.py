"""The history of layer-grid studies: a line of JSON for every run, and two runs side by side.

Runs that end at the same time append to one file: each holds a lock while it writes its line, and writes it at once. A
run that is killed while it writes leaves a torn line, which the next one does not lengthen and no reader stumbles over.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from patchscopes.errors import PatchscopesError
from patchscopes.results import Json, encode_on_one_line, explain_writing, hold_lock

# What of each grid the history keeps: enough to set two runs side by side when their files are long overwritten.
KEPT = (
    "stage",
    "layers",
    "target_layers",
    "success",
    "other_state",
    "unpatched",
    "by_layer",
    "by_target_layer",
    "by_name",
    "hotspots",
    "regions",
)
# What every line has.
FIELDS = ("time", "file", "model", "config", "summary")


@dataclass(frozen=True, kw_only=True)
class History:
    """The runs of a history file, the oldest first, and the numbers of its lines that are torn."""

    runs: tuple[Json, ...]
    torn: tuple[int, ...]


def build_entry(document: Json, output: Path, history: Path) -> Json:
    """The line of a run: when, with which options, what came out and where all of it is.

    Args:
        output: the result file; its path is kept as seen from the history's folder (whole, if it is on another drive).
    """
    results = document["results"]
    grids = [
        {field: grid[field] for field in KEPT}
        | {
            "names": [name["name"] for name in grid["names"]],
            "n_others": len(grid["others"]),
            "templates": [template["name"] for template in grid["templates"]],
            "mean_rank_correlation": grid["consistency"] and grid["consistency"]["mean_rank_correlation"],
        }
        for grid in results["grids"]
    ]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "file": _get_relative_path(output, history.parent),
        "model": document["environment"]["model"]["id"],
        "config": document["config"],
        "summary": {"mode": results["mode"], "n_layers": results["n_layers"], "grids": grids},
    }


def _get_relative_path(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        # Between two drives of Windows there is no way.
        return path.absolute().as_posix()


def append_entry(path: Path, entry: Json) -> None:
    """Append a line to the file, whole or not at all as others see it, also while other processes append theirs.

    Raises:
        PatchscopesError: the file cannot be written to.
    """
    line = encode_on_one_line(entry).encode() + b"\n"
    advice = "choose another --history-file"
    with hold_lock(path, advice), explain_writing(path, advice), path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size > 0:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        while line:
            line = line[file.write(line) :]
        os.fsync(file.fileno())


def load_history(path: Path) -> History:
    """All runs of a history file; lines that are no such runs, or torn, are left out and counted.

    Raises:
        PatchscopesError: there is no file, or it cannot be read.
    """
    if not path.is_file():
        raise PatchscopesError(f"there is no history {path}; every run of a mode writes one")
    runs, torn = [], []
    # A torn line may end within a character.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            run = json.loads(line.decode())
        except ValueError:
            torn.append(number)
            continue
        if isinstance(run, dict) and all(field in run for field in FIELDS):
            runs.append(run)
        else:
            torn.append(number)
    return History(runs=tuple(runs), torn=tuple(torn))


def find_run(history: History, number: int) -> Json:
    """A run by its number, from 1 for the oldest, or from -1 for the newest.

    Raises:
        PatchscopesError: there is none.
    """
    n_runs = len(history.runs)
    if number == 0 or not -n_runs <= number <= n_runs:
        raise PatchscopesError(
            f"there is no run {number}: the history has runs 1 to {n_runs}, and -1 is the newest; --history lists them"
        )
    return history.runs[number - 1 if number > 0 else number]


def compare_runs(first: Json, second: Json, seed: int = 0) -> Json:
    """Two runs side by side: what was set differently, and the success of the grids that both have.

    Returns:
        `runs`, `differences` of their options (the first one's, the second one's), and `grids`: of each stage that both
        have its two summaries, and by how much the second is stronger over the names that both were asked for.

    Raises:
        PatchscopesError: they have no grid in common.
    """
    stages = [{grid["stage"]: grid for grid in run["summary"]["grids"]} for run in (first, second)]
    common = [stage for stage in stages[0] if stage in stages[1]]
    if not common:
        raise PatchscopesError(
            f"a run of the mode {first['summary']['mode']!r} and one of {second['summary']['mode']!r} have no grid in "
            "common; choose two with a common one"
        )
    options = [run["config"] for run in (first, second)]
    keys = dict.fromkeys([*options[0], *options[1]])
    return {
        "runs": [first, second],
        "differences": {
            key: [option.get(key) for option in options] for key in keys if options[0].get(key) != options[1].get(key)
        },
        "grids": [
            {"stage": stage, "of": [of_run[stage] for of_run in stages]}
            | _compare_names(stages[0][stage], stages[1][stage], seed)
            for stage in common
        ],
    }


def _compare_names(first: Json, second: Json, seed: int) -> Json:
    """The names that both grids were asked for, and by how much they are stronger in the second."""
    # It imports torch, which the history itself has no use for.
    from patchscopes.experiments.layer_grid_measures import summarise

    by_name = [dict(zip(grid["names"], grid["by_name"], strict=True)) for grid in (first, second)]
    common = [name for name in by_name[0] if name in by_name[1]]
    differences = np.array([by_name[1][name] - by_name[0][name] for name in common])
    return {"names": common, "difference": summarise(differences, seed)}


def tabulate_history(history: History) -> list[dict[str, str]]:
    """A row of texts for every grid of every run, by column."""
    return [
        {
            "run": str(number),
            "time": run["time"].replace("T", " ").replace("+00:00", ""),
            "model": run["model"],
            "mode": run["summary"]["mode"],
            "grid": f"{grid['stage']} {len(grid['layers'])}×{len(grid['target_layers'])}",
            "names": _count(grid["names"], "names"),
            "templates": _count(grid["templates"], "templates"),
            "strong": f"{grid['success']['strong']['mean']:.3f}",
            "other state": "-" if grid["other_state"] is None else f"{grid['other_state']['mean']:.3f}",
            "unpatched": f"{grid['unpatched']['mean']:.3f}",
            "hotspots": str(len(grid["hotspots"]["pairs"])),
            "file": run["file"],
        }
        for number, run in enumerate(history.runs, start=1)
        for grid in run["summary"]["grids"]
    ]


def _count(labels: Sequence[str], what: str) -> str:
    """The one label, or how many there are."""
    return labels[0] if len(labels) == 1 else f"{len(labels)} {what}"
