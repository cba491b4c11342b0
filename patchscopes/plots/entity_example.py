"""What each layer of one state stands for: how alike that is to the name in clear, and what the model says."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.model.layer_names import name_layer
from patchscopes.plots.fonts import fit_lines
from patchscopes.plots.style import (
    BLACK,
    METHOD_STYLES,
    SMALL_SIZE,
    TITLE_SIZE,
    CurveStyle,
    create_figure,
    draw_baseline,
    draw_curve,
    finish_metric_axis,
    label_source_layers,
    name_model,
)
from patchscopes.plots.tables import ROW_HEIGHT, Column, draw_text_table
from patchscopes.plots.text import show_whitespace
from patchscopes.results import Json

METRIC = "rougeL_f1_of_description"
NAME_CHARACTERS, TOKEN_CHARACTERS, DESCRIPTION_CHARACTERS = 40, 20, 84
CURVE_HEIGHT = 2.6
# Where a model ends the line at once.
NOTHING = "(nothing)"


def plot_entity_example(document: Json) -> Figure:
    """The likeness to the name in clear over layers between its two controls, and below what each layer says."""
    results, methods = document["results"], document["results"]["methods"]
    name, token = (
        fit_lines([text], characters, TITLE_SIZE)[0]
        for text, characters in (
            (results["name"], NAME_CHARACTERS),
            (results["source_tokens"][results["source_position"]].strip(), TOKEN_CHARACTERS),
        )
    )
    heights = (CURVE_HEIGHT, ROW_HEIGHT * (len(results["layers"]) + 2) + 0.5)
    figure = create_figure(
        f"What “{token}” stands for at each layer, {name_model(document)}", width=7.5, height=sum(heights) + 0.6
    )
    above, below = figure.subplots(2, 1, height_ratios=heights)
    target_layer = document["config"]["target_layer"]
    draw_likeness(above, results, f"name in clear (“{name}”)")
    finish_metric_axis(above, METRIC)
    above.set_ylim(-0.03, 1.03)
    above.set_xlabel(label_source_layers(target_layer))
    above.legend(frameon=False, fontsize=SMALL_SIZE)
    # The controls stand below the first layer.
    rows = ["name in clear", "unpatched", *map(name_layer, results["layers"])]
    order = ("name_in_clear", "unpatched", "patchscope")
    said = [show_whitespace(text) or NOTHING for method in order for text in methods[method]["description"]]
    likeness = [value for method in order for value in methods[method][METRIC]]
    colours = matplotlib.colormaps["Blues"](0.6 * np.array(likeness))[:, None]
    column = Column("what the model says", DESCRIPTION_CHARACTERS, "left")
    draw_text_table(below, rows, [column], [[text] for text in said], colours)
    return figure


def draw_likeness(axis: Axes, results: Json, in_clear: str) -> None:
    """The curve of the layers, and the two controls as lines across."""
    methods = results["methods"]
    draw_curve(axis, results["layers"], methods["patchscope"][METRIC], None, METHOD_STYLES["patchscope"])
    draw_baseline(axis, methods["name_in_clear"][METRIC][0], CurveStyle(in_clear, BLACK, "--"))
    draw_baseline(axis, methods["unpatched"][METRIC][0], CurveStyle("placeholder, unpatched", BLACK, ":"))
