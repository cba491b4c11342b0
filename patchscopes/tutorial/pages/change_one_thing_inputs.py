"""The inputs of the free page: those of the nine choices that the bar has not, and the changed ones of a second
Patchscope."""

import math
from collections.abc import Sequence

import streamlit as st

from patchscopes.tutorial import models, state
from patchscopes.tutorial.methods import SYMBOLS

# The inputs of the page, by their names in the address; those of the second Patchscope begin with another letter.
TARGET_PROMPT, TARGET_POSITION, MAPPING, TARGET_MODEL, TARGET_LAYERS = SYMBOLS[4:]
SECOND = "B"
FACTOR, N_TOKENS, CHANGED = "α", "n", "changed"
IDENTITY, NORM_MATCHED, SCALED = MAPPINGS = ("identity", "norm_matched", "scaled")
SAME_MODEL = "the same as M"
MOST_TOKENS = 20

# Inputs at first: the start page's example.
DEFAULTS = {
    TARGET_PROMPT: "The official currency of x",
    TARGET_POSITION: "x",
    MAPPING: IDENTITY,
    FACTOR: "1.0",
    TARGET_MODEL: SAME_MODEL,
    TARGET_LAYERS: "0",
    N_TOKENS: "8",
}


def begin() -> None:
    """What the inputs hold at first: what the address says, or the start page's example."""
    if TARGET_PROMPT in st.session_state:
        return
    names = (*SYMBOLS, FACTOR)
    given = state.read_address((*DEFAULTS, *(f"{SECOND}{name}" for name in names)))
    for name, value in (DEFAULTS | given).items():
        _set(name, value)
    st.session_state[CHANGED] = [symbol for symbol in SYMBOLS if f"{SECOND}{symbol}" in given]


def _set(name: str, value: str) -> None:
    """Put a text of the address into an input, if that can hold it."""
    kind = name.removeprefix(SECOND)
    if kind == N_TOKENS:
        number = state.read_number(value) or 0
        st.session_state[name] = number if 1 <= number <= MOST_TOKENS else int(DEFAULTS[N_TOKENS])
    elif kind == FACTOR:
        try:
            factor = float(value)
        except ValueError:
            factor = math.nan
        st.session_state[name] = factor if math.isfinite(factor) else float(DEFAULTS[FACTOR])
    elif kind == MAPPING:
        st.session_state[name] = value if value in MAPPINGS else IDENTITY
    elif kind == TARGET_MODEL:
        st.session_state[name] = value if value in models.list_names() else SAME_MODEL
    elif kind == state.MODEL:
        st.session_state[name] = value if value in models.list_names() else models.list_names()[0]
    else:
        st.session_state[name] = value


def offer_target_prompts() -> None:
    """Buttons that put a known target prompt into the inputs, with the placeholder and layer that go with it."""
    from patchscopes.prompts import (
        DESCRIPTION_PLACEHOLDER,
        PLACEHOLDER,
        SIMPLESCOPE_PROMPT,
        build_entity_description_prompt,
        build_token_identity_prompt,
    )

    known = {
        "Token identity": (build_token_identity_prompt(), PLACEHOLDER, "same"),
        "Simplescope": (SIMPLESCOPE_PROMPT, PLACEHOLDER, "same"),
        "Entity description": (build_entity_description_prompt(), DESCRIPTION_PLACEHOLDER, "same"),
        "Currency": (DEFAULTS[TARGET_PROMPT], DEFAULTS[TARGET_POSITION], DEFAULTS[TARGET_LAYERS]),
    }
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("Target prompts:", width="content")
        for label, values in known.items():
            st.button(label, key=f"use {label}", on_click=_use_target_prompt, args=values)


def _use_target_prompt(target_prompt: str, placeholder: str, target_layer: str) -> None:
    st.session_state[TARGET_PROMPT] = target_prompt
    st.session_state[TARGET_POSITION] = placeholder
    st.session_state[TARGET_LAYERS] = target_layer


def draw_inputs(symbols: Sequence[str], side: str) -> dict[str, str]:
    """Inputs for some of the nine choices, two in a row; what they hold, as the address has it."""
    values: dict[str, str] = {}
    title = "Second Patchscope: " if side else ""
    places = iter([column for _ in range((len(symbols) + 1) // 2) for column in st.columns(2)])
    for symbol in symbols:
        key = f"{side}{symbol}"
        label = f"{title}{_LABELS[symbol]}"
        place = next(places)
        if side and key not in st.session_state:
            # It begins as the first one.
            _set(key, str(st.session_state.get(symbol, DEFAULTS.get(symbol, ""))))
            if symbol == state.LAYERS:
                first, last = st.session_state.get(symbol, (0, 0))
                st.session_state[key] = f"{first}-{last}"
        if symbol in (state.PROMPT, TARGET_PROMPT):
            values[symbol] = place.text_area(label, key=key, height=100, persist_state="session")
        elif symbol == MAPPING:
            values[symbol] = place.selectbox(label, MAPPINGS, key=key, persist_state="session")
            if values[symbol] == SCALED:
                st.session_state.setdefault(f"{side}{FACTOR}", st.session_state.get(FACTOR, 1.0))
                factor = place.number_input(f"{title}α", format="%g", key=f"{side}{FACTOR}", persist_state="session")
                values[FACTOR] = str(factor)
        elif symbol == TARGET_MODEL:
            names = (SAME_MODEL, *models.list_names())
            values[symbol] = place.selectbox(label, names, key=key, persist_state="session")
        elif symbol == state.MODEL:
            values[symbol] = place.selectbox(label, models.list_names(), key=key, persist_state="session")
        else:
            values[symbol] = place.text_input(label, key=key, persist_state="session")
    return values


_LABELS = {
    "S": "S, source prompt",
    "i": "i, position in S (a number, or a word)",
    "M": "M, model that reads S",
    "ℓ": "ℓ, layers (6, or 0-29)",
    "T": "T, target prompt",
    "i*": "i\\*, position in T (a number, or a word)",
    "f": "f, of the vector",
    "M*": "M\\*, model that reads T",
    "ℓ*": "ℓ\\*: same, last, embedding, or a number",
}
