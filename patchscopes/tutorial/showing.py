"""A result on a page: its picture, its table over layers, and both to download."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import streamlit as st

from patchscopes.results import Json, build_document, encode_on_one_line, format_json
from patchscopes.tutorial import work
from patchscopes.tutorial.signs import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from patchscopes.model.lens_model import LensModel

# Of the pictures, which are also what is downloaded; the committed ones have as many.
DPI = 150
# Pixels of a table, whose rows scroll within it.
TABLE_HEIGHT = 420

_environments: "WeakKeyDictionary[LensModel, Json]" = WeakKeyDictionary()


def build(experiment: str, model: "LensModel", config: Json, run: Callable[[], Json]) -> Json:
    """Run an experiment, and frame its results as result files are."""
    started = time.perf_counter()
    results = run()
    seconds = {"total": time.perf_counter() - started}
    return build_document(experiment, config, _describe_environment(model), results, {"seconds": seconds})


def _describe_environment(model: "LensModel") -> Json:
    """Of one process, where code, weights and commit stay what they are, it is described once."""
    from patchscopes.model.environment import describe_environment

    if model not in _environments:
        _environments[model] = describe_environment(model)
    return _environments[model]


def show_document(
    document: Json,
    plot: Callable[[Json], "Figure"],
    table: Sequence[Mapping[str, str]],
    name: str,
    *,
    alt: str,
) -> None:
    """Picture, table and downloads of a result.

    Args:
        document: as `build_document` gives it.
        plot: of the document; the same function that draws the figure of a script.
        table: a row for each layer, from the name of a column to a text (not Markdown).
        name: of the downloads, without suffix.
        alt: says what is in the picture, for those who cannot see it.
    """
    png = work.run("Drawing the figure", (name, hash_document(document)), lambda _: render(plot, document))
    if png is not None:
        st.image(png, width="stretch", alt=alt)
    with st.expander("Table", key=f"table of {name}"):
        show_table(table, alt=alt)
    with st.container(horizontal=True):
        st.download_button(
            "JSON",
            (format_json(document) + "\n").encode(),
            f"{name}.json",
            "application/json",
            key=f"{name}.json",
            icon=":material/download:",
            on_click="ignore",
        )
        if png is not None:
            st.download_button(
                "PNG", png, f"{name}.png", "image/png", key=f"{name}.png", icon=":material/download:", on_click="ignore"
            )


def show_table(table: Sequence[Mapping[str, str]], *, alt: str, height: int | None = TABLE_HEIGHT) -> None:
    """A table of plain texts, whatever signs are in them."""
    rows = [{escape(column): escape(cell) for column, cell in row.items()} for row in table]
    height = height if height is not None and len(rows) > 10 else None
    st.table(rows, hide_index=True, height=height or "content", alt=alt)


def render(plot: Callable[[Json], "Figure"], document: Json) -> bytes:
    """The figure of a document as PNG."""
    from patchscopes.plots.style import render_png

    return render_png(plot(document), DPI)


def hash_document(document: Json) -> str:
    """A key for what is drawn from a document."""
    return hashlib.sha256(encode_on_one_line(document).encode()).hexdigest()
