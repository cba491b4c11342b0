"""The LRE Attribute Lens on every token and layer of a text (Hernandez et al. 2023, their Attribute Lens)."""

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from patchscopes.data.relations import PLACE
from patchscopes.plots.fonts import fit_lines
from patchscopes.plots.style import SMALL_SIZE, name_model
from patchscopes.plots.tables import create_table_figure, draw_text_table, fit_column
from patchscopes.plots.text import shorten, show_whitespace
from patchscopes.results import Json

CELL_CHARACTERS = 13


def plot_attribute_lens(document: Json) -> Figure:
    """What the LRE of one relation reads at each token and layer of a text: the top token, coloured by probability.

    `results["prompt"]` is that of the relation; `top` and `probability` are tables over (layer, token).
    """
    results = document["results"]
    layers, top = results["layers"], results["top"]
    tokens = fit_lines(results["tokens"], CELL_CHARACTERS - 2, SMALL_SIZE + 1)
    columns = [
        fit_column(token, read, CELL_CHARACTERS) for token, read in zip(tokens, zip(*top, strict=True), strict=True)
    ]
    figure, axis = create_table_figure(
        f"What the LRE of “{shorten(show_whitespace(results['prompt'].replace(PLACE, '…')), 200)}” "
        f"({shorten(show_whitespace(results['relation'].replace('_', ' ')), 80)}) reads at each token and layer, "
        f"{name_model(document)}",
        columns,
        len(layers),
    )
    shade = ScalarMappable(cmap=matplotlib.colormaps["Purples"])
    shade.set_clim(0, 1)
    colours = shade.to_rgba(np.array(results["probability"], dtype=float))
    draw_text_table(axis, layers, columns, top, colours, headings="bottom")
    axis.set_xlabel("Token whose hidden state is read")
    figure.colorbar(shade, ax=axis, label="Probability", shrink=0.5, pad=0.01)
    return figure
