"""Tables in the terminal that fill up: they show what the model said, whatever that is."""

import pytest
from live_grid import LiveGrid, show_cell

SAID = ("[bold]", "[/]", ":smile: 12", "\x1b[31mred", "a\tb\nc", "北京", "\x9b2J", "\ud83d")
SHOWN = ("[bold]", "[/]", ":smile: 12", "U+001B[31mred", "a⇥b⏎c", "北京", "U+009B2J", "U+D83D")

# Of red, of a cleared screen, a tab, and the colour in which rich highlights numbers.
CODES = ("\x1b[31m", "\x9b", "\t", "\x1b[1;36m")


@pytest.mark.parametrize("in_terminal", [True, False])
def test_nothing_that_is_said_is_markup_or_a_code(in_terminal, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    if in_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with LiveGrid(range(len(SAID))) as grid:
        for text in SAID:
            grid.show_unpatched("vanilla", text, False)
        grid.show_layer(3, SAID, [False] * len(SAID))
    printed = capsys.readouterr().out
    for text in SHOWN:
        assert printed.count(text) >= 2
    assert not any(code in printed for code in CODES)


def test_answers_are_marked():
    assert show_cell(" [red]", True) == "✓ [red]"
    assert show_cell("x" * 20, False) == "x" * 15 + "…"
