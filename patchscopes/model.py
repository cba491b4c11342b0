"""Loading a model: an embedded one, one of the registry, one of the hub, one of a folder, or one already loaded."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from patchscopes.embedded import EMBEDDED, embedded_model_folder
from patchscopes.errors import PatchscopesError
from patchscopes.lens_model import LensModel
from patchscopes.registry import EMBEDDED_MODEL, hub_id

ALL_GPUS = "auto"


def load_model(
    name: str = EMBEDDED_MODEL,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    hf_model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> TransformerBridge:
    """Load a model into TransformerLens, with its raw weights, in eval mode and with gradients off.

    Args:
        name: an alias of `patchscopes.registry.MODELS` (the default is the embedded model, which needs no
            network, as those of `patchscopes.embedded`), a hub id (`owner/name`) or a local folder.
        device: cuda, mps or cpu, whichever is there first unless given; `"auto"` spreads the model over all GPUs.
        dtype: float32 on a CPU and bfloat16 elsewhere unless given, as a torch type or its name.
        hf_model: wrap this loaded model instead (in place, as TransformerLens does); it stays where it is and
            as it is unless `device` or `dtype` is given.
        tokenizer: use this tokenizer; with `hf_model` and without it, the one of the model's own name or path.

    Raises:
        PatchscopesError: the model cannot be had; the message says what to do.
    """
    if hf_model is not None:
        return _frozen(_wrap(hf_model, tokenizer, device, dtype))
    device = resolve_device(device)
    dtype = default_dtype(device) if dtype is None else parse_dtype(dtype)
    is_embedded = name.lower() in EMBEDDED
    folder = Path(name).expanduser()
    source = name if is_embedded or folder.is_dir() else hub_id(name)
    placement = {"device_map": ALL_GPUS} if device == ALL_GPUS else {"device": device}
    progress_bars = transformers_logging.is_progress_bar_enabled()
    try:
        if is_embedded:
            source = str(embedded_model_folder(name.lower()))
            transformers_logging.disable_progress_bar()
        elif folder.is_dir():
            source = str(folder)
        with reloadable(tokenizer) as tokenizer:
            model = TransformerBridge.boot_transformers(source, dtype=dtype, tokenizer=tokenizer, **placement)
        # Without its files transformers makes some families an empty tokenizer.
        if not model.tokenizer("x", add_special_tokens=False)["input_ids"]:
            raise ValueError("its tokenizer knows no text")
    except (OSError, SafetensorError, ValueError) as error:
        raise PatchscopesError(_why_not_loaded(name, source, error)) from error
    finally:
        if progress_bars:
            transformers_logging.enable_progress_bar()
    model.cfg.model_name = name.lower() if is_embedded else name
    return _frozen(model)


def resolve_device(device: str | torch.device | None) -> str:
    """The device to use: cuda, mps or cpu, whichever is there first, unless given; `"auto"` for all GPUs.

    Raises:
        PatchscopesError: no such device on this machine.
    """
    available = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if device is None:
        return available[0]
    if str(device) == ALL_GPUS:
        return ALL_GPUS if "cuda" in available else available[0]
    kind, _, number = str(device).partition(":")
    if kind not in available or (kind == "cuda" and number.isdecimal() and int(number) >= torch.cuda.device_count()):
        raise PatchscopesError(f"device {str(device)!r} is not on this machine, which has {', '.join(available)}")
    return str(device)


def default_dtype(device: str) -> torch.dtype:
    """float32 on a CPU, bfloat16 elsewhere."""
    return torch.float32 if device.startswith("cpu") else torch.bfloat16


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A floating-point type, also by its name.

    Raises:
        PatchscopesError: no such type.
    """
    parsed = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(parsed, torch.dtype) or not parsed.is_floating_point:
        raise PatchscopesError(f"dtype must be float32, bfloat16, float16 or float64, got {dtype!r}")
    return parsed


def _wrap(
    hf_model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    device: str | torch.device | None,
    dtype: torch.dtype | str | None,
) -> TransformerBridge:
    """A bridge around a loaded model."""
    if device is not None:
        device = resolve_device(device)
        if device == ALL_GPUS:
            raise PatchscopesError("a loaded model stays where it is: spread it with device_map when you load it")
        hf_model = hf_model.to(device)
    if dtype is not None:
        hf_model = hf_model.to(parse_dtype(dtype))
    # Models made from a configuration do not carry the name by which TransformerLens finds their family.
    hf_model.config.architectures = hf_model.config.architectures or [type(hf_model).__name__]
    parameter = next(hf_model.parameters())
    name = hf_model.config.name_or_path or type(hf_model).__name__
    with reloadable(tokenizer or _tokenizer_of(name)) as tokenizer:
        try:
            model = TransformerBridge.boot_transformers(
                f"loaded/{name}", hf_model=hf_model, tokenizer=tokenizer, device=parameter.device, dtype=parameter.dtype
            )
        except ValueError as error:
            raise PatchscopesError(_why_not_loaded(name, name, error)) from error
    model.cfg.model_name = name
    return model


@contextmanager
def reloadable(tokenizer: PreTrainedTokenizerBase | None) -> Iterator[PreTrainedTokenizerBase | None]:
    """The tokenizer as it is now, saved for as long as the context lasts.

    TransformerLens loads a tokenizer again by its path, to have BOS prepended: one made on the spot has none, and one
    that was changed since it was loaded would lose the change.
    """
    if tokenizer is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        yield AutoTokenizer.from_pretrained(folder)


def _tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise PatchscopesError(f"found no tokenizer for the model {name!r}: give one with tokenizer=...") from error


def _frozen(model: TransformerBridge) -> TransformerBridge:
    model.requires_grad_(False)
    return model.eval()


def _why_not_loaded(name: str, source: str, error: Exception) -> str:
    """One sentence on why a model could not be loaded, and what to do."""
    if isinstance(error, PatchscopesError):
        return str(error)
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    page = f"https://huggingface.co/{source}"
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"{name!r} is gated: accept its licence at {page}, then log in with `hf auth login`"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"the hub has no model {source!r} that you may see: check the name, or log in with `hf auth login`"
    if "Could not determine supported architecture" in str(error):
        return f"TransformerLens does not know the architecture of {name!r}; choose another model"
    if name.lower() in EMBEDDED:
        return (
            f"the embedded model {name!r} could not be loaded ({reason}); PATCHSCOPES_CACHE names another cache folder"
        )
    if Path(source).is_dir():
        return f"the folder {source} does not hold a complete model with its tokenizer: {reason}"
    if isinstance(error, OSError):
        return (
            f"{name!r} could not be fetched from the hub and is not in its local cache: check the network connection, "
            f"give the path of a folder that holds the model, or use the embedded model {EMBEDDED_MODEL!r} ({reason})"
        )
    return f"{name!r} cannot be loaded: {reason}"


def weights_sha256(model: LensModel) -> str:
    """A fingerprint of the weights, in a second or so per 10 GB.

    SHA-256 over each parameter's name, shape and type, the sum of all its values' bit patterns, and a sample of 1,024
    values: any edit of the weights changes it.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        values = parameter.detach().reshape(-1)
        bits = values.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.dtype.itemsize])
        total = int(bits.sum(dtype=torch.int64))
        sample = bits[:: max(1, len(bits) // 1024)][:1024].tolist()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {total} {sample}".encode())
    return digest.hexdigest()
