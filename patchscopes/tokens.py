"""Texts as the model reads them."""

from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from patchscopes.errors import PatchscopesError
from patchscopes.given import AnyNumber, to_number
from patchscopes.model.lens_model import LensModel
from patchscopes.prompts import Chat, as_chat

# A text, or its token ids; also in what a tokenizer or its `apply_chat_template` returns, such as a batch of it.
Text: TypeAlias = (
    str
    | Chat
    | Sequence[int]
    | Int[Tensor, "..."]
    | Int[np.ndarray, "..."]
    | Mapping[str, Any]
    | Sequence[str]
    | Sequence[Sequence[int]]
    | Sequence[Mapping[str, Any]]
)


def to_token_ids(model: LensModel, text: Text, *, truncate: bool = False) -> Int[Tensor, " pos"]:
    """The token ids of `text` as the model reads it, or ids given as such.

    BOS is where TransformerLens puts it, unless the text begins with it already. Special tokens that are written out in
    a text are those tokens.

    Args:
        truncate: drop what goes beyond the model's context, instead of refusing the text.

    Raises:
        PatchscopesError: no token at all, more than the model's context, several texts, or ids that are none.
    """
    unwrapped = unwrap_text(text)
    if isinstance(unwrapped, Tensor):
        ids = unwrapped.to(model.cfg.device).long()
        if ids.numel() > 0 and not 0 <= int(ids.min()) <= int(ids.max()) < model.cfg.d_vocab:
            raise PatchscopesError(f"token ids must be from 0 to {model.cfg.d_vocab - 1}, got {ids.tolist()}")
    else:
        if model.tokenizer is None:
            raise PatchscopesError("this model has no tokenizer: give token ids, or load it with tokenizer=...")
        ids = _tokenize(model, write_out(model, unwrapped))
    if len(ids) == 0:
        raise PatchscopesError("the text has no tokens; give at least one character")
    if truncate:
        return ids[: model.cfg.n_ctx]
    if len(ids) > model.cfg.n_ctx:
        raise PatchscopesError(f"the text has {len(ids)} tokens, the model reads at most {model.cfg.n_ctx}; shorten it")
    return ids


def unwrap_text(text: Text) -> str | Chat | Int[Tensor, " pos"]:
    """The text, or its token ids, out of what a tokenizer wraps around one: a batch of it, masks, padding.

    Raises:
        PatchscopesError: it holds several texts, or none.
    """
    if isinstance(text, str | Chat):
        return text
    if isinstance(text, Mapping):
        if "input_ids" not in text:
            raise PatchscopesError(
                f"a text was expected, and got a mapping of {', '.join(map(str, text))}: give messages as what "
                "tokenizer.apply_chat_template makes of them, or one message as patchscopes.prompts.Chat"
            )
        ids = unwrap_text(text["input_ids"])
        mask = torch.as_tensor(text.get("attention_mask", [])).reshape(-1)
        # What pads a batch is no part of the text.
        return ids[mask.to(ids.device) != 0] if isinstance(ids, Tensor) and len(mask) == len(ids) else ids
    if isinstance(text, Sequence) and len(text) == 1 and not isinstance(text[0], int):
        return unwrap_text(text[0])
    try:
        ids = torch.as_tensor(text)
    except (TypeError, ValueError, RuntimeError):
        raise PatchscopesError(
            f"text must be a string or the token ids of one text, got {str(text)[:80]}; give one text at a time"
        ) from None
    if ids.numel() > 0 and (ids.is_floating_point() or (ids.ndim > 1 and ids.numel() != ids.shape[-1])):
        raise PatchscopesError(
            f"text must be a string or the token ids of one text, got a tensor of shape {tuple(ids.shape)} "
            f"and type {ids.dtype}; give one text at a time"
        )
    return ids.reshape(-1).long()


def check_texts(texts: Any) -> None:
    """Refuse what would be taken apart where a list of texts is expected.

    Raises:
        PatchscopesError: it is one text, or a batch as a tokenizer gives it.
    """
    if isinstance(texts, str | Chat | Mapping):
        raise PatchscopesError(
            f"a list of texts was expected, and got one {type(texts).__name__}: put it into a list (of a batch of "
            "several texts, give its rows one by one)"
        )


def write_out(model: LensModel, text: str | Chat) -> str:
    """The text in full: a chat with what the model's template puts around its prompt.

    Raises:
        PatchscopesError: as `as_chat`.
    """
    return as_chat(model, text.prompt, text.system) if isinstance(text, Chat) else text


def _tokenize(model: LensModel, text: str) -> Int[Tensor, " pos"]:
    """TransformerLens's tokens of the text; its own BOS and EOS are neither doubled nor taken away."""
    ids = model.to_tokens(text, truncate=False)[0]
    bos, eos = model.tokenizer.bos_token, model.tokenizer.eos_token
    if bos and text.startswith(bos) and has_added_bos(model, text, ids):
        ids = ids[1:]
    if eos and getattr(model.cfg, "tokenizer_appends_eos", False):
        # With the EOS that the tokenizer appends, TransformerLens takes away those that end the text.
        n_written = next(number for number in count() if not text.removesuffix(eos * number).endswith(eos))
        n_left = sum(1 for _ in takewhile(lambda token: token == model.tokenizer.eos_token_id, reversed(ids.tolist())))
        missing = max(0, n_written - n_left)
        ids = torch.cat([ids, ids.new_full((missing,), model.tokenizer.eos_token_id)])
    return ids


def has_added_bos(model: LensModel, text: Text, tokens: Int[Tensor, " pos"]) -> bool:
    """Whether the first of the tokens of `text` is a BOS token that was put in front of it."""
    text = unwrap_text(text)
    if not isinstance(text, str) or not model.tokenizer.bos_token:
        return False
    bos = model.tokenizer.bos_token
    n_written = next(number for number in count() if not text.startswith(bos, number * len(bos)))
    n_read = sum(1 for _ in takewhile(lambda token: token == model.tokenizer.bos_token_id, tokens.tolist()))
    return n_read > n_written


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

    Tokens are decoded behind another one: some decoders (Llama 2's) strip the space in front of the first. Those of a
    model without a tokenizer show as their numbers.
    """
    tokenizer = model.tokenizer
    ids = ids.tolist() if isinstance(ids, Tensor) else ids
    if tokenizer is None:
        return [f" {token}" for token in ids]
    first = tokenizer("x", add_special_tokens=False)["input_ids"][-1:]
    before = len(tokenizer.decode(first, clean_up_tokenization_spaces=False))
    return [tokenizer.decode([*first, token], clean_up_tokenization_spaces=False)[before:] for token in ids]


def describe_positions(model: LensModel, tokens: Int[Tensor, " pos"], positions: Sequence[int]) -> tuple[str, str]:
    """A prompt as text, and some of its positions with their tokens."""
    texts = decode_each_token(model, tokens)
    return "".join(texts), ", ".join(f"{position} ({texts[position]!r})" for position in positions)
