"""The figure of entity resolution, drawn from made-up documents."""

import numpy as np
import pytest
from drawn_figures import check_texts, explained_curves
from made_up_resolution import make_resolution

from patchscopes.plots.entity_resolution import MEASURE_STYLES, plot_entity_resolution


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": [7]},
        {"layers": [0, 4, 9]},
        {"measures": ("knockout",)},
        {"n_samples": 1},
        # Nothing above zero.
        {"scale": 0.0},
        {"scale": -1.0},
    ],
)
def test_texts_are_whole_and_apart(options):
    texts = " ".join(check_texts(plot_entity_resolution(make_resolution(**options)))).replace("\n", " ")
    assert "smollm2-135m-instruct" in texts
    assert ("1 fact that" in texts) == (options.get("n_samples") == 1)


def test_all_measures_are_on_one_axis_of_layers_as_shares():
    document = make_resolution()
    curves, rows = plot_entity_resolution(document).axes
    assert curves.get_shared_x_axes().joined(curves, rows)
    _, *lines = curves.lines
    measures = document["results"]["measures"]
    for line, measure in zip(lines, measures.values(), strict=True):
        assert max(line.get_ydata()) == pytest.approx(1)
        np.testing.assert_allclose(line.get_ydata() * max(measure["mean"]), measure["mean"])
    assert len(curves.collections) == len(measures)
    # Each with its unit, and what it is a share of.
    for entry, (name, measure) in zip(explained_curves(curves), measures.items(), strict=True):
        assert entry.startswith(MEASURE_STYLES[name].label)
        assert measure["unit"] in entry
        scale = float(entry.rpartition("(1 = ")[2].rstrip(")"))
        assert scale == pytest.approx(max(measure["mean"]), rel=0.01)


def test_a_row_for_each_measure_with_its_half_way_layers():
    document = make_resolution()
    _, rows = plot_entity_resolution(document).axes
    measures = document["results"]["measures"]
    assert [label.get_text() for label in rows.get_yticklabels()] == [name.replace("_", " ") for name in measures]
    drawn = {
        (line.get_marker(), int(line.get_ydata()[0])): float(line.get_xdata()[0])
        for line in rows.lines
        if line.get_marker() in "^v"
    }
    expected = {
        (marker, row): measure[side]["layer"]
        for row, measure in enumerate(measures.values())
        for side, marker in (("rises", "^"), ("falls", "v"))
        if measure[side] is not None
    }
    assert drawn == expected
    # That of the last token only rises, that of the subject only falls, and the knockout does both.
    assert {row for _, row in drawn} == set(range(len(measures)))
    assert len(drawn) == len(measures) + 1
    assert rows.yaxis_inverted()
