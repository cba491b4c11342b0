"""Keys and values of a prompt's first tokens, shared by all rows that go on differently after them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import eager_mask

SHARED_PREFIX_ATTENTION = "patchscopes_shared_prefix"
# What families call their attention with that changes nothing here: masks say what is causal and where windows end.
HARMLESS_ARGUMENTS = {"dropout", "sliding_window", "is_causal", "position_ids", "output_attentions", "use_cache"}

# The softmax of fewer scores than this takes a CPU six times as long as that of this many.
FEWEST_KEYS = 16

# Keys and values of some tokens in one block, `[row, kv_head, token, d_head]` each.
KeysValues: TypeAlias = tuple[Tensor, Tensor]


class PrefixLayer(DynamicLayer):
    """One block's keys and values: a prefix shared by all rows, and behind it those of each row.

    Rows of several prompts have a prefix each: `prefix` holds those of all prompts, and `prefix_of_row` says which one
    is whose. It must be set whenever rows are added.
    """

    def __init__(self, prefix: KeysValues | None, shared: bool) -> None:
        super().__init__()
        self.prefix = prefix
        self.shared = shared
        self.prefix_of_row: Int[Tensor, " row"] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> KeysValues:
        """Append to the rows' keys and values; return what attention sees: the prefix too, unless it is `shared`.

        In that case `shared_prefix_attention` adds the prefix.
        """
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return (keys, values) if self.shared else self.prepend_prefix((keys, values))

    def prepend_prefix(self, of_rows: KeysValues) -> KeysValues:
        """Keys and values of each row's prefix, and then those of the rows."""
        if self.prefix is None:
            return of_rows
        prefix = self.prefix
        if self.prefix_of_row is not None:
            which = self.prefix_of_row.to(prefix[0].device)
            prefix = prefix[0].index_select(0, which), prefix[1].index_select(0, which)
        return prepend_prefix(prefix, of_rows)

    def get_seq_length(self) -> int:
        """Tokens so far, the prefix included: masks and positions of new tokens follow from it."""
        return (0 if self.prefix is None else self.prefix[0].shape[-2]) + super().get_seq_length()

    @property
    def row_keys_values(self) -> KeysValues | None:
        """The keys and values of the rows, or None before there are any."""
        return (cast(Tensor, self.keys), cast(Tensor, self.values)) if self.is_initialized else None

    @row_keys_values.setter
    def row_keys_values(self, keys_values: KeysValues) -> None:
        if not self.is_initialized:
            self.lazy_initialization(*keys_values)
        self.keys, self.values = keys_values

    def take_rows(self) -> KeysValues | None:
        """Hand over the keys and values of the rows, and keep none."""
        taken, self.keys, self.values, self.is_initialized = self.row_keys_values, None, None, False
        return taken

    def keep_rows(self, rows: Int[Tensor, " kept_row"], rows_there: Int[Tensor, " kept_row"] | None = None) -> None:
        """Keep only these rows, in this order (indices on the CPU, and perhaps the same where the model runs)."""
        rows_there = rows if rows_there is None else rows_there
        keys, values = cast(KeysValues, self.row_keys_values)
        if not torch.equal(rows, torch.arange(len(keys))):
            # Eight times as fast as indexing on a CPU.
            self.row_keys_values = (
                keys.index_select(0, rows_there.to(keys.device)),
                values.index_select(0, rows_there.to(values.device)),
            )
            if self.prefix_of_row is not None:
                self.prefix_of_row = self.prefix_of_row[rows_there.to(self.prefix_of_row.device)]


class PrefixCache(Cache):
    """The keys and values of all blocks."""

    def __init__(self, prefixes: Sequence[KeysValues | None], shared: bool) -> None:
        self.prefix_layers = [PrefixLayer(prefix, shared) for prefix in prefixes]
        super().__init__(layers=list(self.prefix_layers))


_current_cache: ContextVar[PrefixCache] = ContextVar("patchscopes_current_cache")


@contextmanager
def cache_in_use(cache: PrefixCache) -> Iterator[None]:
    """Let `shared_prefix_attention` find the prefixes: the registry's signature has no place for the cache."""
    token = _current_cache.set(cache)
    try:
        yield
    finally:
        _current_cache.reset(token)


def get_cache_in_use() -> PrefixCache:
    """The cache of the innermost `cache_in_use`."""
    return _current_cache.get()


def shared_prefix_attention(
    module: Any,
    query: Float[Tensor, "row head query d_head"],
    key: Float[Tensor, "row kv_head key d_head"],
    value: Float[Tensor, "row kv_head key d_value"],
    attention_mask: Float[Tensor, "mask_row 1 query prefix_and_key"] | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "row query head d_value"], None]:
    """Attention of rows that share a prefix, in the form of Hugging Face's attention registry.

    Scores against the prefix are one matrix product over all rows, so its keys are read once and not once a row: half
    the time with a prefix of 20 tokens.

    Raises:
        TypeError: the family's attention depends on something else (the sinks of GPT-OSS, say).
    """
    unknown = [name for name, value in kwargs.items() if value is not None and name not in HARMLESS_ARGUMENTS]
    if unknown:
        raise TypeError(f"attention with {', '.join(unknown)}")
    n_kv_heads, n_queries = key.shape[1], query.shape[2]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query = rearrange(query * scaling, "row (kv group) query d -> row kv (group query) d", kv=n_kv_heads)

    layer = get_cache_in_use().prefix_layers[module.layer_idx]
    prefix = layer.prefix
    if prefix is not None and (
        layer.prefix_of_row is not None or prefix[0].shape[-2] + key.shape[-2] <= query.shape[-2]
    ):
        # Copying few keys for many queries costs less than adding up two results.
        key, value = layer.prepend_prefix((key, value))
        prefix = None

    scores = query @ key.transpose(-1, -2)
    if prefix is not None:
        prefix_key, prefix_value = (part[0] for part in prefix)
        prefix_scores = rearrange(query, "row kv gq d -> kv (row gq) d") @ prefix_key.transpose(-1, -2)
        prefix_scores = rearrange(prefix_scores, "kv (row gq) key -> row kv gq key", row=len(query))
        scores = torch.cat([prefix_scores, scores], dim=-1)

    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = rearrange(scores, "row kv (group query) key -> row kv group query key", query=n_queries)
        scores = rearrange(scores + attention_mask[:, :, None], "row kv group query key -> row kv (group query) key")
    weights = softmax_over_keys(scores).to(value.dtype)

    if prefix is None:
        out = weights @ value
    else:
        prefix_weights, row_weights = weights.split([prefix_key.shape[-2], key.shape[-2]], dim=-1)
        prefix_out = rearrange(prefix_weights, "row kv gq key -> kv (row gq) key") @ prefix_value
        out = rearrange(prefix_out, "kv (row gq) d -> row kv gq d", row=len(query)) + row_weights @ value
    return rearrange(out, "row kv (group query) d -> row query (kv group) d", query=n_queries), None


def softmax_over_keys(scores: Float[Tensor, "*rows key"]) -> Float[Tensor, "*rows key"]:
    """The softmax over the last dimension, in float32."""
    n_keys = scores.shape[-1]
    if scores.device.type == "cpu" and n_keys < FEWEST_KEYS:
        padded = nn.functional.pad(scores.float(), (0, FEWEST_KEYS - n_keys), value=-torch.inf)
        return torch.softmax(padded, dim=-1)[..., :n_keys]
    return torch.softmax(scores, dim=-1, dtype=torch.float32)


def prepend_prefix(prefix: KeysValues, of_rows: KeysValues) -> KeysValues:
    """Keys and values of the prefix, the same for each row or one for each, and then those of the rows."""
    keys, values = (
        torch.cat([shared.expand(len(added), -1, -1, -1), added], dim=-2)
        for shared, added in zip(prefix, of_rows, strict=True)
    )
    return keys, values


def cut_tokens(keys_values: KeysValues, first: int, last: int | None = None) -> KeysValues:
    """Those of the tokens from `first` on, up to before `last`."""
    keys, values = keys_values
    return keys[..., first:last, :], values[..., first:last, :]


AttentionInterface.register(SHARED_PREFIX_ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX_ATTENTION, eager_mask)
