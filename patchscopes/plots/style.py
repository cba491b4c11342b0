"""What the figures share: names and colours, making and saving a figure, curves with intervals, tables."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from patchscopes.errors import PatchscopesWarning
from patchscopes.model.layer_names import EMBEDDING, name_layer
from patchscopes.plots.fonts import choose_fonts, write_as_given
from patchscopes.results import Json, write_atomically

BLUE, ORANGE, GREEN, PURPLE, GREY, BLACK = "#1f6fb4", "#d95f02", "#1b9e5a", "#8e44ad", "#7f7f7f", "#404040"
MAGENTA = "#d81b73"
LIGHT_BLUE, LIGHT_ORANGE, LIGHT_PURPLE, LIGHT_GREY = "#9cc4e4", "#f5b58a", "#b388c9", "#b0b0b0"


@dataclass(frozen=True)
class CurveStyle:
    """How a curve looks, and its name in the legend."""

    label: str
    colour: str
    line: str = "-"
    marker: str = "o"
    marker_size: int = 3


METHOD_STYLES = {
    "logit_lens": CurveStyle("Logit Lens", GREY),
    "tuned_lens": CurveStyle("Tuned Lens (least squares)", GREEN),
    "tuned_lens_kl": CurveStyle("Tuned Lens (KL)", GREEN, "--"),
    "jacobian_lens": CurveStyle("Jacobian Lens", MAGENTA),
    "future_lens": CurveStyle("Future Lens", PURPLE),
    "token_identity": CurveStyle("Token identity", BLUE),
    "simplescope": CurveStyle("Simplescope", ORANGE, "--"),
    "best_prompt": CurveStyle("Best prompt", BLACK),
    "linear": CurveStyle("Future Lens: linear", GREEN),
    "fixed_prompt": CurveStyle("Future Lens: fixed prompt", LIGHT_PURPLE),
    "learned_prompt": CurveStyle("Future Lens: learned prompt", PURPLE),
    "patchscope": CurveStyle("Patchscope", BLUE),
    "probe": CurveStyle("Probe", ORANGE),
    "probe_by_sample": CurveStyle("Probe, folds by sample (leak)", LIGHT_ORANGE, "--"),
    "lre": CurveStyle("LRE", PURPLE),
    "lre_patchscope": CurveStyle("LRE via Patchscope", PURPLE, "", "x", 7),
}
METRIC_LABELS = {
    "precision_at_1": "Precision@1",
    "precision_at_5": "Precision@5",
    "precision_at_10": "Precision@10",
    "surprisal": "Surprisal (nats)",
    "rank": "Rank of the model's token",
    "rougeL_f1_of_description": "ROUGE-L (F1)",
    "rouge1_f1_of_description": "ROUGE-1 (F1)",
}

TITLE_SIZE, SMALL_SIZE = 10, 8
# Inches, beside titles.
MARGIN = 0.1
TITLE_CHARACTERS_PER_INCH = 13
# Of each line of a title that has to be wrapped.
MOST_TITLE_LINES = 8
# How many signs without a font are named.
N_NAMED_SIGNS = 5
# Of an axis of layers, as wide as the name of its first one.
EMBEDDING_LABEL_SHARE = 0.13


class NotebookFigure(Figure):
    """A figure that a notebook shows as the value of a cell, without pyplot, and that draws texts as they are written.

    Whatever stands in prompts, names and what models say is no formula, and has fonts as far as the machine has them.
    """

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure; a warning says which signs no font holds, the first time."""
        missing = sorted(write_as_given(self))
        if missing:
            named = ", ".join(f"U+{ord(sign):04X}" for sign in missing[:N_NAMED_SIGNS])
            more = f" and {len(missing) - N_NAMED_SIGNS} more" if len(missing) > N_NAMED_SIGNS else ""
            warnings.warn(
                f"no font of this machine holds {named}{more}, so the figure has such code points in the place of the "
                "signs; install a font that holds them (Noto Sans CJK or Noto Emoji, for instance) and draw it again",
                PatchscopesWarning,
                stacklevel=2,
            )
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return render_png(self, dpi=100)


def create_figure(title: str, width: float, height: float, align: Literal["center", "left"] = "center") -> Figure:
    """An empty figure, its size in inches, under a title whose lines are wrapped to its width.

    A line that is longer than `MOST_TITLE_LINES` lines of the figure is cut.
    """
    figure = NotebookFigure(figsize=(width, height), layout="constrained")
    # Room around everything: the last row of a table would else look cut off.
    figure.get_layout_engine().set(w_pad=0.07, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    line_length, fonts = int(width * TITLE_CHARACTERS_PER_INCH), choose_fonts(title.split("\n"))
    points = 72 * (width - 2 * MARGIN)
    lines = [fonts.wrap(line, line_length, TITLE_SIZE, points, MOST_TITLE_LINES) for line in title.split("\n")]
    place = {"center": 0.5, "left": MARGIN / width}[align]
    figure.suptitle("\n".join(map("\n".join, lines)), x=place, ha=align, fontsize=TITLE_SIZE)
    return figure


def render_png(figure: Figure, dpi: int) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure atomically.

    Raises:
        PatchscopesError: the folder cannot be written to.
    """
    write_atomically(path, render_png(figure, dpi=150))


def name_model(document: Json) -> str:
    """The name of the model M, and which prompts were put into its chat template."""
    return f"{document['environment']['model']['id']}{describe_chat(document)}"


def describe_chat(document: Json) -> str:
    """Which prompts are chats, where some are."""
    chat = document["config"].get("chat", {})
    prompts = [symbol for symbol, side in (("S", "source"), ("T", "target")) if chat.get(side)]
    if not prompts:
        return ""
    return f" with {' and '.join(prompts)} as {'a chat' if len(prompts) == 1 else 'chats'}"


def describe_positions(document: Json) -> str:
    """Of how many positions, texts and which data the results are."""
    results = document["results"].get("next_token", document["results"])
    dataset = document["environment"]["dataset"]["name"]
    return f"{results['n_samples']} positions in {results['n_texts']} texts ({dataset})"


def label_source_layers(target_layer: str) -> str:
    """The label of an axis of source layers, with the option that said where they were patched."""
    return "Source layer ℓ (target layer ℓ* = ℓ)" if target_layer == "same" else f"Source layer ℓ (ℓ*: {target_layer})"


def tidy_axis(axis: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """The usual look: a faint grid behind what is drawn, no frame at the top and right."""
    axis.grid(alpha=0.3, axis=grid)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def draw_curve(
    axis: Axes, layers: list[int], mean: list[float], ci95: list[list[float]] | None, style: CurveStyle
) -> None:
    """A curve over layers, and its 95 % intervals as a shade where they are given (pairs of their ends)."""
    axis.plot(
        layers,
        mean,
        color=style.colour,
        linestyle=style.line,
        marker=style.marker,
        markersize=style.marker_size,
        label=style.label,
    )
    if ci95 is not None:
        low, high = np.array(ci95).T
        axis.fill_between(layers, low, high, color=style.colour, alpha=0.2, linewidth=0)
    if EMBEDDING in layers:
        label_embedding(axis, layers)
    elif isinstance(axis.xaxis.get_major_locator(), MaxNLocator):
        # Else another curve of the axis has named the embedding, and the other ticks.
        axis.locator_params(axis="x", integer=True, min_n_ticks=1)


def label_embedding(axis: Axes, layers: list[int]) -> None:
    """Name the embedding on an axis of layers; the name takes the place of a few numbers beside it."""
    last = max(layers)
    free = EMBEDDING + EMBEDDING_LABEL_SHARE * (last - EMBEDDING)
    numbers = MaxNLocator(nbins=8, integer=True, min_n_ticks=1).tick_values(0, max(0, last))
    ticks = [EMBEDDING, *(int(number) for number in numbers if free < number <= last)]
    axis.set_xticks(ticks, [name_layer(tick) for tick in ticks])


def draw_baseline(axis: Axes, value: float, style: CurveStyle) -> None:
    """A score that does not depend on layers, as a thin line across, seen also where it lies on the edge."""
    axis.axhline(
        value, color=style.colour, linestyle=style.line, linewidth=1, label=style.label, zorder=3, clip_on=False
    )


def finish_metric_axis(axis: Axes, metric: str) -> None:
    """Label, limits and look of an axis with a metric upwards, once its curves (and those of its row) are drawn."""
    axis.set_ylabel(METRIC_LABELS[metric])
    axis.set_ylim(0, 1.02 if metric.startswith("precision") else None)
    tidy_axis(axis)
