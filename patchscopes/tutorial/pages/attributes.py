"""Attribute extraction: a subject's attribute out of one hidden state, by every method, live and on many samples."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING

import streamlit as st

from patchscopes.data.relations import PLACE, Relation, find_relation_files, load_carriers, load_relations
from patchscopes.experiments.config import AttributeExampleConfig, AttributesConfig
from patchscopes.model.layer_names import name_layer
from patchscopes.results import Json
from patchscopes.tutorial import bar, committed, methods, showing, work
from patchscopes.tutorial.pages import attributes_methods
from patchscopes.tutorial.signs import escape
from patchscopes.tutorial.state import DEFAULT_PROMPT, DEFAULT_WORD, Choice, read_address

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from patchscopes.experiments.attribute_learning import Taught
    from patchscopes.model.lens_model import LensModel

PAGE = "attributes"
# The inputs of the page, by their names in the address.
RELATION, TARGET_LAYER, ANSWER = "relation", "relation ℓ*", "relation answer"
DEFAULT_RELATION, DEFAULT_TARGET_LAYER = "capital", "0"
EXAMPLES = (
    bar.Example(label="Japan", source_prompt=DEFAULT_PROMPT, word=DEFAULT_WORD),
    bar.Example(
        label="Canada", source_prompt="The evening lecture was mostly about the early history of Canada.", word="Canada"
    ),
    bar.Example(label="France", source_prompt="Nobody had ever travelled through France before.", word="France"),
    bar.Example(label="Egypt", source_prompt="In the second chapter the narrator leaves for Egypt.", word="Egypt"),
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of the state that the bar names.

    Attributes:
        subject: the word at i, with the tokens before it that belong to it.
        answer: the object to look for; "" for none.
        target_layer: ℓ*.
    """

    relation: Relation
    subject: str
    answer: str
    target_layer: str


def draw(choice: Choice | None, model: "LensModel | None") -> dict[str, str]:
    """The question, the live result, the methods, and what many samples show.

    Returns:
        what of the page's own inputs stands in the address.
    """
    st.markdown(
        "When a model reads “Japan”, does its hidden state hold that the capital is Tokyo before anybody asks? And who "
        "can read that out of one vector: a trained classifier, a fitted linear map, or the model itself?"
    )
    bar.offer_examples(EXAMPLES, page=PAGE)
    question, document = None, None
    relation, target_layer = draw_inputs(model)
    if choice is not None and model is not None:
        question = draw_question(choice, model, relation, target_layer)
        if question is not None:
            document = draw_result(choice, model, question)
    methods.draw_methods(attributes_methods.list_methods(choice, relation, target_layer, document), page=PAGE)
    draw_many_samples()
    values = {RELATION: relation.name, TARGET_LAYER: target_layer}
    return values if question is None else values | {ANSWER: question.answer}


@cache
def load_library_relations() -> dict[str, Relation]:
    """The relations of data/relations, by name."""
    return {relation.name: relation for relation in load_relations(find_relation_files())}


def draw_inputs(model: "LensModel | None") -> tuple[Relation, str]:
    """Which relation is asked for, and where its x is patched."""
    relations = load_library_relations()
    given = read_address((RELATION, TARGET_LAYER))
    if RELATION not in st.session_state:
        st.session_state[RELATION] = given[RELATION] if given.get(RELATION) in relations else DEFAULT_RELATION
    layers = ["same", *(str(layer) for layer in range(model.cfg.n_layers if model else 1))]
    chosen = st.session_state.get(TARGET_LAYER, given.get(TARGET_LAYER))
    if model is not None:
        st.session_state[TARGET_LAYER] = chosen if chosen in layers else DEFAULT_TARGET_LAYER
    left, right = st.columns([2, 1])
    name = left.selectbox(
        "Relation",
        list(relations),
        format_func=lambda one: f"{one.replace('_', ' ')}: {relations[one].prompt.replace(PLACE, 'x')}",
        key=RELATION,
        persist_state="session",
    )
    if model is None:
        return relations[name], chosen or DEFAULT_TARGET_LAYER
    target_layer = right.selectbox(
        "Target layer ℓ\\*",
        layers,
        format_func=lambda one: "ℓ* = ℓ" if one == "same" else one,
        key=TARGET_LAYER,
        persist_state="session",
        help="Where the state is written into T. Early layers read best: the blocks after ℓ\\* have to do the work.",
    )
    return relations[name], target_layer


def draw_question(choice: Choice, model: "LensModel", relation: Relation, target_layer: str) -> Question | None:
    """T, the subject at i, and the object that is looked for."""

    def find() -> str:
        from patchscopes.experiments.attribute_samples import find_subject_at

        return find_subject_at(model, relation, choice.source_prompt, choice.source_position)[0]

    place = (choice.model, choice.source_prompt, choice.source_position, relation.name)
    subject = work.run("Finding the subject", place, lambda _: find())
    if subject is None:
        return None
    known = {sample.subject: sample.object for sample in relation.samples}
    key = f"{ANSWER} of {relation.name} of {subject}"
    if key not in st.session_state:
        st.session_state[key] = read_address((ANSWER,)).get(ANSWER, known.get(subject, ""))
    # What a link says is said of its own subject, and not of those that come after it.
    st.session_state[ANSWER] = st.session_state[key]
    answer = st.text_input(
        f"The answer to look for: {escape(relation.fill(subject))} …", key=key, persist_state="session"
    ).strip()
    if subject not in known:
        st.caption(
            f"“{escape(subject)}” is no subject of this relation in the library's data (of a name of several tokens, "
            "click the last one). "
            + ("" if answer else "Type an answer above, or see what the model says without one.")
        )
    return Question(relation=relation, subject=subject, answer=answer, target_layer=target_layer)


def draw_result(choice: Choice, model: "LensModel", question: Question) -> Json | None:
    """The live result, and below it the button for what has to be learned first."""
    result, request = st.container(), st.container()
    with request:
        taught = learn(choice, model, question)
    with result:
        document = read(choice, model, question, taught)
        if document is None:
            return None
        results = document["results"]
        st.markdown(describe_result(results))
        showing.show_document(
            document,
            plot,
            tabulate(results),
            "attribute_example",
            alt=f"Probability of the object that each method finds in the state of {question.subject}, over layers",
        )
    return document


def plot(document: Json) -> "Figure":
    """The figure of the result."""
    from patchscopes.plots.attribute_example import plot_attribute_example

    return plot_attribute_example(document)


def learn(choice: Choice, model: "LensModel", question: Question) -> "Taught | None":
    """What the LRE and the probe learn from other subjects, once the reader has asked for it."""
    from patchscopes.experiments.attribute_learning import learn_from_others, split_relation

    relation = question.relation
    # Subjects of one half of the relation share what the other half teaches.
    _, teaching = split_relation(relation, question.subject)
    return work.run_on_request(
        "Add the probe and the LRE: learn them from other subjects",
        (choice.model, relation.name, teaching.samples[0].subject),
        lambda progress: learn_from_others(
            model, relation, question.subject, load_carriers(), AttributesConfig(), progress
        ),
        takes="about a minute",
    )


def read(choice: Choice, model: "LensModel", question: Question, taught: "Taught | None") -> Json | None:
    """The document of the live result."""
    config = AttributeExampleConfig(
        source_prompt=choice.source_prompt,
        source_position=choice.source_position,
        layers=choice.layers,
        target_layer=question.target_layer,
        answer=question.answer,
    )

    without_patch = work.run(
        "Asking without a patch",
        (choice.model, question.relation.name, question.subject, question.answer),
        lambda _: read_without_patch(model, question, config),
    )
    if without_patch is None:
        return None

    def run(progress: work.Progress) -> Json:
        from patchscopes.experiments import attribute_example

        described = {"model": choice.model, "relation": question.relation.name, **asdict(config)}
        return showing.build(
            "attribute_example",
            model,
            described,
            lambda: attribute_example.run(model, question.relation, config, taught, without_patch, progress),
        )

    key = (choice.model, question.relation.name, config, None if taught is None else taught.examples)
    return work.run("Reading every layer", key, run)


def read_without_patch(model: "LensModel", question: Question, config: AttributeExampleConfig) -> Json:
    """What the model says in clear, and with nothing patched."""
    from patchscopes.experiments.attribute_example import find_sample, read_without_patch

    sample = find_sample(question.relation, question.subject, question.answer)
    return read_without_patch(model, question.relation, sample, config.max_new_tokens)


def describe_result(results: Json) -> str:
    """What the model says in clear, unpatched, and from how many layers with the patch."""
    read = results["methods"]
    phrase, subject = escape(results["prompt"].replace(PLACE, "x")), escape(results["subject"])
    said = {method: escape(read[method]["text"]) for method in ("in_clear", "unpatched")}
    lines = [
        f"- **T** is “{phrase}”. Nothing patched, the model goes on: “{said['unpatched']}”.",
        f"- With “{subject}” written out in the place of the x: “{said['in_clear']}”.",
    ]
    patched = read["patchscope"]
    naming = [slot for slot, solved in enumerate(patched["solved"]) if solved]
    shown = naming[0] if naming else 0
    example = f"from layer {name_layer(results['layers'][shown])}, for instance, “{escape(patched['texts'][shown])}”"
    if not results["object"]:
        lines.append(f"- With the state of “{subject}” written over the x: {example}.")
        return "\n".join(lines)
    answer, other = escape(results["object"]), results["other_subject"]
    lines.append(
        f"- With the state of “{subject}” written over the x, it names “{answer}” from {len(naming)} of "
        f"{len(results['layers'])} layers: {example}."
    )
    of_other = "" if other is None else f", at most {max(patched['of_other']):.2f} with the state of “{escape(other)}”"
    lines.append(
        f"- How likely “{answer}” is after “{phrase}{results['cue']}”: at most {max(patched['probability']):.2f} with "
        f"this state; the controls: {read['unpatched']['probability']:.2f} with nothing patched{of_other}."
    )
    return "\n".join(lines)


def tabulate(results: Json) -> list[dict[str, str]]:
    """A row for each layer: what the Patchscope says, how likely the object is, what the others find most likely."""
    read = results["methods"]
    rows = []
    for slot, layer in enumerate(results["layers"]):
        row = {"ℓ": name_layer(layer), "Patchscope": mark(read["patchscope"], "texts", slot)}
        if results["object"]:
            row["p"] = f"{read['patchscope']['probability'][slot]:.2f}"
        for method, name in (("lre", "LRE"), ("probe", "Probe")):
            if method in read:
                row[name] = f"{mark(read[method], 'top', slot)} {read[method]['top_probability'][slot]:.2f}"
        rows.append(row)
    return rows


def mark(read: Json, name: str, slot: int) -> str:
    """An answer, with a tick if it is the object."""
    solved: Sequence[int] | None = read["solved"]
    return ("✓ " if solved and solved[slot] else "") + read[name][slot].strip()


def draw_many_samples() -> None:
    """What the committed runs show."""
    st.subheader("On many samples", anchor=False)
    committed.show_figure("attributes", "Every task of the paper that the embedded model knows enough of.")
    document = committed.load("attributes")
    if document is not None:
        st.markdown(attributes_methods.describe_many(document["results"]["tasks"]))
    committed.show_figure("attribute_example", "One subject, every source layer ℓ and six target layers ℓ\\*.")
    committed.show_figure(
        "attribute_lens", "The LRE at every token of a text: whatever stands there, it is asked for its capital."
    )
