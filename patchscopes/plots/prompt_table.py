"""What a lens reads at every token and layer of a prompt, a page for every dozen of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm, Normalize
from matplotlib.figure import Figure

from patchscopes.plots.fonts import CHARACTER_WIDTH, Fonts, choose_fonts, measure_usual
from patchscopes.plots.style import METHOD_STYLES, SMALL_SIZE, create_figure, name_model
from patchscopes.plots.tables import Column, draw_text_table
from patchscopes.results import Json

TOKENS_PER_PAGE = 12
CELL_CHARACTERS = 12
# Inches: of a row, and of what stands above the rows of a page, and above all pages.
ROW_HEIGHT, HEADINGS_HEIGHT, TITLE_HEIGHT = 0.2, 0.55, 1.5
# Of the label beside few rows.
LABEL_HEIGHT = 1.2
# What stands in the place of a layer in the row of the model's own prediction.
OWN = "model"


@dataclass(frozen=True)
class ColorScale:
    """What the colours of cells stand for, which colours those are, and the numbers beside them."""

    label: str
    colormap: str
    ticks: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


DECADES = (1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)
# Dark is sure, or near to the model.
COLOR_SCALES = {
    "probability": ColorScale("Probability that the lens gives to its token", "Blues"),
    "rank": ColorScale("Tokens that the lens ranks before the model's own choice", "Blues_r", (0.0, *DECADES)),
    "kl": ColorScale("KL of the lens from the model's own prediction (nats)", "Blues_r", (0.0, 0.1, *DECADES)),
}


def plot_prompt_table(document: Json) -> Figure:
    """The most likely next token at each token and layer, pages of at most `TOKENS_PER_PAGE` tokens below each other.

    `results["own"]` is the model's own prediction at each position, the first row of each page. The only method of
    `results["methods"]` is the lens: tables over (layer, position).
    """
    results, color = document["results"], document["config"]["color"]
    ((lens, read),) = results["methods"].items()
    shade = make_shade(read, color)
    colours = shade.to_rgba(stack_values(results, color))
    rows = [*read["top"], results["own"]["top"]]
    fonts = choose_fonts(chain(results["tokens"], *rows))
    cells = [[fonts.fit(text, CELL_CHARACTERS, SMALL_SIZE) for text in row] for row in rows]
    headings = [
        f"{position}\n{fonts.fit(token, CELL_CHARACTERS, SMALL_SIZE)}" for position, token in iterate_tokens(results)
    ]
    columns = [
        Column(heading, count_characters([*heading.split("\n"), *said], fonts))
        for heading, said in zip(headings, zip(*cells, strict=True), strict=True)
    ]
    pages = np.array_split(np.arange(len(columns)), -(-len(columns) // TOKENS_PER_PAGE))
    widest = max(sum(columns[place].characters for place in page) for page in pages)
    figure = create_figure(
        f"{name_lens(lens)}: the most likely next token after each token, at each layer, "
        f"{name_model(document)}\n"
        "first row: the model's own prediction; above it the tokens of the prompt with their positions",
        max(7.0, widest * SMALL_SIZE * CHARACTER_WIDTH + 1),
        len(pages) * (max(LABEL_HEIGHT, ROW_HEIGHT * len(rows)) + HEADINGS_HEIGHT) + TITLE_HEIGHT,
    )
    axes = figure.subplots(len(pages), 1, squeeze=False)[:, 0]
    for axis, page in zip(axes, pages, strict=True):
        draw_text_table(
            axis,
            [*results["layers"], OWN],
            [columns[place] for place in page],
            [[row[place] for place in page] for row in cells],
            colours[:, page],
        )
        # A character is as wide on every page.
        axis.set_xlim(0, widest)
    bar = figure.colorbar(shade, ax=list(axes), location="top", label=COLOR_SCALES[color].label, aspect=50, pad=0.01)
    bar.ax.tick_params(labelsize=SMALL_SIZE)
    ticks = [tick for tick in COLOR_SCALES[color].ticks if tick <= (shade.get_clim()[1] or 0.0)]
    bar.set_ticks(ticks, labels=[f"{tick:,g}" for tick in ticks])
    return figure


def name_lens(lens: str) -> str:
    """The name of a lens as titles have it."""
    return METHOD_STYLES[lens].label if lens in METHOD_STYLES else lens


def iterate_tokens(results: Json) -> list[tuple[int, str]]:
    """The tokens of the prompt, each behind its position."""
    return list(zip(results["positions"], results["tokens"], strict=True))


def make_shade(read: Json, color: str) -> ScalarMappable:
    """The colours of what a lens has read. Ranks and divergences are spread out, so that 0 and 1, 1 and 10, 10 and 100
    look about equally different."""
    if color == "probability":
        norm = Normalize(0, 1)
    else:
        spread = (lambda values: np.log1p(20 * values), lambda spread_out: np.expm1(spread_out) / 20)
        # At least 1: a lens that is the model keeps the colours of one that is near to it.
        norm = FuncNorm(spread, 0, max(1.0, float(np.max(read[color]))))
    return ScalarMappable(norm, matplotlib.colormaps[COLOR_SCALES[color].colormap])


def stack_values(results: Json, color: str) -> Float[np.ndarray, "layer_and_own position"]:
    """What the cells are coloured by, those of the model's own prediction in the last row: it ranks its own choice
    first, and nothing lies between it and itself."""
    (read,) = results["methods"].values()
    own = results["own"]["probability"] if color == "probability" else [0.0] * len(results["tokens"])
    return np.array([*read[color], own], dtype=float)


def count_characters(lines: Sequence[str], fonts: Fonts) -> int:
    """The width of a column, in characters, with a distance of one between columns."""
    # Headings are a point larger than cells.
    points = max(fonts.measure(line, SMALL_SIZE + 1) for line in lines)
    return 1 + max(ceil(points / measure_usual(1, SMALL_SIZE)), *map(len, lines))
