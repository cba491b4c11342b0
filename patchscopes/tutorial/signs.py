"""Texts of users and models in places where Streamlit reads Markdown."""

import re

from patchscopes.plots.text import show_whitespace

# Each may mean something in Markdown, or begin a directive of Streamlit such as :red[…] or :smile:.
_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$:&^=])")


def escape(text: str) -> str:
    """The text as it stands, in one line: no sign of it is Markdown, and spaces at its ends can be seen."""
    return _SPECIAL.sub(r"\\\1", show_whitespace(text))
