"""The model's next token, as every lens reads it out of one hidden state."""

from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.plots.lenses import get_form_style
from patchscopes.plots.style import (
    BLACK,
    METHOD_STYLES,
    METRIC_LABELS,
    SMALL_SIZE,
    CurveStyle,
    create_figure,
    draw_baseline,
    draw_curve,
    finish_metric_axis,
    name_model,
)
from patchscopes.plots.text import shorten, show_whitespace
from patchscopes.results import Json

OWN = CurveStyle("The model's own token", BLACK, "-.")
# What crosses and dotted lines stand for in every colour.
VIA_PATCHSCOPE = CurveStyle("The same via Patchscope", BLACK, "", "x", 7)
UNPATCHED = CurveStyle("Its target prompt unpatched", BLACK, ":", "")
NOT_IN_THE_LEGEND = "_"


def plot_next_token_example(document: Json) -> Figure:
    """Surprisal of what each lens says, and the rank of the model's own token, over source layers.

    Originals are lines and their Patchscopes crosses on them; target prompts unpatched are dotted lines across.
    """
    results = document["results"]
    word, said = (
        shorten(show_whitespace(token), 40)
        for token in (results["source_tokens"][results["source_position"]], results["continuation"][-1])
    )
    prompt = shorten(show_whitespace(document["config"]["source_prompt"]), 200)
    which = {1: "next token", 2: "next token but one"}.get(results["ahead"], f"token t+{results['ahead']}")
    figure = create_figure(
        f"What “{word}” in “{prompt}” says of the model's {which}, “{said}” ({name_model(document)})",
        width=7.5,
        height=7.0,
    )
    axes = figure.subplots(2, 1, sharex=True)
    for axis, metric in zip(axes, ("surprisal", "rank"), strict=True):
        _draw_methods(axis, results, metric)
    draw_baseline(axes[0], results["own"]["surprisal"], OWN)
    finish_metric_axis(axes[0], "surprisal")
    # Ranks go from 0, which is first, to the size of the vocabulary.
    axes[1].set_yscale("symlog", linthresh=1)
    axes[1].yaxis.set_major_formatter("{x:,.0f}")
    finish_metric_axis(axes[1], "rank")
    axes[1].set_ylabel(f"{METRIC_LABELS['rank']} (0: first)")
    axes[1].set_xlabel("Source layer ℓ")
    figure.legend(
        *axes[0].get_legend_handles_labels(), frameon=False, fontsize=SMALL_SIZE, loc="outside lower center", ncols=2
    )
    return figure


def _draw_methods(axis: Axes, results: Json, metric: str) -> None:
    """One metric of all methods, and of the controls, over source layers; the legend has each method once."""
    for method, measured in results["methods"].items():
        style = get_form_style(method)
        if method.endswith("_patchscope"):
            style = replace(style, label=NOT_IN_THE_LEGEND)
        draw_curve(axis, results["layers"], [float(value) for value in measured[metric]], None, style)
    for method, measured in results["controls"].items():
        draw_baseline(axis, float(measured[metric]), replace(METHOD_STYLES[method], label=NOT_IN_THE_LEGEND, line=":"))
    for style, drawn in ((VIA_PATCHSCOPE, results["twins"]), (UNPATCHED, results["controls"])):
        if drawn:
            draw_curve(axis, [], [], None, style)
