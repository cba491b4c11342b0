"""The options of the benchmark beside the peers."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class PeersConfig:
    """Options of the benchmark beside the peers (`peers`).

    Attributes:
        n_samples: source prompts whose next token is read, each at all layers.
        n_entities: names that are described, each at all layers.
        max_new_tokens: of a description.
        n_turns: how often every peer is timed, one after the other.
        methods: the tasks that are timed.
    """

    METHODS: ClassVar = ("next_token", "generation")
    n_samples: int = 16
    n_entities: int = 1
    max_new_tokens: int = 20
    n_turns: int = 3
    methods: tuple[str, ...] = METHODS
