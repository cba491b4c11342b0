"""Entity resolution: what a name is taken for, which states carry what is known of it, and where that is read."""

from typing import TYPE_CHECKING, cast

import streamlit as st

from patchscopes.model.registry import EMBEDDED_MODEL
from patchscopes.tutorial import committed, work
from patchscopes.tutorial.bar import Example, offer_examples
from patchscopes.tutorial.methods import draw_method, draw_methods
from patchscopes.tutorial.pages.entities_description import build_description, build_x_model
from patchscopes.tutorial.pages.entities_live import describe, knock_out, trace
from patchscopes.tutorial.pages.entities_recall import build_knockout, build_tracing
from patchscopes.tutorial.pages.entities_subject import Subject
from patchscopes.tutorial.state import Choice, read_address

if TYPE_CHECKING:
    from patchscopes.model.lens_model import LensModel
    from patchscopes.results import Json

PAGE = "entities"
EXAMPLES = (
    Example(label="Diana, Princess of Wales", source_prompt="Diana, Princess of Wales", word="Wales"),
    Example(label="Japan's capital", source_prompt="The capital of Japan is the city of", word="Japan"),
    Example(label="The Eiffel Tower", source_prompt="The Eiffel Tower is in the city of", word="Tower"),
    Example(label="The Great Barrier Reef", source_prompt="The Great Barrier Reef is off the coast of", word="Reef"),
)
# Of the second one, in the embedded model.
EXAMPLE_POSITION, EXAMPLE_DEPTH = 4, 30
DESCRIPTION, TRACING, KNOCKOUT = "Description", "Causal tracing", "Attention knockout"
LIVE = {DESCRIPTION: describe, TRACING: trace, KNOCKOUT: knock_out}
QUESTIONS = {
    DESCRIPTION: "**What does each layer take the name for?** The state of token i is described, layer by layer.",
    TRACING: "**Which states carry the answer?** The model goes on from S. Noise on the subject takes its answer away; "
    "one clean state is put back, and we look at how much of the answer returns. S should end where a fact about the "
    "subject is due.",
    KNOCKOUT: "**In which layers does the last token read the subject?** The model goes on from S, while its last "
    "token may not look at the subject in a few layers. S should end where a fact about the subject is due.",
}
# In the session, and in the address: what is shown, and the words of the name.
SHOW, NAME = "entities show", "entities name"
# The S and i that the name was found for.
NAMED = "entities named"


def draw(choice: Choice | None, model: "LensModel | None") -> dict[str, str]:
    """The page; what of it stands in the address."""
    st.markdown(
        "A name is several tokens, and none of them alone is the person or the place: the model puts them together "
        "while it reads. **When does it know who is meant, and how does what it knows get to where it is said?**"
    )
    offer_examples(EXAMPLES, page=PAGE)
    show = _draw_sections()
    subject, document = None, None
    if choice is not None and model is not None:
        subject = _draw_subject(choice, model)
        if subject is not None:
            document = LIVE[show](choice, model, subject)
    _draw_methods(show, subject or _take_example(), document)
    _draw_many_samples(show)
    return {SHOW: show} | ({NAME: subject.name} if subject is not None else {})


def _draw_sections() -> str:
    """Which of the three questions is asked."""
    if SHOW not in st.session_state:
        given = read_address((SHOW,)).get(SHOW)
        st.session_state[SHOW] = given if given in LIVE else DESCRIPTION
    show = cast(str, st.segmented_control("Question", list(LIVE), required=True, key=SHOW, persist_state="session"))
    st.markdown(QUESTIONS[show])
    return show


def _draw_subject(choice: Choice, model: "LensModel") -> Subject | None:
    """The words of the name that token i ends: found from it, and open to change; None if i is of no word."""
    named = (choice.model, choice.source_prompt, choice.source_position)
    found = work.run("Finding the name", named, lambda _: _find_name(model, choice))
    if found is None:
        return None
    if st.session_state.get(NAMED) != named:
        st.session_state[NAME] = read_address((NAME,)).get(NAME) or found
        st.session_state[NAMED] = named
    name = st.text_input(
        "The name (in tracing and knockout, the subject): words of S",
        key=NAME,
        persist_state="session",
        help="The state of its last token counts. Click another token above, or change the words.",
    )
    return Subject(choice=choice, name=name.strip() or found)


def _find_name(model: "LensModel", choice: Choice) -> str:
    from patchscopes.experiments.facts import find_name

    start, end = find_name(model, choice.source_prompt, choice.source_position)
    return choice.source_prompt[start:end]


def _take_example() -> Subject:
    """What the methods are about until the model is there."""
    example = EXAMPLES[1]
    choice = Choice(
        model=EMBEDDED_MODEL,
        source_prompt=example.source_prompt,
        source_position=EXAMPLE_POSITION,
        layers=tuple(range(EXAMPLE_DEPTH)),
    )
    return Subject(choice=choice, name=example.word)


def _draw_methods(show: str, subject: Subject, document: "Json | None") -> None:
    """The methods that answer the question that is asked."""
    if show == DESCRIPTION:
        draw_methods([build_description(subject, document), build_x_model(subject)], page=PAGE)
        return
    st.subheader("The method", anchor="methods")
    draw_method((build_tracing if show == TRACING else build_knockout)(subject, document))


def _draw_many_samples(show: str) -> None:
    """The committed figures of the question that is asked, and the one of all of them."""
    st.subheader("On many samples", anchor=False)
    if show == DESCRIPTION:
        committed.show_figure("entity", "Descriptions of 132 names against references")
        committed.show_figure("entity_diana", "One name, layer by layer")
    elif show == TRACING:
        committed.show_figure("causal_tracing", "Causal tracing of facts that the model knows")
    else:
        committed.show_figure("attention_knockout", "Attention knockout of facts that the model knows")
    with st.expander("All of them in one picture"):
        committed.show_figure(
            "entity_resolution",
            "The three questions asked of the same facts: what is known of the subject moves from its last token to "
            "the last token of the prompt within a few layers",
        )
