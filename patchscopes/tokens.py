"""Texts as the model reads them."""

from collections.abc import Sequence
from itertools import count, takewhile
from typing import TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from patchscopes.errors import PatchscopesError
from patchscopes.given import AnyNumber, to_number
from patchscopes.model.lens_model import LensModel

Text: TypeAlias = str | Sequence[int] | Int[Tensor, "..."]


def to_token_ids(model: LensModel, text: Text, *, truncate: bool = False) -> Int[Tensor, " pos"]:
    """The token ids of `text` as the model reads it (with BOS where TransformerLens puts it), or ids given as such.

    Args:
        truncate: drop what goes beyond the model's context, instead of refusing the text.

    Raises:
        PatchscopesError: no token at all, more than the model's context, or ids that are none.
    """
    if isinstance(text, str):
        if model.tokenizer is None:
            raise PatchscopesError("this model has no tokenizer: give token ids, or load it with tokenizer=...")
        ids = model.to_tokens(text, truncate=False)[0]
    else:
        ids = torch.as_tensor(text, device=model.cfg.device)
        if ids.numel() > 0 and (ids.is_floating_point() or ids.squeeze().ndim > 1):
            raise PatchscopesError(
                f"text must be a string or the token ids of one text, got a tensor of shape {tuple(ids.shape)} "
                f"and type {ids.dtype}; give one text at a time"
            )
        ids = ids.reshape(-1).long()
        if ids.numel() > 0 and not 0 <= int(ids.min()) <= int(ids.max()) < model.cfg.d_vocab:
            raise PatchscopesError(f"token ids must be from 0 to {model.cfg.d_vocab - 1}, got {ids.tolist()}")
    if len(ids) == 0:
        raise PatchscopesError("the text has no tokens; give at least one character")
    if truncate:
        return ids[: model.cfg.n_ctx]
    if len(ids) > model.cfg.n_ctx:
        raise PatchscopesError(f"the text has {len(ids)} tokens, the model reads at most {model.cfg.n_ctx}; shorten it")
    return ids


def has_added_bos(model: LensModel, text: Text, tokens: Int[Tensor, " pos"]) -> bool:
    """Whether the first of the tokens of `text` is a BOS token that was put in front of it."""
    if not isinstance(text, str) or not model.tokenizer.bos_token:
        return False
    bos = model.tokenizer.bos_token
    n_written = next(number for number in count() if not text.startswith(bos, number * len(bos)))
    n_read = sum(1 for _ in takewhile(lambda token: token == model.tokenizer.bos_token_id, tokens.tolist()))
    return n_read > n_written


def check_is_text(prompt: Text, word: str) -> str:
    """The prompt, if a word can be found in it.

    Raises:
        PatchscopesError: it is given as token ids.
    """
    if not isinstance(prompt, str):
        raise PatchscopesError(f"the word {word!r} can be found only in a text: give a number with token ids")
    return prompt


def resolve_position(n_tokens: int, position: AnyNumber) -> int:
    """A position counted from the start; negative ones count from the end.

    Raises:
        PatchscopesError: the text has no such token, or it is not one number.
    """
    position = to_number(position, "a position")
    if not -n_tokens <= position < n_tokens:
        raise PatchscopesError(f"position {position} does not exist in a text of {n_tokens} tokens (BOS included)")
    return position % n_tokens


def get_end_tokens(model: LensModel) -> Int[Tensor, " end_token"]:
    """The ids that end a generation: the tokenizer's end-of-sequence token and those of the generation config."""
    ids = {getattr(model.tokenizer, "eos_token_id", None)}
    generation_config = getattr(getattr(model, "original_model", None), "generation_config", None)
    configured = getattr(generation_config, "eos_token_id", None)
    ids.update(configured if isinstance(configured, list) else [configured])
    return torch.tensor(sorted(token for token in ids if token is not None), device=model.cfg.device, dtype=torch.long)


def decode_each_token(model: LensModel, ids: Sequence[int] | Int[Tensor, " pos"]) -> list[str]:
    """Each token as text, leading space included; one that is only part of a character shows as the replacement one.

    Tokens are decoded behind another one: some decoders (Llama 2's) strip the space in front of the first.
    """
    tokenizer = model.tokenizer
    first = tokenizer("x", add_special_tokens=False)["input_ids"][-1:]
    before = len(tokenizer.decode(first, clean_up_tokenization_spaces=False))
    ids = ids.tolist() if isinstance(ids, Tensor) else ids
    return [tokenizer.decode([*first, token], clean_up_tokenization_spaces=False)[before:] for token in ids]


def describe_positions(model: LensModel, tokens: Int[Tensor, " pos"], positions: Sequence[int]) -> tuple[str, str]:
    """A prompt as text, and some of its positions with their tokens."""
    texts = decode_each_token(model, tokens)
    return "".join(texts), ", ".join(f"{position} ({texts[position]!r})" for position in positions)
