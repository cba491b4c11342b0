"""The figure of attention knockout, drawn from made-up documents."""

from typing import Any

import numpy as np
import pytest
from drawn_figures import check_texts, explained_curves

from patchscopes.plots.attention_knockout import plot_attention_knockout

KEYS = ("subject", "rest", "last")
TOKENS = ["<|im_start|>", "The", " capital", " of", " $1$", "\n", " Kazakhstan", " is"]
LONG = ["Internationalisation-of-all-the-things"] * 40


def make_document(
    n_layers: int = 30, tokens: list[str] = TOKENS, methods: tuple[str, ...] = ("original", "patchscope")
) -> dict[str, Any]:
    generator = np.random.default_rng(0)

    def change() -> dict[str, Any]:
        mean = generator.uniform(-100, 20, n_layers)
        return {"mean": mean.tolist(), "ci95": np.stack([mean - 5, mean + 5], axis=-1).tolist()}

    results = {
        "layers": list(range(n_layers)),
        "window": 9,
        "n_samples": 50,
        "methods": {method: {"relative_change": {keys: change() for keys in KEYS}} for method in methods},
        "example": {
            "tokens": tokens,
            "subject_positions": [6],
            "answer": " Ast$na",
            "probability": 0.4,
            "relative_change": generator.uniform(-100, 10, (n_layers, len(tokens))).tolist(),
        },
    }
    environment = {"model": {"id": "smollm2-135m-instruct"}}
    return {"experiment": "attention_knockout", "config": {}, "environment": environment, "results": results}


@pytest.mark.parametrize("n_layers", [1, 4, 30, 80])
@pytest.mark.parametrize("tokens", [TOKENS, LONG])
@pytest.mark.parametrize("methods", [("original", "patchscope"), ("patchscope",)])
def test_texts_are_whole_and_apart(n_layers, tokens, methods):
    texts = " ".join(check_texts(plot_attention_knockout(make_document(n_layers, tokens, methods)))).replace("\n", " ")
    assert "50 facts" in texts
    assert "“Ast$na”, probability 0.40" in texts
    # Two forms, and why they differ.
    assert ("Not the same computation" in texts) == (len(methods) == 2)


def test_there_is_a_panel_for_each_form_and_one_for_the_fact():
    document = make_document()
    original, patchscope, example, bar = plot_attention_knockout(document).axes
    for axis, method in ((original, "original"), (patchscope, "patchscope")):
        assert axis.get_title().startswith({"original": "original", "patchscope": "Patchscope"}[method])
        _, *curves = axis.lines
        changes = document["results"]["methods"][method]["relative_change"]
        assert [line.get_ydata().tolist() for line in curves] == [change["mean"] for change in changes.values()]
        assert len(axis.collections) == 3
        _, names = axis.get_legend_handles_labels()
        assert set(names) <= set(explained_curves(axis))
    assert original.get_ylim() == patchscope.get_ylim()
    assert example.get_title().startswith("The fact that loses most")
    assert bar.get_ylabel() == "Change (%)"


def test_the_fact_is_token_by_layer():
    document = make_document()
    *_, example, _ = plot_attention_knockout(document).axes
    shown = np.asarray(example.collections[0].get_array()).reshape(len(TOKENS), 30)
    assert np.allclose(shown.T, document["results"]["example"]["relative_change"])
    names = example.get_yticklabels()
    assert [name.get_text() for name in names[2:6]] == ["␣capital", "␣of", "␣$1$", "⏎"]
    # The first token stands at the top, and the subject's are bold.
    assert example.yaxis_inverted()
    assert [name.get_fontweight() for name in names].index("bold") == 6
