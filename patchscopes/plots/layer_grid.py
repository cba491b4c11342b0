"""Layer grids: what is said at each pair (ℓ, ℓ*), success by ℓ and by ℓ* beside the controls, and who agrees."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from patchscopes.model.layer_names import name_layer
from patchscopes.plots.fonts import CHARACTER_WIDTH, choose_fonts, fit_lines, measure_usual
from patchscopes.plots.style import (
    BLUE,
    GREY,
    LIGHT_BLUE,
    ORANGE,
    PURPLE,
    SMALL_SIZE,
    TITLE_SIZE,
    CurveStyle,
    create_figure,
    draw_baseline,
    draw_curve,
    name_model,
    tidy_axis,
)
from patchscopes.plots.text import shorten, show_whitespace
from patchscopes.results import Json

WIDTH = 16.0
# Inches: of the tables, and of what stands beside them.
TABLE_WIDTH, CURVES_WIDTH, MATRIX_WIDTH = 8.2, 3.6, 3.8
LEAST_HEIGHT = 4.6
FONTSIZE, LABEL_SIZE = 7, 6
# Lines of a text, and inches of a row of the table with room for them.
TEXT_LINES, TEXT_ROW_HEIGHT = 3, 0.5
# With more columns than these a table has no room for texts.
TEXT_COLUMNS = 6
MOST_TICKS = 20
STRONG = 2
# The darkest blue leaves black texts readable.
DARKEST = 0.55

STYLES = {
    "strong": CurveStyle("strong", BLUE),
    "strong_or_partial": CurveStyle("strong or partial", LIGHT_BLUE),
    "other_state": CurveStyle("strong by another name's state", ORANGE, "--"),
}
UNPATCHED_STYLE = CurveStyle("strong unpatched", GREY, ":")
HOTSPOT_STYLE = CurveStyle("stands out of chance", PURPLE, "", "*", 11)


def plot_layer_grid(document: Json) -> Figure:
    """A row for each grid of the study: its texts and classes, its curves, and how consistent it is."""
    results = document["results"]
    grids = results["grids"]
    heights = [measure_height(grid) for grid in grids]
    figure = create_figure(name_figure(document), WIDTH, sum(heights) + 0.9)
    parts = figure.subfigures(len(grids), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, grid in zip(parts, grids, strict=True):
        draw_grid(part, grid)
    handles, labels = next(axis for axis in figure.axes if axis.get_label() == "L").get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=SMALL_SIZE, loc="outside lower center", ncols=len(labels))
    return figure


def name_figure(document: Json) -> str:
    """The title: whose states, in which model, and what counts."""
    source = document["results"]["source"]
    about = (
        "several names"
        if source is None
        else f"“{shorten(show_whitespace(source['source_prompt']), 60)}”, known by "
        f"{shorten(show_whitespace(', '.join(source['keywords'])), 80)}"
    )
    return (
        f"Layer grids ({document['results']['mode']}): {name_model(document)} on {about}\n"
        "strong: two keywords or more are said; shaded: 95 % intervals over names; framed, or with a star: stands out "
        "of chance among all pairs (or layers), and beyond the intervals of both controls"
    )


def measure_height(grid: Json) -> float:
    """The inches that a grid needs."""
    labels = 0 if grid["consistency"] is None else len(grid["consistency"]["labels"])
    rows = len(grid["layers"]) if has_texts(grid) else 0
    return max(LEAST_HEIGHT, TEXT_ROW_HEIGHT * rows + 1.6, 0.13 * labels + 1.6)


def has_texts(grid: Json) -> bool:
    """Whether the table has room for texts."""
    return len(grid["target_layers"]) <= TEXT_COLUMNS


def draw_grid(part: SubFigure, grid: Json) -> None:
    """The panels of one grid."""
    has_matrix = grid["consistency"] is not None
    if has_matrix:
        panels, widths = "TLM;TRM", [TABLE_WIDTH, CURVES_WIDTH, MATRIX_WIDTH]
    else:
        panels, widths = "TL;TR", [TABLE_WIDTH, CURVES_WIDTH + MATRIX_WIDTH]
    axes = part.subplot_mosaic(panels, width_ratios=widths)
    part.suptitle(name_grid(grid), fontsize=TITLE_SIZE)
    draw_classes(axes["T"], grid)
    draw_success(axes["L"], grid, "layer", "Source layer ℓ")
    draw_success(axes["R"], grid, "target_layer", "Target layer ℓ*")
    if has_matrix:
        draw_consistency(part, axes["M"], grid["consistency"])


def name_grid(grid: Json) -> str:
    """What a grid is of, and its success beside its controls."""
    names, templates = grid["names"], grid["templates"]
    name, template = fit_lines([names[0]["name"], templates[0]["name"]], 40, TITLE_SIZE)
    about = f"“{name}”" if len(names) == 1 else f"{len(names)} names"
    by = f"“{template}”" if len(templates) == 1 else f"{len(templates)} templates"
    other = "none" if grid["other_state"] is None else f"{grid['other_state']['mean']:.2f}"
    success = grid["success"]
    return (
        f"{grid['stage']}: {about} by {by}: strong {success['strong']['mean']:.2f}, partial "
        f"{success['partial']['mean']:.2f} (strong by another name's state: {other}, unpatched: "
        f"{grid['unpatched']['mean']:.2f})"
    )


def draw_classes(axis: Axes, grid: Json) -> None:
    """What is said at each pair, coloured by its class; of several grids the share that is strong, and an example."""
    layers, target_layers = grid["layers"], grid["target_layers"]
    # By template and name.
    classes = np.array(grid["classes"])
    strong = (classes == STRONG).mean(axis=(0, 1))
    is_one = classes.shape[:2] == (1, 1)
    shown = classes[0, 0] / STRONG if is_one else strong
    colours = matplotlib.colormaps["Blues"](shown * DARKEST)
    edges = np.arange(len(target_layers) + 1), np.arange(len(layers) + 1) - 0.5
    axis.pcolormesh(*edges, colours, rasterized=True)
    for set_ticks, numbers, middle in ((axis.set_xticks, target_layers, 0.5), (axis.set_yticks, layers, 0.0)):
        places = np.arange(0, len(numbers), -(-len(numbers) // MOST_TICKS))
        set_ticks(places + middle, [name_layer(numbers[place]) for place in places], fontsize=SMALL_SIZE)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_ylabel("Source layer ℓ")
    if has_texts(grid):
        # Beside the names of a consistency matrix there is less room.
        draw_texts(axis, choose_texts(grid, classes), 0.9 if grid["consistency"] is None else 0.8)
    for pair in grid["hotspots"]["pairs"]:
        column, row = target_layers.index(pair["target_layer"]), layers.index(pair["layer"])
        axis.add_patch(Rectangle((column, row - 0.5), 1, 1, fill=False, edgecolor=PURPLE, linewidth=1.8))
    colour = "blue: strong, light blue: partial, white: failed" if is_one else "blue: share that is strong"
    axis.set_xlabel(f"Target layer ℓ* ({colour})")


def draw_texts(axis: Axes, texts: list[list[str]], share: float) -> None:
    """A text in the middle of each cell, in a few lines that take this share of the width."""
    characters = int(share * TABLE_WIDTH / (FONTSIZE * CHARACTER_WIDTH) / len(texts[0])) - 1
    width, fonts = measure_usual(characters, FONTSIZE), choose_fonts(text for of_row in texts for text in of_row)
    for row, of_row in enumerate(texts):
        for column, text in enumerate(of_row):
            lines = fonts.wrap(show_whitespace(text), characters, FONTSIZE, width, TEXT_LINES)
            # The layout has nothing to learn from texts inside the axes.
            axis.text(
                column + 0.5,
                row,
                "\n".join(lines),
                ha="center",
                va="center",
                fontsize=FONTSIZE,
                in_layout=False,
            )


def choose_texts(grid: Json, classes: np.ndarray) -> list[list[str]]:
    """The text of each cell: what is said, or the share that is strong with what one of the best says."""
    rows = range(len(grid["layers"]))
    columns = range(len(grid["target_layers"]))
    return [[choose_text(grid, classes, row, column) for column in columns] for row in rows]


def choose_text(grid: Json, classes: np.ndarray, row: int, column: int) -> str:
    """The text of one cell."""
    of_pair = classes[:, :, row, column]
    template, name = np.unravel_index(of_pair.argmax(), of_pair.shape)
    text: str = grid["texts"][template][name][row][column].strip()
    return text if of_pair.size == 1 else f"{(of_pair == STRONG).mean():.2f} {text}"


def draw_success(axis: Axes, grid: Json, by: str, label: str) -> None:
    """The share that is strong at each ℓ, or ℓ*, beside both controls."""
    layers, view = grid[f"{by}s"], grid[f"by_{by}"]
    for name, style in STYLES.items():
        curve = view[name]
        if curve is None:
            draw_curve(axis, [], [], None, style)
        else:
            draw_curve(axis, layers, curve["mean"], curve["ci95"], style)
    draw_baseline(axis, grid["unpatched"]["mean"], UNPATCHED_STYLE)
    hotspots = grid["hotspots"][f"{by}s"]
    draw_curve(axis, [spot[by] for spot in hotspots], [spot["strong"] for spot in hotspots], None, HOTSPOT_STYLE)
    axis.set(ylim=(0, max(0.1, axis.get_ylim()[1])), xlabel=label, ylabel="Share of pairs")
    tidy_axis(axis)


def draw_consistency(part: SubFigure, axis: Axes, consistency: Json) -> None:
    """The rank correlation of any two grids, in one order of rows and columns."""
    table = np.array([[np.nan if value is None else value for value in row] for row in consistency["rank_correlation"]])
    edges = np.arange(len(table) + 1) - 0.5
    axis.set_facecolor("#d0d0d0")
    shown = axis.pcolormesh(edges, edges, np.ma.masked_invalid(table), cmap="RdBu", vmin=-1, vmax=1, rasterized=True)
    labels = fit_lines(consistency["labels"], 22, LABEL_SIZE)
    axis.set_yticks(range(len(labels)), labels, fontsize=LABEL_SIZE)
    axis.set_xticks([])
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    mean = consistency["mean_rank_correlation"]
    n_pairs, n_grids = len(consistency["pairs"]), len(labels)
    axis.set(
        xlabel=f"in the same order; {n_pairs} pairs strong for ≥ {consistency['at_least']} of {n_grids}",
        ylabel="Grid (grey: one class everywhere)",
    )
    axis.set_title(f"Agreement: mean {'-' if mean is None else f'{mean:.2f}'}", fontsize=TITLE_SIZE)
    part.colorbar(shown, ax=axis, label="Rank correlation of two grids", pad=0.02)
