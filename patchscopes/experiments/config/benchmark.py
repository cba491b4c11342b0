"""The options of the benchmark."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Options of the benchmark (`benchmark`).

    Attributes:
        n_samples: positions for the next token, each at all layers.
        max_new_tokens: of a description. The answers of the two-hop question have those of `MultiHopConfig`, attributes
            those of `AttributesConfig`.
        methods: the tasks that are timed.
    """

    METHODS: ClassVar = ("next_token", "generation", "grid", "questions", "attributes", "tracing", "jacobian")
    n_samples: int = 16
    max_new_tokens: int = 20
    seed: int = 0
    methods: tuple[str, ...] = METHODS
