"""What the page on entity resolution computes: one name described, traced and knocked out, for the reader's S and i."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import streamlit as st

from patchscopes.experiments.config import AttentionKnockoutConfig, EntityConfig, TracingExampleConfig
from patchscopes.plots.text import format_significant
from patchscopes.results import Json
from patchscopes.tutorial import showing, work
from patchscopes.tutorial.pages.entities_subject import Subject
from patchscopes.tutorial.state import Choice

if TYPE_CHECKING:
    from patchscopes.experiments.chunks import Progress
    from patchscopes.model.lens_model import LensModel

# Options that are offered, and the ones that are quick and taken at first.
N_TOKENS, NOISES, N_SAMPLES, WINDOWS = (5, 10, 20), (1, 2, 3, 5), (3, 10), (1, 3, 5, 9)
TOKENS_AT_FIRST, NOISE_AT_FIRST, WINDOW_AT_FIRST = 10, 3, 5
TOKEN_NAMES = {"last_subject": "last of the subject", "last": "last of S", "control": "control"}


def describe(choice: Choice, model: "LensModel", subject: Subject) -> Json | None:
    """The state at (i, ℓ) in the model's own words, at each layer."""
    from patchscopes.experiments import entity_example
    from patchscopes.plots.entity_example import plot_entity_example

    n_tokens = _choose("Tokens to generate", N_TOKENS, TOKENS_AT_FIRST, "entities tokens")
    config = EntityConfig(layers=choice.layers, max_new_tokens=n_tokens)

    def run(progress: "Progress") -> Json:
        return entity_example.run(
            model, choice.source_prompt, choice.source_position, config, name=subject.name, progress=progress
        )

    document = _compute("Describing every layer", "entity_example", model, subject, config, run)
    if document is None:
        return None
    showing.show_document(
        document,
        plot_entity_example,
        tabulate_descriptions(document["results"]),
        "entity_example",
        alt=f"How alike the description of each layer's state is to that of “{subject.name}” in clear, and what it is",
    )
    if len(subject.name.split()) > 1:
        resolve_endings(model, subject, config)
    return document


def resolve_endings(model: "LensModel", subject: Subject, config: EntityConfig) -> None:
    """Which words of a name of several each layer has put together; S is the name alone. Takes its time."""
    from patchscopes.experiments import entity_layers
    from patchscopes.plots.entity_layers import plot_entity_layers

    def run(progress: "Progress") -> Json:
        return entity_layers.run(model, subject.name, config, lambda _: None, progress)

    st.markdown(
        "Which words of the name has a layer put together? The model describes each ending of the name in clear too; "
        "resolved is the one whose description the state makes likeliest, beside T alone."
    )
    resolved = _compute(
        "Describing every ending of the name",
        "entity_layers",
        model,
        subject,
        config,
        run,
        takes="about 15 seconds",
    )
    if resolved is not None:
        showing.show_document(
            resolved,
            plot_entity_layers,
            tabulate_endings(resolved["results"]),
            "entity_layers",
            alt=f"Which words of “{subject.name}” each layer has resolved",
        )


def trace(choice: Choice, model: "LensModel", subject: Subject) -> Json | None:
    """How much of the answer each restored state brings back, at each layer."""
    from patchscopes.experiments import tracing_example
    from patchscopes.plots.tracing_example import plot_tracing_example

    left, right = st.columns(2)
    with left:
        noise = _choose("Noise, in σ of the subject's embeddings", NOISES, NOISE_AT_FIRST, "entities noise")
    with right:
        n_samples = _choose("Samples of noise", N_SAMPLES, N_SAMPLES[0], "entities samples")
    config = TracingExampleConfig(layers=choice.layers, noise=float(noise), n_noise_samples=n_samples)

    run = _of_fact(tracing_example.run, model, subject, config)
    document = _compute("Restoring clean states", "tracing_example", model, subject, config, run)
    if document is not None:
        showing.show_document(
            document,
            plot_tracing_example,
            tabulate_restored(document["results"]),
            "tracing_example",
            alt="The answer's probability over layers, with the clean state of one token put back",
        )
    return document


def knock_out(choice: Choice, model: "LensModel", subject: Subject) -> Json | None:
    """How the answer's probability changes if the last token may not read the subject, around each layer."""
    from patchscopes.experiments import knockout_example
    from patchscopes.plots.knockout_example import plot_knockout_example

    window = _choose("Layers of a window around ℓ", WINDOWS, WINDOW_AT_FIRST, "entities window")
    config = AttentionKnockoutConfig(layers=choice.layers, window=window)

    document = _compute(
        "Knocking out attention",
        "knockout_example",
        model,
        subject,
        config,
        _of_fact(knockout_example.run, model, subject, config),
    )
    if document is not None:
        showing.show_document(
            document,
            plot_knockout_example,
            tabulate_knocked_out(document["results"]),
            "knockout_example",
            alt="Change of the answer's probability over layers, without the subject and the rest, in both forms",
        )
    return document


def _of_fact(
    run: Callable[..., Json], model: "LensModel", subject: Subject, config: Any
) -> "Callable[[Progress], Json]":
    """An experiment on one fact: S, its subject, and the token of that which the reader has chosen."""
    choice = subject.choice
    return lambda progress: run(
        model, choice.source_prompt, subject.name, config, position=choice.source_position, progress=progress
    )


def _choose(label: str, options: Sequence[int], at_first: int, key: str) -> int:
    """One of a few numbers."""
    st.session_state.setdefault(key, at_first)
    return cast(int, st.segmented_control(label, options, required=True, key=key, persist_state="session"))


def _compute(
    label: str,
    experiment: str,
    model: "LensModel",
    subject: Subject,
    config: Any,
    run: "Callable[[Progress], Json]",
    *,
    takes: str | None = None,
) -> Json | None:
    """The framed results of an experiment; with `takes`, once the reader asks for them."""
    choice = subject.choice
    described = {
        "model": choice.model,
        "source_prompt": choice.source_prompt,
        "source_position": choice.source_position,
        "name": subject.name,
        **asdict(config),
    }

    def build(progress: "Progress") -> Json:
        return showing.build(experiment, model, described, lambda: run(progress))

    if takes is None:
        return work.run(label, (subject, config), build)
    return work.run_on_request(label, (subject, config), build, takes=takes)


def tabulate_descriptions(results: Json) -> list[dict[str, str]]:
    """What each layer says, and the two controls above."""
    methods = results["methods"]
    rows = [
        (name, methods[method], 0) for name, method in (("name in clear", "name_in_clear"), ("unpatched", "unpatched"))
    ]
    rows += [(str(layer), methods["patchscope"], slot) for slot, layer in enumerate(results["layers"])]
    return [
        {
            "ℓ": name,
            "the model says": said["description"][slot],
            "ROUGE-L": f"{said['rougeL_f1_of_description'][slot]:.2f}",
        }
        for name, said, slot in rows
    ]


def tabulate_endings(results: Json) -> list[dict[str, str]]:
    """The ending of the name that each layer has resolved, and what it says."""
    readout = results["methods"]["patchscope"]
    return [
        {"ℓ": str(layer), "words resolved": resolved or "—", "the model says": said}
        for layer, resolved, said in zip(results["layers"], readout["resolved"], readout["description"], strict=True)
    ]


def tabulate_restored(results: Json) -> list[dict[str, str]]:
    """The answer's probability with each token restored; the original form in brackets where it was measured."""
    original, patchscope = results["methods"]["original"], results["methods"]["patchscope"]

    def show(token: str, slot: int, layer: int) -> str:
        text = format_significant(patchscope["restored"][token][slot])
        if layer not in original["layers"]:
            return text
        return f"{text} ({format_significant(original['restored'][token][original['layers'].index(layer)])})"

    limits = [
        {"ℓ": name, **{TOKEN_NAMES[token]: format_significant(patchscope[run]) for token in patchscope["restored"]}}
        for name, run in (("clean", "clean"), ("corrupted", "corrupted"))
    ]
    return limits + [
        {"ℓ": str(layer), **{TOKEN_NAMES[token]: show(token, slot, layer) for token in patchscope["restored"]}}
        for slot, layer in enumerate(results["layers"])
    ]


def tabulate_knocked_out(results: Json) -> list[dict[str, str]]:
    """The change in percent, for each form, without the subject and without the rest."""
    columns = {
        f"{form}: {keys}": measured["relative_change"][keys]
        for form, measured in zip(("cut", "zeros"), results["methods"].values(), strict=True)
        for keys in measured["relative_change"]
    }
    return [
        {"ℓ": str(layer), **{name: f"{changes[slot]:+.0f} %" for name, changes in columns.items()}}
        for slot, layer in enumerate(results["layers"])
    ]
