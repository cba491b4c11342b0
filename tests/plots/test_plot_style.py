"""Curves, tables, and texts as figures show them."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from drawn_figures import check_texts, draw
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure

from patchscopes.errors import PatchscopesError
from patchscopes.plots.style import (
    METHOD_STYLES,
    CurveStyle,
    create_figure,
    draw_baseline,
    draw_curve,
    finish_metric_axis,
    save_png,
)
from patchscopes.plots.tables import Column, choose_ink, draw_layer_table, draw_text_table, fit_column
from patchscopes.plots.text import JOINERS, format_significant, shorten, show_whitespace

STYLE = CurveStyle("a lens", "#1f6fb4", "--")


@pytest.fixture
def axis():
    return Figure().subplots()


class TestCurves:
    @pytest.mark.parametrize("with_interval", [True, False])
    def test_interval_is_drawn_where_given(self, axis, with_interval):
        mean, ci95 = [0.2, 0.4, 0.3], [[0.1, 0.3], [0.3, 0.6], [0.3, 0.3]]
        draw_curve(axis, [0, 4, 8], mean, ci95 if with_interval else None, STYLE)
        (line,) = axis.lines
        assert line.get_xydata().tolist() == [[0, 0.2], [4, 0.4], [8, 0.3]]
        assert (line.get_label(), line.get_color(), line.get_linestyle()) == ("a lens", "#1f6fb4", "--")
        shades = [shape for shape in axis.collections if isinstance(shape, FillBetweenPolyCollection)]
        assert len(shades) == with_interval
        if with_interval:
            corners = {tuple(corner) for corner in shades[0].get_paths()[0].vertices.tolist()}
            assert corners == {(0, 0.1), (0, 0.3), (4, 0.3), (4, 0.6), (8, 0.3)}

    def test_crosses_alone(self, axis):
        draw_curve(axis, [0, 1], [0.1, 0.2], None, replace(STYLE, line="", marker="x", marker_size=7))
        (line,) = axis.lines
        assert (line.get_linestyle(), line.get_marker(), line.get_markersize()) == ("None", "x", 7)

    @pytest.mark.parametrize("layers", [[-1], [-1, 0], [-1, 3], list(range(-1, 30)), [2, -1, 60]])
    def test_the_embedding_has_its_name(self, axis, layers):
        draw_curve(axis, layers, [0.5] * len(layers), None, STYLE)
        draw_curve(axis, layers, [0.3] * len(layers), None, STYLE)
        labels = dict(zip(axis.get_xticks(), [label.get_text() for label in axis.get_xticklabels()], strict=True))
        assert labels.pop(-1) == "embedding"
        assert all(name == str(int(place)) for place, name in labels.items())
        # Where there are others, some of them are named too.
        assert bool(labels) == (len(layers) > 1)
        check_texts(axis.get_figure())

    @pytest.mark.parametrize("n_layers", [1, 2, 3, 30])
    def test_layers_are_whole_numbers(self, axis, n_layers):
        draw_curve(axis, list(range(n_layers)), [0.5] * n_layers, None, STYLE)
        assert all(float(place).is_integer() for place in axis.get_xticks())

    def test_a_baseline_at_the_edge_is_seen(self, axis):
        draw_baseline(axis, 0.0, STYLE)
        (line,) = axis.lines
        assert not line.get_clip_on()
        assert line.get_zorder() > axis.spines["bottom"].get_zorder()

    @pytest.mark.parametrize(
        ("metric", "high"), [("precision_at_1", 1.02), ("precision_at_10", 1.02), ("surprisal", 9)]
    )
    def test_limits_hold_all_values(self, axis, metric, high):
        draw_curve(axis, [0, 1], [0.9, 0.95] if high < 2 else [3.0, 9.0], None, STYLE)
        finish_metric_axis(axis, metric)
        assert axis.get_ylim()[0] == 0
        assert axis.get_ylim()[1] == high if high < 2 else axis.get_ylim()[1] >= high

    def test_methods_look_different(self):
        looks = [(style.colour, style.line) for style in METHOD_STYLES.values()]
        # Those that never meet in a figure may share their look.
        shared = {
            "future_lens": "learned_prompt",
            "tuned_lens": "linear",
            "patchscope": "token_identity",
            "lre": "learned_prompt",
        }
        assert len(set(looks)) == len(looks) - len(shared)
        for one, other in shared.items():
            assert METHOD_STYLES[one].colour == METHOD_STYLES[other].colour
        assert len({style.label for style in METHOD_STYLES.values()}) == len(METHOD_STYLES)


class TestTables:
    def test_texts_stand_in_their_cells(self, axis):
        columns = [Column("said", 10, "left"), Column("rank 1", 6)]
        cells = [["a\nb", " x"], ["much longer than ten", "$1$"]]
        draw_text_table(axis, [3, 7], columns, cells)
        shown = [(text.get_text(), *text.get_position(), text.get_ha()) for text in axis.texts]
        assert shown == [
            ("a⏎b", 1, 0, "left"),
            ("␣x", 13, 0, "center"),
            ("much long…", 1, 1, "left"),
            ("$1$", 13, 1, "center"),
        ]
        assert [label.get_text() for label in axis.get_yticklabels()] == ["3", "7"]
        assert [label.get_text() for label in axis.get_xticklabels()] == ["said", "rank 1"]
        assert axis.get_xlim() == (0, 16)
        assert axis.get_ylim() == (-0.5, 1.5)

    def test_cells_have_their_colours_and_readable_ink(self, axis):
        colours = matplotlib.colormaps["Blues"](np.array([[0.0, 1.0]]))
        draw_text_table(axis, [0], [Column("", 5)] * 2, [["a", "b"]], colours)
        (mesh,) = axis.collections
        assert np.allclose(np.asarray(mesh.get_array()), colours)
        assert [text.get_color() for text in axis.texts] == ["black", "white"]

    def test_values_of_a_layer_table(self, axis):
        table = np.array([[0.0, 0.25], [0.5, 1.0], [0.75, 0.125]])
        draw_layer_table(axis, table, [0, 1, 2], [5, 9], colormap="viridis", high=1.0)
        shown = {text.get_position(): text.get_text() for text in axis.texts}
        # The first layer is at the bottom.
        assert [shown[2.5, row] for row in range(3)] == ["0.00", "0.50", "0.75"]
        assert [shown[7.5, row] for row in range(3)] == ["0.25", "1.00", "0.12"]
        assert [label.get_text() for label in axis.get_xticklabels()] == ["5", "9"]
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("Target layer ℓ*", "Source layer ℓ")

    def test_the_embedding_has_its_name(self):
        axis = create_figure("", 7.0, 3.0).subplots()
        draw_layer_table(axis, np.zeros((2, 3)), [-1, 4], [-1, 0, 9], colormap="viridis", high=0.0)
        assert [label.get_text() for label in axis.get_yticklabels()] == ["embedding", "4"]
        assert [label.get_text() for label in axis.get_xticklabels()] == ["embedding", "0", "9"]
        check_texts(axis.get_figure())

    def test_a_table_of_zeros(self, axis):
        draw_layer_table(axis, np.zeros((1, 1)), [0], [0], colormap="viridis", high=0.0)
        assert [text.get_text() for text in axis.texts] == ["0.00"]

    @given(st.lists(st.text(max_size=30), max_size=5), st.integers(3, 40))
    def test_a_column_is_as_wide_as_its_texts_need(self, texts, at_most):
        column = fit_column("said", texts, at_most, "left")
        assert column.characters <= at_most
        longest = max(len(show_whitespace(text)) for text in ["said", *texts])
        assert column.characters > longest or column.characters == at_most

    @given(st.floats(0, 1))
    def test_ink_stands_out(self, shade):
        colour = matplotlib.colormaps["gray"](shade)
        assert choose_ink(np.array(colour)) == ("white" if colour[0] <= 0.5 else "black")


class TestFigures:
    def test_titles_are_wrapped_and_no_formulas(self):
        figure = create_figure("$x$ costs " * 40, width=5.0, height=2.0)
        title = figure.get_suptitle()
        assert title.count("\n") > 2
        assert title.replace("\n", " ") == ("$x$ costs " * 40).strip()
        assert [text for text, _ in draw(figure)] == [title]

    def test_a_failed_write_says_so(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(PatchscopesError, match="cannot write"):
            save_png(create_figure("", 1.0, 1.0), tmp_path / "file" / "figure.png")


class TestTexts:
    @given(st.text())
    def test_whitespace_is_one_visible_line(self, text):
        shown = show_whitespace(text)
        assert all(sign.isprintable() or sign in JOINERS for sign in shown)
        assert not text.isprintable() or len(shown) == len(text)
        assert shown == shown.strip(" ")
        assert show_whitespace(shown) == shown

    def test_whitespace(self):
        assert show_whitespace("  a b\n\t$ ") == "␣␣a b⏎⇥$␣"

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("\x1b[31mred\x1b[0m", "U+001B[31mredU+001B[0m"),
            ("a\x00\x9b\r", "aU+0000U+009BU+000D"),
            ("\u202eabc\ufeff", "U+202EabcU+FEFF"),
            ("10\u00a0000\u3000", "10 000U+3000"),
            ("می\u200cخواهم", "می\u200cخواهم"),
            ("👨\u200d👩", "👨\u200d👩"),
            ("\u200d", "U+200D"),
            ("\ud83d", "U+D83D"),
            ("北京 $x$ [bold]", "北京 $x$ [bold]"),
        ],
    )
    def test_what_has_no_shape_is_its_code_point(self, text, shown):
        assert show_whitespace(text) == shown

    @given(st.text(), st.integers(1, 50))
    def test_shortened(self, text, length):
        short = shorten(text, length)
        assert len(short) <= length
        assert short == text or (short.endswith("…") and text.startswith(short[:-1]) and len(text) > length)

    @given(st.floats(1e-3, 1e9))
    def test_three_significant_digits(self, number):
        shown = format_significant(number)
        assert "e" not in shown
        assert float(shown.replace(",", "")) == pytest.approx(number, rel=6e-3)

    def test_significant(self):
        assert [format_significant(number) for number in (4337.2, 64.61, 0.3541, 1.0)] == [
            "4,337",
            "64.6",
            "0.354",
            "1",
        ]
