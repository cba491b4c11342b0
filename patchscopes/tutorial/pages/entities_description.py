"""The methods that let a model say what it takes a name for: their choices, the paper's findings, and those here."""

from patchscopes.model.registry import SECOND_MODEL
from patchscopes.results import Json
from patchscopes.tutorial.committed import quote
from patchscopes.tutorial.methods import Fields, Method
from patchscopes.tutorial.pages.entities_subject import PATCHSCOPES, Subject, find_largest, tell_live

FEW_SHOT = "Syria: Country in the Middle East, Leonardo DiCaprio: American actor, Samsung: …, x"
SETUP = "make setup-cross-model"


def build_description(subject: Subject, document: Json | None) -> Method:
    """Entity description (section 4.3 of the paper)."""
    choice = subject.choice

    def describe(results: Json) -> str:
        groups = results["popularity"]
        known, unknown = (
            find_largest(groups[name]["methods"]["patchscope"]["rougeL_f1_of_description"]["mean"], results["layers"])
            for name in ("well_known", "little_known")
        )
        clear = groups["well_known"]["methods"]["name_in_clear"]["rougeL_f1_of_description"]["mean"][0]
        nothing = results["methods"]["unpatched"]["rougeL_f1_of_description"]["mean"][0]
        return (
            f"On {results['n_samples']} names, ROUGE-L against references is {known[0]:.2f} at best (ℓ = {known[1]}) "
            f"for well-known ones and {unknown[0]:.2f} (ℓ = {unknown[1]}) for little-known ones; in clear the "
            f"well-known ones reach {clear:.2f}, the unpatched x {nothing:.3f}. A small model describes little, and "
            "well-known names best at the first layer, where the state is little more than the last word: there is no "
            "rise over the first layers, as the paper's model has it."
        )

    def describe_diana(results: Json) -> str:
        resolved = results["methods"]["patchscope"]["resolved"]
        whole = [layer for layer, words in zip(results["layers"], resolved, strict=True) if words == results["name"]]
        if not whole:
            return ""
        return (
            f" The state makes the description of the whole name “{results['name']}” the likeliest in layers "
            f"{whole[0]} "
            f"to {whole[-1]}; what the model says agrees with that only at the first of them."
        )

    return Method(
        key="patchscope",
        name="Entity description",
        idea="The state of the name's last token is written over the x of a prompt that lists names with what they "
        "are. The model goes on with a description of x, and so says what it takes the state for.",
        original=None,
        patchscope=Fields(
            source_prompt=choice.source_prompt,
            source_position=str(choice.source_position),
            model=choice.model,
            source_layers="each",
            target_prompt=FEW_SHOT,
            target_position="x",
            mapping="identity",
            target_model="M",
            target_layers="ℓ",
        ),
        differs="No earlier method asks this, so there is no second form to compare with; the controls are the name in "
        "clear in the place of x, and the x left as it is." + tell_live(document, _compare_descriptions),
        code=f"""
from patchscopes import Patchscope, load_model
from patchscopes.prompts import build_entity_description_prompt

patchscope = Patchscope(
    model=load_model({choice.model!r}),
    source_prompt={choice.source_prompt!r},
    source_position={choice.source_position},
    source_layers={subject.layers},
    target_prompt=build_entity_description_prompt(),
    target_position="x",
)
for layer, text in zip(patchscope.resolved_source_layers, patchscope.generate(10)):
    print(layer, text)
""",
        paper="In Vicuna 13B names are resolved in the first layers: the last token of “Diana, Princess of Wales” "
        "stands for the country at first, and for the princess a few layers later (section 4.3).",
        here=quote("entity", describe) + quote("entity_diana", describe_diana, ""),
        source=PATCHSCOPES,
    )


def build_x_model(subject: Subject) -> Method:
    """The same, described by another model (section 4.4 of the paper)."""
    choice = subject.choice
    layer = choice.layers[len(choice.layers) // 2]

    def describe(results: Json) -> str:
        methods = results["entity"]["methods"]
        target_layers = dict(results["entity"]["pairs"])
        means = {name: of["rougeL_f1_of_description"]["mean"] for name, of in methods.items()}
        (other, at), (same, same_at) = (
            find_largest(means[name], results["layers"]) for name in ("cross_model", "same_model")
        )
        return (
            f"Gemma 3 270M describes the states of SmolLM2-135M worse than that does itself: ROUGE-L {other:.3f} at "
            f"best (ℓ = {at}, ℓ* = {target_layers[at]}) against {same:.3f} (ℓ = {same_at}). Of names in clear too: "
            f"{means['name_in_clear_target_model'][0]:.3f} and {means['name_in_clear_source_model'][0]:.3f}. It is "
            "another family, not a larger sister."
        )

    return Method(
        key="cross_model",
        name="X-model entity description",
        idea="Another model M* describes the state. Between two models f is an affine map, fitted on other texts where "
        f"both have read the same. The page “Across models” shows it live. It needs Gemma 3 270M: `{SETUP}`.",
        original=None,
        patchscope=Fields(
            source_prompt=choice.source_prompt,
            source_position=str(choice.source_position),
            model=choice.model,
            source_layers="each",
            target_prompt=FEW_SHOT,
            target_position="x",
            mapping="affine",
            target_model=SECOND_MODEL,
            target_layers="at the same depth",
        ),
        differs="No earlier method asks this. The controls are M's own description of the same state, and what M* says "
        "of the unpatched x.",
        code=f"""
from patchscopes import Patchscope, load_model
from patchscopes.data.texts import PASSAGES, load_texts
from patchscopes.learned.cached_fits import fit_or_load_cross_model_maps
from patchscopes.learned.mappings import MapKey
from patchscopes.prompts import build_entity_description_prompt

model, other = load_model({choice.model!r}), load_model({SECOND_MODEL!r})
layer = {layer}
target_layer = round(layer / (model.cfg.n_layers - 1) * (other.cfg.n_layers - 1))
maps = fit_or_load_cross_model_maps(model, other, load_texts(PASSAGES, "train"), [layer], [target_layer])
patchscope = Patchscope(
    model=model, source_prompt={choice.source_prompt!r}, source_position={choice.source_position},
    source_layers=layer, mapping=maps[MapKey(layer, target_layer)], target_model=other, target_layers=target_layer,
    target_prompt=build_entity_description_prompt(), target_position="x",
)
print(patchscope.generate(10))
""",
        paper="A larger model of the same family describes better: Vicuna 13B the states of Vicuna 7B, and Pythia 12B "
        "those of Pythia 6.9B, above all those of early layers (section 4.4).",
        here=quote("cross_model", describe),
        source=PATCHSCOPES,
    )


def _compare_descriptions(results: Json) -> str:
    likeness = {name: of["rougeL_f1_of_description"] for name, of in results["methods"].items()}
    best, layer = find_largest(likeness["patchscope"], results["layers"])
    if best == 0:
        return "no layer's description shares a word with that of the name in clear."
    return (
        f"the description most like that of the name in clear is that of ℓ = {layer} (ROUGE-L {best:.2f}; of the "
        f"unpatched x {likeness['unpatched'][0]:.2f})."
    )
