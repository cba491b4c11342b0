"""Texts and numbers in the form that figures and tables show."""

from collections.abc import Container


def show_whitespace(text: str) -> str:
    """The text in one line: spaces at its ends, newlines and tabs as symbols."""
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    marked = "␣" * before + inner + "␣" * (len(text) - before - len(inner))
    return marked.replace("\n", "⏎").replace("\t", "⇥")


def spell_out(text: str, missing: Container[str] = ()) -> str:
    """The text with the code point (U+200B) in place of every sign that is missing from fonts or has no shape."""
    return "".join(f"U+{ord(sign):04X}" if sign in missing or not sign.isprintable() else sign for sign in text)


def shorten(text: str, length: int) -> str:
    """At most `length` characters of the text."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def format_significant(number: float) -> str:
    """The number with about three significant digits, never in scientific notation."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
