"""Fonts for any sign: which families hold it, how wide texts are in them, and figures that draw texts as written.

The fonts that come with matplotlib hold Latin, Greek, Cyrillic, Arabic and many symbols, but no Chinese, Japanese,
Korean or Indic signs. Those are looked for in the fonts of the machine; what none of them holds is spelled out as its
code point.
"""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

import matplotlib
from matplotlib.axis import Axis
from matplotlib.category import StrCategoryFormatter
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager, get_font
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedFormatter, FuncFormatter

from patchscopes.plots.text import shorten, show_whitespace, spell_out

# Pictures instead of outlines, which matplotlib cannot draw, and boxes that stand for any sign.
UNUSABLE = ("Color Emoji", "LastResort", "Last Resort")
# Inches, of a usual character by the size of its font (some are wider than others).
CHARACTER_WIDTH = 0.66 / 72


@dataclass(frozen=True)
class Fonts:
    """Families for some texts: the first one that holds a sign draws it.

    Attributes:
        families: as matplotlib takes them.
        missing: signs of the texts that none of them holds.
    """

    families: list[str]
    missing: frozenset[str]

    def write(self, text: str) -> str:
        """The text in one line of signs that can be drawn."""
        return spell_out(show_whitespace(text), self.missing)

    def measure(self, line: str, size: int) -> float:
        """The width of a line of text as it will be drawn, in points."""
        properties = FontProperties(family=self.families, size=size)
        width, _, _ = text_to_path.get_text_width_height_descent(self.write(line), properties, False)
        return float(width)

    def count_characters(self, line: str, size: int) -> int:
        """How many usual characters a line is as wide as, at least the number that it has."""
        return max(len(line), ceil(self.measure(line, size) / measure_usual(1, size)))

    def fit(self, text: str, characters: int, size: int) -> str:
        """The text in one line, cut to a number of characters and to their usual width."""
        line = show_whitespace(text)
        cut = shorten(line, characters)
        while len(cut) > 1 and (width := self.measure(cut, size)) > measure_usual(characters, size):
            # Not one by one, if it is much too wide.
            nearly = ceil(len(cut) * measure_usual(characters, size) / width)
            cut = shorten(line, max(1, min(len(cut) - 1, nearly)))
        return cut

    def wrap(self, line: str, characters: int, size: int, width: float, max_lines: int) -> list[str]:
        """The line in lines of a number of characters that are not wider than a number of points."""
        while True:
            lines = textwrap.wrap(line, characters, max_lines=max_lines, placeholder="…")
            widest = max((self.measure(part, size) for part in lines), default=0.0)
            if widest <= width or characters == 1:
                return lines
            characters = max(1, min(characters - 1, int(characters * width / widest)))


def measure_usual(characters: int, size: int) -> float:
    """The width of a number of usual characters, in points."""
    return 72 * CHARACTER_WIDTH * characters * size


def fit_lines(texts: Sequence[str], characters: int, size: int) -> list[str]:
    """Each text in one line, cut to a number of characters and to their usual width."""
    fonts = choose_fonts(texts)
    return [fonts.fit(text, characters, size) for text in texts]


def wrap_line(line: str, characters: int, size: int, width: float, max_lines: int) -> str:
    """The line in lines of a number of characters that are not wider than a number of points."""
    return "\n".join(choose_fonts([line]).wrap(line, characters, size, width, max_lines))


def choose_fonts(texts: Iterable[str]) -> Fonts:
    """The families of matplotlib's settings, and as few others of the machine as hold more signs of the texts."""
    families = list(matplotlib.rcParams["font.family"])
    signs = {sign for text in texts for sign in show_whitespace(text)}
    missing = signs.difference(*(find_held(findfont(FontProperties(family=[family])), signs) for family in families))
    others, missing = choose_others(missing)
    return Fonts([*families, *others], frozenset(missing))


def choose_others(signs: set[str]) -> tuple[list[str], set[str]]:
    """As few families of the machine as hold most of the signs, and the signs that none holds."""
    others: list[str] = []
    missing = set(signs)
    if missing:
        add_new_fonts()
    files = {
        font.name: font.fname
        for font in fontManager.ttflist
        if missing and font.style == font.stretch == "normal" and font.weight in (400, "normal", "regular")
        if not any(part in font.name for part in UNUSABLE)
    }
    held_by = {family: find_held(path, missing) for family, path in sorted(files.items())}
    while any(held & missing for held in held_by.values()):
        best = max(held_by, key=lambda family: len(held_by[family] & missing))
        others.append(best)
        missing -= held_by[best]
    return others, missing


def add_new_fonts() -> None:
    """Tell matplotlib of fonts that were installed after it had made its list of them, which it keeps for good."""
    known = {font.fname for font in fontManager.ttflist}
    for path in findSystemFonts():
        if path not in known:
            try:
                fontManager.addfont(path)
            except (OSError, RuntimeError, ValueError):
                # Pictures instead of outlines, or no font.
                continue


def find_held(path: str, signs: set[str]) -> set[str]:
    """The signs that a font file holds: none, if it cannot be read (any more)."""
    try:
        font = get_font(path)
    except (OSError, RuntimeError):
        return set()
    return {sign for sign in signs if font.get_char_index(ord(sign)) != 0}


def write_as_given(figure: Figure) -> frozenset[str]:
    """Let all texts of a figure be drawn as they are written: nothing in them is a formula, signs that their font lacks
    are drawn in another one, and those that no font of the machine holds are spelled out.

    Numbers that matplotlib itself writes along axes stay: powers of ten are formulas.

    Returns:
        the signs that no font holds.
    """
    axes = figure.findobj(Axis)
    for axis in axes:
        # Writes the labels, which are else written when they are drawn.
        axis.get_ticklabels()
    numbers = {id(text) for axis in axes for text in list_numbers(axis)}
    texts = [text for text in figure.findobj(Text) if text.get_text() and id(text) not in numbers]
    fonts = choose_fonts(line for text in texts for line in text.get_text().split("\n"))
    for axis in axes:
        if has_own_labels(axis):
            spell_labels(axis, fonts)
    for text in texts:
        text.set_parse_math(False)
        text.set_text(spell_lines(text.get_text(), fonts))
        signs = set(text.get_text()) - {"\n"}
        if not signs <= find_held(findfont(text.get_fontproperties()), signs):
            # Bold and oblique faces hold fewer signs.
            text.set(fontfamily=fonts.families, fontweight="normal", fontstyle="normal")
    return fonts.missing


def has_own_labels(axis: Axis) -> bool:
    """Whether the axis has texts at its ticks instead of numbers."""
    return isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter | StrCategoryFormatter)


def list_labels(axis: Axis) -> list[Text]:
    """The texts at the major ticks."""
    return [label for tick in axis.get_major_ticks() for label in (tick.label1, tick.label2)]


def list_numbers(axis: Axis) -> list[Text]:
    """The texts of the axis that matplotlib writes."""
    minor = [label for tick in axis.get_minor_ticks() for label in (tick.label1, tick.label2)]
    return [axis.offsetText, *minor, *([] if has_own_labels(axis) else list_labels(axis))]


def spell_labels(axis: Axis, fonts: Fonts) -> None:
    """Let the axis write its own labels in signs that can be drawn, if there are others in them."""
    formatter = axis.get_major_formatter()
    texts = [label.get_text() for label in list_labels(axis)]
    if any(spell_lines(text, fonts) != text for text in texts):
        axis.set_major_formatter(FuncFormatter(lambda value, place: spell_lines(formatter(value, place), fonts)))


def spell_lines(text: str, fonts: Fonts) -> str:
    """The text with each line in signs that can be drawn."""
    return "\n".join(spell_out(line.replace("\t", "⇥"), fonts.missing) for line in text.split("\n"))
