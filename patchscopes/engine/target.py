"""The target prompt of a Patchscope."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.engine.building import get_twin
from patchscopes.engine.clean_run import CleanRun, record_clean_run
from patchscopes.engine.twin import Twin
from patchscopes.errors import PatchscopesError
from patchscopes.given import AnyModel, AnyNumber, AnyNumbers, to_lens_model, to_numbers
from patchscopes.model.lens_model import LensModel
from patchscopes.positions import find_characters, find_substring_token_position
from patchscopes.prompts import PLACEHOLDER
from patchscopes.tokens import Text, decode_each_token, resolve_position, to_token_ids


class TargetPrompt:
    """A target prompt T and the position i* in it that vectors are written to.

    Attributes:
        model: the target model M*.
        tokens: the prompt's token ids, `[pos]`.
        position: i*, counted from the start.
        soft_prompt: what enters block 0 at each token in place of what the tokens put there, or None.

    The clean (unpatched) run over T, which all rows share in the fast engine, is computed once, on first use: make a
    new TargetPrompt after you have changed the model's weights or moved it.

    Raises:
        PatchscopesError: the prompt has no token at `position`, or the soft prompt has another length or width.
    """

    def __init__(
        self,
        model: AnyModel,
        text: Text,
        position: AnyNumber = -1,
        *,
        soft_prompt: Float[Tensor, "pos d_model"] | None = None,
    ) -> None:
        self.model: LensModel = to_lens_model(model)
        self.tokens = to_token_ids(self.model, text)
        self.position = resolve_position(len(self.tokens), position)
        self.soft_prompt = soft_prompt
        self._clean_run: tuple[Twin, CleanRun] | None = None
        if soft_prompt is not None and soft_prompt.shape != (len(self.tokens), self.model.cfg.d_model):
            raise PatchscopesError(
                f"the soft prompt is {tuple(soft_prompt.shape)}, expected one vector of width {self.model.cfg.d_model} "
                f"for each of the prompt's {len(self.tokens)} tokens"
            )

    @property
    def suffix_length(self) -> int:
        """The number of tokens that see the patch: i* and all after it."""
        return len(self.tokens) - self.position

    @property
    def has_clean_run(self) -> bool:
        """Whether the clean run has been computed."""
        return self._clean_run is not None and self._clean_run[0] is get_twin(self.model)

    def keep_clean_run(self, twin: Twin, clean: CleanRun) -> None:
        """Keep a clean run that was computed together with those of other prompts."""
        self._clean_run = twin, clean

    @property
    def clean_run(self) -> CleanRun:
        """The unpatched run over the prompt, for the fast engine; it carries the gradient of a soft prompt."""
        twin = get_twin(self.model)
        if self._clean_run is None or self._clean_run[0] is not twin:
            learning = torch.is_grad_enabled() and self.soft_prompt is not None and self.soft_prompt.requires_grad
            with torch.set_grad_enabled(learning):
                self._clean_run = twin, record_clean_run(twin, self.tokens, self.position, self.soft_prompt)
        return self._clean_run[1]

    def __repr__(self) -> str:
        return f"TargetPrompt({len(self.tokens)} tokens, position {self.position})"


def placeholder_target(
    model: AnyModel, prompt: Text, placeholder: str = PLACEHOLDER, *, occurrence: int = -1
) -> TargetPrompt:
    """The prompt with i* at the last occurrence of its placeholder.

    Args:
        occurrence: another one of several, as for `find_substring_token_position`.

    Raises:
        PatchscopesError: the placeholder is not in the prompt, or not one token of its own there.
    """
    model = to_lens_model(model)
    last = find_target_position(model, prompt, placeholder, occurrence=occurrence)
    first = find_substring_token_position(model, prompt, placeholder, last=False, occurrence=occurrence)
    if first != last:
        raise _not_of_its_own(model, prompt, placeholder)
    return TargetPrompt(model, prompt, last)


def find_target_position(model: LensModel, prompt: Text, word: str, *, occurrence: int = -1) -> int:
    """The last token of the last occurrence of a word (or another), where a vector can be written in its place.

    Raises:
        PatchscopesError: the word is not in the prompt, or its last token is part of another word too.
    """
    characters, spans = find_characters(model, prompt)
    if not word or word not in characters:
        raise PatchscopesError(f"the target prompt {characters!r} has no placeholder {word!r}; put one into it")
    position = find_substring_token_position(model, prompt, word, occurrence=occurrence)
    start, end = spans[position]
    if characters[start:end].strip() not in word.strip() or not characters[:end].rstrip().endswith(word.strip()):
        raise _not_of_its_own(model, prompt, word)
    return position


def find_target_positions(model: LensModel, prompt: Text, places: AnyNumbers | str | Sequence[int | str]) -> list[int]:
    """Positions of the prompt, from the first to the last, each given as a number (negative: from the end) or a word.

    One alone may be given as itself.

    A word is found as by `find_target_position`; one that is given n times stands for its last n occurrences.

    Raises:
        PatchscopesError: no places, or a position or word that is not in the prompt.
    """
    if isinstance(places, str):
        places = [places]
    elif not isinstance(places, Sequence) or not any(isinstance(place, str) for place in places):
        places = to_numbers(places, "target positions")
    if not places:
        raise PatchscopesError("the list of target positions is empty; give at least one position or word of T")
    n_tokens = len(to_token_ids(model, prompt))
    positions = set()
    for number, place in enumerate(places):
        if isinstance(place, str):
            n_from_here = list(places[number:]).count(place)
            positions.add(find_target_position(model, prompt, place, occurrence=-n_from_here))
        else:
            positions.add(resolve_position(n_tokens, place))
    return sorted(positions)


def _not_of_its_own(model: LensModel, prompt: Text, word: str) -> PatchscopesError:
    characters, _ = find_characters(model, prompt)
    return PatchscopesError(
        f"the placeholder {word!r} is not one token of its own in the target prompt {characters!r}: its tokens are "
        f"{decode_each_token(model, to_token_ids(model, prompt))}; choose another placeholder or put spaces around it"
    )
