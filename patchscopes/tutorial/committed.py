"""The figures and numbers that come with the repository: what pages show before any model is there."""

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import streamlit as st

import patchscopes
from patchscopes.results import Json

FIGURES = Path(patchscopes.__file__).parent.parent / "figures"
GALLERY = "figures/README.md"
NO_NUMBERS = "The committed numbers come with the repository, not with the installed package."
# Pixels, of Streamlit's content on a screen of twice the usual density.
WIDEST = 1460


@cache
def load(name: str) -> Json | None:
    """The result file of a committed figure, or None where the package came without figures."""
    path = FIGURES / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def quote(name: str, say: Callable[[Json], str], otherwise: str = NO_NUMBERS) -> str:
    """What the results of a committed figure show, in words."""
    document = load(name)
    return otherwise if document is None else f"{say(document['results'])} (figures/{name}.json)"


@cache
def read_picture(path: Path) -> bytes:
    """A PNG file, made no wider than pages show it: Streamlit would do so anew at every click."""
    from PIL import Image

    with Image.open(path) as picture:
        picture.thumbnail((WIDEST, picture.height))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
    return buffer.getvalue()


def show_figure(name: str, caption: str) -> None:
    """A committed figure with a caption (Markdown), and what it was drawn with."""
    path = FIGURES / f"{name}.png"
    if not path.is_file():
        st.info(f"The figure {name}.png comes with the repository, not with the installed package.")
        return
    st.image(read_picture(path), width="stretch", alt=f"Committed figure {name}")
    document = load(name)
    model = f", {document['environment']['model']['id']}" if document and document["environment"].get("model") else ""
    st.caption(f"{caption} (figures/{name}.png{model}; the whole story is in {GALLERY}.)")
