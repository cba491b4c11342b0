"""The methods of the page on multi-hop reasoning: nine fields, findings and code of each."""

from typing import TYPE_CHECKING, Any

from patchscopes.data.questions import TwoHopQuestion
from patchscopes.model.layer_names import name_layer
from patchscopes.model.registry import EMBEDDED_MODEL
from patchscopes.results import Json
from patchscopes.tutorial import committed
from patchscopes.tutorial.methods import NONE, Fields, Method
from patchscopes.tutorial.state import Choice

if TYPE_CHECKING:
    from patchscopes.model.lens_model import LensModel

PATCHSCOPES = "Ghandeharioun et al., ICML 2024, arXiv:2401.06102, section 5"
PAPER = (
    "Vicuna 13B answers 19.57 % of such questions as they are, and 50 % where some pair (ℓ, ℓ\\*) may be chosen for "
    "each question (section 5)."
)
N_TOKENS = 8


def list_methods(
    choice: Choice | None, model: "LensModel | None", question: TwoHopQuestion, results: Json | None
) -> list[Method]:
    """The methods with what is chosen filled in, as far as there are a model and results."""
    cot = f"Let's think step by step. {question.combined_question}"
    name = choice.model if choice else EMBEDDED_MODEL
    ends = _find_ends(question, results)
    layers = results["layers"] if results else list(choice.layers) if choice else [17]
    target_layer = results["target_layers"][0] if results else 21
    control = results["control_query"] if results else "The nationality of the composer of The Magic Flute"
    at = {"source_layers": layers, "target_layers": target_layer}
    query = {"source_prompt": question.query, "source_position": ends["i"]}
    nine = {
        "vanilla": {"source_prompt": question.combined_question},
        "cot": {"source_prompt": cot},
        "patchscope": query | {"target_position": ends["i*"]} | at,
        "control": {"source_prompt": control, "target_prompt": question.query, "target_position": ends["i*"]} | at,
        "placeholder": {
            "source_prompt": question.pi1,
            "source_position": ends["i alone"],
            "target_prompt": question.ask_hop2("x"),
            "target_position": ends["x"],
        }
        | at,
    }
    fields = {method: _describe(model, arguments, results) for method, arguments in nine.items()}
    return [
        Method(
            key="vanilla",
            name="Vanilla",
            idea="The question is asked as it is, and nothing is patched. What is said here is the line that every "
            "repair has to beat.",
            original=Fields(source_prompt=question.combined_question, source_position=NONE, source_layers=NONE),
            patchscope=fields["vanilla"],
            differs=_tell_difference(results, "vanilla"),
            code=_write_asking(name, question.combined_question, N_TOKENS),
            paper="Vicuna 13B answers 19.57 % of the questions whose hops it answers one by one (section 5).",
            here=_tell("vanilla", "accuracy", "It answers {} of them."),
            source=PATCHSCOPES,
        ),
        Method(
            key="cot",
            name="Chain of thought",
            idea="The question after *Let's think step by step.*, with room to say the first answer before the second "
            "one: the prompt does what patching does inside the model.",
            original=Fields(source_prompt=cot, source_position=NONE, source_layers=NONE),
            patchscope=fields["cot"],
            differs=_tell_difference(results, "cot"),
            code=_write_asking(name, cot, 4 * N_TOKENS),
            paper="With *Let's think step by step* Vicuna 13B answers 35.71 %, between the question as it is and "
            "patching. That is called a chain of thought too, as it hands on the first answer: S = T = [π2][π1] "
            "(section 5).",
            here=_tell(
                "cot",
                "accuracy",
                "{} are answered; a wrong text often gives the first hop's answer (“Japan”) and stops there, or "
                "says it again.",
            ),
            source="Kojima et al., NeurIPS 2022, arXiv:2205.11916",
        ),
        Method(
            key="patchscope",
            name="Patchscope",
            idea="The state of the last token of π1 (“Tokyo”), which may know its answer, is written over the last "
            "token of π2 (“of”), where that answer is needed. Source and target are the same question.",
            original=None,
            patchscope=fields["patchscope"],
            differs="It has no other form. " + _tell_best(results),
            code=_write_patchscope(name, nine["patchscope"]),
            paper=PAPER,
            here=_tell("patchscope", "any", "Some pair (ℓ, ℓ\\*) answers {}.")
            + _tell("patchscope", "held_out", " One pair for all, chosen on other questions: {}."),
            source=PATCHSCOPES,
        ),
        Method(
            key="control",
            name="Control",
            idea="The same, with the state of another question's π1 that has nothing to do with the answer. With so "
            "many pairs of layers to try, some answer is found whatever is written; this tells how often.",
            original=None,
            patchscope=fields["control"],
            differs="It is a control, and has no other form. " + _tell_best(results),
            code=_write_patchscope(name, nine["control"]),
            paper="The paper reports no such control.",
            here=_tell("control", "any", "Some pair answers {},")
            + _tell("patchscope", "any", " and {} with the right state: the gain is that of many tries, ")
            + "not of what the state says.",
            source="This repository",
        ),
        Method(
            key="placeholder",
            name="Hop 1 into “… x”",
            idea="π1 is read alone, and its state is written over the x of “[π2] x is”: what was read takes the place "
            "of a word. Nothing else of π1 is in the target prompt.",
            original=None,
            patchscope=fields["placeholder"],
            differs="It has no other form. " + _tell_best(results, "placeholder"),
            code=_write_patchscope(name, nine["placeholder"]),
            paper="Not in the paper, which writes into the whole question.",
            here=_tell("placeholder", "any", "Some pair answers {}.") + _tell_repaired(),
            source="The form of an earlier reproduction",
        ),
    ]


def describe_many() -> tuple[str, str]:
    """What the paper found on many questions, and what the embedded model shows (Markdown)."""
    here = (
        _tell("vanilla", "accuracy", "Unpatched {}, ")
        + _tell("patchscope", "any", "with the best pair for each question {}; ")
        + _tell("control", "any", "but with the state of an unrelated question {} too. ")
        + _tell("patchscope", "held_out", "One pair that was chosen on other questions: {}, no gain. ")
        + "So a model of 135M parameters does not show the paper's effect."
    )
    return PAPER + " It has no control of what many tries find by chance.", here


def _find_ends(question: TwoHopQuestion, results: Json | None) -> dict[str, Any]:
    """Positions in the prompts: as numbers of the tokens where there are results, else as words."""
    if results:
        return {
            "i": results["query_source_position"],
            "i*": results["query_target_position"],
            "i alone": results["source_position"],
            "x": results["placeholder_position"],
        }
    last = question.pi1.split()[-1]
    return {"i": last, "i*": question.query[: question.pi2_end].split()[-1], "i alone": last, "x": "x"}


def _describe(model: "LensModel | None", arguments: dict[str, Any], results: Json | None) -> Fields:
    """The nine fields of a Patchscope; as texts of what is chosen while there is no model to make it of."""
    if model is not None and results is not None:
        from patchscopes.patchscope import Patchscope

        return Fields.of(Patchscope(model=model, **arguments))
    source_prompt = arguments["source_prompt"]
    return Fields(
        source_prompt=source_prompt,
        source_position=str(arguments.get("source_position", "last")),
        source_layers=", ".join(map(name_layer, arguments.get("source_layers", ()))) or "each",
        target_prompt=arguments.get("target_prompt", source_prompt),
        target_position=str(arguments.get("target_position", arguments.get("source_position", "last"))),
        mapping="identity",
        target_model="M",
        target_layers=str(arguments.get("target_layers", "same")),
    )


def _tell_difference(results: Json | None, method: str) -> str:
    if results is None:
        return "With T = S, i\\* = i and ℓ\\* = ℓ every state is written over itself, which changes nothing."
    return (
        "With T = S, i\\* = i and ℓ\\* = ℓ every state (of the last token) is written over itself: the probability "
        f"of the answer's first token changes by {results['methods'][method]['largest_difference']:.1e} at most."
    )


def _tell_best(results: Json | None, method: str = "patchscope") -> str:
    """How likely the answer becomes at the best ℓ, beside the control and the question as it is."""
    if results is None:
        return "How likely the answer becomes is measured as soon as the model is there."
    of = results["methods"]
    best = {name: max(row[0] for row in of[name]["probability"]) for name in (method, "control")}
    return (
        f"At the best of these ℓ the answer's first token gets a probability of {best[method]:.2f}; with the control's "
        f"state {best['control']:.2f}, and unpatched {of['vanilla']['probability']:.2f}."
    )


def _tell(method: str, measure: str, text: str) -> str:
    """The text with a committed share in it."""
    document = committed.load("multi_hop")
    return text.format(f"{document['results']['methods'][method][measure]['mean']:.0%}" if document else NONE)


def _tell_repaired() -> str:
    """How many failures the placeholder repairs, and how many other questions it keeps."""
    document = committed.load("multi_hop")
    if document is None:
        return ""
    asked = document["results"]["questions"]
    repaired, kept = (
        [bool(one["placeholder"]["solved"]) for one in asked if one["vanilla"]["solved"] == solved] for solved in (0, 1)
    )
    return (
        f" It repairs {sum(repaired)} of {len(repaired)} failures, but keeps only {sum(kept)} of the {len(kept)} "
        "questions that need no repair. No control was run for it."
    )


def _write_asking(name: str, prompt: str, n_tokens: int) -> str:
    lines = [
        "from patchscopes import load_model",
        "from patchscopes.patch import generate_after",
        "",
        f"model = load_model({name!r})",
        f"prompt = {prompt!r}",
        f"tokens = generate_after(model, [prompt], max_new_tokens={n_tokens})",
        "print(prompt, model.tokenizer.decode(tokens[0]))",
    ]
    return "\n".join(lines)


def _write_patchscope(name: str, arguments: dict[str, Any]) -> str:
    lines = [
        "from patchscopes import Patchscope, load_model",
        "",
        "patchscope = Patchscope(",
        f"    model=load_model({name!r}),",
        *(f"    {argument}={value!r}," for argument, value in arguments.items()),
        ")",
        f"said = patchscope.generate({N_TOKENS})",
        "for layer, text in zip(patchscope.source_layers, said):",
        "    print(layer, repr(text))",
    ]
    return "\n".join(lines)
