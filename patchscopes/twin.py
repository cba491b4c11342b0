"""The Hugging Face model inside a TransformerBridge, taken apart so that its blocks can be run one by one.

Each block is called with exactly the arguments (rotary embeddings, masks, cache) that the family's own forward
passed to it in a recorded run, so there is no code per architecture.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from accelerate.hooks import add_hook_to_module
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from patchscopes.errors import PatchscopesError
from patchscopes.lens_model import LensModel
from patchscopes.prefix import SHARED_PREFIX_ATTENTION, KeysValues, PrefixCache, using

# How the forward of an unknown family can refuse our cache or the arguments recorded from another call.
REFUSALS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)

# --- The twin -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Twin:
    """The Hugging Face model inside a TransformerBridge: the same parameters, modules without hook points.

    Attributes:
        causal_lm: the whole model.
        blocks: its transformer blocks.
        shares_prefix: whether attention is `shared_prefix_attention`.
        blocks_return_tuples: whether this family's blocks return their output as the first part of a tuple.
    """

    causal_lm: Any
    blocks: tuple[nn.Module, ...]
    shares_prefix: bool
    blocks_return_tuples: bool = False

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.causal_lm.get_input_embeddings().weight.device

    def new_cache(self, prefixes: Sequence[KeysValues | None] | None = None) -> PrefixCache:
        """An empty cache behind `prefixes` (none unless given)."""
        return PrefixCache(prefixes or [None] * len(self.blocks), self.shares_prefix)


def build_twin(model: Any) -> Twin:
    """Copy the module tree of the Hugging Face model in `model`, leaving out the bridge's modules.

    Only the module objects are copied; parameters and buffers are the model's own, so weights edited in place are
    seen by both. Families that take their attention from Hugging Face's registry get `shared_prefix_attention`.

    Raises:
        TypeError: `model` is not a TransformerBridge around a decoder-only Hugging Face model.
        one of REFUSALS: its blocks cannot be run one by one.
    """
    bridged = getattr(model, "original_model", None)
    if bridged is None or not hasattr(model, "blocks") or not hasattr(bridged, "base_model"):
        raise TypeError("it is not a TransformerBridge around a decoder-only Hugging Face model")
    shares_prefix = bool(getattr(bridged, "_supports_attention_backend", False))
    copies: dict[int, Any] = {}
    configs: dict[int, Any] = {}

    def copied_config(config: PreTrainedConfig) -> PreTrainedConfig:
        if id(config) not in configs:
            configs[id(config)] = copy.deepcopy(config)
            if shares_prefix:
                configs[id(config)]._attn_implementation = SHARED_PREFIX_ATTENTION
        return configs[id(config)]

    def copied(module: Any) -> Any:
        while getattr(module, "original_component", None) is not None:
            module = module.original_component
        if id(module) not in copies:
            twin_module = copies[id(module)] = copy.copy(module)
            children = module._modules.items()
            twin_module._modules = {name: None if child is None else copied(child) for name, child in children}
            if isinstance(getattr(module, "config", None), PreTrainedConfig):
                twin_module.config = copied_config(module.config)
            rebind_accelerate_hook(twin_module)
        return copies[id(module)]

    causal_lm = copied(bridged)
    blocks = tuple(copied(block) for block in model.blocks)
    twin = Twin(causal_lm, blocks, shares_prefix)
    probe = record_clean_run(twin, torch.zeros(1, dtype=torch.long, device=twin.device), position=0)
    return replace(twin, blocks_return_tuples=probe.calls[0].returns_tuple)


def rebind_accelerate_hook(module: nn.Module) -> None:
    """Bind to the copied `module` accelerate's hook, which moves inputs between the devices of a spread model."""
    hook = vars(module).pop("_hf_hook", None)
    if hook is not None:
        for wrapped in ("forward", "_old_forward"):
            vars(module).pop(wrapped, None)
        add_hook_to_module(module, hook)


@contextmanager
def block_forwards(twin: Twin, forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Within the context, block l of the twin runs `forwards[l]` in place of its own forward."""
    own = [vars(block).get("forward") for block in twin.blocks]
    for block, forward in zip(twin.blocks, forwards, strict=True):
        vars(block)["forward"] = forward
    try:
        yield
    finally:
        for block, own_forward in zip(twin.blocks, own, strict=True):
            del vars(block)["forward"]
            if own_forward is not None:
                vars(block)["forward"] = own_forward


_twins: weakref.WeakKeyDictionary[LensModel, Twin] = weakref.WeakKeyDictionary()


def twin_of(model: LensModel) -> Twin:
    """The model's twin, built on first use.

    Raises:
        PatchscopesError: the model is not a TransformerBridge around a decoder-only Hugging Face model, or its
            blocks cannot be run one by one.
    """
    if model not in _twins:
        try:
            _twins[model] = build_twin(model)
        except torch.OutOfMemoryError:
            raise
        except REFUSALS as error:
            raise PatchscopesError(
                f"the fast engine cannot run this {type(model).__name__} ({error}); use engine='hooks'"
            ) from error
    return _twins[model]


def next_token_residual(twin: Twin, tokens: Int[Tensor, " row"], cache: PrefixCache) -> Float[Tensor, "row d_model"]:
    """One decoding step: append one token to each row of the cache; its final residual, for `unembed`."""
    residuals: list[Tensor] = []
    *others, last = (block.forward for block in twin.blocks)

    def reading(*args: Any, **kwargs: Any) -> Any:
        output = last(*args, **kwargs)
        residuals.append(hidden_states(output)[:, -1])
        return output

    with using(cache), block_forwards(twin, [*others, reading]):
        twin.causal_lm.base_model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True)
    return residuals[0]


def unembed(twin: Twin, residual: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
    """Final norm, unembedding and any output scaling or capping, by the family's own forward.

    The blocks hand the residual through, so nothing of what the family does after them is written again here.
    """

    def inject(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return block_output(twin, residual[:, None].to(hidden))

    def pass_on(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return block_output(twin, hidden)

    any_tokens = torch.zeros(len(residual), 1, dtype=torch.long, device=twin.device)
    with block_forwards(twin, [inject] + [pass_on] * (len(twin.blocks) - 1)):
        return twin.causal_lm(input_ids=any_tokens, use_cache=False).logits[:, -1]


def block_output(twin: Twin, hidden: Tensor) -> Any:
    """Hidden states in the form in which this family's blocks return them."""
    return (hidden,) if twin.blocks_return_tuples else hidden


# --- The clean run ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockCall:
    """How the family's own forward called one block: everything but the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    returns_tuple: bool

    def __call__(
        self, block: nn.Module, hidden: Float[Tensor, "row suffix d_model"], cache: PrefixCache
    ) -> Float[Tensor, "row suffix d_model"]:
        """Run `block` on many rows with the arguments recorded for one, and with their own `cache`."""
        args = [for_rows(value, len(hidden), cache) for value in self.args]
        kwargs = {name: for_rows(value, len(hidden), cache) for name, value in self.kwargs.items()}
        return hidden_states(block(hidden, *args, **kwargs))


def for_rows(value: Any, n_rows: int, cache: PrefixCache) -> Any:
    """One argument recorded for a single row, for `n_rows`.

    Masks, positions and rotary embeddings with a first dimension of one broadcast as they are. BLOOM's ALiBi
    tensor has one entry per (row, head) in its first dimension and is repeated.
    """
    if isinstance(value, Cache):
        return cache
    if isinstance(value, Tensor) and value.ndim == 3 and value.shape[0] > 1:
        return value.repeat(n_rows, 1, 1)
    return value


def hidden_states(output: Any) -> Tensor:
    """The hidden states in what a block returned: alone, or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def begin_step(
    twin: Twin, tokens: Int[Tensor, " row"], cache: PrefixCache
) -> tuple[Float[Tensor, "row 1 d_model"], list[BlockCall]]:
    """What enters block 0 for a new token of each row, and how the family's forward calls the blocks for one of them.

    The blocks do not run: the caller calls them, with rows of his own. What a block is called with, hidden states
    aside, must not depend on the token (the proof, whose tokens differ, finds a family where it does).
    """

    def entered_and_called(new_tokens: Int[Tensor, " new"]) -> tuple[list[Tensor], list[BlockCall]]:
        hiddens: list[Tensor] = []
        calls: list[BlockCall] = []

        def pass_on(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            hiddens.append(hidden)
            calls.append(BlockCall(args, kwargs, twin.blocks_return_tuples))
            return block_output(twin, hidden)

        with using(cache), block_forwards(twin, [pass_on] * len(twin.blocks)):
            twin.causal_lm.base_model(input_ids=new_tokens[:, None], past_key_values=cache, use_cache=True)
        return hiddens, calls

    hiddens, _ = entered_and_called(tokens)
    _, calls = entered_and_called(tokens[:1])
    return hiddens[0], calls


@dataclass(frozen=True)
class CleanRun:
    """The unpatched forward pass over the target prompt: what all rows share.

    Attributes:
        prefixes: per block, keys and values of the tokens before i*; None if i* = 0.
        suffixes: per block, keys and values of the tokens from i* on.
        residuals: the residual stream of the tokens from i* on, entering block 0 and after each block:
            `residuals[ℓ + 1]` belongs to layer ℓ.
        calls: per block, how the family's forward called it for the suffix.
    """

    prefixes: list[KeysValues | None]
    suffixes: list[KeysValues]
    residuals: list[Float[Tensor, "1 suffix d_model"]]
    calls: list[BlockCall]


def record_clean_run(
    twin: Twin,
    tokens: Int[Tensor, " pos"],
    position: int,
    soft_prompt: Float[Tensor, "pos d_model"] | None = None,
) -> CleanRun:
    """Run the target prompt once: the prefix into the cache, then the suffix with everything recorded.

    Args:
        soft_prompt: what enters block 0 in place of what the tokens put there.
    """
    soft_prefix, soft_suffix = (None, None) if soft_prompt is None else (soft_prompt[:position], soft_prompt[position:])
    prefixes: list[KeysValues | None] = [None] * len(twin.blocks)
    if position > 0:
        with block_forwards(twin, entering([block.forward for block in twin.blocks], soft_prefix)):
            prefixes = [*run_base_model(twin, tokens[:position], twin.new_cache())]

    residuals: list[Tensor] = []
    calls: list[BlockCall] = []

    def recording(forward: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = forward(hidden, *args, **kwargs)
            residuals.extend([hidden_states(output)] if residuals else [hidden, hidden_states(output)])
            calls.append(BlockCall(args, kwargs, isinstance(output, tuple)))
            return output

        return recorded

    with block_forwards(twin, entering([recording(block.forward) for block in twin.blocks], soft_suffix)):
        suffixes = run_base_model(twin, tokens[position:], twin.new_cache(prefixes))
    return CleanRun(prefixes, suffixes, residuals, calls)


def entering(
    forwards: Sequence[Callable[..., Any]], soft_prompt: Float[Tensor, "pos d_model"] | None
) -> list[Callable[..., Any]]:
    """The forwards of the blocks, that of block 0 with `soft_prompt` as its input if there is one."""
    first, *others = forwards

    def enter(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return first(hidden if soft_prompt is None else soft_prompt.to(hidden)[None], *args, **kwargs)

    return [enter, *others]


def run_base_model(twin: Twin, tokens: Int[Tensor, " pos"], cache: PrefixCache) -> list[KeysValues]:
    """Run one sequence without unembedding it; the keys and values that it added, per block."""
    with using(cache):
        twin.causal_lm.base_model(input_ids=tokens[None], past_key_values=cache, use_cache=True)
    return [cast(KeysValues, layer.own) for layer in cache.prefix_layers]
