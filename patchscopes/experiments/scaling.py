"""What several processes gain over one with as many threads, and how cost grows with samples: from measured seconds."""

from collections.abc import Mapping

import numpy as np

from patchscopes.results import Json


def summarise_scaling(timed: Mapping[tuple[str, str], Json], grown: Mapping[int, Json]) -> Json:
    """The `results` of the result file.

    Args:
        timed: by experiment and way (`threads`, `processes`), with `seconds`, `command_seconds` and `results`.
        grown: by number of samples, with `seconds` and `peak_memory_gib`.

    Returns:
        `experiments`: for each, both ways' seconds, the `throughput` of the processes in that of the threads, and
        whether both found the same (`largest_difference` of two numbers is 0; None where it is more than numbers that
        differ); `growth`: seconds and memory by samples, and the `line` through the seconds, if there are three.
    """
    experiments = {}
    for experiment in dict.fromkeys(name for name, _ in timed):
        threads, processes = timed[experiment, "threads"], timed[experiment, "processes"]
        experiments[experiment] = {
            "threads_seconds": threads["seconds"],
            "processes_seconds": processes["seconds"],
            "throughput": threads["seconds"] / processes["seconds"],
            "threads_command_seconds": threads["command_seconds"],
            "processes_command_seconds": processes["command_seconds"],
            "largest_difference": find_largest_difference(threads["results"], processes["results"]),
        }
    samples = list(grown)
    growth = {
        "samples": samples,
        "seconds": [one["seconds"] for one in grown.values()],
        "peak_memory_gib": [one["peak_memory_gib"] for one in grown.values()],
    }
    return {"experiments": experiments, "growth": growth | {"line": fit_line(samples, growth["seconds"])}}


def fit_line(samples: list[int], seconds: list[float]) -> Json:
    """The line through the seconds by least squares of their relative deviations; None of fewer than three.

    A run of few samples then counts as much as a long one.
    """
    if len(samples) < 3:
        return None
    slope, intercept = np.polyfit(samples, seconds, 1, w=1 / np.array(seconds))
    expected = intercept + slope * np.array(samples)
    deviation = np.abs(np.array(seconds) - expected) / expected
    return {"intercept": float(intercept), "slope": float(slope), "largest_deviation": float(deviation.max())}


def find_largest_difference(one: Json, other: Json) -> float | None:
    """The largest difference of two numbers at the same place; None if the two differ in anything but numbers."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        parts = [find_largest_difference(one[key], other[key]) for key in one]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = [find_largest_difference(*pair) for pair in zip(one, other, strict=True)]
    elif isinstance(one, int | float) and isinstance(other, int | float):
        return float(abs(one - other))
    else:
        return 0.0 if one == other else None
    return None if None in parts else max((part for part in parts if part is not None), default=0.0)
