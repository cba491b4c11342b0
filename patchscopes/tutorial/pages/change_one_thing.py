"""All nine choices as inputs, with the answer at once; and beside it the same Patchscope with some of them changed."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import streamlit as st

from patchscopes.errors import PatchscopesError
from patchscopes.model.layer_names import name_layer, parse_layers
from patchscopes.results import Json
from patchscopes.tutorial import bar, models, showing, state, work
from patchscopes.tutorial.methods import SYMBOLS
from patchscopes.tutorial.signs import escape
from patchscopes.tutorial.state import Choice

if TYPE_CHECKING:
    from patchscopes.model.lens_model import LensModel
    from patchscopes.patchscope import Patchscope

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
}


def draw(choice: Choice | None, model: "LensModel | None") -> dict[str, str]:
    """The inputs that the bar has not, the answer over the bar's layers, and a second one beside it.

    Returns:
        what of it stands in the address.
    """
    st.markdown(
        "Here every one of the nine choices is yours. What does the answer depend on? Change one thing, and see both "
        "side by side. The address of this page holds all of it: send the link, and the other reader sees the same."
    )
    _begin()
    _offer_target_prompts()
    first = _draw_inputs(SYMBOLS[4:], "")
    n_tokens = st.slider("Generated tokens", 1, MOST_TOKENS, 8, key=N_TOKENS, persist_state="session")
    changed = st.pills(
        "Change one thing (or more) in a second Patchscope",
        SYMBOLS,
        selection_mode="multi",
        format_func=escape,
        key=CHANGED,
        persist_state="session",
    )
    second = _draw_inputs([symbol for symbol in SYMBOLS if symbol in changed], SECOND)
    if choice is not None and model is not None:
        of_bar = bar.describe_choice(choice)
        sides = [of_bar | first] + ([of_bar | first | second] if changed else [])
        _draw_answers(sides, n_tokens)
    return first | {f"{SECOND}{name}": value for name, value in second.items()} | {N_TOKENS: str(n_tokens)}


def _begin() -> None:
    """What the inputs hold at first: what the address says, or the start page's example."""
    if TARGET_PROMPT in st.session_state:
        return
    names = (*SYMBOLS, FACTOR)
    given = state.read_address((*DEFAULTS, N_TOKENS, *(f"{SECOND}{name}" for name in names)))
    for name, value in (DEFAULTS | given).items():
        _set(name, value)
    st.session_state[CHANGED] = [symbol for symbol in SYMBOLS if f"{SECOND}{symbol}" in given]


def _set(name: str, value: str) -> None:
    """Put a text of the address into an input, if that can hold it."""
    kind = name.removeprefix(SECOND)
    if kind == N_TOKENS:
        if value.isdecimal() and 1 <= int(value) <= MOST_TOKENS:
            st.session_state[name] = int(value)
    elif kind == FACTOR:
        try:
            st.session_state[name] = float(value)
        except ValueError:
            st.session_state[name] = 1.0
    elif kind == MAPPING:
        st.session_state[name] = value if value in MAPPINGS else IDENTITY
    elif kind == TARGET_MODEL:
        st.session_state[name] = value if value in models.list_names() else SAME_MODEL
    elif kind == state.MODEL:
        st.session_state[name] = value if value in models.list_names() else models.list_names()[0]
    else:
        st.session_state[name] = value


def _offer_target_prompts() -> None:
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


def _draw_inputs(symbols: "tuple[str, ...] | list[str]", side: str) -> dict[str, str]:
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
                st.session_state.setdefault(f"{side}{FACTOR}", 1.0)
                factor = place.number_input(f"{title}α", key=f"{side}{FACTOR}", persist_state="session")
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


def _draw_answers(sides: list[dict[str, str]], n_tokens: int) -> None:
    """What each Patchscope says, side by side if there are two."""
    from patchscopes.plots.layer_readout import plot_layer_readout

    documents = [_read(side, n_tokens) for side in sides]
    names = ("first", "second")
    for name, document, column in zip(names, documents, st.columns(len(sides)), strict=False):
        with column:
            if document is None:
                continue
            if len(sides) > 1:
                st.subheader(f"The {name}", anchor=False)
            showing.show_document(
                document,
                plot_layer_readout,
                _tabulate(document["results"]),
                f"patchscope_{name}",
                alt=f"Most likely tokens and generation of the {name} Patchscope, for each layer",
            )
            with st.expander("The nine choices, and the same in Python", key=f"code of {name}"):
                config = document["config"]
                showing.show_table(
                    [{"": symbol, "choice": config["patchscope"][symbol]} for symbol in SYMBOLS],
                    alt="The nine choices",
                    height=None,
                )
                st.code(write_code(config), language="python", wrap_lines=True)


def _tabulate(results: Json) -> list[dict[str, str]]:
    readout, unpatched = results["methods"]["token_identity"], results["methods"]["unpatched"]
    rows = [("unpatched", unpatched["top_k"], unpatched["generation"])] + [
        (name_layer(layer), top, said)
        for layer, top, said in zip(results["layers"], readout["top_k"], readout["generations"], strict=True)
    ]
    return [
        {"ℓ": name, "most likely": f"{top[0]['token']} {top[0]['probability']:.2f}", "it says": said}
        for name, top, said in rows
    ]


def _read(side: Mapping[str, str], n_tokens: int) -> Json | None:
    """The document of one Patchscope, or None if its models are not there or it cannot be."""
    names = (side[state.MODEL], side[state.MODEL] if side[TARGET_MODEL] == SAME_MODEL else side[TARGET_MODEL])
    found = []
    for name in dict.fromkeys(names):
        try:
            found.append(models.get(name))
        except PatchscopesError as error:
            st.error(escape(str(error)))
            return None
        if found[-1] is None:
            st.caption(f"{escape(name)} is loading; the answer appears as soon as it is there.")
            bar.look_for_model(name)
            return None
    model, target_model = cast("LensModel", found[0]), cast("LensModel", found[-1])

    def read_alone() -> Json:
        from patchscopes.experiments.layer_readout import read_unpatched

        return read_unpatched(build_patchscope(side, model, target_model).target, max_new_tokens=n_tokens)

    def read() -> Json:
        from patchscopes.experiments.layer_readout import read_layers

        patchscope = build_patchscope(side, model, target_model)
        config = {
            "source_prompt": side[state.PROMPT],
            "target_prompt": side[TARGET_PROMPT],
            "target_layer": side[TARGET_LAYERS],
            "patchscope": dict(patchscope.describe()),
            "inputs": dict(side),
            "max_new_tokens": n_tokens,
        }
        return showing.build(
            "layer_readout",
            model,
            config,
            lambda: read_layers(patchscope, max_new_tokens=n_tokens, unpatched=unpatched),
        )

    of_target = (names[1], side[TARGET_PROMPT], side[TARGET_POSITION], n_tokens)
    unpatched = work.run("Reading T alone", of_target, lambda _: read_alone())
    if unpatched is None:
        return None
    return work.run("Reading every layer", (*sorted(side.items()), n_tokens), lambda _: read())


def build_patchscope(side: Mapping[str, str], model: "LensModel", target_model: "LensModel") -> "Patchscope":
    """The Patchscope of nine inputs.

    Raises:
        PatchscopesError: one of them is wrong.
    """
    from patchscopes.learned.mappings import norm_matched, scaled
    from patchscopes.patchscope import Patchscope

    mapping = {IDENTITY: None, NORM_MATCHED: norm_matched, SCALED: scaled(float(side.get(FACTOR, "1")))}
    return Patchscope(
        model=model,
        source_prompt=side[state.PROMPT],
        source_position=to_position(side[state.POSITION]),
        source_layers=parse_layers(side[state.LAYERS]),
        target_prompt=side[TARGET_PROMPT],
        target_position=to_position(side[TARGET_POSITION]),
        mapping=mapping[side[MAPPING]],
        target_model=target_model,
        target_layers=side[TARGET_LAYERS],
    )


def to_position(text: str) -> int | str:
    """A position as `Patchscope` takes it: a number, or else a word."""
    return int(text) if text.removeprefix("-").isdecimal() else text


def write_code(config: Json) -> str:
    """Python that builds and reads the same Patchscope."""
    side = config["inputs"]
    names = {NORM_MATCHED: "norm_matched", SCALED: f"scaled({side.get(FACTOR)})"}
    mapping = names.get(side[MAPPING])
    lines = [
        "from patchscopes import Patchscope, load_model",
        *(["from patchscopes.learned.mappings import norm_matched, scaled"] if mapping else []),
        "",
        "patchscope = Patchscope(",
        f"    model=load_model({side[state.MODEL]!r}),",
        f"    source_prompt={side[state.PROMPT]!r},",
        f"    source_position={to_position(side[state.POSITION])!r},",
        f"    source_layers={list(parse_layers(side[state.LAYERS]) or ())!r},",
        f"    target_prompt={side[TARGET_PROMPT]!r},",
        f"    target_position={to_position(side[TARGET_POSITION])!r},",
        *([f"    mapping={mapping},"] if mapping else []),
        *([f"    target_model=load_model({side[TARGET_MODEL]!r}),"] if side[TARGET_MODEL] != SAME_MODEL else []),
        f"    target_layers={side[TARGET_LAYERS]!r},",
        ")",
        f"for layer, words in zip(patchscope.source_layers, patchscope.generate({config['max_new_tokens']})):",
        "    print(layer, words)",
    ]
    return "\n".join(lines)
