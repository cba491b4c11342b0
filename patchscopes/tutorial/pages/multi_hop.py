"""Multi-hop reasoning: a question of two facts, repaired by writing what was found first where it is needed."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import streamlit as st

from patchscopes.data.files import DATA_FOLDER, PLACE
from patchscopes.data.questions import CUE, TwoHopQuestion, build_question, load_questions
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import MultiHopExampleConfig
from patchscopes.model.layer_names import name_layer, thin_out
from patchscopes.results import Json
from patchscopes.tutorial import bar, committed, methods, showing, work
from patchscopes.tutorial.pages.multi_hop_methods import describe_many, list_methods
from patchscopes.tutorial.signs import escape
from patchscopes.tutorial.state import Choice

if TYPE_CHECKING:
    from patchscopes.model.lens_model import LensModel

PI2, ANSWER, CUE_INPUT, TARGET_LAYER, EVERY_LAYER = (
    "multi_hop π2",
    "multi_hop answer",
    "multi_hop cue",
    "multi_hop ℓ*",
    "multi_hop every layer",
)
# Source layers that answer within two seconds; and those of both sides of a grid.
N_LAYERS, N_GRID_LAYERS = 10, 8
# Of data/multihop_examples.json: some that the embedded model answers wrongly although it knows both facts.
EXAMPLES = {0: "currency, Tokyo", 410: "capital, origami", 113: "largest city, Canberra", 61: "language, Zagreb"}


def draw(choice: Choice | None, model: "LensModel | None") -> None:
    """One question over layers, its methods, and what 100 questions show."""
    st.markdown(
        "*The official currency of the country whose capital is Tokyo*: a model may know the country, know its "
        "currency, and still fail when both are asked in one sentence. Can it be helped by writing the state that "
        "knows the first answer over the place where the second question is asked?"
    )
    questions = read_questions()
    offer_questions(questions)
    question = draw_question(choice, questions)
    results = None
    if choice is not None and model is not None and question is not None:
        results = draw_answers(choice, model, question, questions)
    shown = question or questions[0]
    methods.draw_methods_of(
        (choice, model is None, shown, results and showing.hash_document(results)),
        lambda: list_methods(choice, model, shown, results),
        lambda: list_methods(None, None, shown, None),
        page="multi_hop",
    )
    draw_many()


@st.cache_resource(show_spinner=False)
def read_questions() -> tuple[TwoHopQuestion, ...]:
    """The questions of the experiment."""
    return load_questions(DATA_FOLDER / "multihop_examples.json")


def offer_questions(questions: Sequence[TwoHopQuestion]) -> None:
    """Buttons that put a question into the bar and the inputs."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("Try:", width="content")
        for question in questions:
            if question.id in EXAMPLES:
                label = EXAMPLES[int(question.id)]
                st.button(escape(label), key=f"multi_hop example {label}", on_click=_choose, args=(question,))


def _choose(question: TwoHopQuestion) -> None:
    bar.choose(question.pi1, question.pi1.split()[-1])
    st.session_state[PI2] = question.pi2
    st.session_state[ANSWER] = question.hop2_answer
    st.session_state[CUE_INPUT] = question.cue.strip()


def draw_question(choice: Choice | None, questions: Sequence[TwoHopQuestion]) -> TwoHopQuestion | None:
    """The inputs that make a question of S, and that question; None if there is none, or it is none."""
    for key, value in ((PI2, questions[0].pi2), (ANSWER, questions[0].hop2_answer), (CUE_INPUT, CUE.strip())):
        st.session_state.setdefault(key, value)
    left, right = st.columns([2, 1])
    pi2 = left.text_input(f"Second hop π2; S takes the place of {escape(PLACE)}", key=PI2, persist_state="session")
    answer = right.text_input("Answer", key=ANSWER, persist_state="session")
    with st.expander("The word that asks for the answer"):
        cue = st.text_input("It ends the question", key=CUE_INPUT, persist_state="session")
    if choice is None:
        return None
    question = work.run(
        "Reading the question",
        (choice.source_prompt, pi2, answer, cue),
        lambda _: make_question(choice.source_prompt, pi2, answer, cue, questions),
    )
    if question is not None:
        st.markdown(f"The question: **{escape(question.query)}** …")
        if all(question.pi1 != other.pi1 for other in questions):
            st.caption(
                "S is the first hop π1, such as “the country whose capital is Tokyo”; the buttons put one there."
            )
    return question


def make_question(
    source_prompt: str, pi2: str, answer: str, cue: str, questions: Sequence[TwoHopQuestion]
) -> TwoHopQuestion:
    """The question of these inputs, with the other words for its answer where the file has it.

    Raises:
        PatchscopesError: as `build_question`.
    """
    if not answer.strip():
        raise PatchscopesError("the answer is empty; give it in a word or two, so that it can be found in what is said")
    # Spaces at the ends would hide the word that asks.
    source_prompt, pi2 = source_prompt.rstrip(), pi2.strip()
    if PLACE not in pi2:
        pi2 = f"{pi2} {PLACE}"
    made = build_question(
        "these inputs", id=0, hop1_prompt=source_prompt, hop1_answer="", hop2_prompt=pi2, hop2_answer=answer, cue=cue
    )
    for question in questions:
        if (question.pi1, question.pi2, question.hop2_answer) == (made.pi1, made.pi2, made.hop2_answer):
            return replace(question, cue=made.cue, combined_question=made.combined_question)
    return made


def draw_answers(
    choice: Choice, model: "LensModel", question: TwoHopQuestion, questions: Sequence[TwoHopQuestion]
) -> Json | None:
    """What each method says, over ℓ and, if asked, over all pairs; gives the results over ℓ."""
    last = model.cfg.n_layers - 1
    if st.session_state.get(TARGET_LAYER, last + 1) > last:
        st.session_state[TARGET_LAYER] = round(MultiHopExampleConfig.DEPTH * last)
    left, right = st.columns([2, 1], vertical_alignment="center")
    target_layer = left.slider(
        "Target layer ℓ\\*: where the state is written", 0, max(1, last), key=TARGET_LAYER, persist_state="session"
    )
    every = right.toggle("Every layer ℓ (slower)", key=EVERY_LAYER, persist_state="session")
    layers = choice.layers if every else tuple(thin_out(choice.layers, N_LAYERS))
    config = MultiHopExampleConfig(layers=layers, target_layers=(min(target_layer, last),))
    control = draw_control(question, questions)
    if control is None:
        return None
    alone = work.run("Asking without a patch", (choice.model, question), lambda _: _ask(model, question, config))
    if alone is None:
        return None
    document = work.run(
        f"Patching {len(layers)} layers",
        (choice.model, question, choice.source_position, config),
        lambda progress: _patch(choice, model, question, control, config, alone, progress),
    )
    if document is None:
        return None
    st.markdown(tell(document["results"]))
    first = ", ".join(f"“{escape(token)}”" for token in document["results"]["first_tokens"])
    st.caption(f"The curves: how likely the first token of the answer ({first}) gets within what is said.")
    show(document, "multi_hop_example")
    grid_layers = tuple(thin_out(choice.layers, N_GRID_LAYERS))
    with_pairs = replace(config, layers=grid_layers, target_layers=tuple(thin_out(range(last + 1), N_GRID_LAYERS)))
    grid = work.run_on_request(
        f"Patch all pairs of {len(grid_layers)} layers ℓ and {len(with_pairs.target_layers or ())} layers ℓ*",
        (choice.model, question, choice.source_position, with_pairs),
        lambda progress: _patch(choice, model, question, control, with_pairs, alone, progress),
        takes="about 15 seconds",
    )
    if grid is not None:
        show(grid, "multi_hop_grid")
    results: Json = document["results"]
    return results


def draw_control(question: TwoHopQuestion, questions: Sequence[TwoHopQuestion]) -> TwoHopQuestion | None:
    """The question whose state the control writes, drawn as in the experiment."""
    from patchscopes.experiments.multi_hop import draw_unrelated

    drawn = work.run("Drawing a control", question, lambda _: (draw_unrelated(question, questions, seed=0),))
    control = drawn[0] if drawn else None
    if control is None:
        st.info("Every question of the file is about the same, so that none can be the control; give another answer.")
    else:
        st.caption(f"The control writes the state of another question: “{escape(control.query)}”.")
    return control


def _ask(model: "LensModel", question: TwoHopQuestion, config: MultiHopExampleConfig) -> Json:
    from patchscopes.experiments.multi_hop_example import ask_unpatched

    return ask_unpatched(model, question, config)


def _patch(
    choice: Choice,
    model: "LensModel",
    question: TwoHopQuestion,
    control: TwoHopQuestion,
    config: MultiHopExampleConfig,
    alone: Json,
    progress: work.Progress,
) -> Json:
    from patchscopes.experiments import multi_hop_example

    position = choice.source_position
    options = {"question": asdict(question), "control": asdict(control), "source_position": position, **asdict(config)}
    return showing.build(
        "multi_hop_example",
        model,
        {"model": choice.model} | options,
        lambda: multi_hop_example.run(
            model, question, control, config, source_position=position, unpatched=alone, progress=progress
        ),
    )


def show(document: Json, name: str) -> None:
    """Picture, table and downloads."""
    from patchscopes.plots.multi_hop_example import plot_multi_hop_example

    results = document["results"]
    showing.show_document(
        document,
        plot_multi_hop_example,
        tabulate(results),
        name,
        alt="How likely the answer becomes for each method, over layers; the table has what is said",
    )
    if len(results["target_layers"]) == 1:
        showing.show_table(tabulate_unpatched(results), alt="What is said without a patch")


def tell(results: Json) -> str:
    """What came of it, in two sentences (Markdown)."""
    of = results["methods"]
    token = escape(results["source_tokens"][results["source_position"]].strip())
    unpatched = escape(of["vanilla"]["text"].strip())
    right = "which is right" if of["vanilla"]["solved"] else "which is not the answer"
    return (
        f"Unpatched, the model says “{unpatched}”, {right}. With the state of “{token}” written in it says the answer "
        f"{_list_solved(results, 'patchscope')}; with the control's state {_list_solved(results, 'control')}."
    )


def _list_solved(results: Json, method: str) -> str:
    """At which ℓ the answer is said."""
    solved = zip(results["layers"], results["methods"][method]["solved"], strict=True)
    layers = [name_layer(layer) for layer, (of_layer,) in solved if of_layer]
    return f"at ℓ = {', '.join(layers)}" if layers else "at none of these ℓ"


def tabulate(results: Json) -> list[dict[str, str]]:
    """What is said for each ℓ (and ℓ*, where there are several); ✓ marks the answer."""
    several = len(results["target_layers"]) > 1
    columns = {"Patchscope": "patchscope", "control": "control", "hop 1 into x": "placeholder"}
    return [
        {"ℓ": name_layer(layer)}
        | ({"ℓ*": name_layer(target_layer)} if several else {})
        | {
            title: "✓ " * of["solved"][row][column] + of["text"][row][column]
            for title, of in ((title, results["methods"][method]) for title, method in columns.items())
        }
        for row, layer in enumerate(results["layers"])
        for column, target_layer in enumerate(results["target_layers"])
    ]


def tabulate_unpatched(results: Json) -> list[dict[str, str]]:
    """What is said with nothing patched."""
    names = {"vanilla": "vanilla", "cot": "chain of thought", "unpatched": "… x, unpatched"}
    return [
        {"": name, "it says": "✓ " * results["methods"][method]["solved"] + results["methods"][method]["text"]}
        for method, name in names.items()
    ]


def draw_many() -> None:
    """The committed figure: 100 questions, with the paper's finding beside the embedded model's."""
    st.subheader("On many questions", anchor="many")
    paper, here = describe_many()
    left, right = st.columns(2)
    left.markdown(f"**The paper.** {paper}")
    right.markdown(f"**The embedded model.** {here}")
    committed.show_figure(
        "multi_hop", "Questions whose two hops the model answers one by one: how many it answers in one, by method."
    )
