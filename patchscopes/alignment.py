"""Two models that cut text into different tokens: where their positions, and which of their tokens, mean the same."""

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from patchscopes.lens_model import LensModel
from patchscopes.positions import token_spans
from patchscopes.tokens import token_texts

# What part of a character is shown as: such tokens have no text of their own.
PARTIAL = "\N{REPLACEMENT CHARACTER}"


def aligned_positions(source_model: LensModel, target_model: LensModel, text: str) -> list[tuple[int, int]]:
    """Pairs of positions, in the tokens of the two models, at which both have read exactly the same part of `text`.

    Both tokenizers end a token at the same character there. Of several tokens that end at one character (each a part of
    its bytes) only the last has read all of it. Positions beyond a model's context are left out.

    Raises:
        PatchscopesError: a tokenizer gives no character offsets.
    """
    source_ends, target_ends = (_ends(model, text) for model in (source_model, target_model))
    return [(source_ends[end], target_ends[end]) for end in sorted(source_ends.keys() & target_ends.keys())]


def _ends(model: LensModel, text: str) -> dict[int, int]:
    """The last position that ends at each character; tokens that stand for no character (BOS) end nowhere."""
    spans = token_spans(model, text, truncate=True)
    ends = {end: position for position, (start, end) in enumerate(spans) if end > start}
    if spans and len(spans) == model.cfg.n_ctx:
        # The context may have cut the text inside a character.
        ends.pop(spans[-1][1], None)
    return ends


def vocabulary_by_text(model: LensModel) -> dict[str, int]:
    """The model's tokens by their text; of several with the same text the last (the others are single bytes)."""
    ids = sorted(model.tokenizer.get_vocab().values())
    texts = token_texts(model, ids)
    return {text: token for token, text in zip(ids, texts, strict=True) if text and PARTIAL not in text}


def longest_beginning(text: str, vocabulary: dict[str, int]) -> int | None:
    """The token that is the longest beginning of `text`, if any is: the token itself where the vocabulary has it."""
    beginnings = (text[:length] for length in range(len(text), 0, -1))
    return next((vocabulary[beginning] for beginning in beginnings if beginning in vocabulary), None)


def texts_by_token(model: LensModel, tokens: Int[Tensor, "..."]) -> dict[int, str]:
    """The text of each token that occurs in `tokens`."""
    ids: Sequence[int] = tokens.unique().tolist()
    return dict(zip(ids, token_texts(model, ids), strict=True))
