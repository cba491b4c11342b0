"""Two models that cut text into different tokens: where their positions, and which of their tokens, mean the same."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from patchscopes.errors import PatchscopesError
from patchscopes.model.lens_model import LensModel
from patchscopes.positions import find_token_spans
from patchscopes.prompts import Chat
from patchscopes.tokens import Text, decode_each_token, unwrap_text

# What part of a character is shown as: such tokens have no text of their own.
PARTIAL = "\N{REPLACEMENT CHARACTER}"


def align_positions(
    source_model: LensModel, target_model: LensModel, text: str | Chat, target_text: str | Chat | None = None
) -> list[tuple[int, int]]:
    """Pairs of positions, in the tokens of the two models, at which both have read exactly the same part of `text`.

    Both tokenizers end a token at the same character there. Of several tokens that end at one character (each a part of
    its bytes) only the last has read all of it. Positions beyond a model's context are left out.

    Args:
        target_text: in which form the target model reads it, the text itself or a chat; the same form unless given.

    Raises:
        PatchscopesError: a tokenizer gives no character offsets.
    """
    source_ends = _ends(source_model, text)
    target_ends = _ends(target_model, text if target_text is None else target_text)
    return [(source_ends[end], target_ends[end]) for end in sorted(source_ends.keys() & target_ends.keys())]


def align_position(source_model: LensModel, target_model: LensModel, text: Text, position: int) -> int:
    """Where the target model has read the same part of `text` as the source model at `position`.

    Raises:
        PatchscopesError: nowhere; or the models have other tokens, and the text is given as token ids.
    """
    if target_model is source_model or target_model.tokenizer.get_vocab() == source_model.tokenizer.get_vocab():
        return position
    names = repr(target_model.cfg.model_name), repr(source_model.cfg.model_name)
    text = unwrap_text(text)
    if isinstance(text, Tensor):
        raise PatchscopesError(f"{names[0]} has other tokens than {names[1]}: give S as a text, or give T too")
    aligned = dict(align_positions(source_model, target_model, text))
    if position not in aligned:
        raise PatchscopesError(
            f"no token of {names[0]} ends where token {position} of {names[1]} ends in {text!r}; give T, or another "
            "position in S"
        )
    return aligned[position]


def _ends(model: LensModel, text: str | Chat) -> dict[int, int]:
    """The last position that ends at each character; tokens that stand for no character (BOS) end nowhere."""
    spans = find_token_spans(model, text, truncate=True)
    ends = {end: position for position, (start, end) in enumerate(spans) if end > start}
    if spans and len(spans) == model.cfg.n_ctx:
        # The context may have cut the text inside a character.
        ends.pop(spans[-1][1], None)
    return ends


def map_vocabulary_by_text(model: LensModel) -> dict[str, int]:
    """The model's tokens by their text; of several with the same text the last that is no single byte."""
    by_name = sorted(model.tokenizer.get_vocab().items(), key=lambda item: (not _is_byte(item[0]), item[1]))
    ids = [token for _, token in by_name]
    texts = decode_each_token(model, ids)
    return {text: token for token, text in zip(ids, texts, strict=True) if text and PARTIAL not in text}


def _is_byte(name: str) -> bool:
    """Whether a token's name in the vocabulary is that of a byte: <0x0A>."""
    return re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", name) is not None


def find_longest_beginning(text: str, vocabulary: dict[str, int]) -> int | None:
    """The token that is the longest beginning of `text`, if any is: the token itself where the vocabulary has it."""
    beginnings = (text[:length] for length in range(len(text), 0, -1))
    return next((vocabulary[beginning] for beginning in beginnings if beginning in vocabulary), None)


@dataclass(frozen=True, eq=False)
class Vocabularies:
    """The tokens of two models, compared by their text; or as they are, where the two have one vocabulary.

    Attributes:
        by_text: the source model's tokens by their text; None where both models have the same.
    """

    source: LensModel
    target: LensModel
    by_text: dict[str, int] | None

    @classmethod
    def of(cls, source: LensModel, target: LensModel) -> "Vocabularies":
        """Those of two models."""
        shared = source.tokenizer.get_vocab() == target.tokenizer.get_vocab()
        return cls(source, target, None if shared else map_vocabulary_by_text(source))

    def same(self, model: LensModel, tokens: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """For tokens of either model, the source model's token with the same text, or -1 where it has none."""
        if self.by_text is None:
            return torch.where(tokens < self.source.cfg.d_vocab, tokens, -1)
        return self._replaced(model, tokens, lambda text, by_text: by_text.get(text))

    def closest(self, tokens: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """For tokens of the target model, the longest token of the source model that their text begins with, or -1."""
        if self.by_text is None:
            return self.same(self.target, tokens)
        return self._replaced(self.target, tokens, find_longest_beginning)

    def _replaced(
        self, model: LensModel, tokens: Int[Tensor, "*batch"], find: Callable[[str, dict[str, int]], int | None]
    ) -> Int[Tensor, "*batch"]:
        assert self.by_text is not None
        ids, places = tokens.unique(return_inverse=True)
        found = [find(text, self.by_text) for text in decode_each_token(model, ids)]
        return torch.tensor([-1 if one is None else one for one in found], device=tokens.device)[places]
