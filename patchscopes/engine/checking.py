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

from patchscopes.engine.prefix import KeysValues, cut_tokens, get_cache_in_use
from patchscopes.engine.reference import Identity, Reference
from patchscopes.engine.tolerance import Difference, get_tolerance, measure_error
from patchscopes.engine.twin import Twin, unwrap_hidden_states, wrap_hidden_states


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
        identities = _identify_rows(number, start, hidden, layer.row_keys_values, remembered, reference, tolerance)
        streams = torch.tensor([reference.get_stream(matching[0]) for matching in identities])
        if not bool(torch.isfinite(reference.streams[number + 1]).all()):
            raise Difference(f"block {number} overflows with plain hooks too: use float32 or bfloat16")
        entering, leaving = reference.streams[number : number + 2, streams, start : start + n_tokens].to(hidden)
        computed = unwrap_hidden_states(forward(entering, *args, **kwargs))
        # A model that is spread over devices has its blocks' results on theirs.
        entering, leaving = entering.to(computed.device), leaving.to(computed.device)
        error = measure_error(computed - entering, leaving - entering, leaving)
        allowed = torch.full_like(error, tolerance)
        if not bool((error <= allowed).all()):
            # Rounding may still account for it: where two experts are as good, say.
            allowed += 2 * reference.sensitivity[number, streams, start : start + n_tokens].to(error)
        if not bool((error <= allowed).all()):
            raise Difference(
                f"what block {number} adds differs by {float(error.max()):.2g} of it, {tolerance:.2g} is allowed"
            )
        keys, values = cast(KeysValues, layer.row_keys_values)
        n_before = reference.target.position - start
        if n_before > 0:
            prefix = cut_tokens((keys, values), 0, n_before)
            keys, values = cut_tokens((keys, values), n_before)
        for row, matching in enumerate(identities):
            remembered.update(dict.fromkeys(matching, (keys[row], values[row])))
        return wrap_hidden_states(twin, leaving)

    return supervised


def _identify_rows(
    number: int,
    start: int,
    hidden: Float[Tensor, "row pos d_model"],
    row_keys_values: KeysValues | None,
    remembered: dict[Identity, KeysValues],
    reference: Reference,
    tolerance: float,
) -> list[list[Identity]]:
    """What each row of a batch is: all that has the same residual here, and had the same keys and values before."""
    candidates = reference.find_candidates(number, start)
    residuals = reference.streams[number, :, start : start + hidden.shape[1]].to(hidden)
    identities: list[list[Identity]] = []
    for row, residual in enumerate(hidden):
        # What enters block 0 was computed twice, and may be rounded differently.
        matching = [
            identity
            for identity in candidates
            if (
                _are_near(residual, residuals[reference.get_stream(identity)], tolerance)
                if number == 0
                else torch.equal(residual, residuals[reference.get_stream(identity)])
            )
        ]
        if not matching:
            raise Difference(f"what enters block {number} is nothing that enters it with plain hooks")
        if row_keys_values is not None:
            cached = row_keys_values[0][row], row_keys_values[1][row]
            earlier = {identity: remembered.get(_get_earlier(identity, start, reference)) for identity in matching}
            matching = [identity for identity in matching if _are_equal(cached, earlier[identity])]
        if not matching:
            raise Difference(f"in block {number} a row has the keys and values of another one")
        identities.append(matching)
    return identities


def _get_earlier(identity: Identity, start: int, reference: Reference) -> Identity:
    """What had the keys and values before a new token: the row itself, or what the continuation goes on."""
    return identity if isinstance(identity, int) else identity[: start - reference.n_tokens]


def _are_near(residual: Float[Tensor, "pos d_model"], expected: Float[Tensor, "pos d_model"], tolerance: float) -> bool:
    """Whether the residual of every token differs by no more than rounding."""
    difference = (residual.float() - expected.float()).norm(dim=-1)
    return bool((difference <= tolerance / 4 * expected.float().norm(dim=-1)).all())


def _are_equal(keys_values: KeysValues | None, expected: KeysValues | None) -> bool:
    if keys_values is None or expected is None:
        return keys_values is expected
    return all(torch.equal(*pair) for pair in zip(keys_values, expected, strict=True))
