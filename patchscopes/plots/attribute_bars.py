"""Accuracy of attribute extraction by task and method, with controls: the bars of `attributes`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from patchscopes.plots.fonts import fit_lines
from patchscopes.plots.style import (
    BLACK,
    BLUE,
    LIGHT_BLUE,
    LIGHT_GREY,
    LIGHT_ORANGE,
    LIGHT_PURPLE,
    ORANGE,
    PURPLE,
    SMALL_SIZE,
    tidy_axis,
)
from patchscopes.results import Json

# The measure of each method that is averaged over ℓ, its colour and that of its twin at one ℓ, its name in the legend.
BARS = {
    "patchscope": ("any", BLUE, LIGHT_BLUE, "Patchscope: any ℓ*, mean over ℓ"),
    "probe": ("mean_accuracy", ORANGE, LIGHT_ORANGE, "Probe (folds by subject): mean over ℓ"),
    "lre": ("mean_faithfulness", PURPLE, LIGHT_PURPLE, "LRE: faithfulness, mean over ℓ"),
    "lre_patchscope": ("mean_faithfulness", PURPLE, LIGHT_PURPLE, "LRE via Patchscope: faithfulness, mean over ℓ"),
}
# By the method and measure of each: on the bar of which method and measure it stands, its form, its name in the legend.
MARKERS = {
    ("patchscope", "control_any"): ("patchscope", "any", "D", "control: another subject's object (any ℓ*)"),
    ("patchscope", "control_unrelated_any"): ("patchscope", "any", "x", "control: state of an unrelated word (any ℓ*)"),
    ("patchscope", "control_unpatched"): ("patchscope", "held_out", "o", "control: x with nothing patched"),
    ("probe_by_sample", "mean_accuracy"): ("probe", "mean_accuracy", "s", "probe with folds by sample (leak)"),
}
MARKER_LOOK: dict[str, Any] = {
    "color": "black",
    "markerfacecolor": "white",
    "markersize": 4,
    "markeredgewidth": 0.9,
    "linestyle": "",
}
MOST_FREQUENT_LOOK: dict[str, Any] = {"color": "black", "linewidth": 1.2, "linestyle": ":"}
# Heights in the units of an axis of bars, and inches of a unit.
BAR, TWIN, GAP = 1.0, 0.7, 1.3
UNIT = 0.105
NAME_LENGTH = 26


def select_bars(task: Json) -> list[str]:
    """The methods of a task that get a bar: both forms of the LRE read the same, so one of them does."""
    methods = task["methods"]
    return [name for name in BARS if name in methods and not (name == "lre_patchscope" and "lre" in methods)]


def sort_tasks(tasks: Mapping[str, Json]) -> dict[str, Json]:
    """From the task in which the Patchscope (or what there is instead) finds most to that in which it finds least."""

    def score(task: Json) -> float:
        return next((float(task["methods"][name][BARS[name][0]]["mean"]) for name in select_bars(task)), 0.0)

    return dict(sorted(tasks.items(), key=lambda item: -score(item[1])))


def measure_height(tasks: Mapping[str, Json]) -> float:
    """Of the bars of some tasks, in the units of their axis."""
    return sum(max(1, len(select_bars(task))) * (BAR + TWIN) + GAP for task in tasks.values())


def draw_bars(figure: SubFigure, columns: Sequence[Mapping[str, Json]]) -> None:
    """The bars of all tasks in columns side by side, and one legend below."""
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    height = max(map(measure_height, columns))
    for axis, tasks in zip(axes, columns, strict=True):
        top = 0.0
        ticks: list[tuple[float, str]] = []
        names = fit_lines([name.replace("_", " ") for name in tasks], NAME_LENGTH, SMALL_SIZE)
        for name, task in zip(names, tasks.values(), strict=True):
            bottom = draw_task(axis, task, top)
            ticks.append(((top + bottom) / 2, f"{name}\n{task['n_drawn']} subjects"))
            top = bottom + GAP
        places, labels = zip(*ticks, strict=True)
        axis.set_yticks(places, labels, fontsize=SMALL_SIZE)
        axis.tick_params(axis="y", length=0)
        axis.set(xlim=(0, 1.03), ylim=(height - GAP / 2, -GAP / 2), xlabel="Share of samples answered rightly")
        tidy_axis(axis, grid="x")
    handles = list_legend([task for tasks in columns for task in tasks.values()])
    figure.legend(handles=handles, frameon=False, fontsize=SMALL_SIZE, loc="outside lower center", ncols=3)


def draw_task(axis: Axes, task: Json, top: float) -> float:
    """The bars of one task from `top` downwards, with their markers. Returns where they end."""
    methods = task["methods"]
    places: dict[tuple[str, str], float] = {}
    bottom = top
    for method in select_bars(task):
        measure, colour, light_colour, _ = BARS[method]
        for which, height, shade in ((measure, BAR, colour), ("held_out", TWIN, light_colour)):
            places[method, which] = bottom + height / 2
            draw_bar(axis, places[method, which], height, methods[method][which], shade)
            bottom += height
    for (method, measure), (on_method, on_measure, marker, _) in MARKERS.items():
        place = places.get((on_method, on_measure))
        if place is not None and measure in methods.get(method, {}):
            axis.plot(methods[method][measure]["mean"], place, marker=marker, clip_on=False, zorder=4, **MARKER_LOOK)
    if "most_frequent" in methods:
        share = methods["most_frequent"]["accuracy"]["mean"]
        axis.vlines(share, top - 0.2, bottom + 0.2, zorder=3, **MOST_FREQUENT_LOOK)
    # A task without bars has its name all the same.
    return max(bottom, top + BAR + TWIN)


def draw_bar(axis: Axes, place: float, height: float, share: Json, colour: str) -> None:
    """One bar with its 95 % interval."""
    mean, (low, high) = share["mean"], share["ci95"]
    spread = np.array([[max(0.0, mean - low)], [max(0.0, high - mean)]])
    look = {"elinewidth": 0.8, "capthick": 0.8}
    axis.barh(place, mean, height=0.9 * height, color=colour, xerr=spread, ecolor=BLACK, capsize=1.5, error_kw=look)


def list_legend(tasks: Sequence[Json]) -> list[Artist]:
    """An entry for each kind of bar and marker that some task has."""
    shown = {name for task in tasks for name in select_bars(task)}
    handles: list[Artist] = [
        Patch(color=colour, label=label) for name, (_, colour, _, label) in BARS.items() if name in shown
    ]
    handles.append(Patch(color=LIGHT_GREY, label="lighter: one ℓ or (ℓ, ℓ*), chosen on other subjects"))
    for (method, measure), (on_method, _, marker, label) in MARKERS.items():
        if on_method in shown and any(measure in task["methods"].get(method, {}) for task in tasks):
            handles.append(Line2D([], [], marker=marker, label=label, **MARKER_LOOK))
    if any("most_frequent" in task["methods"] for task in tasks):
        handles.append(Line2D([], [], label="the task's most frequent answer", **MOST_FREQUENT_LOOK))
    return handles
