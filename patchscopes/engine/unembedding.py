"""The last step of every reading: from a residual vector to the logits of the next token."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchscopes.engine.building import get_twin
from patchscopes.engine.overflow import check_finite
from patchscopes.engine.prefix import cache_in_use
from patchscopes.engine.twin import Twin, block_forwards, module_forwards, wrap_hidden_states
from patchscopes.errors import PatchscopesError
from patchscopes.given import AnyModel, AnyVectors, to_lens_model, to_tensor
from patchscopes.model.lens_model import LensModel


@torch.no_grad()
def logit_lens(
    model: AnyModel, representations: Float[Tensor, "*batch d_model"] | AnyVectors
) -> Float[Tensor, "*batch d_vocab"]:
    """Read a representation of any layer as if it were the last one's: final norm, then unembedding.

    The logit lens (nostalgebraist 2020). Applied to the last layer it gives the model's own prediction, output
    scaling or capping included. Hooks on the model do not fire.

    Raises:
        PatchscopesError: the representations or logits hold NaN or infinity, as where float16 overflows.
    """
    model = to_lens_model(model)
    representations = to_tensor(representations, model.cfg.dtype)
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
    residual = check_finite(rows, model.cfg.dtype)[:, None]
    # A HookedTransformer may be made without norms.
    if hasattr(model, "ln_final"):
        residual = model.ln_final(residual)
    logits = model.unembed(residual)[:, 0]
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or 0.0
    return _check_logits(cap * torch.tanh(logits / cap) if cap > 0 else logits)


def unembed(twin: Twin, residual: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
    """Final norm, unembedding and any output scaling or capping, by the family's own forward.

    The blocks hand the residual through, so nothing of what the family does after them is written again here.

    Raises:
        Overflow: the residuals or logits hold NaN or infinity.
    """
    check_finite(residual, twin.causal_lm.dtype)

    def inject(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return wrap_hidden_states(twin, residual[:, None].to(hidden))

    def pass_on(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return wrap_hidden_states(twin, hidden)

    any_tokens = torch.zeros(len(residual), 1, dtype=torch.long, device=twin.device)
    # With a cache, if only an empty one, a GPU is not waited for to see whether the tokens are of several texts.
    cache = twin.new_cache()
    forwards = [inject] + [pass_on] * (len(twin.blocks) - 1)
    with cache_in_use(cache), block_forwards(twin, forwards), _without_zero_bias(twin):
        return _check_logits(twin.causal_lm(any_tokens, past_key_values=cache, use_cache=True).logits[:, -1])


def _without_zero_bias(twin: Twin) -> AbstractContextManager[None]:
    """Within the context, the unembedding leaves out a bias of zeros, which the bridge gives every one that has none.

    On a CPU alone: there a bias is copied into each row of the logits before the product is added to it, which takes a
    tenth of the time, and to look at it costs nothing.
    """
    head = twin.causal_lm.get_output_embeddings()
    bias = getattr(head, "bias", None)
    plain = type(head) is nn.Linear and "forward" not in vars(head)
    if not plain or bias is None or bias.device.type != "cpu" or bool(bias.any()):
        return nullcontext()
    return module_forwards([head], [lambda hidden: nn.functional.linear(hidden, head.weight)])


def _check_logits(logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, "row d_vocab"]:
    """Logits of finite residuals: only float16 is so narrow that they may overflow, and there are many of them."""
    return check_finite(logits, logits.dtype, "logits") if logits.dtype == torch.float16 else logits
