"""The Hugging Face model inside a TransformerBridge, taken apart so that its blocks can be run one by one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from patchscopes.engine.prefix import KeysValues, PrefixCache
from patchscopes.model.offloading import get_execution_device


@dataclass(frozen=True)
class Twin:
    """The Hugging Face model inside a TransformerBridge: the same parameters, modules without hook points.

    Attributes:
        causal_lm: the whole model.
        blocks: its transformer blocks.
        shares_prefix: whether attention is `shared_prefix_attention`.
        blocks_return_tuples: whether this family's blocks return their output as the first part of a tuple.
        per_row_arguments: which arguments of a block (by place or name) hold an entry for each row and head in their
            first dimension, and must be repeated for more rows (BLOOM's ALiBi biases).
    """

    causal_lm: Any
    blocks: tuple[nn.Module, ...]
    shares_prefix: bool
    blocks_return_tuples: bool = False
    per_row_arguments: frozenset[int | str] = frozenset()

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return get_execution_device(self.causal_lm.get_input_embeddings())

    def new_cache(self, prefixes: Sequence[KeysValues | None] | None = None) -> PrefixCache:
        """An empty cache behind `prefixes` (none unless given)."""
        return PrefixCache(prefixes or [None] * len(self.blocks), self.shares_prefix)


def block_forwards(twin: Twin, forwards: Sequence[Callable[..., Any]]) -> AbstractContextManager[None]:
    """Within the context, block l of the twin runs `forwards[l]` in place of its own forward."""
    return module_forwards(twin.blocks, forwards)


@contextmanager
def module_forwards(modules: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Within the context, each of these modules of a twin runs its one of `forwards` in place of its own forward."""
    replaced = [vars(module).get("forward") for module in modules]
    for module, forward in zip(modules, forwards, strict=True):
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, forward_before in zip(modules, replaced, strict=True):
            del vars(module)["forward"]
            if forward_before is not None:
                vars(module)["forward"] = forward_before


def wrap_hidden_states(twin: Twin, hidden: Tensor) -> Any:
    """Hidden states in the form in which this family's blocks return them."""
    return (hidden,) if twin.blocks_return_tuples else hidden


def unwrap_hidden_states(output: Any) -> Tensor:
    """The hidden states in what a block returned: alone, or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output
