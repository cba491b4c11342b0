"""The one place in which numbers that are none are found: states that overflowed, and logits."""

import torch
from torch import Tensor

from patchscopes.errors import PatchscopesError


class Overflow(PatchscopesError):
    """States or logits hold infinity, or NaN ("not a number")."""


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
    # Both ends are NaN if any value is. One pass, and no copy.
    if values.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(values.detach()))).all()):
        return values
    if dtype == torch.float16:
        raise Overflow(
            f"{what} overflow in float16, whose largest number is 65504: use float32 or bfloat16 (dtype=, in scripts "
            "--dtype)"
        )
    raise Overflow(
        f"{what} hold NaN or infinity in {str(dtype).removeprefix('torch.')}: the model's weights, or the vectors that "
        "were given, hold such numbers or are far too large; if the type is float16 somewhere, use float32 or bfloat16"
    )
