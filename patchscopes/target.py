"""The target prompt of a Patchscope."""

from functools import cached_property

import torch

from patchscopes import twin
from patchscopes.lens_model import LensModel
from patchscopes.tokens import Text, resolve_position, to_token_ids


class TargetPrompt:
    """A target prompt T and the position i* in it that vectors are written to.

    Attributes:
        model: the target model M*.
        tokens: the prompt's token ids, `[pos]`.
        position: i*, counted from the start.

    The clean (unpatched) run over T, which all rows share in the fast engine, is computed once, on first use: make a
    new TargetPrompt after you have changed the model's weights or moved it.

    Raises:
        PatchscopesError: the prompt has no token at `position`.
    """

    def __init__(self, model: LensModel, text: Text, position: int = -1) -> None:
        self.model = model
        self.tokens = to_token_ids(model, text)
        self.position = resolve_position(len(self.tokens), position)

    @property
    def suffix_length(self) -> int:
        """The number of tokens that see the patch: i* and all after it."""
        return len(self.tokens) - self.position

    @cached_property
    def clean_run(self) -> twin.CleanRun:
        """The unpatched run over the prompt, for the fast engine."""
        with torch.no_grad():
            return twin.record_clean_run(twin.twin_of(self.model), self.tokens, self.position)

    def __repr__(self) -> str:
        return f"TargetPrompt({len(self.tokens)} tokens, position {self.position})"
