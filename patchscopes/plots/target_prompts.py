"""Which target prompt reads best: the chosen prompts on evaluation texts, and all candidates on train texts."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from patchscopes.model.layer_names import name_layer
from patchscopes.plots.fonts import fit_lines
from patchscopes.plots.style import (
    BLACK,
    GREY,
    METHOD_STYLES,
    METRIC_LABELS,
    ORANGE,
    SMALL_SIZE,
    TITLE_SIZE,
    create_figure,
    describe_positions,
    draw_curve,
    finish_metric_axis,
    label_source_layers,
    name_model,
    tidy_axis,
)
from patchscopes.plots.tables import choose_ink
from patchscopes.results import Json

WIDTH = 13.0
CURVES_HEIGHT = 3.9
ROW_HEIGHT = 0.19
# Of more candidates those with the highest Precision@1 are shown.
MOST_ROWS = 60
PROMPT_CHARACTERS, FAMILY_CHARACTERS = 60, 20


def plot_target_prompts(document: Json) -> Figure:
    """Curves of the chosen prompts and what they are compared with, above a table of all candidates over layers."""
    results = document["results"]
    shown = choose_rows(results)
    heights = (CURVES_HEIGHT, ROW_HEIGHT * len(shown) + 1.0)
    figure = create_figure(name_figure(document), WIDTH, sum(heights) + 0.7)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    draw_evaluation(above, results)
    draw_candidates(below, results, shown)
    return figure


def name_figure(document: Json) -> str:
    """The title: the model, and on what the prompts were chosen and scored."""
    train = document["results"]["train"]
    return (
        f"Which target prompt reads the next token best: {name_model(document)}. Chosen on "
        f"{train['n_samples']} positions in {train['n_texts']} train texts,\nscored on "
        f"{describe_positions(document)} that no choice saw; shaded: 95 % intervals over texts"
    )


def draw_evaluation(part: SubFigure, results: Json) -> None:
    """Both metrics on evaluation texts, and by how much the best prompts beat the others in Precision@1."""
    layers = results["layers"]
    *axes, gain = part.subplots(1, 3)
    for axis, metric in zip(axes, ("precision_at_1", "surprisal"), strict=True):
        for method, metrics in results["methods"].items():
            draw_curve(axis, layers, metrics[metric]["mean"], metrics[metric]["ci95"], METHOD_STYLES[method])
        finish_metric_axis(axis, metric)
    axes[0].legend(frameon=False, fontsize=SMALL_SIZE)
    gain.axhline(0, color=GREY, linewidth=0.8)
    for method, metrics in results["differences"].items():
        difference = metrics["precision_at_1"]
        draw_curve(gain, layers, difference["mean"], difference["ci95"], METHOD_STYLES[method])
    gain.set_ylabel(f"{METRIC_LABELS['precision_at_1']}: best prompt minus …")
    tidy_axis(gain)
    for axis in (*axes, gain):
        axis.set_xlabel(label_source_layers("same"))
        for band in results["bands"][1:]:
            axis.axvline(band["first"] - 0.5, color=GREY, linewidth=0.6, linestyle=":")


def choose_rows(results: Json) -> list[int]:
    """The numbers of the candidates to show: at most `MOST_ROWS` and those that were chosen, families together."""
    candidates = results["train"]["candidates"]
    means = [-np.mean(candidate["precision_at_1"]["mean"]) for candidate in candidates]
    kept = {*np.argsort(means, kind="stable")[:MOST_ROWS].tolist(), *(band["candidate"] for band in results["bands"])}
    families = list(dict.fromkeys(candidate["family"] for candidate in candidates))
    return sorted(kept, key=lambda number: (families.index(candidates[number]["family"]), number))


def draw_candidates(part: SubFigure, results: Json, shown: Sequence[int]) -> None:
    """Precision@1 of each candidate at each layer on train texts, what was chosen for a band framed."""
    layers, candidates = results["layers"], results["train"]["candidates"]
    table = np.array([candidates[number]["precision_at_1"]["mean"] for number in shown])
    axis = part.subplots()
    # Each layer on a scale of its own: late ones are read well by every prompt.
    low, high = table.min(axis=0), table.max(axis=0)
    scaled = (table - low) / np.maximum(high - low, 1e-9)
    colours = np.asarray(matplotlib.colormaps["Blues"](0.8 * scaled))
    axis.pcolormesh(colours, rasterized=True)
    for row, column in np.ndindex(table.shape):
        axis.text(
            column + 0.5,
            row + 0.5,
            f"{table[row, column]:.2f}",
            ha="center",
            va="center",
            fontsize=7,
            color=choose_ink(colours[row, column]),
            in_layout=False,
        )
    frame_chosen(axis, results, shown)
    names = fit_lines([candidates[number]["prompt"] for number in shown], PROMPT_CHARACTERS, 7)
    axis.set_yticks(np.arange(len(shown)) + 0.5, names, fontsize=7)
    axis.set_xticks(np.arange(len(layers)) + 0.5, [name_layer(layer) for layer in layers], fontsize=SMALL_SIZE)
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel(label_source_layers("same"))
    total = "" if len(shown) == len(candidates) else f", the best {len(shown)} of {len(candidates)}"
    axis.set_title(
        f"Precision@1 of the candidates on train texts{total} (colours by layer; framed: chosen for a band)",
        fontsize=TITLE_SIZE,
    )
    name_families(axis, [candidates[number]["family"] for number in shown])


def frame_chosen(axis: Axes, results: Json, shown: Sequence[int]) -> None:
    """A frame around the layers of each band in the row of its prompt."""
    for band in results["bands"]:
        row = shown.index(band["candidate"])
        for layer in band["layers"]:
            column = results["layers"].index(layer)
            axis.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=ORANGE, linewidth=1.6, zorder=3))


def name_families(axis: Axes, families: Sequence[str]) -> None:
    """The name of each family at the right, beside its rows, which stand together."""
    places = []
    for family in dict.fromkeys(families):
        first, n_rows = families.index(family), families.count(family)
        places.append(first + n_rows / 2)
        if first > 0:
            axis.axhline(first, color=BLACK, linewidth=0.6)
    right = axis.secondary_yaxis("right")
    names = fit_lines(list(dict.fromkeys(families)), FAMILY_CHARACTERS, SMALL_SIZE)
    right.set_yticks(places, names, fontsize=SMALL_SIZE)
    right.tick_params(length=0)
    right.spines[:].set_visible(False)
