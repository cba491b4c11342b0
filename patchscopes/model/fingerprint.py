"""A fingerprint of a model's weights."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from patchscopes.model.lens_model import LensModel
from patchscopes.model.offloading import list_parameters, read_offloaded


def weights_sha256(model: LensModel) -> str:
    """A fingerprint of the weights, in a second or so per 10 GB.

    SHA-256 over each parameter's name, shape and type, the sum of all its values' bit patterns, and a sample of 1,024
    values: any edit of the weights changes it.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(_list_weights(model), key=lambda item: item[0]):
        # One at a time: offloaded ones may not fit into memory together.
        values = (read_offloaded(model, name) if parameter.is_meta else parameter.detach()).reshape(-1)
        bits = values.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.dtype.itemsize])
        total = int(bits.sum(dtype=torch.int64))
        sample = bits[:: max(1, len(bits) // 1024)][:1024].tolist()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {total} {sample}".encode())
    return digest.hexdigest()


def _list_weights(model: LensModel) -> Iterator[tuple[str, Tensor]]:
    """The weights by name; of quantised ones the scales too, which are no parameters."""
    yield from list_parameters(model)
    hf_model: Any = getattr(model, "original_model", None)
    if not getattr(hf_model, "is_quantized", False):
        return
    yield from hf_model.named_buffers()
    for name, module in hf_model.named_modules():
        # Of bitsandbytes: in 4 bits, and in 8 bits once the model has run, and before.
        weight = getattr(module, "weight", None)
        quantised = getattr(weight, "quant_state", None)
        nested = getattr(quantised, "state2", None)
        found = {
            "absmax": getattr(quantised, "absmax", None),
            "offset": getattr(quantised, "offset", None),
            "absmax2": getattr(nested, "absmax", None),
            "SCB": getattr(weight, "SCB", None),
            "state.SCB": getattr(getattr(module, "state", None), "SCB", None),
        }
        for kind, scales in found.items():
            if isinstance(scales, Tensor):
                yield f"{name}.{kind.removeprefix('state.')}", scales
