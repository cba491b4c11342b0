"""Where a word stands in a text, counted in the model's tokens (BOS included)."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from tokenizers.decoders import DecodeStream
from torch import Tensor

from patchscopes.errors import PatchscopesError
from patchscopes.given import is_number
from patchscopes.model.lens_model import LensModel
from patchscopes.prompts import Chat
from patchscopes.tokens import Text, decode_each_token, resolve_position, to_token_ids, unwrap_text, write_out
from patchscopes.words import widen_to_words

# A prompt of which a template is not likely to say anything: it shows where the template puts prompts.
_SOME_PROMPT = "Zebra crossing 7301"


def find_token_spans(model: LensModel, text: Text, *, truncate: bool = False) -> list[tuple[int, int]]:
    """For each token of `text`, the span of characters it stands for. See `find_characters`."""
    return find_characters(model, text, truncate=truncate)[1]


def find_characters(model: LensModel, text: Text, *, truncate: bool = False) -> tuple[str, list[tuple[int, int]]]:
    """The characters of `text`, and for each of its tokens the span of those that it stands for.

    A character whose bytes are spread over several tokens belongs to each of them. What stands for no character has an
    empty span: BOS that was put in front, and what a template puts around the prompt of a chat. Of a text that is given
    as token ids the characters are what they decode to, special tokens included.

    Args:
        truncate: as for `to_token_ids`.

    Raises:
        PatchscopesError: the tokenizer gives no character offsets (it has no fast version).
    """
    unwrapped = unwrap_text(text)
    ids = to_token_ids(model, unwrapped, truncate=truncate).tolist()
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise PatchscopesError(f"{type(tokenizer).__name__} gives no character offsets: load a fast tokenizer")
    if isinstance(unwrapped, Tensor):
        return _decode_with_spans(model, ids)
    written = write_out(model, unwrapped)
    spans = _find_spans(model, written, ids)
    if isinstance(unwrapped, str):
        return unwrapped, spans
    begin = _find_prompt(model, unwrapped, written)
    end = begin + len(unwrapped.prompt)
    return unwrapped.prompt, [
        (max(first, begin) - begin, min(last, end) - begin) if first < end and last > begin else (0, 0)
        for first, last in spans
    ]


def _find_prompt(model: LensModel, chat: Chat, written: str) -> int:
    """Where the prompt of a chat begins in the chat as it is written."""
    begin = write_out(model, Chat(_SOME_PROMPT, chat.system)).rfind(_SOME_PROMPT)
    return begin if written.startswith(chat.prompt, begin) else written.rindex(chat.prompt)


def _decode_with_spans(model: LensModel, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """What token ids decode to, and the span of each; tokens that are one character only together share its span."""
    stream = DecodeStream(skip_special_tokens=False)
    text = ""
    spans: list[tuple[int, int]] = []
    for number, token in enumerate(ids, start=1):
        part = stream.step(model.tokenizer.backend_tokenizer, token)
        if part is not None:
            spans += [(len(text), len(text) + len(part))] * (number - len(spans))
            text += part
    return text, spans + [(len(text), len(text))] * (len(ids) - len(spans))


def _find_spans(model: LensModel, text: str, ids: list[int]) -> list[tuple[int, int]]:
    """The span of each token of a text."""
    tokenizer = model.tokenizer
    # TransformerLens adds BOS itself, as text, where the tokenizer does not; and may drop what the tokenizer adds.
    for prepended in ("", tokenizer.bos_token or ""):
        for with_special_tokens in (True, False):
            encoding = tokenizer(prepended + text, return_offsets_mapping=True, add_special_tokens=with_special_tokens)
            for start in (0, 1):
                if encoding["input_ids"][start : start + len(ids)] == ids:
                    offsets = encoding["offset_mapping"][start : start + len(ids)]
                    return [tuple(max(0, index - len(prepended)) for index in offset) for offset in offsets]
    raise PatchscopesError(f"cannot tell which characters the tokens of {text!r} stand for")


def find_word(model: LensModel, text: Text, position: int) -> tuple[int, int]:
    """The characters [start, end) of the word that a token stands in; of a token of several words, all of them.

    Args:
        position: of the token, counted from either end.

    Raises:
        PatchscopesError: there is no such token, or it stands for no sign of the text (BOS, a line break).
    """
    characters, spans = find_characters(model, text)
    number = resolve_position(len(spans), position)
    start, end = spans[number]
    signs = characters[start:end]
    if not signs.strip():
        raise PatchscopesError(
            f"token {number} is {decode_each_token(model, to_token_ids(model, text))[number]!r}, which stands for no "
            "word of the text; choose one of a word"
        )
    return widen_to_words(characters, start + len(signs) - len(signs.lstrip()), end - len(signs) + len(signs.rstrip()))


def find_end(model: LensModel, text: Text) -> int:
    """The position of the last token of a text: of a chat, that of the user's message.

    Raises:
        PatchscopesError: the message of a chat is empty.
    """
    if not isinstance(text, Chat):
        return -1
    inside = [position for position, (start, end) in enumerate(find_token_spans(model, text)) if end > start]
    if not inside:
        raise PatchscopesError("the user's message of a chat is empty; give at least one character")
    return inside[-1]


def find_substring_token_position(
    model: LensModel, text: Text, substring: str, *, last: bool = True, occurrence: int = 0
) -> int:
    """The position of the last (or first) token that any part of `substring` falls into.

    Args:
        last: the last token of the substring, where its meaning has been gathered; else its first.
        occurrence: which of several occurrences, from 0; negative ones count from the end.

    Raises:
        PatchscopesError: the text does not contain the substring that often; the message shows the tokens.
    """
    characters, spans = find_characters(model, text)
    starts = [start for start in range(len(characters)) if substring and characters.startswith(substring, start)]
    if not -len(starts) <= occurrence < len(starts):
        found = "is not in the text" if not starts else f"is in the text {len(starts)} times, not at {occurrence}"
        raise PatchscopesError(
            f"{substring!r} {found}; its tokens are {decode_each_token(model, to_token_ids(model, text))}"
        )
    begin = starts[occurrence]
    end = begin + len(substring)
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


def find_token_position(model: LensModel, text: Text, token: str | int, *, occurrence: int = -1) -> int:
    """The position of one whole token in `text`: given as id, or as text with or without its leading space.

    Args:
        occurrence: which of several occurrences, from 0; negative ones count from the end.

    Raises:
        PatchscopesError: no token of the text is that token; the message shows the tokens.
    """
    ids = to_token_ids(model, text)
    if is_number(token):
        positions = (ids == int(token)).nonzero()[:, 0].tolist()
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


def find_first_tokens(model: LensModel, answers: Sequence[str], after: str | Chat = "x") -> Int[Tensor, " token"]:
    """The tokens that a model which says one of the answers after a word begins with, in order of their ids.

    An answer is taken as it is given and with its first letter in upper case. The tokens are those after a word and a
    space: in most tokenizers the space is part of the token, in some (of bytes, or before a numeral) the first token is
    the space alone and tells nothing about the answer. After a chat the answer begins what the assistant says, with a
    space or without.

    Args:
        after: any text that ends with a word, or a chat.

    Raises:
        PatchscopesError: no answer, or the tokenizer gives no character offsets.
    """
    if not answers:
        raise PatchscopesError("there is no answer whose first token could be found; give at least one")
    spellings = {spelling for answer in answers for spelling in (answer, answer[:1].upper() + answer[1:])}
    said = [f" {spelling}" for spelling in sorted(spellings)]
    first = {_find_first_token(model, "x", text) for text in said}
    if isinstance(after, Chat):
        written = write_out(model, after)
        begun = {_find_first_token(model, written, text) for text in (*said, *sorted(spellings))}
        first = {token for token in begun if decode_each_token(model, [token])[0].strip()}
    return torch.tensor(sorted(first), device=model.cfg.device)


def _find_first_token(model: LensModel, before: str, text: str) -> int:
    """The first token of `text` behind another one."""
    together = before + text
    position = find_substring_token_position(model, together, text, last=False, occurrence=-1)
    return int(to_token_ids(model, together)[position])
