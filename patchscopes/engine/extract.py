"""Reading representations: the residual stream of one token of each text, at any layers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.engine.batching import RowSize, run_in_batches
from patchscopes.engine.building import get_twin
from patchscopes.engine.overflow import check_finite
from patchscopes.engine.packing import LastLayerRead, choose_tree, read_packed
from patchscopes.errors import PatchscopesError
from patchscopes.given import AnyModel, AnyNumber, AnyNumbers, to_lens_model, to_numbers
from patchscopes.model.devices import send
from patchscopes.model.layers import get_hook_name, resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.model.offloading import is_offloaded
from patchscopes.tokens import Text, check_texts, resolve_position, to_token_ids


def extract_representation(
    model: AnyModel, text: Text, layer: AnyNumber, position: AnyNumber
) -> Float[Tensor, " d_model"]:
    """The representation of one token of one text at one layer. See `extract_representations`."""
    return extract_representations(model, [text], [position], [layer])[0, 0]


@torch.no_grad()
def extract_representations(
    model: AnyModel,
    texts: Sequence[Text] | str,
    positions: AnyNumbers,
    layers: AnyNumbers | None = None,
    *,
    batch_size: int = 32,
) -> Float[Tensor, "text layer d_model"]:
    """The representations of token `positions[t]` of `texts[t]` at each of `layers` (all blocks unless given).

    One text stands for itself at each of the positions.

    Texts of different lengths share a batch of `batch_size` (halved, with a warning, where it is out of memory). A text
    given several times (with different positions) is read once, and on a CPU so is what short texts begin with alike.
    Nothing is run that no one asked for: not the tokens after the last position, not the blocks after the last layer,
    not the unembedding. Hooks that the user put on the model fire.

    Raises:
        PatchscopesError: a position or layer does not exist, texts and positions differ in number, or states hold NaN
            or infinity, as where float16 overflows.
    """
    model, positions = to_lens_model(model), to_numbers(positions, "positions")
    if isinstance(texts, str):
        texts = [texts] * len(positions)
    check_texts(texts)
    if len(texts) != len(positions):
        raise PatchscopesError(f"{len(texts)} texts and {len(positions)} positions given; give one position per text")
    if batch_size < 1:
        raise PatchscopesError(f"batch_size must be at least 1, got {batch_size}")
    layers = resolve_layers(model, layers)
    out = torch.empty(len(texts), len(layers), model.cfg.d_model, dtype=model.cfg.dtype, device=model.cfg.device)
    if not texts or not layers:
        return out

    requests: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for index, (text, position) in enumerate(zip(texts, positions, strict=True)):
        ids = to_token_ids(model, text).tolist()
        requests.setdefault(tuple(ids), []).append((index, resolve_position(len(ids), position)))
    runs = [ids[: 1 + max(position for _, position in wanted)] for ids, wanted in requests.items()]
    wanted_of_run = list(requests.values())

    def read(batch: list[int], some: slice) -> tuple[list[int], Float[Tensor, "wanted layer d_model"]]:
        wanted = [
            (index, row, position) for row, run in enumerate(batch[some]) for index, position in wanted_of_run[run]
        ]
        indices, rows, columns = (list(part) for part in zip(*wanted, strict=True))
        return indices, _read_batch(model, [runs[run] for run in batch[some]], rows, columns, layers)

    for batch in _batch_by_length(model, [len(run) for run in runs], batch_size):
        row = RowSize(run=len(runs[batch[-1]]), unembedded=0)
        # Texts are asked for different numbers of states, so that none stands for another.
        parts = run_in_batches(model, len(batch), partial(read, batch), row=row, batch_size=len(batch), alike=False)
        for _, (indices, states) in parts:
            out[indices] = check_finite(states, model.cfg.dtype)
    return out


def _batch_by_length(model: LensModel, lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of texts in batches of similar length, the longest text last.

    On a CPU a batch holds at most about 1,024 tokens: larger activations fall out of the caches of the processor, which
    takes up to 1.7 times as long. Weights that wait on the disk are read again for every batch, which takes longer.
    """
    is_cached = torch.device(model.cfg.device).type == "cpu" and not is_offloaded(model)
    max_tokens = 1024 if is_cached else float("inf")
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == batch_size or (len(batch) + 1) * lengths[index] > max_tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _read_batch(
    model: LensModel, runs: list[tuple[int, ...]], rows: list[int], columns: list[int], layers: list[int]
) -> Float[Tensor, "wanted layer d_model"]:
    """Run token sequences as one batch; the residuals at each (row, column)."""
    tree = choose_tree(model, runs, _read_padded)
    if tree is None:
        return _read_padded(model, runs, rows, columns, layers)
    wanted = torch.tensor([tree.nodes[row][column] for row, column in zip(rows, columns, strict=True)])
    different = sorted(set(layers))
    states = read_packed(get_twin(model), tree, wanted, different)
    return states[:, [different.index(layer) for layer in layers]].to(model.cfg.dtype)


def _read_padded(
    model: LensModel, runs: list[tuple[int, ...]], rows: list[int], columns: list[int], layers: list[int]
) -> Float[Tensor, "wanted layer d_model"]:
    """The same with TransformerLens hooks on sequences of one length."""
    # Padding goes to the right, where causal attention keeps it from the tokens that are read.
    longest = max(map(len, runs))
    tokens = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in runs], device=model.cfg.device)
    states = torch.empty(len(rows), len(layers), model.cfg.d_model, dtype=model.cfg.dtype, device=model.cfg.device)
    slots: dict[int, list[int]] = {}
    for slot, layer in enumerate(layers):
        slots.setdefault(layer, []).append(slot)
    last = max(slots)
    where = send(torch.tensor([rows, columns]), tokens.device)

    def reading(layer: int) -> Callable[..., None]:
        def read(residual: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
            there = residual[tuple(where.to(residual.device))].to(states)
            for slot in slots[layer]:
                states[:, slot] = there
            if layer == last:
                raise LastLayerRead

        return read

    hooks = [(get_hook_name(layer), reading(layer)) for layer in slots]
    with suppress(LastLayerRead):
        model.run_with_hooks(tokens, return_type=None, fwd_hooks=hooks)
    return states
