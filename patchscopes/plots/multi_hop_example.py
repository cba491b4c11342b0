"""One two-hop question over layers: how likely the answer gets, by method."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.model.layer_names import name_layer
from patchscopes.plots.style import (
    GREEN,
    GREY,
    METHOD_STYLES,
    ORANGE,
    PURPLE,
    SMALL_SIZE,
    TITLE_SIZE,
    CurveStyle,
    create_figure,
    draw_baseline,
    draw_curve,
    name_model,
    tidy_axis,
)
from patchscopes.plots.tables import draw_layer_table
from patchscopes.plots.text import shorten, show_whitespace
from patchscopes.results import Json

CURVES = {
    "patchscope": METHOD_STYLES["patchscope"],
    "control": CurveStyle("Control: state of an unrelated query", ORANGE),
    "placeholder": CurveStyle("Hop 1 into “… x”", PURPLE),
}
LINES = {
    "vanilla": CurveStyle("Vanilla", GREY, "--"),
    "cot": CurveStyle("Chain of thought", GREEN, "--"),
    "unpatched": CurveStyle("“… x”, unpatched", PURPLE, ":"),
}
# Inches, of a heat map's row.
ROW_HEIGHT = 0.17


def plot_multi_hop_example(document: Json) -> Figure:
    """How likely the answer's first token gets: over ℓ, with the unpatched methods as lines; or over (ℓ, ℓ*)."""
    results = document["results"]
    question = document["config"]["question"]
    title = (
        f"“{shorten(show_whitespace(question['combined_question']), 300)}” ({name_model(document)}); "
        f"answer: {shorten(show_whitespace(question['hop2_answer']), 60)}"
    )
    if len(results["target_layers"]) > 1:
        return plot_grids(title, results)
    figure = create_figure(title, width=7.6, height=4.6)
    axis = figure.subplots()
    draw_probabilities(axis, results)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=SMALL_SIZE, loc="outside lower center", ncols=3)
    return figure


def draw_probabilities(axis: Axes, results: Json) -> None:
    """A curve over ℓ for each patching method, a line for each other one, and stars where the answer is said."""
    layers, methods = results["layers"], results["methods"]
    answering: list[tuple[int, float]] = []
    for method, style in CURVES.items():
        likely = [row[0] for row in methods[method]["probability"]]
        draw_curve(axis, layers, likely, None, style)
        solved = [row[0] for row in methods[method]["solved"]]
        answering += [point for point, right in zip(zip(layers, likely, strict=True), solved, strict=True) if right]
    for method, style in LINES.items():
        said = " (says it)" if methods[method]["solved"] else ""
        label = CurveStyle(style.label + said, style.colour, style.line)
        draw_baseline(axis, methods[method]["probability"], label)
    axis.plot(*zip(*answering, strict=True) if answering else ([], []), "k*", markersize=7, label="says the answer")
    axis.set(
        xlabel=f"Source layer ℓ (target layer ℓ* = {name_layer(results['target_layers'][0])})",
        ylabel="Probability of the answer’s first token,\nat its likeliest place",
        ylim=(0, 1.02),
    )
    tidy_axis(axis)


def plot_grids(title: str, results: Json) -> Figure:
    """A heat map over (ℓ, ℓ*) for the Patchscope, and one for its control."""
    layers, target_layers = results["layers"], results["target_layers"]
    title += "\nProbability of the answer’s first token, at its likeliest place"
    figure = create_figure(title, width=7.6, height=2 * (ROW_HEIGHT * len(layers) + 0.9) + 0.6)
    for axis, method in zip(figure.subplots(2, 1), ("patchscope", "control"), strict=True):
        of_method = results["methods"][method]
        table = np.array(of_method["probability"])
        draw_layer_table(axis, table, layers, target_layers, colormap="viridis", high=1.0)
        n_solved = int(np.sum(of_method["solved"]))
        axis.set_title(f"{CURVES[method].label} ({n_solved} of {table.size} pairs say it)", fontsize=TITLE_SIZE)
    return figure
