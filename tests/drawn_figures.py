"""What a figure shows once it is drawn: its texts with their places, and what its legends explain."""

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def draw(figure: Figure) -> list[tuple[str, Bbox]]:
    """Draw the figure; the texts that this draws, with their boxes."""
    drawn: list[tuple[str, Bbox]] = []
    draw_text = Text.draw

    def record(text: Text, renderer: Any) -> None:
        if text.get_text().strip() and text.get_visible():
            drawn.append((text.get_text(), text.get_window_extent(renderer)))
        draw_text(text, renderer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", record)
        figure.draw_without_rendering()
    return drawn


def check_texts(figure: Figure) -> list[str]:
    """Draw the figure: all texts must lie in it and none on another. Returns the texts."""
    drawn = draw(figure)
    texts = [text for text, _ in drawn]
    boxes = np.array([box.extents for _, box in drawn])
    low, high = boxes[:, :2], boxes[:, 2:]
    for text, start, end in zip(texts, low, high, strict=True):
        assert (start >= -1).all(), f"cut off at the left or bottom: {text!r}"
        assert (end <= figure.bbox.max + 1).all(), f"cut off at the right or top: {text!r}"
    shared = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])
    overlaps = np.triu((shared > 1).all(axis=-1), k=1)
    assert [(texts[one], texts[other]) for one, other in np.argwhere(overlaps)] == []
    return texts


def explained_curves(axis: Axes) -> list[str]:
    """The entries of the legend that explains the axis: its own, its figure's or that of another panel."""
    part, figure = axis.get_figure(), axis.get_figure(root=True)
    legends = [axis.get_legend(), *part.legends, *figure.legends, *(other.get_legend() for other in figure.axes)]
    legend = next(legend for legend in legends if legend is not None)
    return [text.get_text() for text in legend.get_texts()]
