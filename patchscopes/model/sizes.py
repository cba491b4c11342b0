"""How much memory the weights of a model take, from its configuration, before any of them is read."""

from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from patchscopes.model.devices import ALL_GPUS, GIB, fits, require_memory

# Bytes of a quantised weight: 4-bit ones have a scale of 32 bits for each 64 of them.
QUANTISED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}
# The forms in which a model can be loaded, the largest first: type and quantisation.
FORMS: dict[str, tuple[torch.dtype, str | None]] = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "8bit": (torch.bfloat16, "8bit"),
    "4bit": (torch.bfloat16, "4bit"),
}
# How a configuration that the loader will complain about fails here.
_UNKNOWN = (
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """How large a model is.

    Attributes:
        n_parameters: all, tied ones once.
        n_linear: those of them that bitsandbytes quantises: the weights of linear layers, but for the unembedding.
    """

    n_parameters: int
    n_linear: int

    def count_bytes(self, dtype: torch.dtype, quantization: str | None = None) -> int:
        """Bytes of the weights in a type, or in so many bits."""
        of_linear = QUANTISED_BYTES.get(quantization or "", dtype.itemsize)
        return int((self.n_parameters - self.n_linear) * dtype.itemsize + self.n_linear * of_linear)


def measure_size(config: Any, trust_remote_code: bool = False) -> ModelSize:
    """The size of the model of a configuration, which is built without weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    unembedding = model.get_output_embeddings()
    linear = {
        id(module.weight): module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not unembedding
    }
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelSize(n_parameters=n_parameters, n_linear=sum(linear.values()))


def read_size(place: str, revision: str | None = None, trust_remote_code: bool = False) -> ModelSize | None:
    """The size of the model of a folder or hub id; None if it cannot be told, or its weights are quantised already."""
    try:
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
        if getattr(config, "quantization_config", None) is not None:
            return None
        return measure_size(config, trust_remote_code)
    except _UNKNOWN:
        # The loader says what is wrong with it, where anything is.
        return None


def check_weights_fit(
    place: str,
    *,
    device: str,
    dtype: torch.dtype,
    quantization: str | None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Refuse to read weights that clearly need more memory than there is; those that are spread always have room.

    Raises:
        PatchscopesError: it says in which form they would fit.
    """
    size = None if device == ALL_GPUS else read_size(place, revision, trust_remote_code)
    if size is not None:
        name = str(dtype).removeprefix("torch.") if quantization is None else quantization
        n_bytes = size.count_bytes(dtype, quantization)
        require_memory(f"the weights of {place!r} in {name}", n_bytes, device, advise(size, n_bytes, device))


def advise(size: ModelSize, n_bytes: int, device: str) -> str:
    """The forms smaller than so many bytes in which a model would fit, and that it can be offloaded."""
    smaller = {form: size.count_bytes(*how) for form, how in FORMS.items() if size.count_bytes(*how) < n_bytes}
    fitting = [
        f"--{'quantization' if form.endswith('bit') else 'dtype'} {form} ({taken / GIB:,.1f} GiB)"
        for form, taken in smaller.items()
        if fits(taken, device)
    ]
    return f"what fits is {', '.join([*fitting, '--device auto (slowly: weights then wait on the disk)'])}"
