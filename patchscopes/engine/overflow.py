"""The one place in which numbers that are none are found: states that overflowed, and logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from patchscopes.errors import PatchscopesError


class Overflow(PatchscopesError):
    """States or logits hold infinity, or NaN ("not a number")."""


@dataclass(frozen=True)
class Checks:
    """Checks whose outcomes are not known yet, since a GPU would be waited for.

    Attributes:
        finite: whether all is finite, on the device; and what is said if it is not.
    """

    finite: list[tuple[Tensor, Overflow]] = field(default_factory=list)

    def fetch(self, numbers: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Numbers that were made of what was checked, on the CPU: the device is waited for once.

        Raises:
            Overflow: something is not finite, and the numbers tell nothing.
        """
        outcomes = [outcome.to(numbers)[None] for outcome, _ in self.finite]
        fetched = torch.cat([numbers, *outcomes]).cpu()
        for outcome, (_, overflow) in zip(fetched[len(numbers) :].tolist(), self.finite, strict=True):
            if not outcome:
                raise overflow
        return fetched[: len(numbers)]


_CHECKS: ContextVar[Checks | None] = ContextVar("_CHECKS", default=None)


@contextmanager
def check_later() -> Iterator[Checks]:
    """Within the context, `check_finite` does not wait for a device; `Checks.fetch` tells what it would have raised."""
    checks = Checks()
    token = _CHECKS.set(checks)
    try:
        yield checks
    finally:
        _CHECKS.reset(token)


def check_finite(values: Tensor, dtype: torch.dtype, what: str = "states") -> Tensor:
    """The values, states or logits of a model, if they are all numbers.

    An overflow in any block stays in the residual stream, so the final residual tells of it at next to no cost. Engines
    and `extract` check what they find; experiments need not.

    Args:
        dtype: that the model computes in.
        what: the values are.

    Raises:
        Overflow: some are not.
    """
    if values.numel() == 0:
        return values
    # Both ends are NaN if any value is. One pass, and no copy.
    finite = torch.isfinite(torch.stack(torch.aminmax(values.detach()))).all()
    if (checks := _CHECKS.get()) is not None:
        checks.finite.append((finite, _describe_overflow(dtype, what)))
    elif not finite:
        raise _describe_overflow(dtype, what)
    return values


def _describe_overflow(dtype: torch.dtype, what: str) -> Overflow:
    """Why, and what to do."""
    if dtype == torch.float16:
        return Overflow(
            f"{what} overflow in float16, whose largest number is 65504: use float32 or bfloat16 (dtype=, in scripts "
            "--dtype)"
        )
    return Overflow(
        f"{what} hold NaN or infinity in {str(dtype).removeprefix('torch.')}: the model's weights, or the vectors that "
        "were given, hold such numbers or are far too large; if the type is float16 somewhere, use float32 or bfloat16"
    )
