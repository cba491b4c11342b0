"""Figures that are tables: rows of layers, columns of texts, cells in colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.model.layer_names import name_layer
from patchscopes.plots.fonts import CHARACTER_WIDTH, choose_fonts
from patchscopes.plots.style import SMALL_SIZE, create_figure
from patchscopes.plots.text import show_whitespace

# Inches, of a row.
ROW_HEIGHT = 0.28


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and its width in characters, to which longer texts are cut."""

    heading: str
    characters: int
    align: Literal["left", "center"] = "center"


def fit_column(heading: str, texts: Sequence[str], at_most: int, align: Literal["left", "center"] = "center") -> Column:
    """A column that is as wide as its longest text needs, up to a number of characters."""
    lines = [show_whitespace(text)[:at_most] for text in (heading, *texts)]
    fonts = choose_fonts(lines)
    longest = max(fonts.count_characters(line, SMALL_SIZE) for line in lines)
    return Column(heading, min(at_most, longest + 2), align)


def create_table_figure(
    title: str,
    columns: Sequence[Column],
    n_rows: int,
    *,
    fontsize: int = SMALL_SIZE,
    align: Literal["center", "left"] = "center",
) -> tuple[Figure, Axes]:
    """A figure for one text table, as large as that needs."""
    characters = sum(column.characters for column in columns)
    width = max(7.0, characters * fontsize * CHARACTER_WIDTH + 1)
    figure = create_figure(title, width, ROW_HEIGHT * n_rows + 1.4, align)
    return figure, figure.subplots()


def draw_text_table(
    axis: Axes,
    layers: Sequence[int | str],
    columns: Sequence[Column],
    cells: Sequence[Sequence[str]],
    colours: Float[np.ndarray, "layer column rgba=4"] | None = None,
    *,
    fontsize: int = SMALL_SIZE,
    headings: Literal["top", "bottom"] = "top",
) -> None:
    """A row of texts for each source layer, the first at the bottom, as the residual stream flows upwards."""
    edges = np.cumsum([0, *(column.characters for column in columns)])
    if colours is not None:
        axis.pcolormesh(edges, np.arange(len(layers) + 1) - 0.5, colours)
    # Text at the left of a column keeps a distance of one character from its edge.
    places = [
        left + 1 if column.align == "left" else (left + right) / 2
        for column, left, right in zip(columns, edges, edges[1:], strict=False)
    ]
    fonts = choose_fonts(text for texts in cells for text in texts)
    for row, texts in enumerate(cells):
        for slot, (column, place, text) in enumerate(zip(columns, places, texts, strict=True)):
            axis.text(
                place,
                row,
                fonts.fit(text, column.characters, fontsize),
                ha=column.align,
                va="center",
                fontsize=fontsize,
                color="black" if colours is None else choose_ink(colours[row, slot]),
                # The layout has nothing to learn from hundreds of texts inside the axes, and takes its time over them.
                in_layout=False,
            )
    axis.set(xlim=(0, edges[-1]), ylim=(-0.5, len(layers) - 0.5), ylabel="Source layer ℓ")
    headings_shown = [column.heading for column in columns]
    axis.set_xticks(places, headings_shown, fontsize=SMALL_SIZE + 1)
    for tick, column in zip(axis.xaxis.get_major_ticks(), columns, strict=True):
        for label in (tick.label1, tick.label2):
            label.set_horizontalalignment(column.align)
    names = [layer if isinstance(layer, str) else name_layer(layer) for layer in layers]
    axis.set_yticks(range(len(layers)), names, fontsize=SMALL_SIZE + 1)
    if headings == "top":
        axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def plot_said_by_pair(
    title: Sequence[str],
    texts: Sequence[Sequence[str]],
    solved: Sequence[Sequence[int]],
    layers: list[int],
    target_layers: list[int],
) -> tuple[Figure, Axes]:
    """A table of what the model says at each (ℓ, ℓ*), the answers marked, under the lines of a title."""
    fontsize = 7
    columns = [Column(name_layer(layer), 24) for layer in target_layers]
    figure, axis = create_table_figure("\n".join(title), columns, len(layers) + 2, fontsize=fontsize, align="left")
    cells = [[text.strip() for text in of_layer] for of_layer in texts]
    colours = matplotlib.colormaps["Blues"](np.array(solved) / 2)
    draw_text_table(axis, layers, columns, cells, colours, fontsize=fontsize, headings="bottom")
    return figure, axis


def draw_layer_table(
    axis: Axes,
    table: Float[np.ndarray, "layer target_layer"],
    layers: list[int],
    target_layers: list[int],
    *,
    colormap: str,
    high: float,
) -> None:
    """A heat map over source and target layers with its values, which go from 0 to `high`."""
    colours = matplotlib.colormaps[colormap](table / max(high, 1e-9))
    cells = [[f"{value:.2f}" if high <= 1 else f"{value:.1f}" for value in values] for values in table]
    names = map(name_layer, target_layers)
    columns = [Column(name, characters=max(5, len(name) + 1)) for name in names]
    draw_text_table(axis, layers, columns, cells, colours, fontsize=7, headings="bottom")
    axis.set_xlabel("Target layer ℓ*")


def choose_ink(colour: Float[np.ndarray, "rgba=4"]) -> Literal["black", "white"]:
    """The colour of text that is readable on a cell of this colour."""
    red, green, blue, _ = colour
    return "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
