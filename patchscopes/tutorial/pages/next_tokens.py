"""Decoding next tokens: how early can a lens read what the model will say out of one hidden state?"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import streamlit as st

from patchscopes.experiments.config import NextTokenExampleConfig
from patchscopes.learned.config import N_TOKENS
from patchscopes.plots.text import show_whitespace
from patchscopes.results import Json
from patchscopes.tutorial import committed, methods, showing, work
from patchscopes.tutorial.bar import Example, offer_examples
from patchscopes.tutorial.pages import next_tokens_findings as findings
from patchscopes.tutorial.pages.next_tokens_learned import LEARNABLE, get_learned
from patchscopes.tutorial.pages.next_tokens_methods import build_methods
from patchscopes.tutorial.signs import escape
from patchscopes.tutorial.state import Choice

if TYPE_CHECKING:
    from patchscopes.model.lens_model import LensModel

PAGE = "next_tokens"
METHODS, AHEAD = f"{PAGE} methods", f"{PAGE} ahead"
EXAMPLES = (
    Example(label="a fact", source_prompt="The Eiffel Tower is in the city of", word="of"),
    Example(label="counting", source_prompt="one, two, three, four,", word="four,"),
    Example(label="a name", source_prompt="We met near Madison Square Garden", word="Square"),
    Example(label="the paper's CEO", source_prompt="Amazon's former CEO attended Oscars", word="CEO"),
)
DEFAULT_METHODS = ("logit_lens", "tuned_lens", "token_identity", "simplescope")


def draw(choice: Choice | None, model: "LensModel | None") -> None:
    """The question, the reader's own example, the methods, and the figures on many samples."""
    st.markdown(
        "Somewhere on its way through the layers a model makes up its mind what to say next. **At which layer can the "
        "next token be read out of one hidden state, and by which method?**"
    )
    offer_examples(EXAMPLES, page=PAGE)
    document = draw_example(choice, model) if choice is not None and model is not None else None
    results = document and document["results"]
    methods.draw_methods_of(
        (choice, model is None, results and showing.hash_document(results)),
        lambda: build_methods(choice, model, results),
        lambda: build_methods(None, None, None),
        page=PAGE,
    )
    draw_many_samples()


def draw_example(choice: Choice, model: "LensModel") -> Json | None:
    """Which methods and which token, and what comes of it; gives the document, if there is one."""
    from patchscopes.plots.next_token_example import plot_next_token_example
    from patchscopes.plots.style import METHOD_STYLES

    chosen = st.pills(
        "Methods",
        NextTokenExampleConfig.METHODS,
        selection_mode="multi",
        default=DEFAULT_METHODS,
        format_func=lambda method: METHOD_STYLES[method].label,
        key=METHODS,
        persist_state="session",
    )
    ahead = st.segmented_control(
        "Which of the model's next tokens, counted from i",
        range(1, N_TOKENS + 1),
        default=1,
        required=True,
        format_func=lambda number: f"i+{number}",
        key=AHEAD,
        persist_state="session",
    )
    usable, learned = choose_usable(choice, model, chosen, ahead)
    if not usable:
        st.info("Choose at least one method that can read this token.")
        return None
    document = work.run(
        f"Reading {len(choice.layers)} layers with {len(usable)} methods",
        (choice, usable, ahead),
        lambda progress: measure(choice, model, usable, ahead, learned, progress),
    )
    if document is None:
        return None
    results = document["results"]
    said = results["own"]["top_k"][0]
    st.markdown(
        f"The model itself says “{escape(said['token'])}” there ({said['probability']:.0%}). *Surprisal*: how "
        "unlikely the model finds the token that a lens names; the lower the better, and the dash-dotted line is the "
        "least there is. *Rank*: how many tokens a lens puts before the one the model says. Dotted lines are the "
        "controls: the same target prompt with nothing patched into it."
    )
    showing.show_document(
        document,
        plot_next_token_example,
        tabulate_layers(results, [METHOD_STYLES[method].label for method in usable], usable),
        PAGE,
        alt=f"Surprisal, and the rank of the model's own token, over {len(results['layers'])} layers for "
        f"{', '.join(METHOD_STYLES[method].label for method in usable)}",
    )
    return document


def choose_usable(
    choice: Choice, model: "LensModel", chosen: Sequence[str], ahead: int
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Which of the chosen methods can read the token, and what they have learned; a line says which cannot."""
    from patchscopes.plots.style import METHOD_STYLES

    # In their own order, so that the order of the reader's clicks changes nothing.
    in_order = [method for method in NextTokenExampleConfig.METHODS if method in chosen]
    able = [method for method in in_order if ahead == 1 or method in NextTokenExampleConfig.AHEAD]
    if len(able) < len(in_order):
        names = ", ".join(METHOD_STYLES[method].label for method in in_order if method not in able)
        st.caption(f"Only for the very next token, and so not drawn: {names}.")
    learned = {method: get_learned(choice.model, model, method) for method in able if method in LEARNABLE}
    missing = [method for method, lens in learned.items() if lens is None]
    if missing:
        names = ", ".join(METHOD_STYLES[method].label for method in missing)
        st.caption(f"To be learned first, and so not drawn yet: {names}.")
    usable = tuple(method for method in able if method not in missing)
    return usable, {method: lens for method, lens in learned.items() if lens is not None}


def measure(
    choice: Choice,
    model: "LensModel",
    chosen: tuple[str, ...],
    ahead: int,
    learned: dict[str, Any],
    progress: Any,
) -> Json:
    """The document of the reader's example."""
    from patchscopes.experiments import next_token_example

    config = NextTokenExampleConfig(
        source_prompt=choice.source_prompt,
        source_position=choice.source_position,
        methods=chosen,
        ahead=ahead,
        layers=choice.layers,
    )
    maps = {method: lens for method, lens in learned.items() if method != "learned_prompt"}
    return showing.build(
        "next_token_example",
        model,
        {"model": choice.model, **asdict(config)},
        lambda: next_token_example.run(
            model, config, maps=maps, soft_prompt=learned.get("learned_prompt"), progress=progress
        ),
    )


def tabulate_layers(results: Json, names: Sequence[str], chosen: Sequence[str]) -> list[dict[str, str]]:
    """The most likely token and its probability by each method: unpatched, and at each layer."""

    def say(top: Sequence[Json]) -> str:
        return f"{show_whitespace(top[0]['token'])} ({top[0]['probability']:.0%})"

    controls = results["controls"]
    alone = [say(controls[method]["top_k"]) if method in controls else "" for method in chosen]
    rows = [{"ℓ": "unpatched", **dict(zip(names, alone, strict=True))}] if controls else []
    for slot, layer in enumerate(results["layers"]):
        said = [say(results["methods"][method]["top_k"][slot]) for method in chosen]
        rows.append({"ℓ": str(layer), **dict(zip(names, said, strict=True))})
    return rows


def draw_many_samples() -> None:
    """The committed figures, with the paper's finding beside the embedded model's."""
    st.subheader("On many samples", anchor="many-samples")
    left, right = st.columns(2)
    left.markdown(f"**The paper.** {findings.PAPER_ON_FIGURE_2}")
    right.markdown(f"**The embedded model.** {findings.describe_figure_2()}")
    committed.show_figure("fig2", "How often each method names the model's next token, and how unlikely what it names.")
    committed.show_figure("future_lens", "The next three tokens, by the forms of the Future Lens and token identity.")
    committed.show_figure("lenses", "Originals (lines) and the same as Patchscopes (crosses), and how far they differ.")
