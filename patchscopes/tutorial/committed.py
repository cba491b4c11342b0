"""The figures and numbers that come with the repository: what pages show before any model is there."""

import json
from functools import cache
from pathlib import Path

import streamlit as st

import patchscopes
from patchscopes.results import Json

FIGURES = Path(patchscopes.__file__).parent.parent / "figures"
GALLERY = "figures/README.md"


@cache
def load(name: str) -> Json | None:
    """The result file of a committed figure, or None where the package came without figures."""
    path = FIGURES / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def show_figure(name: str, caption: str) -> None:
    """A committed figure with a caption (Markdown), and what it was drawn with."""
    path = FIGURES / f"{name}.png"
    if not path.is_file():
        st.info(f"The figure {name}.png comes with the repository, not with the installed package.")
        return
    st.image(str(path), width="stretch", alt=f"Committed figure {name}")
    document = load(name)
    model = f", {document['environment']['model']['id']}" if document and document["environment"].get("model") else ""
    st.caption(f"{caption} (figures/{name}.png{model}; the whole story is in {GALLERY}.)")
