"""The pictures of one name: described, traced and knocked out, drawn from made-up documents."""

import numpy as np
import pytest
from drawn_figures import check_texts, explained_curves

from patchscopes.plots.attention_knockout import KEY_STYLES
from patchscopes.plots.entity_example import METRIC, plot_entity_example
from patchscopes.plots.knockout_example import plot_knockout_example
from patchscopes.plots.tracing_example import STYLES, plot_tracing_example

LONG = "What is the price of $5 and $6, said the man who came from 東京 at the river? " * 4
ENVIRONMENT = {"model": {"id": "smollm2-135m-instruct"}}


def say(texts):
    return {"generation": texts, "description": texts, METRIC: [len(text) % 7 / 7 for text in texts]}


def make_entity(layers=range(30), name="Space Needle", said="a tower in $5 of $", target_layer="same"):
    patchscope = say([said[: 3 * number] for number, _ in enumerate(layers)])
    return {
        "config": {"target_layer": target_layer},
        "environment": ENVIRONMENT,
        "results": {
            "layers": list(layers),
            "name": name,
            "source_tokens": ["<s>", " Space", " Need", name],
            "source_position": 3,
            "methods": {"patchscope": patchscope, "name_in_clear": say([said]), "unpatched": say(["x"])},
        },
    }


def make_traced(layers=range(30), prompt="The Space Needle is in", tokens=("last_subject", "last", "control")):
    curves = {token: np.linspace(0.1, 0.6 + number / 10, len(layers)) for number, token in enumerate(tokens)}
    forms = {
        method: {"layers": list(of_method), "clean": 0.8, "corrupted": 0.05, "restored": restored}
        for method, of_method, restored in (
            ("original", layers[:2], {token: curve.tolist()[:2] for token, curve in curves.items()}),
            ("patchscope", layers, {token: curve.tolist() for token, curve in curves.items()}),
        )
    }
    return {
        "config": {"noise": 3.0, "n_noise_samples": 3},
        "environment": ENVIRONMENT,
        "results": {
            "layers": list(layers),
            "prompt": prompt,
            "answer": " Seattle",
            "tokens": ["<s>", "The", " Space", " Needle", " $5", "\n"],
            "restored_positions": dict(zip(tokens, (3, 5, 4), strict=False)),
            "methods": forms,
            "largest_probability_difference": 3e-6,
        },
    }


def make_knocked_out(layers=range(30), prompt="The Space Needle is in", methods=("original", "patchscope"), window=5):
    change = {keys: np.linspace(-90, number, len(layers)).tolist() for number, keys in enumerate(("subject", "rest"))}
    return {
        "config": {},
        "environment": ENVIRONMENT,
        "results": {
            "layers": list(layers),
            "prompt": prompt,
            "answer": " Seattle",
            "window": window,
            "probability": 0.42,
            "methods": {method: {"relative_change": change} for method in methods},
        },
    }


@pytest.mark.parametrize(
    "document",
    [
        make_entity(),
        make_entity(layers=[7]),
        make_entity(layers=[-1, 3], name=LONG, said=LONG),
        make_entity(target_layer="embedding", said="東京" * 30),
    ],
)
def test_descriptions_are_whole_and_apart(document):
    texts = check_texts(plot_entity_example(document))
    assert "unpatched" in texts
    assert any("smollm2" in text for text in texts)


@pytest.mark.parametrize(
    "document",
    [
        make_traced(),
        make_traced(layers=[7]),
        make_traced(layers=[-1, 0, 29], prompt=LONG),
        make_traced(tokens=["last"]),
    ],
)
def test_tracing_is_whole_and_apart(document):
    assert any("3e-06 apart" in text for text in check_texts(plot_tracing_example(document)))


@pytest.mark.parametrize(
    "document",
    [make_knocked_out(), make_knocked_out(layers=[7], window=1), make_knocked_out(prompt=LONG, methods=["original"])],
)
def test_knockout_is_whole_and_apart(document):
    assert any("probability 0.42" in text for text in check_texts(plot_knockout_example(document)))


def test_the_controls_of_a_description_are_on_its_axis():
    (axis, table) = plot_entity_example(make_entity()).axes
    assert explained_curves(axis) == ["Patchscope", "name in clear (“Space Needle”)", "placeholder, unpatched"]
    assert [label.get_text() for label in table.get_yticklabels()][:3] == ["name in clear", "unpatched", "0"]


def test_the_crosses_lie_on_the_curves():
    document = make_traced()
    (axis,) = plot_tracing_example(document).axes
    for token, restored in document["results"]["methods"]["patchscope"]["restored"].items():
        of_colour = [line.get_ydata() for line in axis.lines if line.get_color() == STYLES[token].colour]
        np.testing.assert_allclose(of_colour[1], restored)
        np.testing.assert_allclose(of_colour[0], restored[:2])
    assert "original form" in explained_curves(axis)


def test_each_form_has_its_panel_with_the_control():
    axes = plot_knockout_example(make_knocked_out()).axes
    assert [len(axis.lines) for axis in axes] == [3, 3]
    assert explained_curves(axes[0]) == [KEY_STYLES[keys].label for keys in ("subject", "rest")]
