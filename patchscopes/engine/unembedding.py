"""The last step of every reading: from a residual vector to the logits of the next token."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.engine.building import get_twin
from patchscopes.engine.twin import Twin, block_forwards, wrap_hidden_states
from patchscopes.errors import PatchscopesError
from patchscopes.model.lens_model import LensModel


@torch.no_grad()
def logit_lens(model: LensModel, representations: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
    """Read a representation of any layer as if it were the last one's: final norm, then unembedding.

    The logit lens (nostalgebraist 2020). Applied to the last layer it gives the model's own prediction, output
    scaling or capping included. Hooks on the model do not fire.
    """
    rows = representations.reshape(-1, representations.shape[-1])
    return unembed_rows(model, rows).reshape(*representations.shape[:-1], -1)


def unembed_rows(model: LensModel, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
    """`logit_lens` of rows, with gradients if the rows have any."""
    try:
        return unembed(get_twin(model), rows)
    except PatchscopesError:
        return _plain_unembed(model, rows)


def _plain_unembed(model: Any, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
    """The same from TransformerLens's own modules, for a HookedTransformer or a family that has no twin."""
    residual = rows[:, None]
    # A HookedTransformer may be made without norms.
    if hasattr(model, "ln_final"):
        residual = model.ln_final(residual)
    logits = model.unembed(residual)[:, 0]
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or 0.0
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def unembed(twin: Twin, residual: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
    """Final norm, unembedding and any output scaling or capping, by the family's own forward.

    The blocks hand the residual through, so nothing of what the family does after them is written again here.
    """

    def inject(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return wrap_hidden_states(twin, residual[:, None].to(hidden))

    def pass_on(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return wrap_hidden_states(twin, hidden)

    any_tokens = torch.zeros(len(residual), 1, dtype=torch.long, device=twin.device)
    with block_forwards(twin, [inject] + [pass_on] * (len(twin.blocks) - 1)):
        return twin.causal_lm(input_ids=any_tokens, use_cache=False).logits[:, -1]
