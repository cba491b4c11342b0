"""Earlier lenses in their original form."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.errors import PatchscopesError
from patchscopes.lens_model import LensModel
from patchscopes.twin import twin_of, unembed


@torch.no_grad()
def logit_lens(model: LensModel, representations: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
    """Read a representation of any layer as if it were the last one's: final norm, then unembedding.

    The logit lens (nostalgebraist 2020). Applied to the last layer it gives the model's own prediction, output
    scaling or capping included. Hooks on the model do not fire.
    """
    rows = representations.reshape(-1, representations.shape[-1])
    try:
        logits = unembed(twin_of(model), rows)
    except PatchscopesError:
        logits = _plain_unembed(model, rows)
    return logits.reshape(*representations.shape[:-1], -1)


def _plain_unembed(model: Any, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
    """The same from TransformerLens's own modules, for a HookedTransformer or a family that has no twin."""
    logits = model.unembed(model.ln_final(rows[:, None]))[:, 0]
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or 0.0
    return cap * torch.tanh(logits / cap) if cap > 0 else logits
