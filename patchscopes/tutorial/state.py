"""What a reader has chosen in the bar that all pages share, and how it stands in the address of the page."""

from dataclasses import dataclass

import streamlit as st

# The start page's example, whose numbers are in figures/fig1_currency.json.
DEFAULT_PROMPT = "My sister moved to Japan last year"
DEFAULT_WORD = "Japan"

# In the address and in Streamlit's session: the paper's symbols.
MODEL, PROMPT, POSITION, LAYERS = "M", "S", "i", "ℓ"
MOST_DIGITS = 6
SHARED = (MODEL, PROMPT, POSITION, LAYERS)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The inputs of the bar.

    Attributes:
        model: M, by the name that the tutorial was started with.
        source_prompt: S.
        source_position: i, a token of S counted from the start (BOS included).
        layers: ℓ, one or several in a row.
    """

    model: str
    source_prompt: str
    source_position: int
    layers: tuple[int, ...]


def read_number(text: str) -> int | None:
    """A whole number from 0 on that stands in an address or an input; None for what is none, or too long for one."""
    return int(text) if text.isdecimal() and len(text) <= MOST_DIGITS else None


def read_address(names: tuple[str, ...]) -> dict[str, str]:
    """What the address says of some inputs, when the reader has just come by a link; later the inputs count."""
    return {name: st.query_params[name] for name in names if name in st.query_params and name not in st.session_state}


def write_address(values: dict[str, str]) -> None:
    """Put these inputs, and no others, into the address, so that a link to it says the same."""
    if dict(st.query_params) != values:
        st.query_params.from_dict(values)
