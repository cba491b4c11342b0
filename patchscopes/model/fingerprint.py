"""A fingerprint of a model's weights."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from patchscopes.model.lens_model import LensModel


def weights_sha256(model: LensModel) -> str:
    """A fingerprint of the weights, in a second or so per 10 GB.

    SHA-256 over each parameter's name, shape and type, the sum of all its values' bit patterns, and a sample of 1,024
    values: any edit of the weights changes it.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(_list_weights(model), key=lambda item: item[0]):
        values = parameter.detach().reshape(-1)
        bits = values.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.dtype.itemsize])
        total = int(bits.sum(dtype=torch.int64))
        sample = bits[:: max(1, len(bits) // 1024)][:1024].tolist()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {total} {sample}".encode())
    return digest.hexdigest()


def _list_weights(model: LensModel) -> Iterable[tuple[str, Tensor]]:
    """The weights by name.

    Of quantised ones the state that would be saved: the scales are no parameters, and on some processors the numbers
    lie in another order once the model has run.
    """
    hf_model: Any = getattr(model, "original_model", None)
    if not getattr(hf_model, "is_quantized", False):
        return model.named_parameters()
    return [(name, value) for name, value in hf_model.state_dict().items() if isinstance(value, Tensor)]
