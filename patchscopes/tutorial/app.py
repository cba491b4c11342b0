"""What Streamlit runs at every click: the bar, and below it the page that the reader is on."""

import importlib
from functools import partial

import streamlit as st

from patchscopes.tutorial.bar import describe_choice, draw_bar
from patchscopes.tutorial.state import write_address

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


def draw_page(module: str) -> None:
    """The bar and a page; the address then says what has been chosen."""
    page = importlib.import_module(f"patchscopes.tutorial.pages.{module}")
    # Two answers side by side want room.
    st.set_page_config(layout="wide" if module == "change_one_thing" else "centered")
    st.title({name: title for name, title, _ in PAGES}[module], anchor=False)
    choice, model = draw_bar()
    of_page = page.draw(choice, model)
    if choice is not None:
        write_address(describe_choice(choice) | (of_page or {}))


def draw() -> None:
    """The menu, and the page that the reader is on."""
    st.set_page_config(page_title="Patchscopes", page_icon="🔍")
    pages = [
        st.Page(partial(draw_page, module), title=title, icon=icon, url_path=module, default=number == 0)
        for number, (module, title, icon) in enumerate(PAGES)
    ]
    st.navigation(pages).run()
