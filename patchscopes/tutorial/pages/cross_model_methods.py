"""The methods of the page on reading across models: nine fields, findings and code of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from patchscopes.model.registry import EMBEDDED_MODEL, SECOND_MODEL
from patchscopes.prompts import (
    DESCRIPTION_PLACEHOLDER,
    NEXT_TOKEN_PROMPTS,
    PLACEHOLDER,
    build_entity_description_prompt,
)
from patchscopes.results import Json
from patchscopes.tutorial import committed
from patchscopes.tutorial.methods import NONE, Fields, Method
from patchscopes.tutorial.state import Choice

if TYPE_CHECKING:
    from patchscopes.learned.mappings import AffineMap, MapKey
    from patchscopes.model.lens_model import LensModel

# f for each pair (ℓ, ℓ*); None for the identity.
Maps: TypeAlias = "Mapping[MapKey, AffineMap] | None"
PATCHSCOPES = "Ghandeharioun et al., ICML 2024, arXiv:2401.06102, section 4.4"
PAPER = (
    "It works between models of one family (Vicuna 7B and 13B, Pythia 6.9B and 12B), and the larger one describes the "
    "states of the smaller one better than that does itself (section 4.4)."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """What is read and who reads it.

    Attributes:
        choice: of the bar.
        target_name: of M*, as the tutorial was started.
        source, target: the models; the target None while it loads.
        prompt: one of `NEXT_TOKEN_PROMPTS`.
    """

    choice: Choice
    target_name: str
    source: "LensModel"
    target: "LensModel | None"
    prompt: str

    @property
    def is_one_model(self) -> bool:
        """Whether the model reads itself."""
        return self.choice.model == self.target_name


def list_methods(choice: Choice | None, pair: Pair | None, maps: Maps, results: Json | None) -> list[Method]:
    """The methods with what is chosen filled in, as far as there are models and results."""
    prompt = NEXT_TOKEN_PROMPTS[pair.prompt if pair else "token_identity"]
    there = dict(results["pairs"]) if results else {}
    description = build_entity_description_prompt()
    return [
        Method(
            key="cross_model",
            name="Next token",
            idea="The state goes through f and over the placeholder of a prompt that M\\* reads. What M\\* says next "
            "is compared with what M itself would have said.",
            original=None,
            patchscope=_describe(pair, maps, prompt, PLACEHOLDER, there),
            differs="It is a Patchscope and has no other form. " + _tell_best(results),
            code=_write_code(pair, maps, prompt, PLACEHOLDER, there, "top_k(1)"),
            paper="It works between models of one family: Vicuna 7B and 13B, Pythia 6.9B and 12B (section 4.4).",
            here=tell_next_token(),
            source=PATCHSCOPES,
        ),
        Method(
            key="cross_model_description",
            name="What the state stands for",
            idea="The same with the entity-description prompt: M\\* says in its own words who or what the state of a "
            "name is about.",
            original=None,
            patchscope=_describe(pair, maps, description, DESCRIPTION_PLACEHOLDER, there),
            differs="It is a Patchscope and has no other form. The button above asks both models.",
            code=_write_code(pair, maps, description, DESCRIPTION_PLACEHOLDER, there, "generate(12)"),
            paper="The larger model of a family describes the states of the smaller one better than that does itself "
            "(section 4.4).",
            here=tell_descriptions(),
            source=PATCHSCOPES,
        ),
        Method(
            key="target_model_alone",
            name="Control: M* reads the text",
            idea="M\\* reads S itself, up to where M has read at i, with nothing patched: how often do two models say "
            "the same anyway?",
            original=Fields(
                source_prompt=choice.source_prompt if choice else "as chosen",
                source_position=NONE,
                model=pair.target_name if pair else "M*",
                source_layers=NONE,
            ),
            patchscope=None,
            differs="Nothing is patched, so there is no such form: it is what the Patchscope is measured against. "
            + _tell_alone(results),
            code=_write_asking(pair),
            paper="Not reported in the paper.",
            here=_tell_how_often_alike(),
            source="This repository",
        ),
    ]


def _describe(pair: Pair | None, maps: Maps, prompt: str, placeholder: str, there: Mapping[int, int]) -> Fields:
    """The nine fields: those of the Patchscope itself once both models and f are there."""
    if pair is None or pair.target is None or not there:
        return Fields(
            target_prompt=prompt,
            target_position=placeholder,
            mapping="affine",
            target_model="as chosen",
            target_layers="at the same relative depth",
        )
    from patchscopes.learned.mappings import LayerMapping
    from patchscopes.patchscope import Patchscope

    f = None if maps is None else LayerMapping.between(pair.source, pair.target, maps, there)
    return Fields.of(
        Patchscope(
            model=pair.source, target_model=pair.target, mapping=f, **_list_choices(pair, prompt, placeholder, there)
        )
    )


def _list_choices(pair: Pair, prompt: str, placeholder: str, there: Mapping[int, int]) -> dict[str, Any]:
    return {
        "source_prompt": pair.choice.source_prompt,
        "source_position": pair.choice.source_position,
        "source_layers": list(there),
        "target_prompt": prompt,
        "target_position": placeholder,
        "target_layers": list(there.values()),
    }


def _write_code(
    pair: Pair | None, maps: Maps, prompt: str, placeholder: str, there: Mapping[int, int], read: str
) -> str:
    """Python that reads the same Patchscope; with the pair of models of the committed figure while there is none."""
    if pair is None or not there:
        names = (EMBEDDED_MODEL, SECOND_MODEL)
        there = {23: 13, 26: 15, 29: 17}
        choices: dict[str, Any] = {"source_prompt": "The Eiffel Tower is in the city of", "source_position": -1}
        choices |= {"source_layers": list(there), "target_prompt": prompt, "target_position": placeholder}
        choices |= {"target_layers": list(there.values())}
    else:
        names = (pair.choice.model, pair.target_name)
        choices = _list_choices(pair, prompt, placeholder, there)
    given = [f"    {argument}={value!r}," for argument, value in choices.items()]
    end = [")", f"for layer, said in zip(patchscope.source_layers, patchscope.{read}):", "    print(layer, said)"]
    if names[0] == names[1]:
        begin = ["from patchscopes import Patchscope, load_model", "", "patchscope = Patchscope("]
        return "\n".join([*begin, f"    model=load_model({names[0]!r}),", *given, *end])
    # All that there are maps for: those of the page and of `make cross-model` are then used again.
    fitted = [sorted({key[side] for key in maps}) for side in (0, 1)] if maps else [list(there), list(there.values())]
    layers = ", ".join(map(str, fitted))
    return "\n".join(
        [
            "from patchscopes import Patchscope, load_model",
            "from patchscopes.data.texts import load_texts",
            "from patchscopes.learned.cached_fits import fit_or_load_cross_model_maps",
            "from patchscopes.learned.mappings import LayerMapping",
            "",
            f"source, target = load_model({names[0]!r}), load_model({names[1]!r})",
            f"maps = fit_or_load_cross_model_maps(source, target, load_texts(split='train'), {layers})",
            f"f = LayerMapping.between(source, target, maps, {dict(there)})",
            "patchscope = Patchscope(",
            "    model=source, target_model=target, mapping=f,",
            *given,
            *end,
        ]
    )


def _write_asking(pair: Pair | None) -> str:
    """Python that lets M* read the text up to i."""
    name, prompt = (pair.target_name, pair.choice.source_prompt) if pair else (EMBEDDED_MODEL, "The Eiffel Tower is in")
    source = pair.choice.model if pair else name
    position = pair.choice.source_position if pair else 5
    lines = [
        "from patchscopes import load_model",
        "from patchscopes.alignment import align_positions",
        "",
        f"source, target = load_model({source!r}), load_model({name!r})",
        f"prompt, position = {prompt!r}, {position}",
        "# The token of M* that ends where i does, if there is one.",
        "seen = dict(align_positions(source, target, prompt)).get(position)",
        "logits = None if seen is None else target(target.to_tokens(prompt))[0, seen]",
        "print(seen if seen is None else repr(target.tokenizer.decode([int(logits.argmax())])))",
    ]
    return "\n".join(lines)


def _tell_best(results: Json | None) -> str:
    """How often M* says what M says, over the pairs of layers, and with nothing patched."""
    if results is None:
        return "How often both say the same is measured as soon as there are both models and f."
    prompt = next(prompt for prompt in NEXT_TOKEN_PROMPTS if prompt in results["methods"])
    of = results["methods"]
    right = [same for row in of[prompt]["precision_at_1"] for same in row]
    alone = "does too" if of[f"{prompt}_unpatched"]["precision_at_1"] else "does not"
    return (
        f"At {sum(map(int, right))} of these {len(right)} pairs of layers M\\* says what M says; unpatched it {alone}."
    )


def _tell_alone(results: Json | None) -> str:
    alone = results["methods"]["target_model_alone"] if results else None
    if alone is None:
        return ""
    return "Here it says the same." if alone["precision_at_1"] else "Here it says something else."


def tell_next_token() -> str:
    """The best pair of layers of the committed figure, beside M* that reads the whole text."""
    document = committed.load("cross_model")
    if document is None:
        return NONE
    of = document["results"]["next_token"]["methods"]
    best = max(share for row in of["token_identity"]["precision_at_1"]["mean"] for share in row)
    alone = of["target_model_alone"]["precision_at_1"]["mean"]
    return (
        f"Gemma 3 270M names SmolLM2's next token in {best:.1%} at the best of all pairs of layers, from one state; "
        "when "
        f"it reads the whole text itself, in {alone:.1%}. Written in before block 8 little comes through."
    )


def tell_descriptions() -> str:
    """The best ROUGE-L of both models in the committed figure."""
    document = committed.load("cross_model")
    if document is None:
        return NONE
    of = document["results"]["entity"]["methods"]
    own, other = (max(of[name]["rougeL_f1_of_description"]["mean"]) for name in ("same_model", "cross_model"))
    return (
        f"The other way round: SmolLM2 describes its own states better (ROUGE-L up to {own:.2f}) than Gemma, of "
        f"another family, does (up to {other:.2f})."
    )


def _tell_how_often_alike() -> str:
    document = committed.load("cross_model")
    if document is None:
        return NONE
    next_token = document["results"]["next_token"]
    share = next_token["methods"]["target_model_alone"]["precision_at_1"]["mean"]
    return f"Of {next_token['n_samples']} positions both models say the same next token anyway in {share:.0%}."
