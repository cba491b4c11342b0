"""How many rows are computed at a time."""

from typing import Literal

from patchscopes.engine import fast
from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.model.lens_model import LensModel


def rows_per_batch(model: LensModel, *, run: int = 1, unembedded: int = 1, cached: int = 0) -> int:
    """Rows to compute at a time: enough to keep matrix products efficient, few enough to fit into memory.

    Measured on two cores with a 135M model, time per row falls until about 500 rows and is flat from there. The
    bounds are 2,048 tokens, 64 Mi logits, and 256 Mi numbers in the caches of rows that generate.

    Args:
        run: tokens that each row runs at once.
        unembedded: tokens of each row whose logits are held at once; none where they are only chosen from.
        cached: tokens of each row whose keys and values are kept.
    """
    cfg = model.cfg
    kv_width = 2 * (getattr(cfg, "n_key_value_heads", None) or cfg.n_heads) * cfg.d_head
    by_tokens = fast.TOKENS_AT_A_TIME // run
    by_logits = 2**26 // (cfg.d_vocab * unembedded) if unembedded > 0 else by_tokens
    by_cache = 2**28 // (cfg.n_layers * kv_width * max(1, cached))
    return max(1, min(by_tokens, by_logits, by_cache))


def choose_batch_size(
    target: TargetPrompt,
    engine: Literal["fast", "hooks"],
    batch_size: int | None,
    new_tokens: int,
    unembedded: int = 1,
) -> int:
    """The given batch size, if it is one, or the one that suits the engine."""
    if batch_size is not None and batch_size < 1:
        raise PatchscopesError(f"batch_size must be at least 1, or None to choose by size; got {batch_size}")
    if batch_size is not None:
        return batch_size
    if engine == "hooks":
        n_tokens = len(target.tokens) + new_tokens
        return rows_per_batch(target.model, run=n_tokens, unembedded=n_tokens)
    if new_tokens == 0:
        return rows_per_batch(target.model, run=target.suffix_length, unembedded=unembedded)
    # The engine itself reads the prompts in smaller parts.
    return rows_per_batch(target.model, unembedded=unembedded, cached=target.suffix_length + new_tokens)


def check_length(target: TargetPrompt, new_tokens: int) -> None:
    """Refuse to generate nothing, or more than the model's context holds."""
    if new_tokens < 1:
        raise PatchscopesError(f"at least 1 token must be generated, got {new_tokens}")
    if len(target.tokens) + new_tokens - 1 > target.model.cfg.n_ctx:
        raise PatchscopesError(
            f"the target prompt's {len(target.tokens)} tokens and {new_tokens} new ones do not fit the model's "
            f"context of {target.model.cfg.n_ctx}; shorten either"
        )
