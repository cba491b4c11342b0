"""Earlier lenses in their original form."""

from jaxtyping import Float
from torch import Tensor

from patchscopes.lens_model import LensModel
from patchscopes.patch import final_logits


def logit_lens(model: LensModel, representations: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
    """Read a representation of any layer as if it were the last one's: final norm, then unembedding.

    The logit lens (nostalgebraist 2020). Applied to the last layer it gives the model's own prediction, output
    scaling or capping included.
    """
    flat = representations.reshape(-1, representations.shape[-1])
    return final_logits(model, flat).reshape(*representations.shape[:-1], -1)
