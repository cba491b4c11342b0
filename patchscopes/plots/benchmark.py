"""The engine's speed beside plain hooks."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.plots.style import BLUE, LIGHT_GREY, SMALL_SIZE, create_figure, tidy_axis
from patchscopes.plots.text import format_significant
from patchscopes.results import Json

ENGINE = "fast engine"


def plot_benchmark(document: Json) -> Figure:
    """Time per row of each way to compute the same thing, on a logarithmic axis."""
    tasks = document["results"]["tasks"]
    # A bar is as high in every task.
    heights = [len(task["ways"]) + 0.2 for task in tasks]
    figure = create_figure(
        "{model[id]}, {dtype}, {device}, {threads} threads".format_map(document["environment"]),
        width=8.0,
        height=0.9 + 0.36 * (sum(heights) + 1.3 * len(tasks)),
    )
    axes = figure.subplots(len(tasks), 1, height_ratios=heights, sharex=True, squeeze=False)[:, 0]
    for axis, task in zip(axes, tasks, strict=True):
        draw_task(axis, task)
    # Bars on a logarithmic axis have no natural foot: a decade below the shortest, so that it is visible.
    everything = [way["ms_per_row"] for task in tasks for way in task["ways"]]
    axes[-1].set(xscale="log", xlim=(min(everything) / 10, max(everything) * 40))
    axes[-1].set_xlabel(f"Milliseconds per row, logarithmic (in brackets: times the {ENGINE}'s)")
    return figure


def draw_task(axis: Axes, task: Json) -> None:
    """A bar for each way to do one task."""
    times = {way["name"]: way["ms_per_row"] for way in task["ways"]}
    colours = [BLUE if name == ENGINE else LIGHT_GREY for name in times]
    bars = axis.barh(list(times), list(times.values()), color=colours)
    labels = [f"{format_significant(ms)} ms ({format_significant(ms / times[ENGINE])}×)" for ms in times.values()]
    axis.bar_label(bars, labels, padding=4, fontsize=SMALL_SIZE)
    axis.set_title(task["title"], fontsize=9, loc="left")
    axis.set_ylim(len(times) - 0.4, -0.6)
    tidy_axis(axis, grid="x")
