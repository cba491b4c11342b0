"""The clean run: one unpatched forward pass over the target prompt, recorded block by block, which all rows share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from patchscopes.engine.prefix import KeysValues, PrefixCache, cache_in_use, cut_tokens
from patchscopes.engine.twin import Twin, block_forwards, unwrap_hidden_states, wrap_hidden_states


@dataclass(frozen=True)
class BlockCall:
    """How the family's own forward called one block: everything but the hidden states.

    Attributes:
        per_row: see `Twin`.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    per_row: frozenset[int | str]

    def get_argument(self, key: int | str) -> Any:
        """An argument by place or name; None if it was not given."""
        if isinstance(key, int):
            return self.args[key] if key < len(self.args) else None
        return self.kwargs.get(key)

    def replace_argument(self, key: int | str, value: Any) -> "BlockCall":
        """The call with another value of an argument."""
        if isinstance(key, int):
            return replace(self, args=(*self.args[:key], value, *self.args[key + 1 :]))
        return replace(self, kwargs=self.kwargs | {key: value})

    def __call__(
        self, block: nn.Module, hidden: Float[Tensor, "row suffix d_model"], cache: PrefixCache
    ) -> Float[Tensor, "row suffix d_model"]:
        """Run `block` on many rows with the arguments recorded for one, and with their own `cache`."""

        def expand(key: int | str, value: Any) -> Any:
            if isinstance(value, Cache):
                return cache
            # Masks, positions and rotary embeddings have a first dimension of one, and broadcast as they are.
            return value.repeat(len(hidden), *[1] * (value.ndim - 1)) if key in self.per_row else value

        args = [expand(number, value) for number, value in enumerate(self.args)]
        kwargs = {name: expand(name, value) for name, value in self.kwargs.items()}
        return unwrap_hidden_states(block(hidden, *args, **kwargs))


@dataclass(frozen=True)
class CleanRun:
    """The unpatched forward pass over the target prompt: what all rows share. (Or over several; see `joint_run`.)

    Attributes:
        prefixes: per block, keys and values of the tokens before i*; None if i* = 0.
        suffixes: per block, keys and values of the tokens from i* on.
        residuals: the residual stream of the tokens from i* on, entering block 0 and after each block:
            `residuals[ℓ + 1]` belongs to layer ℓ.
        calls: per block, how the family's forward called it for the suffix.
    """

    prefixes: list[KeysValues | None]
    suffixes: list[KeysValues]
    residuals: list[Float[Tensor, "target suffix d_model"]]
    calls: list[BlockCall]


def record_clean_run(
    twin: Twin,
    tokens: Int[Tensor, " pos"],
    position: int,
    soft_prompt: Float[Tensor, "pos d_model"] | None = None,
) -> CleanRun:
    """Run the target prompt once, all of its tokens together, with everything recorded.

    Args:
        soft_prompt: what enters block 0 in place of what the tokens put there.
    """
    residuals: list[Tensor] = []

    def recording(forward: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = forward(hidden, *args, **kwargs)
            residuals.extend([unwrap_hidden_states(output)] if residuals else [hidden, unwrap_hidden_states(output)])
            return output

        return recorded

    with block_forwards(twin, enter_soft_prompt([recording(block.forward) for block in twin.blocks], soft_prompt)):
        whole = run_base_model(twin, tokens, twin.new_cache())
    prefixes = [cut_tokens(part, 0, position) if position > 0 else None for part in whole]
    # How the family calls its blocks for the suffix alone.
    _, calls = enter_blocks(twin, tokens[None, position:], twin.new_cache(prefixes))
    suffixes = [cut_tokens(part, position) for part in whole]
    return CleanRun(prefixes, suffixes, [residual[:, position:] for residual in residuals], calls)


def enter_soft_prompt(
    forwards: Sequence[Callable[..., Any]], soft_prompt: Float[Tensor, "pos d_model"] | None
) -> list[Callable[..., Any]]:
    """The forwards of the blocks, that of block 0 with `soft_prompt` as its input if there is one."""
    first, *others = forwards

    def enter(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return first(hidden if soft_prompt is None else soft_prompt.to(hidden)[None], *args, **kwargs)

    return [enter, *others]


def run_base_model(twin: Twin, tokens: Int[Tensor, " pos"], cache: PrefixCache) -> list[KeysValues]:
    """Run one sequence without unembedding it; the keys and values that it added, per block.

    Raises:
        TypeError: a block adds none.
    """
    with cache_in_use(cache):
        twin.causal_lm.base_model(input_ids=tokens[None], past_key_values=cache, use_cache=True)
    added = [layer.row_keys_values for layer in cache.prefix_layers]
    if any(keys_values is None for keys_values in added):
        raise TypeError("a block keeps no keys and values of its tokens, as in a state-space model")
    return cast(list[KeysValues], added)


def enter_blocks(
    twin: Twin, tokens: Int[Tensor, "row pos"], cache: PrefixCache
) -> tuple[Float[Tensor, "row pos d_model"], list[BlockCall]]:
    """What enters block 0 for new tokens behind those of the cache, and how the family's forward calls the blocks.

    The blocks do not run: the caller calls them, with rows of his own. What a block is called with, hidden states
    aside, must not depend on the token (the proof, whose tokens differ, finds a family where it does).
    """
    hiddens: list[Tensor] = []
    calls: list[BlockCall] = []

    def pass_on(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        hiddens.append(hidden)
        calls.append(BlockCall(args, kwargs, twin.per_row_arguments))
        return wrap_hidden_states(twin, hidden)

    with cache_in_use(cache), block_forwards(twin, [pass_on] * len(twin.blocks)):
        twin.causal_lm.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
    return hiddens[0], calls
