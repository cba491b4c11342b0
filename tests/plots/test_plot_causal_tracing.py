"""The figure of causal tracing, drawn from made-up documents."""

import numpy as np
import pytest
from drawn_figures import check_texts, explained_curves
from made_up_tracing import CLASSES, SITES, TOKENS, make_tracing

from patchscopes.plots.causal_tracing import CLASS_STYLES, plot_causal_tracing

LONG = "What is the price of $5 and $6, said the man who came from the city at the river? " * 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": [7]},
        {"layers": [0, 4, 9]},
        {"classes": ("last_subject", "last")},
        {"methods": ("original",)},
        {"methods": ("patchscope",)},
        {"n_original": 40},
        {"prompt": LONG},
    ],
)
def test_texts_are_whole_and_apart(options):
    texts = " ".join(check_texts(plot_causal_tracing(make_tracing(**options)))).replace("\n", " ")
    assert "smollm2-135m-instruct" in texts
    assert ("3.2e-06" in texts) == (len(options.get("methods", "both")) != 1)


def test_a_column_of_two_panels_for_each_site():
    document = make_tracing()
    axes = plot_causal_tracing(document).axes
    n = len(SITES)
    curves, tables, (bar,) = axes[:n], axes[n : 2 * n], axes[2 * n :]
    assert bar.get_ylabel() == "Indirect effect"
    assert len({axis.get_title() for axis in curves}) == n
    for axis, site in zip(curves, SITES, strict=True):
        drawn = {line.get_color(): line.get_ydata() for line in axis.lines if line.get_linestyle() != ":"}
        for token_class in CLASSES:
            effect = document["results"]["methods"]["patchscope"]["indirect_effect"][site][token_class]
            np.testing.assert_allclose(drawn[CLASS_STYLES[token_class].colour], effect["mean"])
        assert axis.get_xlabel() == "Layer ℓ"
    assert all(table.get_xlabel() == "Layer ℓ" for table in tables)
    names = [label.get_text() for label in tables[0].get_yticklabels()]
    assert [name.endswith("*") for name in names] == [True] * 4 + [False] * 5
    assert len(names) == len(TOKENS)


def test_the_legend_names_every_class_once_and_how_many_facts_have_it():
    entries = explained_curves(plot_causal_tracing(make_tracing()).axes[0])
    assert len(entries) == len(set(entries)) == len(CLASSES) + 1
    assert "middle subject tokens (11 facts)" in entries


def test_crosses_only_where_both_forms_have_the_same_facts():
    def has_crosses(**options):
        return "original form" in explained_curves(plot_causal_tracing(make_tracing(**options)).axes[0])

    assert has_crosses(n_original=40)
    assert not has_crosses(n_original=4)
    assert not has_crosses(methods=("original",))
