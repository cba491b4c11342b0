"""The inputs that all pages share: model, source prompt, position by clicking a token, layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import streamlit as st

from patchscopes.errors import PatchscopesError
from patchscopes.tutorial import models, work
from patchscopes.tutorial.signs import escape
from patchscopes.tutorial.state import (
    DEFAULT_PROMPT,
    DEFAULT_WORD,
    LAYERS,
    MODEL,
    POSITION,
    PROMPT,
    SHARED,
    Choice,
    read_address,
    read_number,
)

if TYPE_CHECKING:
    from patchscopes.model.lens_model import LensModel

# What an example asks for until the model, which knows its tokens, is there.
WORD = "word at i"
# Seconds between two looks at whether the model is there.
LOOK_EVERY = 0.4


@dataclass(frozen=True, kw_only=True)
class Example:
    """A source prompt and the word in it that is read, under a name."""

    label: str
    source_prompt: str
    word: str


def draw_bar() -> "tuple[Choice | None, LensModel | None]":
    """Draw the inputs, and give what is chosen and the model; each None while there is none, or none that is right."""
    names = models.list_names()
    _begin(names)
    with st.container(border=True, key="bar"):
        left, right = st.columns([1, 2])
        name = left.selectbox("Model M", names, key=MODEL, persist_state="session")
        prompt = right.text_input("Source prompt S", key=PROMPT, persist_state="session")
        try:
            model = models.get(name)
        except PatchscopesError as error:
            st.error(escape(str(error)))
            return None, None
        if model is None:
            st.caption("The model is loading; the inputs that depend on it appear here as soon as it is there.")
            look_for_model(name)
            return None, None
        tokens = work.run("Reading the tokens of S", (name, prompt), lambda _: _read_tokens(model, prompt))
        if tokens is None:
            return None, None
        position = _draw_tokens(name, model, prompt, tokens)
        if position is None:
            return None, None
        layers = _draw_layers(model)
    return Choice(model=name, source_prompt=prompt, source_position=position, layers=layers), model


def offer_examples(examples: Sequence[Example], *, page: str) -> None:
    """Buttons that put an example into the bar.

    Args:
        page: the name of the page, for the inputs' own names.
    """
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("Try:", width="content")
        for example in examples:
            st.button(
                escape(example.label),
                key=f"{page} example {example.label}",
                on_click=choose,
                args=(example.source_prompt, example.word),
            )


def choose(source_prompt: str, word: str) -> None:
    """Put a source prompt and the word that is read into the bar."""
    st.session_state[PROMPT], st.session_state[WORD] = source_prompt, word


@st.fragment(run_every=LOOK_EVERY)
def look_for_model(name: str) -> None:
    """Draw everything anew once the model is there, or cannot be loaded."""
    try:
        is_there = models.get(name) is not None
    except PatchscopesError:
        is_there = True
    if is_there:
        st.rerun()


def describe_choice(choice: Choice) -> dict[str, str]:
    """The choice as the address has it."""
    first, last = choice.layers[0], choice.layers[-1]
    return {
        MODEL: choice.model,
        PROMPT: choice.source_prompt,
        POSITION: str(choice.source_position),
        LAYERS: str(first) if first == last else f"{first}-{last}",
    }


def _begin(names: Sequence[str]) -> None:
    """What the inputs hold at first: what the address says, or the start page's example."""
    if PROMPT in st.session_state:
        return
    given = read_address(SHARED)
    st.session_state[MODEL] = given[MODEL] if given.get(MODEL) in names else names[0]
    st.session_state[PROMPT] = given.get(PROMPT, DEFAULT_PROMPT)
    if PROMPT not in given:
        st.session_state[WORD] = DEFAULT_WORD
    position = read_number(given.get(POSITION, ""))
    if position is not None:
        st.session_state[POSITION] = position
    first, _, last = given.get(LAYERS, "").partition("-")
    ends = read_number(first), read_number(last or first)
    if None not in ends:
        st.session_state[LAYERS] = ends


def _read_tokens(model: "LensModel", prompt: str) -> list[str]:
    from patchscopes.tokens import decode_each_token, to_token_ids

    return decode_each_token(model, to_token_ids(model, prompt))


def _draw_tokens(name: str, model: "LensModel", prompt: str, tokens: Sequence[str]) -> int | None:
    """The tokens of S, of which the reader clicks the one whose state is read."""
    word = st.session_state.get(WORD)
    if word is not None:
        found = work.run("Finding the word", (name, prompt, word), lambda _: _find_word(model, prompt, word))
        del st.session_state[WORD]
        if found is None:
            return None
        st.session_state[POSITION] = found
    # Another text or model may have fewer tokens.
    st.session_state[POSITION] = min(st.session_state.get(POSITION, len(tokens) - 1), len(tokens) - 1)
    return cast(
        int,
        st.pills(
            "Position i: click the token whose hidden state is read",
            range(len(tokens)),
            format_func=lambda number: f"{escape(tokens[number])} :small[:gray[{number}]]",
            required=True,
            key=POSITION,
            persist_state="session",
        ),
    )


def _find_word(model: "LensModel", prompt: str, word: str) -> int:
    from patchscopes.positions import find_substring_token_position

    return find_substring_token_position(model, prompt, word)


def _draw_layers(model: "LensModel") -> tuple[int, ...]:
    last = model.cfg.n_layers - 1
    first_chosen, last_chosen = st.session_state.get(LAYERS, (0, last))
    last_chosen = min(last_chosen, last)
    st.session_state[LAYERS] = (min(first_chosen, last_chosen), last_chosen)
    first_chosen, last_chosen = st.slider("Layers ℓ, from and to", 0, max(1, last), key=LAYERS, persist_state="session")
    return tuple(range(first_chosen, min(last_chosen, last) + 1))
