"""One two-hop question at each (ℓ, ℓ*)."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from patchscopes.plots.style import Column, create_table_figure, draw_text_table
from patchscopes.plots.text import shorten, show_whitespace
from patchscopes.results import Json

FONTSIZE = 7


def plot_multi_hop_grid(document: Json) -> Figure:
    """What the model says to one two-hop question at each (ℓ, ℓ*), the answers marked, and what it says unpatched."""
    results = document["results"]
    layers = results["layers"]
    readout = results["methods"]["patchscope"]
    columns = [Column(str(layer), 24) for layer in results["target_layers"]]
    question = document["config"]["question"]
    unpatched = [
        f"{name}: {shorten(show_whitespace(results['methods'][method]['text'].strip()), 110)}"
        for method, name in (("vanilla", "Unpatched"), ("cot", "Chain of thought"))
    ]
    answer = show_whitespace(question["hop2_answer"])
    title = [
        f"“{show_whitespace(question['combined_question'])}” ({document['environment']['model']['id']})",
        *unpatched,
        f"Patched (blue: the answer, {answer}):" if answer else "Patched (no answer given):",
    ]
    figure, axis = create_table_figure("\n".join(title), columns, len(layers) + 2, fontsize=FONTSIZE, align="left")
    cells = [[text.strip() for text in texts] for texts in readout["texts"]]
    colours = matplotlib.colormaps["Blues"](np.array(readout["solved"]) / 2)
    draw_text_table(axis, layers, columns, cells, colours, fontsize=FONTSIZE, headings="bottom")
    axis.set_xlabel("Target layer ℓ* (last token of the second hop's words)")
    return figure
