"""Temporary."""


def show_whitespace(text: str) -> str:
    """The text in one line: spaces at its ends, newlines and tabs as symbols, dollars kept from making formulas."""
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    marked = "␣" * before + inner + "␣" * (len(text) - before - len(inner))
    return marked.replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$")


def format_significant(number: float) -> str:
    """The number with about three significant digits, never in scientific notation."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def shorten(text: str, length: int) -> str:
    """At most `length` characters of the text."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
