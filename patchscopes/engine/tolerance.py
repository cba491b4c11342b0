"""How much a block of the twin may differ from the plain engine's, and how that is measured."""

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.engine.twin import Twin

# A block may differ from the plain one by so many units in the last place, as a part of what it adds, and always by a
# part of 1e-4. On the embedded model it differs by up to 17 units in float32, 6 in bfloat16, 3 in float16; with a wrong
# mask, position or key by tens of per cent.
UNITS, SMALLEST_PART = 16, 1e-4


class Difference(Exception):
    """What the fast engine does otherwise than plain hooks, in words."""


def get_tolerance(twin: Twin, dtype: torch.dtype) -> float:
    """How much what a block adds may differ in arithmetic of this type, as a part of it.

    Products with quantised weights are computed in their own ways, in numbers of 16 bits; and so are those of float32
    where torch was told to take its precision less strictly.
    """
    loosely = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    coarsest = torch.bfloat16 if loosely or getattr(twin.causal_lm, "is_quantized", False) else dtype
    return max(SMALLEST_PART, UNITS * torch.finfo(coarsest).eps)


def measure_error(
    added: Float[Tensor, "*token d_model"],
    expected: Float[Tensor, "*token d_model"],
    after: Float[Tensor, "*token d_model"],
) -> Float[Tensor, "*token"]:
    """How much what a block adds differs from what it should add, as a part of that.

    The rounding of the residual `after` the block, to which it is added, is left out.
    """
    rounding = torch.finfo(after.dtype).eps * after.float().norm(dim=-1)
    difference = (added.float() - expected.float()).norm(dim=-1)
    return (difference - rounding).clamp(min=0) / expected.float().norm(dim=-1).clamp(min=1e-30)
