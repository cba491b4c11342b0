"""What an attention knockout takes away: whose keys, in which layers, and the rows that say so in both forms.

`original` (Geva et al. 2023) cuts attention edges: in the blocks of a window the last position does not see the keys,
and the softmax shares its weight among those that are left. Nothing else changes.

`patchscope` is the paper's form of it (its appendix A): f = 0, T = S, ℓ* several. Zeros are written over the keys' own
states at the layers of the window. That is another computation: these tokens have lost what they held for all later
blocks and for every token that reads them, their zeroed keys still take their share of the softmax, and written over
the last position zeros erase what is predicted from.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import AttentionKnockoutConfig
from patchscopes.model.layers import EMBEDDING
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import Cut, Row, Write, patch_rows, patch_rows_in_batches


def choose_window(n_layers: int, window: int | None) -> int:
    """How many layers a window has: as told, or the odd number up to `WINDOW` that is at most a third of the layers."""
    if window is not None:
        return window
    third = max(1, n_layers // 3)
    return min(AttentionKnockoutConfig.WINDOW, third - 1 + third % 2)


def check_blocks(layers: Sequence[int]) -> None:
    """Refuse windows that are centred on no block.

    Raises:
        PatchscopesError: the embedding is among the layers.
    """
    if EMBEDDING in layers:
        raise PatchscopesError(
            "nothing is read where the embedding enters: windows of attention knockout are centred on blocks; leave "
            "the embedding out of the layers"
        )


def divide_positions(n_tokens: int, subject: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The positions of a prompt by what they are to its last one: the `subject`, the `rest` (BOS too), and the `last`.

    Raises:
        PatchscopesError: the prompt ends with the subject, so that the last position is both.
    """
    last = n_tokens - 1
    if last in subject:
        raise PatchscopesError(
            f"the subject is the tokens {list(subject)} of a prompt of {n_tokens}: the last position reads the subject "
            "if something stands between them; add a word to the end of the prompt"
        )
    rest = tuple(position for position in range(last) if position not in subject)
    return {"subject": tuple(subject), "rest": rest, "last": (last,)}


def build_cut_row(target: TargetPrompt, keys: Sequence[int], layers: Sequence[int]) -> Row:
    """The `original`: the last position does not read the keys in the blocks `layers`."""
    last = len(target.tokens) - 1
    return Row(target=target, cuts=(Cut(query=last, keys=tuple(keys), layers=tuple(layers)),))


def build_zero_row(target: TargetPrompt, keys: Sequence[int], layers: Sequence[int]) -> Row:
    """The `patchscope`: zeros over the states of the keys after each of the blocks `layers`."""
    zero = torch.zeros(target.model.cfg.d_model, dtype=target.model.cfg.dtype, device=target.model.cfg.device)
    return Row(
        target=target,
        writes=tuple(Write(position=key, layer=layer, vector=zero) for layer in layers for key in keys),
    )


def read_probability(model: LensModel, tokens: Sequence[int], answer: int) -> float:
    """How likely the model finds an answer after a prompt, with nothing knocked out."""
    logits = patch_rows([Row(target=TargetPrompt(model, tokens))])
    return float(logits[0].float().softmax(dim=-1)[answer])


def knock_out(
    model: LensModel,
    tokens: Sequence[int],
    key_sets: Mapping[str, Sequence[int]],
    windows: Sequence[Sequence[int]],
    answer: int,
    method: str,
    batch_size: int | None,
) -> dict[str, list[float]]:
    """The probability of an answer without each set of keys, in each window of layers.

    Args:
        method: `original` or `patchscope`.
    """
    build_row = {"original": build_cut_row, "patchscope": build_zero_row}[method]
    # T is shared by all rows that first change something at the same token: what stands before it is run once.
    starts = {
        name: len(tokens) - 1 if method == "original" else min(keys, default=len(tokens) - 1)
        for name, keys in key_sets.items()
    }
    targets = {start: TargetPrompt(model, tokens, start) for start in set(starts.values())}
    rows = [build_row(targets[starts[name]], keys, layers) for name, keys in key_sets.items() for layers in windows]
    probabilities: list[Float[Tensor, " batch"]] = [
        logits.float().softmax(dim=-1)[:, answer] for logits in patch_rows_in_batches(rows, batch_size=batch_size)
    ]
    by_row = torch.cat(probabilities).tolist()
    return {
        name: by_row[start : start + len(windows)]
        for name, start in zip(key_sets, range(0, len(by_row), len(windows)), strict=True)
    }
