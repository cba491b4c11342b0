"""The methods of the page on attribute extraction: what each is, in nine fields and in Python, and what it shows."""

from collections.abc import Mapping
from statistics import mean

from patchscopes.data.relations import PLACE, Relation
from patchscopes.results import Json
from patchscopes.tutorial import committed
from patchscopes.tutorial.methods import Fields, Method
from patchscopes.tutorial.signs import escape
from patchscopes.tutorial.state import DEFAULT_PROMPT, DEFAULT_WORD, Choice

PATCHSCOPES = "Ghandeharioun et al., ICML 2024, arXiv:2401.06102, section 4.2"


def list_methods(choice: Choice | None, relation: Relation, target_layer: str, document: Json | None) -> list[Method]:
    """Feature extraction, the probe and the LRE in both forms, for what the reader has chosen.

    Args:
        choice: None while the model loads: then for the default prompt.
        document: the live result, if there is one.
    """
    committed_document = committed.load("attributes")
    tasks = None if committed_document is None else committed_document["results"]["tasks"]
    return [
        build_patchscope(choice, relation, target_layer, tasks),
        build_probe(choice, relation, document, tasks),
        build_lre(choice, relation, document, tasks),
    ]


def build_patchscope(choice: Choice | None, relation: Relation, target_layer: str, tasks: Json | None) -> Method:
    """The paper's own method."""
    phrase = relation.prompt.replace(PLACE, "x")
    return Method(
        key="patchscope",
        name="Feature extraction",
        idea="Ask the model itself. The target prompt is a phrase that asks for the attribute, with an x where the "
        "subject would stand; the state is written over that x, and the model goes on. Nothing is trained, and any "
        "attribute that can be put into words can be asked for.",
        original=None,
        patchscope=Fields(
            **describe_source(choice),
            target_prompt=phrase,
            target_position="x",
            mapping="identity",
            target_model="M",
            target_layers="ℓ" if target_layer == "same" else target_layer,
        ),
        differs="This is a Patchscope from the start: there is no older form to compare it with. The probability in "
        f"the figure is read after “{escape(phrase + relation.cue)}”, where the next token is the answer.",
        code=f"""
            from patchscopes import Patchscope, load_model

            patchscope = Patchscope(
                {write_source(choice, 16)}
                target_prompt={phrase!r},
                target_position="x",
                target_layers={target_layer!r},
            )
            for layer, text in zip(patchscope.resolved_source_layers, patchscope.generate(8)):
                print(layer, text)
        """,
        paper="On 12 tasks, without any training, it beats a trained probe significantly in six, and is on a par with "
        "it in all but one of the others (section 4.2).",
        here=committed.NO_NUMBERS if tasks is None else describe_patchscope(tasks),
        source=PATCHSCOPES,
    )


def build_probe(choice: Choice | None, relation: Relation, document: Json | None, tasks: Json | None) -> Method:
    """The trained baseline."""
    live = find_live(document, "probe")
    note = ""
    if live is not None and live.get("share") == 0:
        note = (
            f" Here the {live['n_subjects']} subjects that it was trained on have {live['n_objects']} different "
            "answers, and this one is not among them: **no probe can name it**, whatever the state holds."
        )
    return Method(
        key="probe",
        name="Probe",
        idea="Train a linear classifier (logistic regression) on the states of many subjects whose answers are known, "
        "one for each layer, and let it sort the new state into one of the answers that it has seen.",
        original=Fields(**describe_source(choice), mapping="logistic regression over answers"),
        patchscope=None,
        differs="A probe is no Patchscope: nothing is written into a model. What the state *means* is decided by the "
        "classifier and the answers that it was trained on, not by the model that goes on computing." + note,
        code=f"""
            from patchscopes import Patchscope, load_model
            from patchscopes.data.relations import RELATIONS_FOLDER, load_carriers, load_relations
            from patchscopes.experiments.attribute_learning import learn_from_others
            from patchscopes.experiments.config import AttributesConfig

            (relation,) = load_relations([RELATIONS_FOLDER / "{relation.name}.json"])
            read = Patchscope(
                {write_source(choice, 16)}
            )
            subject = {find_subject(relation, document)!r}
            taught = learn_from_others(read.model, relation, subject, load_carriers(), AttributesConfig())
            slots = [taught.layers.index(layer) for layer in read.resolved_source_layers]
            for slot, shares in zip(slots, taught.probes(read.vectors.numpy(), slots)):
                print(taught.layers[slot], taught.probes.objects[shares.argmax()], shares.max())
        """,
        paper="The probe is the baseline: it needs training data, and loses to the Patchscope in half of the tasks, "
        "though "
        "it has seen other sentences about the same subject (section 4.2).",
        here=committed.NO_NUMBERS if tasks is None else describe_probe(tasks),
        source=f"As in {PATCHSCOPES}; folds by subject are this library's control",
    )


def build_lre(choice: Choice | None, relation: Relation, document: Json | None, tasks: Json | None) -> Method:
    """The linear relational embedding, in both forms."""
    live = find_live(document, "lre_patchscope")
    measured = "Add it above to see the difference on your own example."
    if live is not None and document is not None:
        n_layers = len(document["results"]["layers"])
        measured = (
            f"On your example, over {n_layers} layers, the logits of the two differ by at most "
            f"{live['largest_difference']:.1g}."
        )
    if tasks is not None:
        both = [task["methods"]["lre_patchscope"] for task in tasks.values() if "lre_patchscope" in task["methods"]]
        measured += (
            f" On the samples of the figure below, in {len(both)} tasks, by at most "
            f"{max(one['largest_logit_difference'] for one in both):.1g}."
        )
    return Method(
        key="lre",
        name="LRE Attribute Lens",
        idea="From a few subjects, estimate the relation as one affine map from the subject's state to the state in "
        "which the model is about to say the answer (W is the mean Jacobian), and unembed what it gives. As a "
        "Patchscope the same map is f, and what it gives is written into the last layer.",
        original=Fields(**describe_source(choice), mapping="β W h + b, then unembedding"),
        patchscope=Fields(
            **describe_source(choice),
            target_prompt="S",
            target_position="i",
            mapping="β W h + b",
            target_model="M",
            target_layers="last",
        ),
        differs=measured,
        code=f"""
            from patchscopes import Patchscope, load_model
            from patchscopes.data.relations import RELATIONS_FOLDER, load_carriers, load_relations
            from patchscopes.experiments.attribute_learning import learn_from_others
            from patchscopes.experiments.config import AttributesConfig

            model = load_model({find_model(choice)!r})
            (relation,) = load_relations([RELATIONS_FOLDER / "{relation.name}.json"])
            subject = {find_subject(relation, document)!r}
            taught = learn_from_others(model, relation, subject, load_carriers(), AttributesConfig())
            patchscope = Patchscope(
                {write_source(choice, 16, "model")}
                mapping=taught.lre.mapping(model),
                target_layers="last",
            )
            for layer, (best,) in zip(patchscope.resolved_source_layers, patchscope.top_k(1)):
                print(layer, best)
        """,
        paper="In GPT-J the map finds the answer of most subjects (over 60 %) in 48 % of 47 relations, up to some "
        "middle layer, and later no more (Hernandez et al., ICLR 2024).",
        here=committed.NO_NUMBERS if tasks is None else describe_lre(tasks),
        source="Hernandez et al., ICLR 2024, arXiv:2308.09124; as a Patchscope in Table 4 of the paper",
    )


def describe_source(choice: Choice | None) -> dict[str, str]:
    """S, i, M and ℓ for `Fields`."""
    if choice is None:
        return {"source_prompt": DEFAULT_PROMPT, "source_position": DEFAULT_WORD}
    first, last = choice.layers[0], choice.layers[-1]
    return {
        "source_prompt": choice.source_prompt,
        "source_position": f"token {choice.source_position}",
        "model": choice.model,
        "source_layers": str(first) if first == last else f"{first}–{last}",
    }


def write_source(choice: Choice | None, indent: int, model: str | None = None) -> str:
    """S, i, M and ℓ as arguments of a Patchscope, one on a line."""
    arguments = {
        "model": model or f"load_model({find_model(choice)!r})",
        "source_prompt": repr(DEFAULT_PROMPT if choice is None else choice.source_prompt),
        "source_position": repr(DEFAULT_WORD if choice is None else choice.source_position),
    }
    if choice is not None:
        arguments["source_layers"] = f"range({choice.layers[0]}, {choice.layers[-1] + 1})"
    return f"\n{' ' * indent}".join(f"{name}={value}," for name, value in arguments.items())


def find_model(choice: Choice | None) -> str:
    """M, by name."""
    from patchscopes.tutorial.models import list_names

    return list_names()[0] if choice is None else choice.model


def find_subject(relation: Relation, document: Json | None) -> str:
    """The subject of the live result, else of the default prompt."""
    return DEFAULT_WORD if document is None else document["results"]["subject"]


def find_live(document: Json | None, method: str) -> Json | None:
    """What a method has read in the live result; None if it has not."""
    return None if document is None else document["results"]["methods"].get(method)


def average(tasks: Mapping[str, Json], method: str, measure: str) -> float:
    """The mean of a measure over the tasks that have it."""
    return mean(
        task["methods"][method][measure]["mean"]
        for task in tasks.values()
        if measure in task["methods"].get(method, {})
    )


def describe_patchscope(tasks: Mapping[str, Json]) -> str:
    """How often the Patchscope names the object, and its controls."""
    said, others, unrelated = (
        average(tasks, "patchscope", measure) for measure in ("any", "control_any", "control_unrelated_any")
    )
    return (
        f"Over {len(tasks)} tasks the answer is said in {said:.0%} (by some ℓ\\* of 4, mean over ℓ). *Another "
        f"subject's* answer stands in the same words in {others:.1%}, and the state of an unrelated word makes the "
        f"model say the answer in {unrelated:.1%}."
    )


def compare_with(method: str, tasks: Mapping[str, Json]) -> tuple[int, int, int]:
    """In how many tasks the Patchscope is ahead of a method; by more than chance over subjects; and behind by that."""
    differences = [task["patchscope_against"][method]["difference"] for task in tasks.values()]
    return (
        sum(one["mean"] > 0 for one in differences),
        sum(one["ci95"][0] > 0 for one in differences),
        sum(one["ci95"][1] < 0 for one in differences),
    )


def describe_probe(tasks: Mapping[str, Json]) -> str:
    """The probe with folds by subject, and with the leak."""
    apart, leaking = (average(tasks, method, "mean_accuracy") for method in ("probe", "probe_by_sample"))
    return (
        f"Trained without any sentence about the subject, it is right in {apart:.0%}. With sentences about one subject "
        f"on both sides, in {leaking:.0%}: then it recognises the subject, which is a leak and no knowledge of the "
        "attribute."
    )


def describe_lre(tasks: Mapping[str, Json]) -> str:
    """How often the LRE's token begins the object, beside the Patchscope on the same tasks."""
    read = {name: task["methods"] for name, task in tasks.items() if "lre" in task["methods"]}
    ahead = sum(one["lre"]["mean_faithfulness"]["mean"] > one["patchscope"]["any"]["mean"] for one in read.values())
    faithful = average({name: tasks[name] for name in read}, "lre", "mean_faithfulness")
    return (
        f"In {len(read)} tasks the token that it reads begins the answer in {faithful:.0%} (mean over ℓ), more often "
        f"than the Patchscope says the answer in {ahead} of them (a milder test: only the first token counts). In the "
        "last layers it reads the same for all subjects."
    )


def describe_many(tasks: Mapping[str, Json]) -> str:
    """The paper's claim beside what is found here."""
    ahead, clearly, behind = compare_with("probe", tasks)
    *_, behind_leak = compare_with("probe_by_sample", tasks)
    beaten = sum(
        task["methods"]["most_frequent"]["accuracy"]["mean"] > task["methods"]["patchscope"]["any"]["mean"]
        for task in tasks.values()
    )
    probe, patchscope = average(tasks, "probe", "mean_accuracy"), average(tasks, "patchscope", "any")
    unknown = sum(task["methods"]["probe"]["mean_accuracy"]["mean"] == 0 for task in tasks.values())
    return (
        "**The paper** finds the Patchscope significantly better than a trained probe in six of 12 tasks, half of "
        "them, and on a par with it in all but one of the others, on larger models (section 4.2).\n\n"
        "**The embedded model** is only partly like that. Done as in the paper, with sentences dealt out one by one, "
        f"the probe has seen the subject, and the Patchscope is clearly behind in {behind_leak} of {len(tasks)} tasks. "
        f"With a probe that never sees the subject it is ahead in {ahead}, in {clearly} by more than chance ({unknown} "
        f"of all are tasks in which that probe gets nothing right), and clearly behind in {behind}; on average the "
        f"probe is right in {probe:.0%}, the Patchscope in {patchscope:.0%}. And the task's most frequent answer, for "
        f"which no state is needed, beats it in {beaten}, mostly where one answer fits most subjects."
    )
