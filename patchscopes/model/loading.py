"""Loading a model: an embedded one, one of the registry, one of the hub, one of a folder, or one already loaded."""

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

from patchscopes.data.files import expand_home
from patchscopes.errors import PatchscopesError
from patchscopes.model.devices import ALL_GPUS, default_dtype, parse_dtype, resolve_device
from patchscopes.model.embedded import EMBEDDED, unpack_embedded_model
from patchscopes.model.registry import EMBEDDED_MODEL, resolve_hub_id


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
        name: an alias of `patchscopes.model.registry.MODELS` (the default is the embedded model, which needs no
            network, as those of `patchscopes.model.embedded`), a hub id (`owner/name`) or a local folder.
        device: cuda, mps or cpu, whichever is there first unless given; `"auto"` spreads the model over all GPUs.
        dtype: float32 on a CPU and bfloat16 elsewhere unless given, as a torch type or its name.
        hf_model: wrap this loaded model instead (in place, as TransformerLens does); it stays where it is and
            as it is unless `device` or `dtype` is given.
        tokenizer: use this tokenizer; with `hf_model` and without it, the one of the model's own name or path.

    Raises:
        PatchscopesError: the model cannot be had; the message says what to do.
    """
    if hf_model is not None:
        return _freeze(_wrap(hf_model, tokenizer, device, dtype))
    device = resolve_device(device)
    dtype = default_dtype(device) if dtype is None else parse_dtype(dtype)
    is_embedded = name.lower() in EMBEDDED
    folder = expand_home(name)
    source = name if is_embedded or folder.is_dir() else resolve_hub_id(name)
    placement = {"device_map": ALL_GPUS} if device == ALL_GPUS else {"device": device}
    progress_bars = transformers_logging.is_progress_bar_enabled()
    try:
        if is_embedded:
            source = str(unpack_embedded_model(name.lower()))
            transformers_logging.disable_progress_bar()
        elif folder.is_dir():
            source = str(folder)
        with save_for_reloading(tokenizer) as tokenizer:
            model = TransformerBridge.boot_transformers(source, dtype=dtype, tokenizer=tokenizer, **placement)
        # Without its files transformers makes some families an empty tokenizer.
        if not model.tokenizer("x", add_special_tokens=False)["input_ids"]:
            raise ValueError("its tokenizer knows no text")
    except (OSError, SafetensorError, ValueError) as error:
        raise PatchscopesError(_explain_failure(name, source, error)) from error
    finally:
        if progress_bars:
            transformers_logging.enable_progress_bar()
    model.cfg.model_name = name.lower() if is_embedded else name
    return _freeze(model)


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
    with save_for_reloading(tokenizer or _load_tokenizer(name)) as tokenizer:
        try:
            model = TransformerBridge.boot_transformers(
                f"loaded/{name}", hf_model=hf_model, tokenizer=tokenizer, device=parameter.device, dtype=parameter.dtype
            )
        except ValueError as error:
            raise PatchscopesError(_explain_failure(name, name, error)) from error
    model.cfg.model_name = name
    return model


@contextmanager
def save_for_reloading(tokenizer: PreTrainedTokenizerBase | None) -> Iterator[PreTrainedTokenizerBase | None]:
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


def _load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise PatchscopesError(f"found no tokenizer for the model {name!r}: give one with tokenizer=...") from error


def _freeze(model: TransformerBridge) -> TransformerBridge:
    model.requires_grad_(False)
    return model.eval()


def _explain_failure(name: str, source: str, error: Exception) -> str:
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
