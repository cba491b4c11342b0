"""A table over (ℓ, ℓ*) in the terminal that fills up while it is computed."""

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from patchscopes.model.layer_names import name_layer
from patchscopes.plots.text import shorten, show_whitespace

if TYPE_CHECKING:
    from rich.console import Console

# With more target layers than this, a cell holds a sign instead of words.
COLUMNS_WITH_WORDS = 10
CHARACTERS_IN_A_CELL = 16


def make_console() -> "Console":
    """A terminal for tables of texts as they are written: nothing in them is markup, the name of an emoji or a number
    to highlight."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)


class LiveGrid:
    """A row for each source layer, a column for each target layer; answers are marked.

    A context manager: the table is on the screen inside it.
    """

    def __init__(self, target_layers: Sequence[int]) -> None:
        from rich.live import Live
        from rich.table import Table

        self.console = make_console()
        self.table = Table(
            "ℓ", *map(name_layer, target_layers), title="patched, by target layer ℓ*", title_justify="left"
        )
        self.live = Live(self.table, console=self.console, auto_refresh=False)

    def __enter__(self) -> "LiveGrid":
        self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.__exit__(kind, error, trace)
        if error is None and not self.console.is_terminal:
            # Without a terminal a live table ends without a newline.
            print()

    def show_unpatched(self, method: str, text: str, solved: bool) -> None:
        """A line above the table: what was said with nothing patched."""
        print(f"{method.replace('_', ' '):>10} {'✓' if solved else ' '} {show_whitespace(text)}")

    def show_layer(self, layer: int, texts: Sequence[str], solved: Sequence[bool]) -> None:
        """The row of a source layer."""
        cells = [show_cell(text, right) for text, right in zip(texts, solved, strict=True)]
        if len(cells) > COLUMNS_WITH_WORDS:
            cells = ["✓" if right else "·" for right in solved]
        self.table.add_row(name_layer(layer), *cells)
        self.live.refresh()


def show_cell(text: str, solved: bool) -> str:
    """The beginning of what was said, with a sign if it is the answer."""
    return f"{'✓ ' if solved else ''}{shorten(show_whitespace(text.strip()), CHARACTERS_IN_A_CELL)}"
