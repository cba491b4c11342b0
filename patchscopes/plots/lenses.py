"""Lenses on the same hidden states: the originals, and the same lenses as Patchscopes."""

from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.plots.style import (
    METHOD_STYLES,
    SMALL_SIZE,
    CurveStyle,
    create_figure,
    describe_positions,
    draw_curve,
    finish_metric_axis,
    name_model,
    tidy_axis,
)
from patchscopes.results import Json

# A difference of exactly zero has no place on a logarithmic axis: it gets a bar of no length.
SMALLEST_DIFFERENCE = 1e-8
NOTICEABLE_DIFFERENCE = 1e-4
NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


def plot_lenses(document: Json) -> Figure:
    """The originals as lines, their Patchscopes as crosses on them, and the largest logit difference of each pair."""
    results = document["results"]
    environment = document["environment"]
    number = len(results["methods"])
    has_future_lens = {"future_lens", "future_lens_patchscope"} & set(results["methods"])
    form = f"Future Lens with the {document['config']['future_lens'].replace('_', ' ')}; " if has_future_lens else ""
    figure = create_figure(
        f"{NUMBERS[number]} {'lens' if number == 1 else 'lenses'} on the same hidden states: "
        f"{name_model(document)} in {environment['dtype']}, {describe_positions(document)}\n"
        f"{form}shaded: 95 % intervals",
        width=13.0,
        height=4.9,
    )
    axes = figure.subplots(1, 3, width_ratios=(5, 5, 2.6)) if results["twins"] else figure.subplots(1, 2)
    for axis, metric in zip(axes, ("precision_at_1", "surprisal"), strict=False):
        draw_lenses(axis, results, metric)
    figure.legend(
        *axes[0].get_legend_handles_labels(), frameon=False, fontsize=SMALL_SIZE, loc="outside lower center", ncols=4
    )
    if results["twins"]:
        draw_differences(axes[2], results["twins"])
    return figure


def draw_lenses(axis: Axes, results: Json, metric: str) -> None:
    """One metric of all lenses over source layers."""
    for method, metrics in results["methods"].items():
        curve = metrics[metric]
        ci95 = None if method.endswith("_patchscope") else curve["ci95"]
        draw_curve(axis, results["layers"], curve["mean"], ci95, get_form_style(method))
    finish_metric_axis(axis, metric)
    axis.set_xlabel("Source layer ℓ")


def get_form_style(method: str) -> CurveStyle:
    """How an original is drawn, or its Patchscope (`…_patchscope`): as crosses in its colour."""
    style = METHOD_STYLES[method.removesuffix("_patchscope")]
    if method.endswith("_patchscope"):
        return replace(style, label=f"{style.label} via Patchscope", line="", marker="x", marker_size=7)
    return style


def draw_differences(axis: Axes, twins: Json) -> None:
    """How far the logits of each original and its Patchscope are apart at most, by engine."""
    bars: list[tuple[str, float, str]] = []
    for original, twin in twins.items():
        style = METHOD_STYLES[original]
        name = style.label.removesuffix(" (least squares)")
        bars.append((f"{name}\n(fast engine)", twin["largest_difference"], style.colour))
        if twin["largest_difference_hooks"] is not None:
            bars.append((f"{name}\n(plain hooks)", twin["largest_difference_hooks"], style.colour))
    names, differences, colours = zip(*bars, strict=True)
    lengths = [max(SMALLEST_DIFFERENCE, difference) for difference in differences]
    shown = axis.barh(names, lengths, color=colours)
    axis.bar_label(shown, [f"{value:.1e}" if value else "0" for value in differences], padding=3, fontsize=SMALL_SIZE)
    axis.axvline(NOTICEABLE_DIFFERENCE, color="black", linewidth=0.8, linestyle=":")
    axis.set(xscale="log", xlim=(SMALLEST_DIFFERENCE, max(1e-2, 100 * max(differences))))
    axis.set_xlabel("Largest difference of any logit,\noriginal and Patchscope")
    tidy_axis(axis, grid="x")
    axis.tick_params(axis="y", labelsize=SMALL_SIZE, length=0)
    axis.invert_yaxis()
