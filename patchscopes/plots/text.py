"""Texts and numbers in the form that figures and tables, those of the terminal too, show."""

import unicodedata
from collections.abc import Container

# They have no shape, and join the signs around them: in Persian and Indic words, and in emoji.
JOINERS = "\u200c\u200d"


def show_whitespace(text: str) -> str:
    """The text in one line of signs that can be seen: spaces at its ends, newlines and tabs as symbols, and control
    codes and whatever else has no shape as code points (U+001B)."""
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    marked = "␣" * before + inner + "␣" * (len(text) - before - len(inner))
    return spell_out(marked.replace("\n", "⏎").replace("\t", "⇥"))


def spell_out(text: str, missing: Container[str] = ()) -> str:
    """The line with the code point (U+200B) in place of every sign that is missing from fonts or has no shape.

    Within the line, spaces of other widths are plain ones, and joiners stay between what they join.
    """
    if text.isprintable() and not missing:
        return text
    return "".join(_spell_sign(text, place, missing) for place in range(len(text)))


def _spell_sign(text: str, place: int, missing: Container[str]) -> str:
    sign, inside = text[place], 0 < place < len(text) - 1
    if sign in missing:
        return _name_code_point(sign)
    if sign.isprintable():
        return sign
    if inside and unicodedata.category(sign) == "Zs":
        return " "
    joins = inside and sign in JOINERS and all(_has_shape(text[place + step]) for step in (-1, 1))
    return sign if joins else _name_code_point(sign)


def _has_shape(sign: str) -> bool:
    return sign.isprintable() and sign != " "


def _name_code_point(sign: str) -> str:
    return f"U+{ord(sign):04X}"


def shorten(text: str, length: int) -> str:
    """At most `length` characters of the text."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def format_significant(number: float) -> str:
    """The number with about three significant digits, never in scientific notation."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
