"""All nine choices as inputs, with the answer at once; and beside it the same Patchscope with some of them changed."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import streamlit as st

from patchscopes.errors import PatchscopesError
from patchscopes.model.layer_names import name_layer, parse_layers
from patchscopes.results import Json
from patchscopes.tutorial import bar, models, showing, state, work
from patchscopes.tutorial.methods import SYMBOLS
from patchscopes.tutorial.pages.change_one_thing_inputs import (
    CHANGED,
    FACTOR,
    IDENTITY,
    MAPPING,
    MOST_TOKENS,
    N_TOKENS,
    NORM_MATCHED,
    SAME_MODEL,
    SCALED,
    SECOND,
    TARGET_LAYERS,
    TARGET_MODEL,
    TARGET_POSITION,
    TARGET_PROMPT,
    begin,
    draw_inputs,
    offer_target_prompts,
)
from patchscopes.tutorial.signs import escape
from patchscopes.tutorial.state import Choice

if TYPE_CHECKING:
    from patchscopes.model.lens_model import LensModel
    from patchscopes.patchscope import Patchscope


def draw(choice: Choice | None, model: "LensModel | None") -> dict[str, str]:
    """The inputs that the bar has not, the answer over the bar's layers, and a second one beside it.

    Returns:
        what of it stands in the address.
    """
    st.markdown(
        "Here every one of the nine choices is yours. What does the answer depend on? Change one thing, and see both "
        "side by side. The address of this page holds all of it: send the link, and the other reader sees the same. "
        "(A model "
        "M\\* of another width needs a learned f: see “Across models”.)"
    )
    begin()
    offer_target_prompts()
    first = draw_inputs(SYMBOLS[4:], "")
    n_tokens = st.slider("Generated tokens", 1, MOST_TOKENS, key=N_TOKENS, persist_state="session")
    changed = st.pills(
        "Change one thing (or more) in a second Patchscope",
        SYMBOLS,
        selection_mode="multi",
        format_func=escape,
        key=CHANGED,
        persist_state="session",
    )
    second = draw_inputs([symbol for symbol in SYMBOLS if symbol in changed], SECOND)
    if choice is not None and model is not None:
        of_bar = bar.describe_choice(choice)
        sides = [of_bar | first] + ([of_bar | first | second] if changed else [])
        _draw_answers(sides, n_tokens)
    return first | {f"{SECOND}{name}": value for name, value in second.items()} | {N_TOKENS: str(n_tokens)}


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

    def read(progress: work.Progress) -> Json:
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
            lambda: read_layers(patchscope, max_new_tokens=n_tokens, unpatched=unpatched, progress=progress),
        )

    of_target = (names[1], side[TARGET_PROMPT], side[TARGET_POSITION], n_tokens)
    unpatched = work.run("Reading T alone", of_target, lambda _: read_alone())
    if unpatched is None:
        return None
    return work.run("Reading every layer", (*sorted(side.items()), n_tokens), read)


def build_patchscope(side: Mapping[str, str], model: "LensModel", target_model: "LensModel") -> "Patchscope":
    """The Patchscope of nine inputs.

    Raises:
        PatchscopesError: one of them is wrong.
    """
    from patchscopes.learned.mappings import RepresentationMapping, norm_matched, scaled
    from patchscopes.patchscope import Patchscope

    mapping: dict[str, RepresentationMapping | None] = {IDENTITY: None, NORM_MATCHED: norm_matched}
    if side[MAPPING] == SCALED:
        mapping[SCALED] = scaled(float(side[FACTOR]))
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
    number = state.read_number(text.removeprefix("-"))
    return text if number is None else -number if text.startswith("-") else number


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
        f"    source_layers={parse_layers(side[state.LAYERS])!r},",
        f"    target_prompt={side[TARGET_PROMPT]!r},",
        f"    target_position={to_position(side[TARGET_POSITION])!r},",
        *([f"    mapping={mapping},"] if mapping else []),
        *([f"    target_model=load_model({side[TARGET_MODEL]!r}),"] if side[TARGET_MODEL] != SAME_MODEL else []),
        f"    target_layers={side[TARGET_LAYERS]!r},",
        ")",
        f"for layer, words in zip(patchscope.resolved_source_layers, patchscope.generate({config['max_new_tokens']})):",
        "    print(layer, words)",
    ]
    return "\n".join(lines)
