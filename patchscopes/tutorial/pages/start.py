"""The start: one plain picture of the idea, then one example in five steps."""

import html
from typing import TYPE_CHECKING, cast

import streamlit as st

from patchscopes.plots.style import BLUE, ORANGE
from patchscopes.plots.text import show_whitespace
from patchscopes.results import Json
from patchscopes.tutorial import committed, work
from patchscopes.tutorial.signs import escape
from patchscopes.tutorial.state import Choice

if TYPE_CHECKING:
    from patchscopes.model.lens_model import LensModel

EXAMPLE = "fig1_currency"
STEPS = ("S is read", "The state at (i, ℓ)", "f", "Written over i* at ℓ*", "The model goes on")
STEP, LAYER, TARGET_PROMPT, TARGET_LAYER = "step", "start ℓ", "start T", "start ℓ*"
# Where the embedded model says most of the example.
EXAMPLE_LAYER = 6
N_TOKENS = 8


def draw(choice: Choice | None, model: "LensModel | None") -> None:
    """The metaphor, and the example in five steps: live for what the reader has chosen, else as committed."""
    st.markdown(
        "A language model reads *tokens*: words or pieces of them (the first one often only marks the beginning). "
        "Each token becomes a **hidden state**, a list of a few hundred or thousand numbers that every layer, or "
        "block, "
        "rewrites. What do those numbers hold?\n\n"
        "Imagine you could stop a reader in the middle of a sentence, lift out the one thought it has at that word, "
        "and set it into the gap of another sentence: *The official currency of ▢*. Then let it read on. If it says "
        "“the yen”, the thought held Japan. That is a **Patchscope**: the model puts its own hidden state into words."
    )
    readout = read_example(choice, model)
    if readout is None:
        return
    layers = readout["layers"]
    step = draw_steps()
    if STEPS.index(step) > 0 and len(layers) > 1:
        layer = st.select_slider(
            "Layer ℓ", layers, value=EXAMPLE_LAYER if EXAMPLE_LAYER in layers else layers[0], key=LAYER
        )
    else:
        layer = st.session_state.get(LAYER, EXAMPLE_LAYER)
    layer = layer if layer in layers else layers[0]
    draw_step(step, readout, layers.index(layer))
    if step == STEPS[-1]:
        draw_all_layers(readout)


def read_example(choice: Choice | None, model: "LensModel | None") -> Json | None:
    """What each layer says: of the reader's S and i once the model is there, of the committed example before."""
    if choice is None or model is None:
        document = committed.load(EXAMPLE)
        return document["results"] if document else None
    left, right = st.columns([2, 1])
    target_prompt = left.text_input(
        "Target prompt T; the state is written over its x", "The official currency of x", key=TARGET_PROMPT
    )
    target_layer = right.slider("Target layer ℓ*", 0, max(1, model.cfg.n_layers - 1), 0, key=TARGET_LAYER)
    target_layer = min(target_layer, model.cfg.n_layers - 1)
    unpatched = work.run(
        "Reading T alone", (choice.model, target_prompt), lambda _: _read_unpatched(model, target_prompt)
    )
    if unpatched is None:
        return None
    return work.run(
        "Reading every layer",
        (choice, target_prompt, target_layer),
        lambda progress: _read(choice, model, target_prompt, target_layer, unpatched, progress),
    )


def _read_unpatched(model: "LensModel", target_prompt: str) -> Json:
    from patchscopes.engine.target import placeholder_target
    from patchscopes.experiments.layer_readout import read_unpatched

    return read_unpatched(placeholder_target(model, target_prompt, "x"), "generate", max_new_tokens=N_TOKENS)


def _read(
    choice: Choice,
    model: "LensModel",
    target_prompt: str,
    target_layer: int,
    unpatched: Json,
    progress: work.Progress,
) -> Json:
    from patchscopes.experiments.layer_readout import read_layers
    from patchscopes.patchscope import Patchscope

    patchscope = Patchscope(
        model=model,
        source_prompt=choice.source_prompt,
        source_position=choice.source_position,
        source_layers=choice.layers,
        target_prompt=target_prompt,
        target_position="x",
        target_layers=target_layer,
    )
    return read_layers(patchscope, "generate", max_new_tokens=N_TOKENS, unpatched=unpatched, progress=progress)


def draw_steps() -> str:
    """Which of the five steps is shown; buttons go back and on."""
    st.session_state.setdefault(STEP, STEPS[0])
    st.subheader("In five steps", anchor=False)
    step = cast(
        str,
        st.pills(
            "Step",
            STEPS,
            format_func=lambda name: f"{STEPS.index(name) + 1}. {escape(name)}",
            required=True,
            key=STEP,
            label_visibility="collapsed",
            persist_state="session",
        ),
    )
    number = STEPS.index(step)
    with st.container(horizontal=True):
        st.button("Back", key="back", disabled=number == 0, on_click=_go_to, args=(number - 1,))
        st.button("Next", key="next", disabled=number == len(STEPS) - 1, on_click=_go_to, args=(number + 1,))
    return step


def _go_to(number: int) -> None:
    st.session_state[STEP] = STEPS[number]


def draw_step(step: str, readout: Json, slot: int) -> None:
    """What happens in a step, with the tokens of both prompts as far as they have come."""
    number = STEPS.index(step)
    source_position, target_position = readout["source_position"], readout["target_position"]
    layer, target_layer = readout["layers"][slot], readout["target_layers"][slot]
    token = escape(readout["source_tokens"][source_position].strip())
    placeholder = escape(readout["target_tokens"][target_position].strip())
    said = readout["methods"]["token_identity"]["generations"][slot]
    unpatched = escape(readout["methods"]["unpatched"]["generation"])
    with st.container(border=True):
        texts = (
            "The model M reads the source prompt **S** token by token; every token has a state at every layer.",
            f"We stop at the token **i** = {source_position} (“{token}”), after block **ℓ** = {layer}, and copy its "
            "state: one vector.",
            "A function **f** may change the vector: a map between two models, a trained lens, a scaling. Here it is "
            "the identity: the vector stays as it is.",
            "While a model M\\* (here the same one) reads the target prompt **T**, the vector replaces the state of "
            f"the token **i\\*** = {target_position} (“{placeholder}”) after block **ℓ\\*** = {target_layer}. Nothing "
            "else is changed.",
            "From there on the model computes as ever, and goes on after T. What it says of the gap comes from the one "
            f"vector that we put in. (With nothing put in, it says: “{unpatched}”.)",
        )
        st.markdown(texts[number])
        draw_tokens("S", readout["source_tokens"], source_position if number > 0 else None, BLUE)
        if number >= 3:
            draw_tokens("T", readout["target_tokens"], target_position, ORANGE, said if number == 4 else None)


def draw_tokens(symbol: str, tokens: list[str], marked: int | None, colour: str, said: str | None = None) -> None:
    """The tokens of a prompt in a row that wraps, one of them marked, and what the model says after it."""
    box = "display:inline-block;margin:2px;padding:1px 6px;border:1px solid #8888;border-radius:6px"
    chips = [
        f'<span style="{box}{f";background:{colour};color:white;font-weight:600" if number == marked else ""}">'
        f"{html.escape(show_whitespace(token))}</span>"
        for number, token in enumerate(tokens)
    ]
    if said is not None:
        chips.append(f'<strong style="margin-left:6px">{html.escape(show_whitespace(said))}</strong>')
    st.html(f'<div style="line-height:2"><strong>{symbol}</strong> {"".join(chips)}</div>')


def draw_all_layers(readout: Json) -> None:
    """What each layer says, beneath the last step."""
    from patchscopes.tutorial.showing import show_table

    said = readout["methods"]["token_identity"]["generations"]
    st.markdown("The same for the states of all layers:")
    show_table(
        [{"ℓ": str(layer), "the model says": text} for layer, text in zip(readout["layers"], said, strict=True)],
        alt="What the model says after T, for each layer",
    )
    st.markdown(
        "In the example of Japan the model speaks of Japan or its money up to layer 23, and from 24 on of other "
        "things: there the state no longer says Japan, as the model gets ready to say the *next* word. Click another "
        "token above, or change a word of S, and see."
    )
