"""What Streamlit runs at every click: the bar, and below it the page that the reader is on."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import streamlit as st

from patchscopes.tutorial.bar import describe_choice, draw_bar
from patchscopes.tutorial.state import Choice, write_address

if TYPE_CHECKING:
    from patchscopes.model.lens_model import LensModel

# Module of `pages`, title, sign in the menu. The first one is the start.
PAGES = (
    ("start", "What is a Patchscope?", ":material/home:"),
    ("next_tokens", "Decoding next tokens", ":material/text_fields:"),
    ("attributes", "Attribute extraction", ":material/label:"),
    ("entities", "Entity resolution", ":material/person_search:"),
    ("cross_model", "Across models", ":material/compare_arrows:"),
    ("multi_hop", "Multi-hop reasoning", ":material/route:"),
    ("change_one_thing", "Change one thing", ":material/tune:"),
)
# Two answers side by side want room.
WIDE = "Change one thing"


def draw() -> None:
    """The menu, the bar, and the page that the reader is on."""
    st.set_page_config(page_title="Patchscopes", page_icon="🔍")
    drawn: list[tuple[Choice | None, LensModel | None]] = []
    pages = [
        st.Page(partial(draw_page, module, drawn.pop), title=title, icon=icon, url_path=module, default=number == 0)
        for number, (module, title, icon) in enumerate(PAGES)
    ]
    page = st.navigation(pages)
    st.set_page_config(layout="wide" if page.title == WIDE else "centered")
    st.title(page.title, anchor=False)
    # Not within the page, so that its inputs are the same ones on all pages.
    drawn.append(draw_bar())
    page.run()


def draw_page(module: str, get_drawn: "Callable[[], tuple[Choice | None, LensModel | None]]") -> None:
    """A page beneath the bar; the address then says what has been chosen."""
    choice, model = get_drawn()
    page = importlib.import_module(f"patchscopes.tutorial.pages.{module}")
    of_page = page.draw(choice, model)
    if choice is not None:
        write_address(describe_choice(choice) | (of_page or {}))
