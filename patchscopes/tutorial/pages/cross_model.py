"""Across models: one model reads the hidden states of another."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, cast

import streamlit as st

from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import CrossModelConfig, EntityConfig
from patchscopes.model.layer_names import name_layer, thin_out
from patchscopes.model.registry import SECOND_MODEL
from patchscopes.results import Json
from patchscopes.tutorial import bar, committed, methods, models, showing, work
from patchscopes.tutorial.pages.cross_model_methods import (
    PAPER,
    Maps,
    Pair,
    list_methods,
    tell_descriptions,
    tell_next_token,
)
from patchscopes.tutorial.signs import escape
from patchscopes.tutorial.state import Choice

if TYPE_CHECKING:
    from patchscopes.alignment import Vocabularies
    from patchscopes.learned.mappings import AffineMap, MapKey
    from patchscopes.model.lens_model import LensModel

TARGET_MODEL, PROMPT, EVERY_LAYER = "cross_model M*", "cross_model T", "cross_model every layer"
PROMPT_NAMES = {"token_identity": "Token identity", "simplescope": "Simplescope"}
EXAMPLES = (
    bar.Example(label="Eiffel Tower", source_prompt="The Eiffel Tower is in the city of Paris", word="city"),
    bar.Example(label="New York", source_prompt="Last summer we drove all the way to New York", word="New"),
    bar.Example(label="Barack Obama", source_prompt="Barack Obama", word="Obama"),
)
# Target layers that answer within two seconds: every second one that maps go to.
N_TARGET_LAYERS = 5
DESCRIPTION_TOKENS = 12
TAKES = "about two minutes on two cores; kept for next time"


def draw(choice: Choice | None, model: "LensModel | None") -> None:
    """Two models, what the second reads in a state of the first, the methods, and what 200 states show."""
    st.markdown(
        "So far a model has put its own states into words. Can **another** model do it, of another size and "
        "family, once a map f brings the first model's states to its own?"
    )
    bar.offer_examples(EXAMPLES, page="cross_model")
    pair = draw_target(choice, model)
    maps = get_maps(pair) if pair is not None and pair.target is not None else None
    results = draw_answers(pair, maps) if pair is not None and pair.target is not None else None
    methods.draw_methods_of(
        (pair and (pair.choice, pair.target_name, pair.prompt), results and showing.hash_document(results)),
        lambda: list_methods(choice, pair, maps, results),
        lambda: list_methods(choice, None, None, None),
        page="cross_model",
    )
    draw_many()


def draw_target(choice: Choice | None, model: "LensModel | None") -> Pair | None:
    """The input for M*, and how to get another model; both models as far as they are there."""
    names = models.list_names()
    if st.session_state.get(TARGET_MODEL) not in names:
        st.session_state[TARGET_MODEL] = names[-1]
    left, right = st.columns(2)
    name = left.selectbox("Target model M\\*: it reads the state", names, key=TARGET_MODEL, persist_state="session")
    prompt = right.segmented_control(
        "Target prompt T",
        list(PROMPT_NAMES),
        format_func=lambda prompt: PROMPT_NAMES[prompt],
        default="token_identity",
        required=True,
        key=PROMPT,
        persist_state="session",
    )
    if len(names) == 1:
        st.info(
            f"There is only one model here, which then reads itself. `make setup-cross-model` adds {SECOND_MODEL} "
            "(240 MB; Gemma's terms of use apply), and `make tutorial` then offers it here."
        )
    if choice is None or model is None:
        return None
    try:
        target = models.get(name)
    except PatchscopesError as error:
        st.error(escape(str(error)))
        return None
    if target is None:
        st.caption(f"{escape(name)} is loading; the answer appears as soon as it is there.")
        bar.look_for_model(name)
    return Pair(choice=choice, target_name=name, source=model, target=target, prompt=prompt)


def draw_answers(pair: Pair, maps: Maps) -> Json | None:
    """What M* reads; gives the results over (ℓ, ℓ*)."""
    target = cast("LensModel", pair.target)
    if maps is None and not pair.is_one_model:
        return None
    every = st.toggle("Every target layer ℓ\\* (slower)", key=EVERY_LAYER, persist_state="session")
    layers, target_layers = choose_layers(pair, None if every else N_TARGET_LAYERS)
    if not layers:
        available = ", ".join(map(name_layer, choose_mapped_layers(pair)[0]))
        st.info(f"Maps are fitted from the layers {available}; choose a range in the bar that has one of them.")
        return None
    config = CrossModelConfig(
        layers=layers,
        target_layers=target_layers,
        mapping="identity" if pair.is_one_model else "affine",
        entity=EntityConfig(max_new_tokens=DESCRIPTION_TOKENS),
    )
    vocabularies = work.run(
        "Comparing the vocabularies", (pair.choice.model, pair.target_name), lambda _: _compare(pair, target)
    )
    key = (pair.choice, pair.target_name, config)
    document = work.run(
        f"Reading {len(layers)} × {len(target_layers)} pairs of layers",
        (*key, pair.prompt),
        lambda progress: _read(pair, target, config, maps, vocabularies, progress),
    )
    if document is not None:
        show_next_tokens(document)
        described = work.run_on_request(
            "Ask both models what the state stands for",
            key,
            lambda progress: _describe(pair, target, config, maps, progress),
            takes="about ten seconds",
        )
        if described is not None:
            show_descriptions(described)
    return document and cast(Json, document["results"])


def choose_mapped_layers(pair: Pair) -> tuple[list[int], list[int]]:
    """The layers ℓ and ℓ* that there are maps for: those of the experiment, so that its maps are of use here."""
    from patchscopes.experiments.model_pair import resolve_layer_grid

    return resolve_layer_grid(pair.source, cast("LensModel", pair.target), CrossModelConfig())


def choose_layers(pair: Pair, n_target_layers: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The layers ℓ and ℓ* that are read, of those in the bar."""
    sources, targets = choose_mapped_layers(pair)
    if pair.is_one_model:
        layers = tuple(thin_out(pair.choice.layers, CrossModelConfig.N_SOURCE_LAYERS))
    else:
        layers = tuple(layer for layer in sources if layer in pair.choice.layers)
    return layers, tuple(thin_out(targets, n_target_layers or len(targets)))


def get_maps(pair: Pair) -> "dict[MapKey, AffineMap] | None":
    """f for each pair of layers: from the cache folder if it is there, else fitted when the reader asks for it."""
    if pair.is_one_model:
        return None
    key = (pair.choice.model, pair.target_name)
    found = work.run("Looking for maps between the models", key, lambda _: (_load_maps(pair),))
    if found is None or found[0] is not None:
        return found and found[0]
    st.markdown("f is learned: a linear map for each pair of layers, from texts that both models read. Once is enough.")
    return work.run_on_request(
        f"Fit the maps from {pair.choice.model} to {pair.target_name}", key, partial(_fit_maps, pair), takes=TAKES
    )


def _load_maps(pair: Pair) -> "dict[MapKey, AffineMap] | None":
    from patchscopes.learned.cached_fits import load_if_learned

    return load_if_learned(partial(_fit_maps, pair))


def _fit_maps(pair: Pair, progress: work.Progress) -> "dict[MapKey, AffineMap]":
    from patchscopes.data.texts import load_texts
    from patchscopes.learned.cached_fits import fit_or_load_cross_model_maps

    target = cast("LensModel", pair.target)
    texts = load_texts(split="train")
    return fit_or_load_cross_model_maps(pair.source, target, texts, *choose_mapped_layers(pair), progress=progress)


def _compare(pair: Pair, target: "LensModel") -> "Vocabularies":
    from patchscopes.alignment import Vocabularies

    return Vocabularies.of(pair.source, target)


def _read(
    pair: Pair,
    target: "LensModel",
    config: CrossModelConfig,
    maps: Maps,
    vocabularies: "Vocabularies | None",
    progress: work.Progress,
) -> Json:
    from patchscopes.experiments import cross_model_example

    run = partial(
        cross_model_example.run, prompts=[pair.prompt], maps=maps, vocabularies=vocabularies, progress=progress
    )
    return _frame(pair, target, config, run)


def _describe(pair: Pair, target: "LensModel", config: CrossModelConfig, maps: Maps, progress: work.Progress) -> Json:
    from patchscopes.experiments import cross_model_example

    return _frame(pair, target, config, partial(cross_model_example.describe, maps=maps, progress=progress))


def _frame(pair: Pair, target: "LensModel", config: CrossModelConfig, run: Callable[..., Json]) -> Json:
    """The document of what an experiment gives for S and i."""
    from patchscopes.model.environment import describe_model

    place = pair.choice.source_prompt, pair.choice.source_position
    options = asdict(config) | {"source_model": pair.choice.model, "target_model": pair.target_name}
    options |= {"source_prompt": place[0], "source_position": place[1]}
    document = showing.build(
        "cross_model_example", pair.source, options, lambda: run(pair.source, target, *place, config)
    )
    return document | {"environment": document["environment"] | {"target_model": describe_model(target)}}


def show_next_tokens(document: Json) -> None:
    """Picture and table over (ℓ, ℓ*), with what the controls say."""
    from patchscopes.plots.cross_model_example import plot_cross_model_example

    results = document["results"]
    st.markdown(
        f"The first model itself goes on with **{escape(results['next_token'])}** "
        f"({results['next_token_probability']:.0%})."
    )
    showing.show_document(
        document,
        plot_cross_model_example,
        tabulate(results),
        "cross_model_example",
        alt="What the second model says for each pair of layers, and how much that surprises the first one",
    )
    showing.show_table(tabulate_controls(results), alt="What is said without the state")


def tabulate(results: Json) -> list[dict[str, str]]:
    """What M* says for each ℓ, a column for each ℓ*; ✓ marks what M says too."""
    (prompt,) = (prompt for prompt in PROMPT_NAMES if prompt in results["methods"])
    said = results["methods"][prompt]
    return [
        {"ℓ": name_layer(layer)}
        | {
            f"ℓ* = {name_layer(target_layer)}": _mark(said["token"][row][column], said["precision_at_1"][row][column])
            for column, target_layer in enumerate(results["target_layers"])
        }
        for row, layer in enumerate(results["layers"])
    ]


def tabulate_controls(results: Json) -> list[dict[str, str]]:
    """What is said without the state, and by M of itself."""
    of = results["methods"]
    rows = {f"{PROMPT_NAMES[prompt]}, unpatched": of[f"{prompt}_unpatched"] for prompt in PROMPT_NAMES if prompt in of}
    if of["target_model_alone"] is not None:
        rows["M* reads S itself"] = of["target_model_alone"]
    shown = [
        {"": name, "it says": f"{_mark(said['token'], said['precision_at_1'])} ({said['probability']:.0%})"}
        for name, said in rows.items()
    ]
    itself = of["same_model"]
    right = [name_layer(layer) for layer, same in zip(results["layers"], itself["precision_at_1"], strict=True) if same]
    return [*shown, {"": "M reads itself (ℓ* = ℓ)", "it says": f"✓ at ℓ = {', '.join(right)}" if right else "never ✓"}]


def _mark(token: str, same: float) -> str:
    return f"✓ {token}" if same else token


def show_descriptions(document: Json) -> None:
    """What both models say the state stands for."""
    from patchscopes.plots.cross_model_example import plot_cross_model_descriptions

    results = document["results"]
    said = results["methods"]
    rows: Sequence[dict[str, str]] = [
        {"ℓ": name_layer(layer), "M says": own, "M* says": other}
        for layer, own, other in zip(
            results["layers"], said["same_model"]["description"], said["cross_model"]["description"], strict=True
        )
    ]
    showing.show_document(
        document,
        plot_cross_model_descriptions,
        rows,
        "cross_model_descriptions",
        alt="What both models say that the state stands for, for each layer",
    )


def draw_many() -> None:
    """The committed figure: 200 states, and 100 names."""
    st.subheader("On many samples", anchor="many")
    left, right = st.columns(2)
    left.markdown(f"**The paper.** {PAPER}")
    right.markdown(f"**The embedded model.** {tell_next_token()} {tell_descriptions()}")
    committed.show_figure(
        "cross_model", "How often Gemma 3 270M names SmolLM2's next token from one of its states, for each (ℓ, ℓ\\*)."
    )
