"""How many rows are computed at a time, and what happens where they do not fit into memory: the one place for both.

Whatever runs a model on many rows does it in `run_in_batches`. On a GPU a batch takes about half of the memory that is
free; if it takes more than there is after all, its rows go on in halves.
"""

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

from patchscopes.engine import fast
from patchscopes.engine.memory import measure_free_memory
from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError, PatchscopesWarning
from patchscopes.estimating.rows import run_and_count, run_some_rows
from patchscopes.estimating.tally import ESTIMATE, Estimate
from patchscopes.model.devices import measure_free_memory_of, require_memory
from patchscopes.model.lens_model import LensModel
from patchscopes.model.offloading import is_offloaded

# What a batch takes of a GPU is only estimated; and what is done with its logits takes memory too.
SHARE_OF_FREE_MEMORY = 0.5
# Kernels of a GPU count the numbers of a tensor in 32 bits.
NUMBERS_IN_A_TENSOR = 2**31

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class RowSize:
    """What one row of a batch holds in memory.

    Attributes:
        run: tokens that it runs at once.
        unembedded: tokens whose logits are held at once; none where they are only chosen from.
        cached: tokens whose keys and values are kept.
        seen: tokens that attention looks back at, those that all rows share included; at least the others.
    """

    run: int = 1
    unembedded: int = 1
    cached: int = 0
    seen: int = 0

    def count_bytes(self, model: LensModel) -> int:
        """About how many bytes the row takes at one time."""
        return self.count_bytes_with(model.cfg)

    def count_bytes_with(self, cfg: Any) -> int:
        """The same for a model that has this configuration, loaded or not."""
        of_one = torch.finfo(cfg.dtype).bits // 8
        kept = max(self.run, self.cached)
        # A gated MLP holds three vectors of its width; beside it are copies of the residual stream.
        in_block = self.run * (8 * cfg.d_model + 3 * get_mlp_width(cfg))
        # In one block at a time they may be copied behind those of the shared tokens.
        keys_values = count_keys_values(cfg) * (cfg.n_layers * kept + max(kept, self.seen))
        # Softmax is taken of a copy in float32.
        copied = self._count_scores(cfg) + self.unembedded * cfg.d_vocab
        return int((in_block + keys_values + copied) * of_one + copied * 4)

    def count_largest(self, model: LensModel) -> int:
        """How many numbers the largest of its tensors holds."""
        cfg = model.cfg
        return max(self._count_scores(cfg), self.unembedded * cfg.d_vocab, self.run * get_mlp_width(cfg))

    def _count_scores(self, cfg: Any) -> int:
        return int(cfg.n_heads * self.run * max(self.run, self.cached, self.seen))


def get_mlp_width(cfg: Any) -> int:
    """The width of the MLPs."""
    return int(getattr(cfg, "d_mlp", None) or 4 * cfg.d_model)


def count_keys_values(cfg: Any) -> int:
    """How many numbers the keys and values of one token in one block are."""
    return int(2 * (getattr(cfg, "n_key_value_heads", None) or cfg.n_heads) * cfg.d_head)


# A row that runs one token and reads its logits.
ONE_TOKEN = RowSize()


def rows_per_batch(model: LensModel, row: RowSize = ONE_TOKEN) -> int:
    """Rows to compute at a time: enough to keep matrix products efficient, few enough to fit into memory.

    On a GPU as many as take about half of its free memory, rounded down to a power of two: so that runs differ little
    in it; and so on a CPU where weights wait on the disk, as every batch reads them again. On a CPU that holds them,
    measured on two cores with a 135M model, time per row falls until about 500 rows and is flat from there: the bounds
    are 2,048 tokens, 64 Mi logits, and 256 Mi numbers in the caches of rows that generate.
    """
    free = measure_free_memory(model)
    if free is None and is_offloaded(model):
        free = measure_free_memory_of(model.cfg.device)
    if free is not None:
        by_memory = int(free * SHARE_OF_FREE_MEMORY) // row.count_bytes(model)
        n_rows = max(1, min(by_memory, NUMBERS_IN_A_TENSOR // row.count_largest(model)))
        return 2 ** (n_rows.bit_length() - 1)
    by_tokens = fast.TOKENS_AT_A_TIME // row.run
    by_logits = 2**26 // (model.cfg.d_vocab * row.unembedded) if row.unembedded > 0 else by_tokens
    by_cache = 2**28 // (model.cfg.n_layers * count_keys_values(model.cfg) * max(1, row.cached))
    by_memory = int(measure_free_memory_of(model.cfg.device) * SHARE_OF_FREE_MEMORY) // row.count_bytes(model)
    return max(1, min(by_tokens, by_logits, by_cache, by_memory))


def check_batch_fits(model: LensModel, row: RowSize, n_rows: int) -> None:
    """Refuse rows at a time that a CPU clearly has no memory for, before the operating system ends the process.

    A GPU says so itself, and the rows then go on in halves.

    Raises:
        PatchscopesError: it says how many rows would fit.
    """
    if torch.device(model.cfg.device).type == "cuda":
        return
    of_row = row.count_bytes(model)
    fitting = measure_free_memory_of(model.cfg.device) // of_row
    advice = "give shorter prompts or fewer new tokens, or load the model in bfloat16 (--dtype bfloat16)"
    if 1 <= fitting < n_rows:
        advice = f"{fitting:,} rows at a time would fit (--batch-size {fitting})"
    require_memory(f"{n_rows:,} rows of the model at a time", n_rows * of_row, model.cfg.device, advice)


def get_row_size(
    target: TargetPrompt, engine: Literal["fast", "hooks"], new_tokens: int = 0, unembedded: int = 1
) -> RowSize:
    """What a row of one target prompt holds while an engine computes its logits, or generates so many tokens."""
    n_tokens = len(target.tokens) + new_tokens
    if engine == "hooks":
        return RowSize(run=n_tokens, unembedded=n_tokens)
    if new_tokens == 0:
        return RowSize(run=target.suffix_length, unembedded=unembedded, seen=n_tokens)
    # The engine itself reads the prompts in smaller parts.
    return RowSize(unembedded=unembedded, cached=target.suffix_length + new_tokens, seen=n_tokens)


# Bytes (as `RowSize.count_bytes` estimates them) that a batch of a model may take: half of what did not fit.
_limits: weakref.WeakKeyDictionary[LensModel, int] = weakref.WeakKeyDictionary()


def run_in_batches(
    model: LensModel,
    n_rows: int,
    run: Callable[[slice], Result],
    *,
    row: RowSize = ONE_TOKEN,
    batch_size: int | None = None,
    alike: bool = True,
) -> Iterator[tuple[slice, Result]]:
    """Run some rows at a time, in order; yields which rows they are, and their result.

    A batch that is out of memory is halved and run again, and all that follow are as small; one warning says so. The
    model's later batches of any kind are then chosen to take no more than what did fit.

    Args:
        run: from rows to their result. It can be called again with the first half of the rows that it failed on.
        row: what each row holds.
        batch_size: rows at a time; chosen by `rows_per_batch` unless given. It is halved too.
        alike: whether in an estimate the result of some rows may stand for that of others.

    Raises:
        PatchscopesError: the batch size is below 1, or clearly more than a CPU has memory for; and as batches are run,
            one row alone is out of memory.
    """
    if batch_size is not None and batch_size < 1:
        raise PatchscopesError(f"batch_size must be at least 1, or None to choose by size; got {batch_size}")
    size = batch_size or rows_per_batch(model, row)
    if model in _limits:
        size = max(1, min(size, _limits[model] // row.count_bytes(model)))
    check_batch_fits(model, row, min(size, n_rows))
    estimate = ESTIMATE.get()
    if estimate is not None and n_rows > 0:
        return _estimate_batches(estimate, model, n_rows, run, row, size, alike)
    return _run_in_halves(model, n_rows, run, row, size)


def _estimate_batches(
    estimate: Estimate,
    model: LensModel,
    n_rows: int,
    run: Callable[[slice], Result],
    row: RowSize,
    size: int,
    alike: bool,
) -> Iterator[tuple[slice, Result]]:
    """The batches while an estimate is made: all rows are counted, and some of a long call run in the place of all."""
    estimate.note_batch(min(size, n_rows * estimate.scale) * row.count_bytes(model))

    def run_counted(rows: slice) -> Result:
        return run_and_count(estimate, lambda: run(rows), rows.stop - rows.start, max(row.run, row.cached))

    def run_part(first: int, n: int) -> Result:
        parts = _run_in_halves(model, n, lambda rows: run_counted(slice(first + rows.start, first + rows.stop)), row, n)
        return [result for _, result in parts][-1]

    if alike and estimate.may_skip_rows and estimate.inside == 0:
        return run_some_rows(estimate, n_rows, size, run_part)
    return _run_in_halves(model, n_rows, run_counted, row, size)


def _run_in_halves(
    model: LensModel, n_rows: int, run: Callable[[slice], Result], row: RowSize, size: int
) -> Iterator[tuple[slice, Result]]:
    first = 0
    while first < n_rows:
        rows = slice(first, min(first + size, n_rows))
        try:
            yield rows, run(rows)
        except torch.OutOfMemoryError:
            # The tensors of the failed batch are free only behind this clause.
            pass
        else:
            first = rows.stop
            continue
        size = _halve(model, row, rows.stop - rows.start)


def _halve(model: LensModel, row: RowSize, n_rows: int) -> int:
    """The number of rows to go on with where so many are out of memory."""
    gc.collect()
    torch.cuda.empty_cache()
    if n_rows == 1:
        raise PatchscopesError(
            f"one row alone is out of memory on {model.cfg.device}; give shorter prompts or fewer new tokens, or load "
            "the model in bfloat16, on a larger device or on the CPU"
        )
    size = n_rows // 2
    _limits[model] = size * row.count_bytes(model)
    warnings.warn(
        f"{n_rows} rows at a time are out of memory; going on with {size} at a time", PatchscopesWarning, stacklevel=3
    )
    return size


def check_length(target: TargetPrompt, new_tokens: int) -> None:
    """Refuse to generate nothing, or more than the model's context holds."""
    if new_tokens < 1:
        raise PatchscopesError(f"at least 1 token must be generated, got {new_tokens}")
    if len(target.tokens) + new_tokens - 1 > target.model.cfg.n_ctx:
        raise PatchscopesError(
            f"the target prompt's {len(target.tokens)} tokens and {new_tokens} new ones do not fit the model's "
            f"context of {target.model.cfg.n_ctx}; shorten either"
        )
