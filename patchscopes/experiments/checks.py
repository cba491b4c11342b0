"""What experiments refuse before they measure, and while they do."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.errors import PatchscopesError
from patchscopes.model.lens_model import LensModel


def check_methods(methods: Sequence[str], known: Sequence[str]) -> None:
    """Refuse methods that the experiment does not know.

    Raises:
        PatchscopesError: one of `methods` is not `known`.
    """
    for method in methods:
        if method not in known:
            raise PatchscopesError(f"no method is called {method!r}; choose from {', '.join(known)}")


def check_finite(model: LensModel, logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch d_vocab"]:
    """The logits, if none overflowed.

    Raises:
        PatchscopesError: some did.
    """
    if not bool(torch.isfinite(logits).all()):
        raise PatchscopesError(f"logits overflow in {model.cfg.dtype}: use float32 or bfloat16")
    return logits
