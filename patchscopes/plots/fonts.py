"""Fonts for the signs of any tokenizer: which families hold them, and how wide texts are in them.

The fonts that come with matplotlib hold Latin, Greek, Cyrillic, Arabic and many symbols, but no Chinese, Japanese,
Korean or Indic signs. Those are looked for in the fonts of the machine; what none of them holds is spelled out as its
code point.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import matplotlib
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.textpath import text_to_path

from patchscopes.plots.text import show_whitespace, spell_out

# Pictures instead of outlines, which matplotlib cannot draw.
COLOUR_FONTS = "Color Emoji"


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
        """The width of a line of text, in points."""
        properties = FontProperties(family=self.families, size=size)
        width, _, _ = text_to_path.get_text_width_height_descent(line, properties, False)
        return float(width)


def choose_fonts(texts: Iterable[str]) -> Fonts:
    """The families of matplotlib's settings, and as few others of the machine as hold more signs of the texts."""
    families = list(matplotlib.rcParams["font.family"])
    signs = {sign for text in texts for sign in show_whitespace(text) if sign.isprintable()}
    missing = signs.difference(*(find_held(findfont(FontProperties(family=[family])), signs) for family in families))
    files = {
        font.name: font.fname
        for font in fontManager.ttflist
        if missing and font.style == "normal" and font.weight in (400, "normal", "regular")
        if COLOUR_FONTS not in font.name
    }
    held_by = {family: find_held(path, missing) for family, path in sorted(files.items())}
    while any(held & missing for held in held_by.values()):
        best = max(held_by, key=lambda family: len(held_by[family] & missing))
        families.append(best)
        missing -= held_by[best]
    return Fonts(families, frozenset(missing))


def find_held(path: str, signs: set[str]) -> set[str]:
    """The signs that a font file holds."""
    font = get_font(path)
    return {sign for sign in signs if font.get_char_index(ord(sign)) != 0}
