"""Earlier lenses in their original form."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.lens_model import LensModel
from patchscopes.twin import twin_of, unembed


def logit_lens(model: LensModel, representations: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
    """Read a representation of any layer as if it were the last one's: final norm, then unembedding.

    The logit lens (nostalgebraist 2020). Applied to the last layer it gives the model's own prediction, output
    scaling or capping included.
    """
    flat = representations.reshape(-1, representations.shape[-1])
    return final_logits(model, flat).reshape(*representations.shape[:-1], -1)


@torch.no_grad()
def final_logits(model: LensModel, residual: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
    """What the model does after its last block: final norm, unembedding, output scaling or capping."""
    if hasattr(model, "original_model"):
        return unembed(twin_of(model), residual)
    hooked: Any = model  # a HookedTransformer
    logits = hooked.unembed(hooked.ln_final(residual[:, None]))[:, 0]
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or 0.0
    return cap * torch.tanh(logits / cap) if cap > 0 else logits
