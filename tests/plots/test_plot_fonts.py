"""Texts of any sign in figures: drawn as they are written, in the fonts that there are, or as code points."""

import json
import warnings
from collections.abc import Iterator
from importlib import import_module
from itertools import cycle
from typing import Any

import matplotlib
import pytest
from drawn_figures import check_texts, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.font_manager import FontProperties, findfont, fontManager
from test_plot_figures import FIGURES, NAMES, PLOTS
from test_plot_layer_grid import make_document, make_grid

from patchscopes.errors import PatchscopesWarning
from patchscopes.plots import fonts as fonts_module
from patchscopes.plots.fonts import choose_fonts, fit_lines, measure_usual
from patchscopes.plots.layer_grid import plot_layer_grid
from patchscopes.plots.style import create_figure, save_png
from patchscopes.plots.tables import fit_column
from patchscopes.plots.text import show_whitespace

AWKWARD = (
    "Ba$$in",
    "$x_{ \\frac{1 ^ $ {0} %s",
    "a\nb\tc\r\x0b",
    "مرحبا بالعالم",
    "首都是北京，货币是人民币。",
    "😀👨\u200d👩\u200d👧 ✓\ufe0f",
    "\x00\x1b[31m\x07",
    "\u200b\u202e\ufeff",
    "W" * 300,
    "हिन्दी 한국어 ไทย",
    "\U0010fffd\ud83d",
    "$" * 5000,
    " ",
    "東京タワーと日本語のとても長い文章" * 20,
    "[bold] _ \\",
)
# What the code looks up, where all other texts are of data.
LOOKED_UP = {"experiment", "target_layer", "token_classes", "color", "future_lens", "unit", "device", "stage"}


def make_awkward(content: Any, keys: dict[str, str], taken: dict[str, str], texts: Iterator[str]) -> Any:
    """The document with an awkward text in the place of each of its texts, the same one for the same text.

    Args:
        keys: of dictionaries, those that are texts too, and what they become.
    """
    if isinstance(content, str):
        return taken.setdefault(content, next(texts))
    if isinstance(content, list):
        return [make_awkward(item, keys, taken, texts) for item in content]
    if isinstance(content, dict):
        # What a benchmark did has names of its own.
        looked_up = LOOKED_UP | ({"name", "title"} if {"ways", "ms_per_row"} & set(content) else set())
        return {
            keys.get(key, key): value if key in looked_up else make_awkward(value, keys, taken, texts)
            for key, value in content.items()
        }
    return content


def draw_awkward(figure: Any) -> list[str]:
    """The texts that are drawn; at most one warning is given, that of signs without a font."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        texts = check_texts(figure)
    assert {warning.category for warning in caught} <= {PatchscopesWarning}
    assert len(caught) <= 1
    return texts


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_draws_any_texts(name):
    document = json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))
    results = document["results"]
    # The names of groups and tasks are keys.
    keys = [key for part in ("popularity", "tasks") if isinstance(results.get(part), dict) for key in results[part]]
    texts = cycle(AWKWARD)
    # They must stay different ones.
    named = {key: f"{number} {next(texts)}" for number, key in enumerate(keys)}
    module = PLOTS[document["experiment"]]
    plot = getattr(import_module(f"patchscopes.plots.{module}"), f"plot_{module}")
    drawn = draw_awkward(plot(make_awkward(document, named, {}, texts)))
    assert all(sign.isprintable() or sign in "\n\u200c\u200d" for text in drawn for sign in text)


@pytest.mark.parametrize("text", [AWKWARD[0], AWKWARD[6], AWKWARD[-2]])
def test_layer_grids_draw_any_texts(text):
    draw_awkward(plot_layer_grid(make_document(make_grid(3, n_names=2, text=text), source=text)))


class TestFigure:
    def test_no_text_is_a_formula_but_powers_of_ten(self):
        figure = create_figure("cost $5 and $6", 5.0, 4.0)
        axis = figure.subplots()
        axis.barh(["Ba$$in", "$a_b$"], [1, 2], label="legend $x$")
        axis.set(xscale="log", xlabel="$l^2$", title="$t$")
        axis.annotate("$n$", (1, 1))
        axis.legend(title="$head$")
        right = axis.secondary_yaxis("right")
        right.set_yticks([0.5], ["$right"])
        drawn = [text for text, _ in draw(figure)]
        written = {"cost $5 and $6", "Ba$$in", "$a_b$", "legend $x$", "$l^2$", "$t$", "$n$", "$head$", "$right"}
        assert written <= set(drawn)
        assert any("mathdefault" in text for text in drawn)
        assert all(label.get_parse_math() for label in axis.get_xticklabels())
        assert not any(label.get_parse_math() for label in axis.get_yticklabels())

    def test_ticks_spell_out_what_cannot_be_seen(self):
        figure = create_figure("", 5.0, 4.0)
        axis = figure.subplots()
        axis.set_yticks([0, 1], ["a\x1bb", "plain"])
        for _ in range(2):
            assert {"aU+001Bb", "plain"} <= {text for text, _ in draw(figure)}
        figure = create_figure("", 5.0, 4.0)
        figure.subplots().barh(["a\x1bb", "plain"], [1, 2])
        assert {"aU+001Bb", "plain"} <= {text for text, _ in draw(figure)}

    @pytest.fixture
    def few_fonts(self, monkeypatch):
        """A machine whose fonts hold ASCII, with some others that are not installed yet."""
        entries = [font for font in fontManager.ttflist if font.name == "cmr10"]
        monkeypatch.setattr(fontManager, "ttflist", entries)
        monkeypatch.setattr(fonts_module, "findSystemFonts", list)
        with matplotlib.rc_context({"font.family": ["cmr10"]}):
            yield monkeypatch

    def test_signs_without_a_font_are_told_once(self, few_fonts, tmp_path):
        figure = create_figure("☃ and ☂", 5.0, 4.0)
        figure.text(0.1, 0.5, "☃ in the middle")
        with pytest.warns(PatchscopesWarning, match=r"no font of this machine holds U\+2602, U\+2603, so") as told:
            save_png(figure, tmp_path / "figure.png")
        assert len(told) == 1
        with warnings.catch_warnings(action="error"):
            save_png(figure, tmp_path / "figure.png")
        assert {text for text, _ in draw(figure)} == {"U+2603 in the middle", "U+2603 and U+2602"}

    @pytest.mark.filterwarnings("error")
    def test_a_font_that_is_installed_later_is_found(self, few_fonts):
        path = matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf"
        few_fonts.setattr(fonts_module, "findSystemFonts", lambda: [path, __file__])
        figure = create_figure("☃", 5.0, 4.0)
        bold = figure.text(0.1, 0.5, "plain ☃", fontweight="bold")
        plain = figure.text(0.1, 0.2, "plain", fontweight="bold")
        assert {"☃", "plain ☃"} <= {text for text, _ in draw(figure)}
        assert (bold.get_fontfamily(), bold.get_fontweight()) == (["cmr10", "DejaVu Sans"], "normal")
        assert (plain.get_fontfamily(), plain.get_fontweight()) == (["cmr10"], "bold")

    def test_a_font_that_is_gone_or_holds_no_outlines_is_none(self, few_fonts, tmp_path):
        sans = findfont(FontProperties(family=["cmr10"]))
        entry = next(font for font in fontManager.ttflist if font.fname == sans)
        gone = type(entry)(fname=str(tmp_path / "gone.ttf"), name="Gone")
        colour = type(entry)(fname=matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf", name="Noto Color Emoji")
        few_fonts.setattr(fontManager, "ttflist", [entry, gone, colour])
        assert choose_fonts(["☃"]).missing == {"☃"}


class TestFit:
    @settings(max_examples=60)
    @given(st.text(max_size=60), st.integers(1, 40))
    def test_no_line_is_wider_or_longer_than_it_may_be(self, text, characters):
        (line,) = fit_lines([text], characters, 8)
        assert len(line) <= characters
        assert len(line) == 1 or choose_fonts([text]).measure(line, 8) <= measure_usual(characters, 8)
        shown = show_whitespace(text)
        assert line in (shown, "") or line.endswith("…")

    def test_usual_texts_are_cut_by_their_length_alone(self):
        text = "The first to fourth of all the usual words in a text of the library"
        assert fit_lines([text], 30, 8) == [text[:29] + "…"]
        assert fit_lines(["W" * 30, "短い文" * 10], 30, 8) != ["W" * 30, "短い文" * 10]

    def test_wide_texts_have_wide_columns(self):
        assert fit_column("said", ["W" * 10], 40).characters > fit_column("said", ["i" * 10], 40).characters == 12

    @settings(max_examples=40)
    @given(st.text(max_size=200), st.integers(1, 30))
    def test_wrapped_lines_are_as_narrow_as_they_must(self, text, characters):
        fonts = choose_fonts([text])
        lines = fonts.wrap(text, characters, 8, measure_usual(characters, 8), 3)
        assert len(lines) <= 3
        for line in lines:
            assert fonts.measure(line, 8) <= measure_usual(characters, 8) or len(line) == 1
