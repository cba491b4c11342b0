"""The staggered engine: what `patch` computes with one full forward per row, at a fraction of the cost.

Nearly everything in a patched forward pass is the same for every row. This module runs it once:

1. tokens before the target position i* never see the patch: their keys and values (the *prefix*) are computed
   once and shared by all rows;
2. up to block ℓ* the *suffix* (tokens from i* on) is the clean run too: it is recorded once, and a row joins the
   batch only after its own block ℓ*;
3. only the token that is read is unembedded.

The blocks belong to the Hugging Face model inside the TransformerBridge, and each is called with exactly the
arguments (rotary embeddings, masks, cache) that this family's own forward passed to it in the clean run, so there
is no code per architecture. Rows attend to the shared prefix without a copy of it for each row, where the family
takes its attention from the Hugging Face registry; the others get the prefix expanded.

`patch` proves every model's fast engine against plain hooks before it is used (`patch.fast_engine_failure`).
"""

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.hooks import add_hook_to_module
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import eager_mask

from patchscopes.errors import PatchscopesError

SHARED_PREFIX_ATTENTION = "patchscopes_shared_prefix"


# --- Keys and values: one prefix for all rows ---------------------------------------------------------------


class PrefixLayer(DynamicLayer):
    """One block's keys and values: a prefix shared by all rows and what each row adds to it.

    `update` returns only the rows' own keys when `shared` (then `shared_prefix_attention` adds the prefix), and
    prefix and own together when not.
    """

    def __init__(self, prefix: tuple[Tensor, Tensor] | None, shared: bool) -> None:
        super().__init__()
        self.prefix = prefix
        self.shared = shared

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self.shared or self.prefix is None:
            return keys, values
        rows = keys.shape[0]
        prefix_keys, prefix_values = (part.expand(rows, -1, -1, -1) for part in self.prefix)
        return torch.cat([prefix_keys, keys], dim=-2), torch.cat([prefix_values, values], dim=-2)

    def get_seq_length(self) -> int:
        prefix_length = 0 if self.prefix is None else self.prefix[0].shape[-2]
        return prefix_length + super().get_seq_length()


_cache_in_use: ContextVar[Cache] = ContextVar("patchscopes_cache_in_use")


@contextmanager
def using(cache: Cache) -> Iterator[Cache]:
    """Let `shared_prefix_attention` find the prefixes: the registry's signature has no place for the cache."""
    token = _cache_in_use.set(cache)
    try:
        yield cache
    finally:
        _cache_in_use.reset(token)


def shared_prefix_attention(
    module: nn.Module,
    query: Float[Tensor, "row head query d_head"],
    key: Float[Tensor, "row kv_head own d_head"],
    value: Float[Tensor, "row kv_head own d_value"],
    attention_mask: Float[Tensor, "mask_row 1 query prefix_and_own"] | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "row query head d_value"], None]:
    """Attention of rows that share a prefix, in the form of Hugging Face's attention registry.

    Scores against the prefix are one matrix product over all rows, so its keys are read once and not once a row.
    """
    n_kv_heads, n_queries = key.shape[1], query.shape[2]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query = rearrange(query, "row (kv group) query d -> row kv (group query) d", kv=n_kv_heads) * scaling
    scores = query @ key.transpose(-1, -2)

    prefix = _cache_in_use.get().layers[module.layer_idx].prefix
    if prefix is not None:
        prefix_key, prefix_value = (part[0] for part in prefix)
        over_all_rows = {"gq": query.shape[2]}
        prefix_scores = rearrange(query, "row kv gq d -> kv (row gq) d") @ prefix_key.transpose(-1, -2)
        prefix_scores = rearrange(prefix_scores, "kv (row gq) key -> row kv gq key", **over_all_rows)
        scores = torch.cat([prefix_scores, scores], dim=-1)

    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = rearrange(scores, "row kv (group query) key -> row kv group query key", query=n_queries)
        scores = rearrange(scores + attention_mask[:, :, None], "row kv group query key -> row kv (group query) key")
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)

    if prefix is None:
        out = weights @ value
    else:
        prefix_weights, own_weights = weights.split([prefix_key.shape[-2], key.shape[-2]], dim=-1)
        prefix_out = rearrange(prefix_weights, "row kv gq key -> kv (row gq) key") @ prefix_value
        prefix_out = rearrange(prefix_out, "kv (row gq) d -> row kv gq d", **over_all_rows)
        out = prefix_out + own_weights @ value
    return rearrange(out, "row kv (group query) d -> row query (kv group) d", query=n_queries), None


AttentionInterface.register(SHARED_PREFIX_ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX_ATTENTION, eager_mask)


# --- The twin: the model's own blocks, without the bridge around them ---------------------------------------


@dataclass(frozen=True)
class Twin:
    """The Hugging Face model inside a TransformerBridge: the same parameters, modules without hook points."""

    causal_lm: nn.Module
    blocks: tuple[nn.Module, ...]
    shares_prefix: bool
    blocks_return_tuples: bool = False

    def new_cache(self, prefixes: list[tuple[Tensor, Tensor]] | None = None) -> Cache:
        layers = [PrefixLayer(prefix, self.shares_prefix) for prefix in prefixes or [None] * len(self.blocks)]
        return Cache(layers=layers)


def build_twin(model: nn.Module) -> Twin:
    """Copy the module tree of the Hugging Face model in `model`, leaving out the bridge's modules.

    Only the module objects are copied; parameters and buffers are the model's own, so weights edited in place
    are seen by both. Families that take their attention from Hugging Face's registry get
    `shared_prefix_attention`.

    Raises:
        PatchscopesError: `model` is not a TransformerBridge around a decoder-only Hugging Face model.
    """
    bridged = getattr(model, "original_model", None)
    if bridged is None or not hasattr(model, "blocks") or not hasattr(bridged, "base_model"):
        raise PatchscopesError(
            f"the fast engine needs a TransformerBridge around a decoder-only Hugging Face model, got "
            f"{type(model).__name__}; use engine='hooks'"
        )
    shares_prefix = bool(getattr(bridged, "_supports_attention_backend", False))
    copies: dict[int, nn.Module] = {}
    configs: dict[int, Any] = {}

    def copied_config(config: Any) -> Any:
        if id(config) not in configs:
            configs[id(config)] = copy.deepcopy(config)
            if shares_prefix:
                configs[id(config)]._attn_implementation = SHARED_PREFIX_ATTENTION
        return configs[id(config)]

    def copied(module: nn.Module) -> nn.Module:
        while getattr(module, "original_component", None) is not None:
            module = module.original_component
        if id(module) not in copies:
            twin_module = copies[id(module)] = copy.copy(module)
            twin_module._modules = {
                name: None if child is None else copied(child) for name, child in module._modules.items()
            }
            if isinstance(getattr(module, "config", None), PreTrainedConfig):
                twin_module.config = copied_config(module.config)
            rehook_accelerate(twin_module)
        return copies[id(module)]

    causal_lm = copied(bridged)
    twin = Twin(causal_lm, tuple(copied(block) for block in model.blocks), shares_prefix)
    any_token = torch.zeros(1, dtype=torch.long, device=model.cfg.device)
    probe = clean_run(twin, any_token, position=0)
    return replace(twin, blocks_return_tuples=probe.calls[0].returns_tuple)


def rehook_accelerate(module: nn.Module) -> None:
    """Bind to the copied `module` the accelerate hook that moves its inputs between devices (multi-GPU models)."""
    hook = vars(module).pop("_hf_hook", None)
    if hook is not None:
        for wrapped in ("forward", "_old_forward"):
            vars(module).pop(wrapped, None)
        add_hook_to_module(module, hook)


@contextmanager
def block_forwards(twin: Twin, forwards: list[Callable[..., Any]]) -> Iterator[None]:
    """Within the context, block l of the twin runs `forwards[l]` in place of its own forward."""
    own = [vars(block).get("forward") for block in twin.blocks]
    for block, forward in zip(twin.blocks, forwards, strict=True):
        block.forward = forward
    try:
        yield
    finally:
        for block, forward in zip(twin.blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


# --- The clean run ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockCall:
    """How the family's own forward called one block: everything but the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    returns_tuple: bool

    def __call__(
        self, block: nn.Module, hidden: Float[Tensor, "row suffix d_model"], cache: Cache
    ) -> Float[Tensor, "row suffix d_model"]:
        """Run `block` on many rows with the arguments recorded for one, and with their own `cache`."""
        rows = hidden.shape[0]
        args = [for_rows(value, rows, cache) for value in self.args]
        kwargs = {name: for_rows(value, rows, cache) for name, value in self.kwargs.items()}
        return first(block(hidden, *args, **kwargs))


def for_rows(value: Any, rows: int, cache: Cache) -> Any:
    """One argument recorded with a batch of one, for `rows` rows.

    Masks, positions and rotary embeddings with a first dimension of one broadcast as they are. BLOOM's ALiBi
    tensor has one entry per (row, head) in its first dimension and is repeated.
    """
    if isinstance(value, Cache):
        return cache
    if isinstance(value, Tensor) and value.ndim == 3 and value.shape[0] > 1:
        return value.repeat(rows, 1, 1)
    return value


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True)
class CleanRun:
    """The unpatched forward pass over the target prompt: what all rows share.

    Attributes:
        prefixes: per block, keys and values of the tokens before i*, `[1, kv_head, prefix, d]`; None if i* = 0.
        suffixes: per block, keys and values of the tokens from i* on.
        residuals: the residual stream of the tokens from i* on, entering block 0 and after each block, so that
            `residuals[l + 1]` belongs to layer l; `[1, suffix, d_model]` each.
        calls: per block, how the family's forward called it for the suffix.
    """

    prefixes: list[tuple[Tensor, Tensor] | None]
    suffixes: list[tuple[Tensor, Tensor]]
    residuals: list[Float[Tensor, "1 suffix d_model"]]
    calls: list[BlockCall]


def clean_run(twin: Twin, tokens: Int[Tensor, "pos"], position: int) -> CleanRun:
    """Run the target prompt once: the prefix into the cache, the suffix with everything recorded."""
    prefixes: list[tuple[Tensor, Tensor] | None] = [None] * len(twin.blocks)
    if position > 0:
        with using(twin.new_cache(prefixes)) as cache:
            twin.causal_lm.base_model(input_ids=tokens[None, :position], past_key_values=cache, use_cache=True)
        prefixes = [(layer.keys, layer.values) for layer in cache.layers]

    residuals: list[Tensor] = []
    calls: list[BlockCall] = []

    def recording(forward: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = forward(hidden, *args, **kwargs)
            if not residuals:
                residuals.append(hidden)
            residuals.append(first(output))
            calls.append(BlockCall(args, kwargs, isinstance(output, tuple)))
            return output

        return recorded

    with (
        using(twin.new_cache(prefixes)) as cache,
        block_forwards(twin, [recording(block.forward) for block in twin.blocks]),
    ):
        twin.causal_lm.base_model(input_ids=tokens[None, position:], past_key_values=cache, use_cache=True)
    suffixes = [(layer.keys, layer.values) for layer in cache.layers]
    return CleanRun(prefixes, suffixes, residuals, calls)


# --- Patched runs -------------------------------------------------------------------------------------------


def staggered_forward(
    twin: Twin,
    clean: CleanRun,
    vectors: Float[Tensor, "row d_model"],
    layers: Int[Tensor, "row"],
) -> tuple[Float[Tensor, "row d_model"], Cache, Int[Tensor, "row"]]:
    """Walk the blocks once; a row joins after its target layer, patched at the first position of the suffix.

    Returns the final residual of the last token, the cache with all rows' keys and values of the suffix, and the
    order of the rows in both (those that joined first come first).
    """
    order = torch.argsort(layers, stable=True)
    joining = torch.bincount(layers + 1, minlength=len(twin.blocks) + 1).tolist()
    vectors_in_order = vectors[order].split(joining)
    cache = twin.new_cache(clean.prefixes)
    hidden = patched(clean.residuals[0], vectors_in_order[0])
    with using(cache):
        for layer, (block, call) in enumerate(zip(twin.blocks, clean.calls, strict=True)):
            if hidden.shape[0] > 0:
                hidden = call(block, hidden, cache)
            hidden = torch.cat([hidden, patched(clean.residuals[layer + 1], vectors_in_order[layer + 1])])
    return hidden[:, -1], cache, order


def patched(
    residual: Float[Tensor, "1 suffix d_model"], vectors: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row suffix d_model"]:
    """The clean residual of the suffix, once per row, with the vector in place of its first position."""
    rows = residual.expand(vectors.shape[0], -1, -1).clone()
    rows[:, 0] = vectors.to(rows)
    return rows


def grown_cache(clean: CleanRun, cache: Cache, rows: int) -> Cache:
    """`cache` after `staggered_forward`, with the clean suffix for the rows that joined after each block."""
    for layer, (keys, values) in zip(cache.layers, clean.suffixes, strict=True):
        if not layer.is_initialized:
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys[:0], values[:0]
        late = rows - layer.keys.shape[0]
        layer.keys = torch.cat([layer.keys, keys.expand(late, -1, -1, -1)])
        layer.values = torch.cat([layer.values, values.expand(late, -1, -1, -1)])
    return cache


def next_token_logits(twin: Twin, tokens: Int[Tensor, "row"], cache: Cache) -> Float[Tensor, "row d_vocab"]:
    """One decoding step: append `tokens` to the rows of `cache`."""
    with using(cache):
        return twin.causal_lm(input_ids=tokens[:, None], past_key_values=cache, use_cache=True).logits[:, -1]


def unembed(twin: Twin, residual: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
    """Final norm, unembedding and any output scaling or capping, by the family's own forward.

    The blocks hand the residual through, so nothing of what the family does after them is written again here.
    """

    def output(hidden: Tensor) -> Any:
        return (hidden,) if twin.blocks_return_tuples else hidden

    def inject(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return output(residual[:, None].to(hidden))

    def pass_on(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return output(hidden)

    ids = torch.zeros(residual.shape[0], 1, dtype=torch.long, device=residual.device)
    with block_forwards(twin, [inject] + [pass_on] * (len(twin.blocks) - 1)):
        return twin.causal_lm(input_ids=ids, use_cache=False).logits[:, -1]
