"""Figure 1: what one hidden state says at each layer."""

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from patchscopes.plots.style import label_source_layers, name_model
from patchscopes.plots.tables import Column, create_table_figure, draw_text_table, fit_column
from patchscopes.plots.text import shorten, show_whitespace
from patchscopes.prompts import build_token_identity_prompt
from patchscopes.results import Json


def plot_layer_readout(document: Json) -> Figure:
    """Layer × rank table of the most likely tokens, coloured by probability, and what each layer generates."""
    results = document["results"]
    readout = results["methods"]["token_identity"]
    layers = results["layers"]
    top_k = readout.get("top_k", [[] for _ in layers])
    columns = [Column(f"rank {rank + 1}", 14) for rank in range(len(top_k[0]))]
    cells = [[entry["token"] for entry in entries] for entries in top_k]
    probabilities = np.array([[entry["probability"] for entry in entries] for entries in top_k])
    shade = ScalarMappable(cmap=matplotlib.colormaps["Blues"])
    shade.set_clim(0, 1)
    colours = shade.to_rgba(probabilities)
    if "generations" in readout:
        columns.append(fit_column("generation", readout["generations"], 38, "left"))
        cells = [[*row, text] for row, text in zip(cells, readout["generations"], strict=True)]
        colours = np.concatenate([colours, np.ones((len(layers), 1, 4))], axis=1)

    word = results["source_tokens"][results["source_position"]].strip()
    prompt, target_prompt = document["config"]["source_prompt"], document["config"]["target_prompt"]
    is_usual = target_prompt == build_token_identity_prompt()
    name = "token-identity Patchscope" if is_usual else f"T: “{shorten(show_whitespace(target_prompt), 100)}”"
    figure, axis = create_table_figure(
        f"What “{shorten(show_whitespace(word), 80)}” in “{shorten(show_whitespace(prompt), 400)}” says at each layer\n"
        f"({name}, {name_model(document)})",
        columns,
        len(layers),
    )
    draw_text_table(axis, layers, columns, cells, colours)
    axis.set_ylabel(label_source_layers(document["config"]["target_layer"]))
    if probabilities.size:
        figure.colorbar(shade, ax=axis, label="Probability", shrink=0.5, pad=0.01)
    return figure
