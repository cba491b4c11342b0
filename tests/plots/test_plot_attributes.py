"""The figures of attribute extraction, drawn from made-up documents."""

import numpy as np
import pytest
from drawn_figures import check_texts, explained_curves
from made_up_attributes import (
    LAYERS,
    METHODS,
    RANKS,
    TASKS,
    make_attribute_example,
    make_attribute_layers,
    make_attribute_lens,
    make_attributes,
    measure,
)
from matplotlib.colors import to_hex

from patchscopes.plots.attribute_bars import sort_tasks
from patchscopes.plots.attribute_example import plot_attribute_example
from patchscopes.plots.attribute_layers import plot_attribute_layers
from patchscopes.plots.attribute_lens import plot_attribute_lens
from patchscopes.plots.attributes import plot_attributes
from patchscopes.plots.style import BLUE, ORANGE, PURPLE

LONG_NAMES = ("the_year_in_which_a_company_was_founded_by_its_first_owner", "price_in_$_of_$")
LONG = "What is the price of $5 and $6, said the man who came from the city at the river? " * 4


def find_panel(figure, title):
    """The panel whose title begins so; None if there is none."""
    return next((axis for axis in figure.axes if axis.get_title().startswith(title)), None)


def list_bars(axis):
    """The colour and length of all bars from top to bottom."""
    bars = sorted(axis.patches, key=lambda bar: bar.get_y())
    return [(to_hex(bar.get_facecolor()), bar.get_width()) for bar in bars]


class TestAttributes:
    @pytest.mark.parametrize(
        ("names", "methods"),
        [
            (TASKS, METHODS),
            (TASKS[:1], METHODS),
            (TASKS[:3], METHODS),
            (TASKS[:4], METHODS),
            (LONG_NAMES, METHODS),
            (TASKS, ("patchscope",)),
            (TASKS[:5], ("probe", "probe_by_sample")),
            (TASKS[:6], ("lre",)),
            (TASKS[:1], ("lre_patchscope",)),
            (TASKS[:5], ("probe", "lre_patchscope")),
            (TASKS[:5], ()),
        ],
    )
    def test_texts_are_whole_and_apart(self, names, methods):
        texts = " ".join(check_texts(plot_attributes(make_attributes(names, methods)))).replace("\n", " ")
        assert "smollm2-135m-instruct" in texts
        assert "1 task left out" in texts
        for name in names:
            assert name.replace("_", " ")[:20] in texts

    @pytest.mark.parametrize("methods", [METHODS, ("patchscope", "probe"), ("lre",), ("probe", "lre_patchscope")])
    def test_panels_are_those_of_the_methods(self, methods):
        figure = plot_attributes(make_attributes(TASKS[:2], methods))
        assert find_panel(figure, "All methods over ℓ (simple mean over 2 tasks)") is not None
        assert (find_panel(figure, "Patchscope at each (ℓ, ℓ*)") is not None) == ("patchscope" in methods)
        assert (find_panel(figure, "LRE over ℓ") is not None) == ("lre" in methods or "lre_patchscope" in methods)
        assert (find_panel(figure, "Causal test of the LRE") is not None) == ("lre" in methods)

    def test_no_causal_test(self):
        document = make_attributes(TASKS[:2])
        for task in document["results"]["tasks"].values():
            del task["methods"]["lre"]["causal_test"]
        figure = plot_attributes(document)
        assert find_panel(figure, "Causal test") is None
        assert find_panel(figure, "LRE over ℓ") is not None

    def test_tasks_stand_from_most_to_least_found(self):
        document = make_attributes()
        tasks = document["results"]["tasks"]
        found = {name: task["methods"]["patchscope"]["any"]["mean"] for name, task in tasks.items()}
        assert list(sort_tasks(tasks)) == sorted(found, key=lambda name: -found[name])
        left, right, *_ = plot_attributes(document).axes
        shown = [label.get_text().split("\n") for axis in (left, right) for label in axis.get_yticklabels()]
        assert [name for name, _ in shown] == [name.replace("_", " ") for name in sort_tasks(tasks)]
        assert [n for _, n in shown] == [f"{task['n_drawn']} subjects" for task in sort_tasks(tasks).values()]
        # A bar is as high in both columns.
        assert left.get_ylim() == right.get_ylim()

    def test_without_a_patchscope_another_method_sorts_them(self):
        tasks = make_attributes(methods=("probe",))["results"]["tasks"]
        found = [task["methods"]["probe"]["mean_accuracy"]["mean"] for task in sort_tasks(tasks).values()]
        assert found == sorted(found, reverse=True)

    def test_bars_have_the_lengths_of_their_measures(self):
        document = make_attributes(TASKS[:1])
        methods = document["results"]["tasks"][TASKS[0]]["methods"]
        bars = list_bars(plot_attributes(document).axes[0])
        dark, light = bars[::2], bars[1::2]
        measures = {"patchscope": "any", "probe": "mean_accuracy", "lre": "mean_faithfulness"}
        assert [length for _, length in dark] == [methods[name][one]["mean"] for name, one in measures.items()]
        assert [length for _, length in light] == [methods[name]["held_out"]["mean"] for name in measures]
        assert [colour for colour, _ in dark] == [BLUE, ORANGE, PURPLE]

    def test_the_controls_are_marked_where_they_are(self):
        document = make_attributes(TASKS[:1])
        patchscope = document["results"]["tasks"][TASKS[0]]["methods"]["patchscope"]
        patchscope["control_any"] = measure(0.123)
        figure = plot_attributes(document)
        assert 0.123 in [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "D"]
        assert any("another subject's object" in text for text in check_texts(figure))
        del patchscope["control_any"], patchscope["control_any_by_layer"]
        figure = plot_attributes(document)
        assert not any(line.get_marker() == "D" for line in figure.axes[0].lines)
        assert not any("another subject's object" in text for text in check_texts(figure))

    def test_curves_are_simple_means_over_tasks(self):
        document = make_attributes(TASKS[:3])
        tasks = document["results"]["tasks"].values()
        figure = plot_attributes(document)
        curves = {line.get_label(): line.get_ydata() for line in find_panel(figure, "All methods").lines}
        by_task = [task["methods"]["patchscope"]["any_by_layer"]["mean"] for task in tasks]
        assert np.allclose(curves["Patchscope, any ℓ*"], np.mean(by_task, axis=0))
        by_task = [task["methods"]["lre"]["faithfulness_in_context"]["mean"] for task in tasks]
        curves = {line.get_label(): line.get_ydata() for line in find_panel(figure, "LRE over ℓ").lines}
        assert np.allclose(curves["mean, after solved examples"], np.mean(by_task, axis=0))
        table = np.mean([task["methods"]["patchscope"]["accuracy"]["mean"] for task in tasks], axis=0)
        shown = [text.get_text() for text in find_panel(figure, "Patchscope at each").texts]
        assert shown == [f"{value:.2f}" for value in table.flatten()]
        lines = {line.get_label(): line.get_ydata() for line in find_panel(figure, "Causal test").lines}
        answers = np.mean([task["methods"]["lre"]["causal_test"]["answers"]["mean"] for task in tasks], axis=0)
        assert np.allclose([lines[f"rank {rank}"] for rank in RANKS], answers.T)

    def test_means_over_fewer_tasks_say_so(self):
        document = make_attributes(TASKS[:3])
        for name in TASKS[:2]:
            del document["results"]["tasks"][name]["methods"]["lre"]
            del document["results"]["tasks"][name]["methods"]["lre_patchscope"]
        figure = plot_attributes(document)
        entries = explained_curves(find_panel(figure, "All methods"))
        assert {"LRE (faithfulness) (1 task)", "LRE via Patchscope (1 task)", "Patchscope, any ℓ*"} <= set(entries)
        assert "shaded" in find_panel(figure, "LRE over ℓ").get_title()
        check_texts(figure)

    @pytest.mark.parametrize(("n_tasks", "shaded"), [(1, True), (2, False)])
    def test_intervals_are_those_of_one_task(self, n_tasks, shaded):
        panel = find_panel(plot_attributes(make_attributes(TASKS[:n_tasks])), "All methods")
        assert bool(panel.collections) == shaded
        assert ("95 % intervals over subjects" in panel.get_title()) == shaded

    @pytest.mark.parametrize("n_tasks", [1, 5])
    def test_axes_and_curves_are_named(self, n_tasks):
        for axis in plot_attributes(make_attributes(TASKS[:n_tasks])).axes:
            assert axis.get_xlabel()
            assert axis.get_ylabel() or all(label.get_text() for label in axis.get_yticklabels())
            _, curves = axis.get_legend_handles_labels()
            assert set(curves) <= set(explained_curves(axis) if curves else [])
            assert len(set(curves)) == len(curves)


class TestAttributeLens:
    @pytest.mark.parametrize(
        "tokens", [["A"], ["<|im_start|>", " costs", " $5", " and", " $6", "\n", "Internationalisation"], [" x"] * 40]
    )
    @pytest.mark.parametrize("layers", [[7], list(range(30))])
    def test_texts_are_whole_and_apart(self, tokens, layers):
        texts = check_texts(plot_attribute_lens(make_attribute_lens(tokens, layers)))
        assert "The capital of …" in " ".join(texts).replace("\n", " ")

    def test_every_cell_is_the_token_that_is_read(self):
        document = make_attribute_lens([" The", " Eiffel", " Tower"], [2, 9])
        results = document["results"]
        results["top"] = [[" a", " b", " c"], [" d", " e", " f"]]
        results["probability"] = [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
        table, bar = plot_attribute_lens(document).axes
        # Rows go upwards, the first layer at the bottom.
        assert [text.get_text() for text in table.texts] == ["␣a", "␣b", "␣c", "␣d", "␣e", "␣f"]
        assert [text.get_position()[1] for text in table.texts] == [0, 0, 0, 1, 1, 1]
        assert [label.get_text() for label in table.get_xticklabels()] == ["␣The", "␣Eiffel", "␣Tower"]
        assert [label.get_text() for label in table.get_yticklabels()] == ["2", "9"]
        brightness = np.asarray(table.collections[0].get_array()).reshape(2, 3, 4)[..., :3].sum(axis=-1)
        assert (brightness[1, 2] < np.delete(brightness.flatten(), 5)).all()
        assert bar.get_ylabel() == "Probability"


class TestAttributeLayers:
    @pytest.mark.parametrize("subject", ["Canada", LONG])
    @pytest.mark.parametrize("target_layers", [[0], LAYERS])
    def test_texts_are_whole_and_apart(self, subject, target_layers):
        document = make_attribute_layers(subject, target_layers=target_layers)
        document["results"]["methods"]["unpatched"]["text"] = LONG
        texts = " ".join(check_texts(plot_attribute_layers(document))).replace("\n", " ")
        assert "The capital of x" in texts
        assert "(blue: the answer, Ottawa)" in texts
        assert "Subject in clear: is Ottawa." in texts

    def test_the_pairs_that_say_the_answer_are_blue(self):
        document = make_attribute_layers()
        solved = np.array(document["results"]["methods"]["patchscope"]["solved"], dtype=bool)
        (axis,) = plot_attribute_layers(document).axes
        colours = np.asarray(axis.collections[0].get_array()).reshape(*solved.shape, 4)
        assert (colours[solved][:, 0] < 0.5).all()
        assert (colours[~solved][:, 0] > 0.9).all()
        assert [text.get_text().startswith("Ottawa") for text in axis.texts] == solved.flatten().tolist()

    def test_no_answer_is_given(self):
        texts = check_texts(plot_attribute_layers(make_attribute_layers(answer="")))
        assert any("(no answer given)" in text for text in texts)


class TestAttributeExample:
    def test_every_method_and_control_is_named(self):
        figure = plot_attribute_example(make_attribute_example())
        check_texts(figure)
        (axis,) = figure.axes
        assert explained_curves(axis) == [
            "Patchscope",
            "Probe",
            "LRE",
            "LRE via Patchscope",
            "the subject in clear",
            "control: x with nothing patched",
            "control: the object's share among the probe's samples",
            "large: the object is named",
            "control, dashed: the state of Peru",
        ]
        assert axis.get_ylabel() == "Probability of the object"

    def test_dots_are_large_where_the_object_is_named(self):
        document = make_attribute_example(methods=("patchscope",))
        (axis,) = plot_attribute_example(document).axes
        read = document["results"]["methods"]["patchscope"]
        np.testing.assert_allclose(
            axis.collections[0].get_offsets(), list(zip(LAYERS, read["probability"], strict=True))
        )
        assert [size > 0 for size in axis.collections[0].get_sizes()] == list(map(bool, read["solved"]))

    def test_without_an_object_it_is_what_each_method_finds_most_likely(self):
        figure = plot_attribute_example(make_attribute_example(answer=""))
        texts = " ".join(check_texts(figure)).replace("\n", " ")
        assert "Japan, no answer given" in texts
        assert figure.axes[0].get_ylabel() == "Probability of its most likely answer"
        assert explained_curves(figure.axes[0]) == ["Patchscope", "Probe", "LRE", "LRE via Patchscope"]

    def test_a_probe_that_never_saw_the_object_says_so(self):
        document = make_attribute_example()
        document["results"]["methods"]["probe"]["share"] = 0.0
        figure = plot_attribute_example(document)
        check_texts(figure)
        assert "Probe (no other subject has this object)" in explained_curves(figure.axes[0])

    @pytest.mark.parametrize("layers", [(-1, 0, 14, 29), (7,)])
    @pytest.mark.parametrize("subject", ["$x^2$ and_", "Côte d’Ivoire, " * 12, "Łódź"])
    def test_any_name_and_layers(self, subject, layers):
        check_texts(plot_attribute_example(make_attribute_example(subject, subject, layers=layers)))
