"""What the page on entity resolution is about, and how its methods tell their numbers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from patchscopes.results import Json
from patchscopes.tutorial.state import Choice

PATCHSCOPES = "Ghandeharioun et al., ICML 2024, arXiv:2401.06102"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a question is about: the reader's choice, and the words of the name that token i ends."""

    choice: Choice
    name: str

    @property
    def layers(self) -> str:
        """The layers, as code."""
        return f"range({self.choice.layers[0]}, {self.choice.layers[-1] + 1})"


def tell_live(document: Json | None, tell: Callable[[Json], str]) -> str:
    """What the reader's own result says, if there is one."""
    return "" if document is None else f" Above: {tell(document['results'])}"


def find_largest(means: list[float], layers: list[int]) -> tuple[float, int]:
    """The largest mean, and its layer."""
    slot = int(np.argmax(means))
    return means[slot], layers[slot]
