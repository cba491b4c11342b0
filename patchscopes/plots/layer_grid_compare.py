"""Two runs of layer grids side by side, over relative depth."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.plots.fonts import fit_lines
from patchscopes.plots.style import (
    BLUE,
    LIGHT_BLUE,
    LIGHT_ORANGE,
    ORANGE,
    SMALL_SIZE,
    TITLE_SIZE,
    CurveStyle,
    create_figure,
    draw_curve,
    tidy_axis,
)
from patchscopes.plots.text import shorten
from patchscopes.results import Json

LETTERS = ("A", "B")
COLOURS = ((BLUE, LIGHT_BLUE), (ORANGE, LIGHT_ORANGE))


def plot_layer_grid_compare(compared: Json) -> Figure:
    """A row for each grid that both runs have: success by ℓ and by ℓ* of both, beside their controls."""
    grids = compared["grids"]
    figure = create_figure(name_figure(compared), width=12.0, height=3.4 * len(grids) + 1.2)
    parts = figure.subfigures(len(grids), 1, squeeze=False)[:, 0]
    n_layers = [run["summary"]["n_layers"] for run in compared["runs"]]
    for part, grid in zip(parts, grids, strict=True):
        part.suptitle(name_grid(grid), fontsize=TITLE_SIZE)
        axes = part.subplots(1, 2, sharey=True)
        for axis, by, label in zip(axes, ("layer", "target_layer"), ("ℓ", "ℓ*"), strict=True):
            draw_runs(axis, grid["of"], n_layers, by)
            axis.set_xlabel(f"{label} in % of the depth")
        axes[0].set_ylim(0, max(0.1, axes[0].get_ylim()[1]))
        axes[0].set_ylabel("Share strong")
        axes[1].legend(frameon=False, fontsize=SMALL_SIZE)
    return figure


def name_figure(compared: Json) -> str:
    """The title: which runs, and what was set differently."""
    runs = [
        f"{letter}: {run['model']}, {run['summary']['mode']}, {run['time'][:16].replace('T', ' ')}"
        for letter, run in zip(LETTERS, compared["runs"], strict=True)
    ]
    differences = ", ".join(option for option in compared["differences"]) or "nothing"
    return "\n".join([*runs, f"set differently: {shorten(differences, 120)}; shaded: 95 % intervals over names"])


def name_grid(grid: Json) -> str:
    """The success of both, and the difference over the names of both."""
    shares = " and ".join(
        f"{letter} {of['success']['strong']['mean']:.2f} ({_count(of['names'], 'names')}, "
        f"{_count(of['templates'], 'templates')})"
        for letter, of in zip(LETTERS, grid["of"], strict=True)
    )
    difference = grid["difference"]
    if difference is None:
        return f"{grid['stage']}: strong: {shares}; no name of both"
    ends = "" if difference["ci95"] is None else " [{:.2f}, {:.2f}]".format(*difference["ci95"])
    over = _count(grid["names"], "names")
    return f"{grid['stage']}: strong: {shares}\nB - A over {over}: {difference['mean']:+.2f}{ends}"


def draw_runs(axis: Axes, grids: list[Json], n_layers: list[int], by: str) -> None:
    """The share that is strong of both runs, and by another name's state."""
    for letter, grid, depth, (colour, pale) in zip(LETTERS, grids, n_layers, COLOURS, strict=True):
        percent = [round(100 * layer / max(1, depth - 1)) for layer in grid[f"{by}s"]]
        view = grid[f"by_{by}"]
        draw_curve(axis, percent, view["strong"]["mean"], view["strong"]["ci95"], CurveStyle(letter, colour))
        if view["other_state"] is not None:
            other = CurveStyle(f"{letter}, another name's state", pale, "--")
            draw_curve(axis, percent, view["other_state"]["mean"], None, other)
    axis.set_xlim(-3, 103)
    tidy_axis(axis)


def _count(labels: list[str], what: str) -> str:
    """The one label, or how many there are."""
    return f"“{fit_lines(labels, 40, TITLE_SIZE)[0]}”" if len(labels) == 1 else f"{len(labels)} {what}"
