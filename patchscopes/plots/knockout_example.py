"""Attention knockout of one prompt: the change of the answer's probability over layers, in both forms."""

from matplotlib.figure import Figure

from patchscopes.plots.attention_knockout import KEY_STYLES, LABEL, METHOD_TITLES, name_layers
from patchscopes.plots.fonts import fit_lines
from patchscopes.plots.style import (
    GREY,
    SMALL_SIZE,
    TITLE_SIZE,
    create_figure,
    draw_curve,
    name_model,
    tidy_axis,
)
from patchscopes.results import Json

PROMPT_CHARACTERS, ANSWER_CHARACTERS = 60, 24
PANEL_HEIGHT = 2.5


def plot_knockout_example(document: Json) -> Figure:
    """A panel for each form, one above the other: the last token without the subject, and as a control without the
    rest."""
    results = document["results"]
    methods = results["methods"]
    (prompt,) = fit_lines([results["prompt"]], PROMPT_CHARACTERS, TITLE_SIZE)
    (answer,) = fit_lines([results["answer"].strip()], ANSWER_CHARACTERS, TITLE_SIZE)
    figure = create_figure(
        f"Attention knockout of “{prompt}”, {name_model(document)}\n"
        f"the answer is “{answer}”, probability {results['probability']:.2f}",
        width=7.5,
        height=PANEL_HEIGHT * len(methods) + 1.0,
    )
    axes = figure.subplots(len(methods), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axis, (method, measured) in zip(axes, methods.items(), strict=True):
        axis.axhline(0, color=GREY, linewidth=0.8)
        for keys, change in measured["relative_change"].items():
            draw_curve(axis, results["layers"], change, None, KEY_STYLES[keys])
        axis.set_title(METHOD_TITLES[method], fontsize=TITLE_SIZE)
        tidy_axis(axis)
    axes[-1].set_xlabel(name_layers(results["window"]))
    axes[0].legend(title="the last token without", title_fontsize=SMALL_SIZE, frameon=False, fontsize=SMALL_SIZE)
    figure.supylabel(LABEL, fontsize=TITLE_SIZE)
    return figure
