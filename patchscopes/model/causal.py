"""Whether a model is a causal decoder: only in these, tokens before i* never see what is written at i*."""

import torch
from torch import Tensor

from patchscopes.errors import PatchscopesError
from patchscopes.model.layers import get_hook_name
from patchscopes.model.lens_model import LensModel

N_TOKENS = 8
# How much the state of the first token may change with the tokens after it, as a part of it: by nothing but rounding,
# which is the same for both texts in all families that were tried. Attention to what comes after it changes it by more,
# even with untrained weights.
TOLERANCE, TOLERANCE_QUANTISED = 1e-3, 2e-2


@torch.no_grad()
def check_is_causal_decoder(model: LensModel) -> None:
    """Refuse a model that is none. One short pass over two texts is run, of which only the first token is the same.

    Raises:
        PatchscopesError: it reads no text, has an encoder, or its tokens see those after them.
    """
    hf_model = getattr(model, "original_model", model)
    if model.tokenizer is None or getattr(hf_model, "main_input_name", "input_ids") != "input_ids":
        raise _refuse(model, "reads no text")
    if getattr(getattr(hf_model, "config", None), "is_encoder_decoder", False):
        raise _refuse(model, "is an encoder–decoder")
    # Not the first tokens of the vocabulary, which may be for special purposes.
    first, *others = (number * model.cfg.d_vocab // 12 for number in (5, 7, 9))
    n_tokens = min(N_TOKENS, model.cfg.n_ctx)
    tokens = torch.tensor([[first] + [other] * (n_tokens - 1) for other in others], device=model.cfg.device)
    states: list[Tensor] = []

    def read(residual: Tensor, hook: object) -> None:
        states.extend(residual[:, 0].float().cpu())

    model.run_with_hooks(tokens, return_type=None, fwd_hooks=[(get_hook_name(model.cfg.n_layers - 1), read)])
    change = (states[0] - states[1]).norm() / states[0].norm()
    is_quantised = getattr(hf_model, "is_quantized", False)
    # It is not a number where states overflow, which is another matter.
    if bool(change > (TOLERANCE_QUANTISED if is_quantised else TOLERANCE)):
        raise _refuse(model, "lets tokens see those after them")


def _refuse(model: LensModel, reason: str) -> PatchscopesError:
    family = type(getattr(model, "original_model", model)).__name__
    return PatchscopesError(
        f"{str(model.cfg.model_name)!r} ({family}) is no causal decoder: it {reason}; choose a model that reads text "
        "from left to right, such as Llama or GPT-2"
    )
