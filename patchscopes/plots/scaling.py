"""Processes beside threads, and what samples cost."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.plots.style import BLUE, GREY, SMALL_SIZE, create_figure, tidy_axis
from patchscopes.results import Json

# What several processes should reach at least, of the throughput of as many threads.
ASKED = 0.9


def plot_scaling(document: Json) -> Figure:
    """The throughput of each experiment in several processes, and seconds by number of samples."""
    results, n_processes = document["results"], document["config"]["processes"]
    experiments = results["experiments"]
    figure = create_figure(
        "{model[id]}, {dtype}, {device}".format_map(document["environment"]),
        width=9.0,
        height=max(3.0, 1.2 + 0.26 * len(experiments)),
    )
    throughput, growth = figure.subplots(1, 2)
    draw_throughput(throughput, experiments, n_processes)
    draw_growth(growth, results["growth"], document["config"])
    return figure


def draw_throughput(axis: Axes, experiments: Json, n_processes: int) -> None:
    """A bar for each experiment."""
    names = [name.replace("_", " ") for name in experiments]
    ratios = [one["throughput"] for one in experiments.values()]
    bars = axis.barh(names, ratios, color=BLUE)
    # Beside the bars they would lie on the lines.
    axis.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], label_type="center", color="white", fontsize=SMALL_SIZE)
    axis.axvline(1, color=GREY, linewidth=1)
    axis.axvline(ASKED, color=GREY, linewidth=1, linestyle=":")
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(0, 1.15 * max([1.0, *ratios]))
    axis.set_xlabel(
        f"Throughput of {n_processes} processes of one thread,\nin that of one process of {n_processes} threads"
    )
    tidy_axis(axis, grid="x")


def draw_growth(axis: Axes, growth: Json, config: Json) -> None:
    """What was measured, and the line through it."""
    samples = np.array(growth["samples"])
    axis.plot(samples, growth["seconds"], "o", color=BLUE, markersize=5)
    if growth["line"] is not None:
        ends = np.array([0, samples.max()])
        slope, intercept = growth["line"]["slope"], growth["line"]["intercept"]
        axis.plot(ends, intercept + slope * ends, color=GREY, linewidth=1, zorder=0)
        axis.text(
            0.04,
            0.96,
            f"{1000 * slope:.1f} ms per sample + {intercept:.1f} s,\n"
            f"off it at most {100 * growth['line']['largest_deviation']:.0f} %",
            transform=axis.transAxes,
            verticalalignment="top",
            fontsize=SMALL_SIZE,
        )
    axis.set_xlim(0, None)
    axis.set_ylim(0, None)
    axis.set_xlabel("Samples")
    axis.set_ylabel("Seconds of computing")
    tidy_axis(axis)
