"""One state of one model, read by a second one."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.model.layer_names import name_layer
from patchscopes.plots.cross_model import name_models
from patchscopes.plots.style import (
    BLUE,
    GREEN,
    GREY,
    METHOD_STYLES,
    METRIC_LABELS,
    ORANGE,
    SMALL_SIZE,
    TITLE_SIZE,
    CurveStyle,
    create_figure,
    draw_baseline,
    draw_curve,
    finish_metric_axis,
)
from patchscopes.plots.tables import Column, create_table_figure, draw_text_table
from patchscopes.plots.text import shorten, show_whitespace
from patchscopes.results import Json

# Of a cell of the grid.
CELL_CHARACTERS = 9
# Inches: a row of the grid, and everything else beside it.
ROW_HEIGHT, CURVES_HEIGHT = 0.22, 3.4
PROMPTS = ("token_identity", "simplescope")


def plot_cross_model_example(document: Json) -> Figure:
    """What M* says through the (first) prompt at each (ℓ, ℓ*), coloured by M's surprisal at it; and that surprisal
    over ℓ, at the ℓ* of the same relative depth, beside the controls."""
    results = document["results"]
    source, target = name_models(document)
    own = f"“{show_whitespace(results['next_token'].strip())}” (probability {results['next_token_probability']:.2f})"
    figure = create_figure(
        f"{target} reads {describe_state(document)} of {source} (f: {document['config']['mapping']}). "
        f"{source} itself goes on with {own}",
        width=7.8,
        height=ROW_HEIGHT * len(results["layers"]) + 1.2 + CURVES_HEIGHT,
    )
    ratios = (ROW_HEIGHT * len(results["layers"]) + 0.6, CURVES_HEIGHT)
    grid, curves = figure.subplots(2, 1, height_ratios=ratios)
    draw_said(grid, results)
    draw_surprisal(curves, document)
    return figure


def describe_state(document: Json) -> str:
    """Which state is read, in words: its token, and S."""
    results = document["results"]
    token = show_whitespace(results["source_tokens"][results["source_position"]].strip())
    return f"the state of “{token}” in “{shorten(show_whitespace(document['config']['source_prompt']), 120)}”"


def draw_said(axis: Axes, results: Json) -> None:
    """The most likely token at each (ℓ, ℓ*), the lighter the less it surprises M."""
    prompt = next(prompt for prompt in PROMPTS if prompt in results["methods"])
    said = results["methods"][prompt]
    surprisal = np.array(said["surprisal"])
    colours = matplotlib.colormaps["viridis_r"](surprisal / max(float(surprisal.max()), 1e-9))
    columns = [Column(name_layer(layer), CELL_CHARACTERS) for layer in results["target_layers"]]
    cells = [[show_whitespace(token) for token in row] for row in said["token"]]
    draw_text_table(axis, results["layers"], columns, cells, colours, fontsize=7, headings="bottom")
    axis.set_xlabel("Target layer ℓ*")
    name = METHOD_STYLES[prompt].label
    axis.set_title(f"{name}: what is said at each (ℓ, ℓ*) (light: as the model that was read)", fontsize=TITLE_SIZE)


def draw_surprisal(axis: Axes, document: Json) -> None:
    """M's surprisal at what is said, over ℓ, for both prompts, and the controls."""
    results, methods = document["results"], document["results"]["methods"]
    source, target = name_models(document)
    layers = results["layers"]
    columns = [results["target_layers"].index(target_layer) for _, target_layer in results["pairs"]]
    for prompt in (prompt for prompt in PROMPTS if prompt in methods):
        table = methods[prompt]["surprisal"]
        curve = [row[column] for row, column in zip(table, columns, strict=True)]
        style = METHOD_STYLES[prompt]
        draw_curve(axis, layers, curve, None, style)
        unpatched = CurveStyle(f"{style.label}, unpatched", style.colour, ":")
        draw_baseline(axis, methods[f"{prompt}_unpatched"]["surprisal"], unpatched)
    itself = CurveStyle(f"{source} reads itself (token identity, ℓ* = ℓ)", GREEN)
    draw_curve(axis, layers, methods["same_model"]["surprisal"], None, itself)
    alone = methods["target_model_alone"]
    if alone is not None:
        draw_baseline(axis, alone["surprisal"], CurveStyle(f"{target} reads the text itself", GREY, "--"))
    finish_metric_axis(axis, "surprisal")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("Source layer ℓ (ℓ* at the same relative depth)")
    axis.set_ylabel(f"{METRIC_LABELS['surprisal']} of {source}\nat what is said")
    axis.legend(frameon=False, fontsize=SMALL_SIZE, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def plot_cross_model_descriptions(document: Json) -> Figure:
    """What both models say that one state stands for, over ℓ."""
    results = document["results"]
    source, target = name_models(document)
    methods = results["methods"]
    columns = [Column(f"{source} (ℓ* = ℓ)", 42, "left"), Column(f"{target} (ℓ* at the same depth)", 42, "left")]
    cells = [
        [shorten(show_whitespace(text.strip()), 200) for text in texts]
        for texts in zip(methods["same_model"]["description"], methods["cross_model"]["description"], strict=True)
    ]
    unpatched = shorten(show_whitespace(methods["unpatched_target_model"]["description"].strip()), 60)
    title = f"What {describe_state(document)} stands for. {target} unpatched: “{unpatched}”"
    figure, axis = create_table_figure(title, columns, len(cells), align="left")
    # Light, as if with 12 % of the colour: what is written in the cells is to be black.
    shades = [1 - 0.12 * (1 - np.array(matplotlib.colors.to_rgba(colour))) for colour in (BLUE, ORANGE)]
    draw_text_table(axis, results["layers"], columns, cells, np.array([shades] * len(cells)))
    return figure
