"""What each layer says about one name."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from patchscopes.plots.fonts import fit_lines
from patchscopes.plots.style import SMALL_SIZE, label_source_layers, name_model
from patchscopes.plots.tables import create_table_figure, draw_text_table, fit_column
from patchscopes.plots.text import shorten, show_whitespace
from patchscopes.results import Json


def plot_entity_layers(document: Json) -> Figure:
    """A table of what each layer says about a name, coloured by the ending of the name that it has resolved."""
    results = document["results"]
    readout = results["methods"]["patchscope"]
    layers, endings = results["layers"], results["endings"]
    columns = [
        fit_column("what the model says", readout["description"], 80, "left"),
        fit_column("words resolved, by probability", readout["resolved"], 36, "left"),
        fit_column("most alike, by ROUGE-L", readout["most_alike"], 36, "left"),
    ]
    figure, axis = create_table_figure(
        f"“{shorten(show_whitespace(results['name']), 200)}” at each layer, {name_model(document)}",
        columns,
        # The notes below the table are lines of about half a row.
        n_rows=len(layers) + len(endings) // 2 + 2,
    )
    shades = matplotlib.colormaps["Blues"](np.linspace(0.12, 0.5, len(endings)))
    shade_of = dict(zip([one["ending"] for one in endings], shades, strict=True))
    # All cells of a row have its colour: white where no part of the name is resolved.
    colours = np.array([[shade_of.get(resolved, np.ones(4))] * len(columns) for resolved in readout["resolved"]])
    cells = list(zip(readout["description"], readout["resolved"], readout["most_alike"], strict=True))
    draw_text_table(axis, layers, columns, cells, colours)
    axis.set_ylabel(label_source_layers(document["config"]["target_layer"]))
    in_clear = [f"{one['ending']}: {shorten(show_whitespace(one['description']), 70)}" for one in endings]
    in_clear = fit_lines(in_clear, 100, SMALL_SIZE)
    said_of = (
        "Resolved: the words whose description in clear the state makes most likely, each token at least twice as "
        "likely as without it."
    )
    notes = "\n".join([said_of, "In clear:", *in_clear])
    axis.set_xlabel(notes, loc="left", fontsize=SMALL_SIZE, color="#505050")
    axis.xaxis.label.set_multialignment("left")
    return figure
