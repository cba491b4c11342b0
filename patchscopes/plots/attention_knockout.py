"""Attention knockout: how the answer's probability changes without the subject, the rest, or the last token itself."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from patchscopes.model.layer_names import name_layer
from patchscopes.plots.fonts import fit_lines, wrap_line
from patchscopes.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SMALL_SIZE,
    TITLE_SIZE,
    CurveStyle,
    create_figure,
    draw_curve,
    name_model,
    tidy_axis,
)
from patchscopes.plots.tables import ROW_HEIGHT
from patchscopes.results import Json

KEY_STYLES = {
    "subject": CurveStyle("the subject", BLUE),
    "rest": CurveStyle("the rest (BOS too)", ORANGE),
    "last": CurveStyle("itself", GREEN),
}
METHOD_TITLES = {
    "original": "original: attention edges cut, the others renormalise",
    "patchscope": "Patchscope: zeros over the states (T = S, f = 0)",
}
# Why the two forms differ.
GAP = (
    "Not the same computation. A cut takes away what the last position reads in the blocks of the window, and nothing "
    "else: the tokens keep their states for later blocks and for each other. Zeros over their states after each of "
    "these blocks (the next one reads them: one block later) take what they held from every later block and from all "
    "tokens behind them; a zeroed key keeps a share of the softmax, where a cut one leaves it to the others; and zeros "
    "over the last position erase its own residual stream, not only its attention to itself."
)
WIDTH, TITLE_WIDTH = 11.0, 9.2
CURVES_HEIGHT = 3.9
NOTE_CHARACTERS = 175
LABEL = "Change of the answer's probability (%)"


def plot_attention_knockout(document: Json) -> Figure:
    """The curves of each form over the layers that windows are centred on, and one fact in full, token × layer."""
    results = document["results"]
    methods, example = results["methods"], results["example"]
    notes = textwrap.fill(GAP, NOTE_CHARACTERS) if len(methods) > 1 else ""
    heights = (CURVES_HEIGHT, ROW_HEIGHT * len(example["tokens"]) + 1.2)
    figure = create_figure(name_figure(document), WIDTH, sum(heights) + 0.16 * notes.count("\n") + 0.8)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    axes = above.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for axis, (method, measured) in zip(axes, methods.items(), strict=True):
        draw_changes(axis, results["layers"], measured["relative_change"])
        axis.set_title(METHOD_TITLES[method], fontsize=TITLE_SIZE)
        axis.set_xlabel(name_layers(results["window"]))
    axes[0].set_ylabel(LABEL)
    axes[0].legend(title="the last position without", title_fontsize=SMALL_SIZE, frameon=False, fontsize=SMALL_SIZE)
    draw_example(below, results["layers"], results["window"], example)
    if notes:
        figure.supxlabel(notes, x=0.1 / WIDTH, ha="left", fontsize=SMALL_SIZE, color="#505050")
    return figure


def name_figure(document: Json) -> str:
    """The title: the model, how many facts, and what is measured."""
    results = document["results"]
    facts = "1 fact" if results["n_samples"] == 1 else f"{results['n_samples']} facts"
    return (
        f"Attention knockout: what the last position must read, {name_model(document)}, {facts} "
        "that it knows\nthe probability of its own answer, its most likely token; shaded: 95 % intervals over facts"
    )


def name_layers(window: int) -> str:
    """The label of an axis of windows."""
    return "Layer ℓ" if window == 1 else f"Layer ℓ, the middle of a window of {window}"


def draw_changes(axis: Axes, layers: list[int], relative_change: Json) -> None:
    """The curve of each set of keys."""
    axis.axhline(0, color=GREY, linewidth=0.8)
    for keys, change in relative_change.items():
        draw_curve(axis, layers, change["mean"], change["ci95"], KEY_STYLES[keys])
    tidy_axis(axis)


def draw_example(part: SubFigure, layers: list[int], window: int, example: Json) -> None:
    """Which word is read where: the edges to each token cut alone, tokens from top to bottom, the subject in bold."""
    axis = part.subplots()
    change = np.array(example["relative_change"]).T
    high = max(1.0, float(np.abs(change).max()))
    edges = np.arange(len(layers) + 1) - 0.5
    shown = axis.pcolormesh(
        edges, np.arange(len(change) + 1) - 0.5, change, cmap="RdBu", vmin=-high, vmax=high, rasterized=True
    )
    names = fit_lines(example["tokens"], 24, SMALL_SIZE)
    axis.set_yticks(range(len(names)), names, fontsize=SMALL_SIZE)
    for place, label in enumerate(axis.get_yticklabels()):
        label.set_fontweight("bold" if place in example["subject_positions"] else "normal")
    step = -(-len(layers) // 30)
    axis.set_xticks(range(0, len(layers), step), [name_layer(layer) for layer in layers[::step]], fontsize=SMALL_SIZE)
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set(xlabel=name_layers(window), ylabel="Token that is not read")
    (answer,) = fit_lines([example["answer"].strip()], 40, TITLE_SIZE)
    title = (
        "The fact that loses most without its subject (bold), the edges to each token cut alone: the answer is "
        f"“{answer}”, probability {example['probability']:.2f}"
    )
    axis.set_title(wrap_line(title, len(title), TITLE_SIZE, 72 * TITLE_WIDTH, 2), fontsize=TITLE_SIZE)
    part.colorbar(shown, ax=axis, label="Change (%)", pad=0.01)
