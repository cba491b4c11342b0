"""The figure of the table of a prompt, drawn from made-up documents."""

from typing import Any

import matplotlib
import numpy as np
import pytest
from drawn_figures import check_texts, draw

from patchscopes.plots.fonts import choose_fonts
from patchscopes.plots.prompt_table import COLOR_SCALES, TOKENS_PER_PAGE, plot_prompt_table
from patchscopes.plots.text import show_whitespace

PLAIN = ["The", " Eiffel", " Tower", " is", " in", "\n", " $5$", " internationalisation"]
# The widest signs, signs that need other fonts, right to left, no shape at all, and parts of characters.
ODD = [
    "WWWWWWWWWWWWWW",
    "ЩЩЩЩЩЩЩЩЩЩЩЩ",
    "中文字符中文字符",
    "\u200b\x00",
    "مرحبا",
    "�",
    "…" * 20,
    "lllllllllllllll",
    "😀",
    "हिन्दी",
]
LENSES = ("logit_lens", "MyLens")


def make_document(
    n_tokens: int, n_layers: int = 30, color: str = "probability", vocabulary: list[str] = PLAIN, lens: str = LENSES[0]
) -> dict[str, Any]:
    generator = np.random.default_rng(0)

    def draw_texts() -> list[str]:
        return generator.choice(vocabulary, n_tokens).tolist()

    results = {
        "layers": list(range(n_layers)),
        "positions": list(range(1, n_tokens + 1)),
        "tokens": draw_texts(),
        "own": {"top": draw_texts(), "probability": generator.uniform(0, 1, n_tokens).tolist()},
        "methods": {
            lens: {
                "top": [draw_texts() for _ in range(n_layers)],
                "probability": generator.uniform(0, 1, (n_layers, n_tokens)).tolist(),
                "rank": np.floor(np.exp(generator.uniform(0, 10, (n_layers, n_tokens)))).astype(int).tolist(),
                "kl": generator.exponential(3, (n_layers, n_tokens)).tolist(),
            }
        },
    }
    environment = {"model": {"id": "smollm2-135m-instruct"}}
    return {"experiment": "prompt_table", "config": {"color": color}, "environment": environment, "results": results}


def get_pages(figure):
    return [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]


@pytest.mark.parametrize(
    ("n_tokens", "n_layers", "vocabulary", "color"),
    [
        *((*size, color) for size in ((1, 1, PLAIN), (5, 30, PLAIN), (13, 4, ODD)) for color in COLOR_SCALES),
        # Pages full of numbers take their time.
        *((*size, "rank") for size in ((40, 30, PLAIN), (60, 80, PLAIN), (25, 12, ODD))),
    ],
)
@pytest.mark.filterwarnings("error:Glyph")
def test_texts_are_whole_and_apart(n_tokens, n_layers, vocabulary, color):
    texts = check_texts(plot_prompt_table(make_document(n_tokens, n_layers, color, vocabulary)))
    joined = " ".join(texts).replace("\n", " ")
    assert "Logit Lens" in joined
    assert "smollm2-135m-instruct" in joined
    assert COLOR_SCALES[color].label in joined


@pytest.mark.parametrize("n_tokens", [1, 5, 12, 13, 24, 25, 60])
def test_pages_hold_all_tokens_in_order(n_tokens):
    document = make_document(n_tokens, n_layers=3)
    pages = get_pages(plot_prompt_table(document))
    headings = [[label.get_text() for label in page.get_xticklabels()] for page in pages]
    sizes = [len(page) for page in headings]
    assert len(sizes) == -(-n_tokens // TOKENS_PER_PAGE)
    assert max(sizes) <= TOKENS_PER_PAGE
    assert max(sizes) - min(sizes) <= 1
    positions, tokens = zip(*(heading.split("\n") for page in headings for heading in page), strict=True)
    assert list(map(int, positions)) == document["results"]["positions"]
    shown = [show_whitespace(token)[:11] for token in document["results"]["tokens"]]
    assert [token[:11] for token in tokens] == shown


def test_the_first_row_is_the_models_own_and_layers_go_upwards():
    document = make_document(3, n_layers=4, lens="MyLens")
    (page,) = get_pages(plot_prompt_table(document))
    assert [label.get_text() for label in page.get_yticklabels()] == ["0", "1", "2", "3", "model"]
    cells = [text.get_text() for text in page.texts]
    results = document["results"]
    expected = [*results["methods"]["MyLens"]["top"], results["own"]["top"]]
    assert [cell[:11] for cell in cells] == [show_whitespace(text)[:11] for row in expected for text in row]


def test_pages_have_one_scale():
    """A character is as wide, a row as high and a colour worth the same on every page."""
    figure = plot_prompt_table(make_document(40, n_layers=5, color="kl"))
    draw(figure)
    pages = get_pages(figure)
    assert len({page.get_xlim() for page in pages}) == 1
    sizes = np.array([page.get_window_extent().size for page in pages])
    assert np.allclose(sizes, sizes[0], atol=1)
    (bar,) = [axis for axis in figure.axes if axis not in pages]
    kl = make_document(40, n_layers=5)["results"]["methods"]["logit_lens"]["kl"]
    assert bar.get_xlim() == pytest.approx((0, np.max(kl)))


@pytest.mark.parametrize(("color", "darkest"), [("probability", 1.0), ("rank", 0), ("kl", 0.0)])
def test_dark_is_sure_or_near_to_the_model(color, darkest):
    document = make_document(2, n_layers=2, color=color)
    read = document["results"]["methods"]["logit_lens"]
    read[color] = [[darkest, 0.5], [1, 0.7]] if color != "rank" else [[0, 5], [300, 12]]
    (page,) = get_pages(plot_prompt_table(document))
    (mesh,) = page.collections
    brightness = np.asarray(mesh.get_array()).reshape(3, 2, 4)[..., :3].sum(axis=-1)
    assert brightness[0, 0] == brightness[:2].min()
    if color != "probability":
        assert np.allclose(brightness[2], brightness[0, 0])


class TestFonts:
    def test_signs_that_no_font_holds_are_spelled_out(self):
        fonts = choose_fonts(["a\nb", "\U0010fffd", "\x00"])
        assert fonts.write(" a\nb") == "␣a⏎b"
        # A sign for private use, and one without a shape.
        assert fonts.write("\U0010fffd\x00") == "U+10FFFDU+0000"

    def test_signs_are_looked_for_in_other_fonts(self):
        with matplotlib.rc_context({"font.family": ["cmr10"]}):
            fonts = choose_fonts(["plain"])
            assert fonts.families == ["cmr10"]
            fonts = choose_fonts(["plain", "☃"])
        assert fonts.families[0] == "cmr10"
        assert len(fonts.families) == 2
        assert fonts.write("☃") == "☃"

    def test_wider_signs_are_wider(self):
        fonts = choose_fonts(["Wil"])
        assert fonts.measure("W", 8) > 2 * fonts.measure("i", 8) > 0
        assert fonts.measure("Wil", 16) == pytest.approx(2 * fonts.measure("Wil", 8), rel=0.02)
