"""Where a word stands in a text, counted in the model's tokens (BOS included)."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from patchscopes.errors import PatchscopesError
from patchscopes.model.lens_model import LensModel
from patchscopes.tokens import decode_each_token, to_token_ids


def find_token_spans(model: LensModel, text: str, *, truncate: bool = False) -> list[tuple[int, int]]:
    """For each token of `text`, the span of characters it stands for; special tokens have an empty one.

    A character whose bytes are spread over several tokens belongs to each of them.

    Args:
        truncate: as for `to_token_ids`.

    Raises:
        PatchscopesError: the tokenizer gives no character offsets (it has no fast version).
    """
    ids = to_token_ids(model, text, truncate=truncate).tolist()
    tokenizer = model.tokenizer
    if not tokenizer.is_fast:
        raise PatchscopesError(f"{type(tokenizer).__name__} gives no character offsets: load a fast tokenizer")
    # TransformerLens adds BOS itself, as text, where the tokenizer does not; and may drop what the tokenizer adds.
    for prepended in ("", tokenizer.bos_token or ""):
        for with_special_tokens in (True, False):
            encoding = tokenizer(prepended + text, return_offsets_mapping=True, add_special_tokens=with_special_tokens)
            for start in (0, 1):
                if encoding["input_ids"][start : start + len(ids)] == ids:
                    offsets = encoding["offset_mapping"][start : start + len(ids)]
                    return [tuple(max(0, index - len(prepended)) for index in offset) for offset in offsets]
    raise PatchscopesError(f"cannot tell which characters the tokens of {text!r} stand for")


def find_substring_token_position(
    model: LensModel, text: str, substring: str, *, last: bool = True, occurrence: int = 0
) -> int:
    """The position of the last (or first) token that any part of `substring` falls into.

    Args:
        last: the last token of the substring, where its meaning has been gathered; else its first.
        occurrence: which of several occurrences, from 0; negative ones count from the end.

    Raises:
        PatchscopesError: the text does not contain the substring that often; the message shows the tokens.
    """
    starts = [start for start in range(len(text)) if substring and text.startswith(substring, start)]
    if not -len(starts) <= occurrence < len(starts):
        found = "is not in the text" if not starts else f"is in the text {len(starts)} times, not at {occurrence}"
        raise PatchscopesError(
            f"{substring!r} {found}; its tokens are {decode_each_token(model, to_token_ids(model, text))}"
        )
    begin = starts[occurrence]
    end = begin + len(substring)
    spans = find_token_spans(model, text)
    inside = [position for position, span in enumerate(spans) if span[0] < end and span[1] > begin]
    if inside:
        return inside[-1 if last else 0]
    # Only spaces, which some tokenizers leave out of the spans: they belong to the token that follows.
    following = [position for position, span in enumerate(spans) if span[1] > span[0] >= begin]
    if following:
        return following[0]
    raise PatchscopesError(
        f"no token stands for {substring!r}; the tokens are {decode_each_token(model, to_token_ids(model, text))}"
    )


def find_token_position(model: LensModel, text: str, token: str | int, *, occurrence: int = -1) -> int:
    """The position of one whole token in `text`: given as id, or as text with or without its leading space.

    Args:
        occurrence: which of several occurrences, from 0; negative ones count from the end.

    Raises:
        PatchscopesError: no token of the text is that token; the message shows the tokens.
    """
    ids = to_token_ids(model, text)
    if isinstance(token, int):
        positions = (ids == token).nonzero()[:, 0].tolist()
    else:
        texts = decode_each_token(model, ids)
        positions = [position for position, other in enumerate(texts) if other in (token, f" {token}")]
    if not -len(positions) <= occurrence < len(positions):
        raise PatchscopesError(
            f"occurrence {occurrence} of the token {token!r} is not in the text, which has {len(positions)}; its "
            f"tokens are {decode_each_token(model, ids)}"
        )
    return positions[occurrence]


def verify_single_token(model: LensModel, text: str) -> int:
    """The id of `text` if it is exactly one token.

    Raises:
        PatchscopesError: it is none or several; the message shows them.
    """
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise PatchscopesError(f"{text!r} is {len(ids)} tokens, not one: {model.tokenizer.convert_ids_to_tokens(ids)}")
    return ids[0]


def find_first_tokens(model: LensModel, answers: Sequence[str]) -> Int[Tensor, " token"]:
    """The tokens that a model which says one of the answers after a word begins with, in order of their ids.

    An answer is taken as it is given and with its first letter in upper case. The tokens are those after a word and a
    space: in most tokenizers the space is part of the token, in some (of bytes, or before a numeral) the first token is
    the space alone and tells nothing about the answer.

    Raises:
        PatchscopesError: no answer, or the tokenizer gives no character offsets.
    """
    if not answers:
        raise PatchscopesError("there is no answer whose first token could be found; give at least one")
    spellings = {spelling for answer in answers for spelling in (answer, answer[:1].upper() + answer[1:])}
    texts = [f"x {spelling}" for spelling in sorted(spellings)]
    first = {
        int(to_token_ids(model, text)[find_substring_token_position(model, text, text[1:], last=False)])
        for text in texts
    }
    return torch.tensor(sorted(first), device=model.cfg.device)
