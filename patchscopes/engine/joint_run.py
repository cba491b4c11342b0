"""Clean runs of several target prompts: computed together, and joined for rows of all of them that start at one token.

In a joined `CleanRun` the first dimension of `prefixes`, `suffixes` and `residuals` counts target prompts.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.engine.clean_run import CleanRun, enter_blocks
from patchscopes.engine.prefix import KeysValues, PrefixCache, cache_in_use, cut_tokens
from patchscopes.engine.target import TargetPrompt
from patchscopes.engine.twin import Twin, block_forwards, unwrap_hidden_states

# Tokens of target prompts that are run at a time.
TOKENS_AT_A_TIME = 2048


def run_cleanly_together(twin: Twin, targets: Sequence[TargetPrompt]) -> None:
    """Compute the clean runs that are missing, those of prompts of one length and position together.

    The prompts' tokens before i* are run once where they are the same, as in noise samples of one prompt.
    """
    alike: dict[tuple[int, int], list[TargetPrompt]] = {}
    for target in targets:
        if not target.has_clean_run:
            alike.setdefault((len(target.tokens), target.position), []).append(target)
    for (n_tokens, _), some in alike.items():
        size = max(1, TOKENS_AT_A_TIME // n_tokens)
        for first in range(0, len(some), size):
            _record_clean_runs(twin, some[first : first + size])


def join_clean_runs(twin: Twin, targets: Sequence[TargetPrompt], start: int) -> CleanRun:
    """The clean runs of prompts of one length, as if i* of each were the token `start`, which is not before it."""
    runs = [target.clean_run for target in targets]
    if len(targets) == 1 and targets[0].position == start:
        return runs[0]
    joined = [
        [_join_tokens(prefix, suffix) for prefix, suffix in zip(run.prefixes, run.suffixes, strict=True)]
        for run in runs
    ]
    blocks = [_join_rows(of_block) for of_block in zip(*joined, strict=True)]
    prefixes = [cut_tokens(block, 0, start) if start > 0 else None for block in blocks]
    suffixes = [cut_tokens(block, start) for block in blocks]
    of_targets = [
        [residual[:, start - target.position :] for residual in run.residuals]
        for target, run in zip(targets, runs, strict=True)
    ]
    residuals = [torch.cat(of_number) for of_number in zip(*of_targets, strict=True)]
    calls = next((run.calls for target, run in zip(targets, runs, strict=True) if target.position == start), None)
    if calls is None:
        first_prefixes = [None if part is None else (part[0][:1], part[1][:1]) for part in prefixes]
        _, calls = enter_blocks(twin, targets[0].tokens[None, start:], twin.new_cache(first_prefixes))
    return CleanRun(prefixes, suffixes, residuals, calls)


def _record_clean_runs(twin: Twin, targets: Sequence[TargetPrompt]) -> None:
    """The clean runs of prompts of one length and position, as one batch."""
    if len(targets) == 1:
        _ = targets[0].clean_run
        return
    position = targets[0].position
    tokens = torch.stack([target.tokens for target in targets])
    soft_prompts = [target.soft_prompt for target in targets]
    cache, prefix_of_target = twin.new_cache(), torch.zeros(len(targets), dtype=torch.long)
    if position > 0:
        first_of_kind = _find_first_alike(targets)
        different = sorted(set(first_of_kind))
        prefix_of_target = torch.tensor([different.index(first) for first in first_of_kind])
        _run(twin, tokens[different, :position], cache, [_cut(soft_prompts[t], 0, position) for t in different])
        cache = twin.new_cache([layer.row_keys_values for layer in cache.prefix_layers])
        if len(different) > 1:
            for layer in cache.prefix_layers:
                layer.prefix_of_row = prefix_of_target
    soft_suffixes = [_cut(soft_prompt, position, None) for soft_prompt in soft_prompts]
    residuals = _run(twin, tokens[:, position:], cache, soft_suffixes)
    suffixes = [cast(KeysValues, layer.row_keys_values) for layer in cache.prefix_layers]

    alone = [_take_row(layer.prefix, int(prefix_of_target[0])) for layer in cache.prefix_layers]
    _, calls = enter_blocks(twin, tokens[:1, position:], twin.new_cache(alone))
    for number, target in enumerate(targets):
        clean = CleanRun(
            [_take_row(layer.prefix, int(prefix_of_target[number])) for layer in cache.prefix_layers],
            [cast(KeysValues, _take_row(suffix, number)) for suffix in suffixes],
            [residual[number : number + 1] for residual in residuals],
            calls,
        )
        target.keep_clean_run(twin, clean)


def _run(
    twin: Twin,
    tokens: Int[Tensor, "target pos"],
    cache: PrefixCache,
    soft_prompts: Sequence[Float[Tensor, "pos d_model"] | None],
) -> list[Float[Tensor, "target pos d_model"]]:
    """Run several sequences without unembedding them; the residual stream entering block 0 and after each block."""
    residuals: list[Tensor] = []

    def recording(forward: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not residuals:
                rows = zip(hidden, soft_prompts, strict=True)
                hidden = torch.stack([row if soft is None else soft.to(row) for row, soft in rows])
                residuals.append(hidden)
            output = forward(hidden, *args, **kwargs)
            residuals.append(unwrap_hidden_states(output))
            return output

        return recorded

    with cache_in_use(cache), block_forwards(twin, [recording(block.forward) for block in twin.blocks]):
        twin.causal_lm.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
    return residuals


def _find_first_alike(targets: Sequence[TargetPrompt]) -> list[int]:
    """For each target the first one whose tokens before i*, or what enters block 0 in their place, are the same."""
    position = targets[0].position
    firsts: list[int] = []
    for target in targets:
        firsts.append(
            next(
                (first for first in dict.fromkeys(firsts) if _begin_alike(targets[first], target, position)),
                len(firsts),
            )
        )
    return firsts


def _begin_alike(one: TargetPrompt, other: TargetPrompt, n_tokens: int) -> bool:
    if one.soft_prompt is None or other.soft_prompt is None:
        same_kind = one.soft_prompt is other.soft_prompt
        return same_kind and torch.equal(one.tokens[:n_tokens], other.tokens[:n_tokens])
    return torch.equal(one.soft_prompt[:n_tokens], other.soft_prompt[:n_tokens])


def _cut(
    soft_prompt: Float[Tensor, "pos d_model"] | None, first: int, last: int | None
) -> Float[Tensor, "some d_model"] | None:
    return None if soft_prompt is None else soft_prompt[first:last]


def _take_row(keys_values: KeysValues | None, row: int) -> KeysValues | None:
    return None if keys_values is None else (keys_values[0][row : row + 1], keys_values[1][row : row + 1])


def _join_tokens(prefix: KeysValues | None, suffix: KeysValues) -> KeysValues:
    if prefix is None:
        return suffix
    return torch.cat([prefix[0], suffix[0]], dim=-2), torch.cat([prefix[1], suffix[1]], dim=-2)


def _join_rows(keys_values: Sequence[KeysValues]) -> KeysValues:
    keys, values = zip(*keys_values, strict=True)
    return torch.cat(keys), torch.cat(values)
