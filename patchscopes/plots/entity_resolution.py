"""Entity resolution in one picture: all measures on one axis of layers, and where each of them rises and falls."""

from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SMALL_SIZE,
    CurveStyle,
    create_figure,
    draw_curve,
    name_model,
    tidy_axis,
)
from patchscopes.plots.text import format_significant
from patchscopes.results import Json

MEASURE_STYLES = {
    "description": CurveStyle("description of the subject's last token", GREEN),
    "tracing_subject": CurveStyle("tracing, subject's last token", BLUE),
    "tracing_last": CurveStyle("tracing, last token", ORANGE),
    "knockout": CurveStyle("knockout, last token without the subject", BLACK),
    "lre": CurveStyle("LRE, in the fact's prompt", PURPLE),
    "lre_in_context": CurveStyle("LRE, after solved examples", PURPLE, "--"),
}
WIDTH, CURVES_HEIGHT, ROW_HEIGHT = 10.0, 4.2, 0.25


def plot_entity_resolution(document: Json) -> Figure:
    """Each curve as a share of its largest mean, over a row for each measure with its half-way layers."""
    results = document["results"]
    measures, layers = results["measures"], results["layers"]
    rows_height = 0.6 + ROW_HEIGHT * len(measures)
    figure = create_figure(name_figure(document), WIDTH, CURVES_HEIGHT + rows_height + 0.6 + ROW_HEIGHT * len(measures))
    curves, rows = figure.subplots(2, 1, sharex=True, height_ratios=(CURVES_HEIGHT, rows_height))
    draw_measures(curves, measures, layers)
    draw_half_way(rows, measures)
    rows.set_xlabel(f"Layer ℓ (knockout: the middle of a window of {results['window']})")
    figure.legend(frameon=False, fontsize=SMALL_SIZE, loc="outside lower left")
    return figure


def name_figure(document: Json) -> str:
    """The title: the model, how many facts, and what is shaded."""
    results = document["results"]
    facts = "1 fact" if results["n_samples"] == 1 else f"{results['n_samples']} facts"
    return (
        f"Entity resolution: {name_model(document)}, {facts} that it knows; shaded, and as lines: "
        "95 % intervals over facts"
    )


def draw_measures(axis: Axes, measures: Json, layers: list[int]) -> None:
    """All curves; what one of them is a share of stands in the legend, with its unit."""
    axis.axhline(0, color=GREY, linewidth=0.8)
    for name, measure in measures.items():
        largest = max(measure["mean"])
        # Where nothing is above zero there is nothing to be a share of.
        scale = largest if largest > 0 else 1.0
        label = f"{MEASURE_STYLES[name].label}: {measure['unit']} (1 = {format_significant(scale)})"
        style = replace(MEASURE_STYLES[name], label=label)
        mean, ci95 = np.array(measure["mean"]) / scale, np.array(measure["ci95"]) / scale
        draw_curve(axis, layers, mean.tolist(), ci95.tolist(), style)
    axis.set_ylabel("Share of the largest mean")
    # A measure that is nowhere much above zero may lie far below it, or have a wide interval.
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, -0.5), min(high, 1.5))
    tidy_axis(axis)


def draw_half_way(axis: Axes, measures: Json) -> None:
    """A row for each measure, from top to bottom: half way up, and half way down, each with its interval."""
    for row, (name, measure) in enumerate(measures.items()):
        for side, marker in (("rises", "^"), ("falls", "v")):
            if measure[side] is not None:
                colour = MEASURE_STYLES[name].colour
                axis.plot(measure[side]["ci95"], [row, row], color=colour, linewidth=1.5, solid_capstyle="butt")
                axis.plot([measure[side]["layer"]], [row], marker, color=colour, markersize=6)
    axis.set_yticks(range(len(measures)), [name.replace("_", " ") for name in measures], fontsize=SMALL_SIZE)
    axis.set_ylim(len(measures) - 0.5, -0.5)
    axis.set_ylabel("Half way:\nup ▲, down ▼", fontsize=SMALL_SIZE)
    axis.tick_params(axis="y", length=0)
    tidy_axis(axis, grid="x")
