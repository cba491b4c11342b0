"""The fast engine's blocks under supervision: each starts from the plain engine's numbers, and is compared with it.

While the forwards of this module stand in place of the blocks' own, the fast engine runs as always, but no rounding is
carried from one block to the next: a block is given the plain engine's residual in place of its input, what it adds is
compared, and the plain engine's result is passed on. So what moves between blocks is known to the last bit, and so
are the keys and values that were made of it: a row in the wrong place, or with another row's cache, cannot hide in
rounding.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.engine.prefix import KeysValues, get_cache_in_use
from patchscopes.engine.reference import Identity, Reference, measure_error
from patchscopes.engine.twin import Twin, unwrap_hidden_states, wrap_hidden_states

# A block may differ from the plain one by so many units in the last place, as a part of what it adds, and always by a
# part of 1e-4. On the embedded model it differs by up to 17 units in float32, 6 in bfloat16, 3 in float16; with a wrong
# mask, position or key by tens of per cent.
UNITS, SMALLEST_PART = 16, 1e-4


class Difference(Exception):
    """What the fast engine does otherwise than plain hooks, in words."""


def get_tolerance(twin: Twin, dtype: torch.dtype) -> float:
    """How much what a block adds may differ in arithmetic of this type, as a part of it.

    Products with quantised weights are computed in their own ways, in numbers of 16 bits.
    """
    coarsest = torch.bfloat16 if getattr(twin.causal_lm, "is_quantized", False) else dtype
    return max(SMALLEST_PART, UNITS * torch.finfo(coarsest).eps)


def supervise_blocks(twin: Twin, reference: Reference) -> list[Callable[..., Any]]:
    """Forwards to stand in place of those of the twin's blocks (see `block_forwards`).

    They raise Difference.
    """
    return [_supervise(number, block.forward, twin, reference) for number, block in enumerate(twin.blocks)]


def _supervise(number: int, forward: Callable[..., Any], twin: Twin, reference: Reference) -> Callable[..., Any]:
    """The forward of one block, and its memory of the keys and values of everything that has run in it."""
    prefix: KeysValues | None = None
    remembered: dict[Identity, KeysValues] = {}
    tolerance = get_tolerance(twin, reference.streams.dtype)

    def supervised(hidden: Float[Tensor, "row pos d_model"], *args: Any, **kwargs: Any) -> Any:
        nonlocal prefix
        layer = get_cache_in_use().prefix_layers[number]
        start, n_tokens = layer.get_seq_length(), hidden.shape[1]
        if start >= reference.target.position and not _are_equal(layer.prefix, prefix):
            raise Difference(f"in block {number} the prefix is not that of the prompt")
        identities = _identify_rows(number, start, hidden, layer.of_rows, remembered, reference)
        streams = torch.tensor([reference.get_stream(of_row[0]) for of_row in identities])
        entering, leaving = reference.streams[number : number + 2, streams, start : start + n_tokens].to(hidden)
        computed = unwrap_hidden_states(forward(entering, *args, **kwargs))
        error = measure_error(computed - entering, leaving - entering, leaving)
        allowed = torch.full_like(error, tolerance)
        if not bool((error <= allowed).all()):
            # Rounding may still account for it: where two experts are as good, say.
            allowed += 2 * reference.sensitivity[number, streams, start : start + n_tokens].to(error)
        if not bool((error <= allowed).all()):
            raise Difference(f"what block {number} adds differs by {float(error.max()):.2g} of it, not {tolerance:.2g}")
        keys, values = cast(KeysValues, layer.of_rows)
        if start < reference.target.position:
            prefix = keys, values
        for row, of_row in enumerate(identities):
            remembered.update(dict.fromkeys(of_row, (keys[row], values[row])))
        return wrap_hidden_states(twin, leaving)

    return supervised


def _identify_rows(
    number: int,
    start: int,
    hidden: Float[Tensor, "row pos d_model"],
    of_rows: KeysValues | None,
    remembered: dict[Identity, KeysValues],
    reference: Reference,
) -> list[list[Identity]]:
    """What each row of a batch is: all that has the same residual here, and had the same keys and values before."""
    candidates = reference.find_candidates(number, start)
    residuals = reference.streams[number, :, start : start + hidden.shape[1]].to(hidden)
    identities: list[list[Identity]] = []
    for row, residual in enumerate(hidden):
        alike = [
            one for one in candidates if _are_alike(residual, residuals[reference.get_stream(one)], exactly=number > 0)
        ]
        if not alike:
            raise Difference(f"what enters block {number} is nothing that enters it with plain hooks")
        if of_rows is not None:
            cached = of_rows[0][row], of_rows[1][row]
            alike = [one for one in alike if _are_equal(cached, remembered.get(_get_earlier(one, start, reference)))]
        if not alike:
            raise Difference(f"in block {number} a row has the keys and values of another one")
        identities.append(alike)
    return identities


def _get_earlier(identity: Identity, start: int, reference: Reference) -> Identity:
    """What had the keys and values before a new token: the row itself, or what the continuation goes on."""
    return identity if isinstance(identity, int) else identity[: start - reference.n_tokens]


def _are_alike(residual: Tensor, expected: Tensor, exactly: bool) -> bool:
    """Whether two residuals are the same; what enters block 0 was computed twice, and may be rounded differently."""
    if exactly:
        return torch.equal(residual, expected)
    difference = (residual.float() - expected.float()).norm(dim=-1)
    return bool((difference <= 2 * torch.finfo(residual.dtype).eps * expected.float().norm(dim=-1)).all())


def _are_equal(some: KeysValues | None, others: KeysValues | None) -> bool:
    if some is None or others is None:
        return some is others
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))
