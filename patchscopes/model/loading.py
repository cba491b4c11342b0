"""Loading a model: an embedded one, one of the registry, one of the hub, one of a folder, or one already loaded."""

import importlib.util
import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file
from transformers.utils import logging as transformers_logging

from patchscopes.errors import PatchscopesError, PatchscopesWarning
from patchscopes.model.adapters import holds_model, load_adapter, load_own_tokenizer, merge_adapters, read_base
from patchscopes.model.causal import check_is_causal_decoder
from patchscopes.model.devices import ALL_GPUS, default_dtype, parse_dtype, resolve_device
from patchscopes.model.embedded import unpack_embedded_model
from patchscopes.model.failures import explain_failure
from patchscopes.model.gguf import unpack_gguf
from patchscopes.model.offloading import make_offload_folder, plan_offloading, remove_with
from patchscopes.model.registry import EMBEDDED_MODEL
from patchscopes.model.sizes import check_weights_fit
from patchscopes.model.sources import ADAPTER_FILE, CONFIG_FILE, Source, find_base_source, find_namesake, find_source
from patchscopes.model.wrapping import boot, save_for_reloading, wrap, wrap_loaded

QUANTIZATIONS = ("8bit", "4bit")


@dataclass(frozen=True, kw_only=True)
class _Request:
    """How a model is to be loaded; see `load_model`."""

    device: str
    dtype: torch.dtype
    revision: str | None
    trust_remote_code: bool
    quantization: str | None
    may_offload: bool


def load_model(
    name: str | Path | nn.Module = EMBEDDED_MODEL,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    hf_model: Any | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
) -> TransformerBridge:
    """Load a model into TransformerLens, with its raw weights, in eval mode and with gradients off.

    Args:
        name: an alias of `patchscopes.model.registry.MODELS` (the default is the embedded model, which needs no
            network, as those of `patchscopes.model.embedded`), a hub id (`owner/name`), a local folder (written
            `./name` if it is called as an alias is), or a GGUF file (`.gguf`), which is dequantised once into the
            user's cache folder. A folder or repository that holds an adapter of peft stands for the model that it was
            made for, with the adapter merged into its weights. A loaded model is taken as `hf_model`.
        device: cuda, mps or cpu, whichever is there first unless given; `"auto"` spreads the model over all GPUs. What
            they do not hold waits in the CPU's memory, and what that does not hold on the disk.
        dtype: float32 on a CPU and bfloat16 elsewhere unless given, as a torch type or its name.
        hf_model: wrap this loaded model instead (in place, as TransformerLens does); it stays where it is and
            as it is unless `device` or `dtype` is given. The adapters of a peft model are merged into its weights.
        tokenizer: use this tokenizer; with `hf_model` and without it, the one of the model's own name or path.
        revision: a branch, tag or commit of the hub.
        trust_remote_code: run the code that comes with a model whose family transformers does not have. Read it first.
        quantization: `"8bit"` or `"4bit"`: keep the weights in so many bits (bitsandbytes), and compute in `dtype`.

    Raises:
        PatchscopesError: the model cannot be had, or is no causal decoder; the message says what to do.
    """
    if isinstance(name, nn.Module):
        name, hf_model = EMBEDDED_MODEL, name
    if hf_model is not None:
        if revision is not None or quantization is not None:
            raise PatchscopesError(
                "revision and quantization are of a model that is not loaded yet: give them to from_pretrained, or "
                "give load_model the name of the model"
            )
        return _finish(wrap_loaded(hf_model, tokenizer, device, dtype, trust_remote_code))
    name = str(name)
    source = find_source(name)
    may_offload = str(device) == ALL_GPUS
    device = resolve_device(device)
    request = _Request(
        device=device,
        dtype=default_dtype(device) if dtype is None else parse_dtype(dtype),
        revision=revision,
        trust_remote_code=trust_remote_code,
        quantization=quantization,
        may_offload=may_offload,
    )
    _check_request(name, source, request)
    progress_bars = transformers_logging.is_progress_bar_enabled()
    try:
        if source.kind in ("embedded", "gguf"):
            transformers_logging.disable_progress_bar()
        model = _load(source, request, tokenizer)
        # Without its files transformers makes some families an empty tokenizer.
        if model.tokenizer is not None and not model.tokenizer("x", add_special_tokens=False)["input_ids"]:
            raise ValueError("its tokenizer knows no text")
    except (ImportError, OSError, SafetensorError, StrictDataclassError, ValueError) as error:
        raise PatchscopesError(explain_failure(name, source, error, revision)) from error
    finally:
        if progress_bars:
            transformers_logging.enable_progress_bar()
    model.cfg.model_name = source.place if source.kind == "embedded" else name
    if source.kind == "hub":
        model.cfg.hub_commit = _find_commit(source.place, revision)
    return _finish(model)


def _find_commit(hub_id: str, revision: str | None) -> str | None:
    """The commit that files of the hub were loaded from, or None if the cache does not tell."""
    for file in (CONFIG_FILE, ADAPTER_FILE):
        path = try_to_load_from_cache(hub_id, file, revision=revision)
        if isinstance(path, str):
            return Path(path).parent.name
    return None


def _check_request(name: str, source: Source, request: _Request) -> None:
    """Refuse what cannot be had from this source, and say what a name does not stand for."""
    folder = find_namesake(name)
    if folder is not None:
        warnings.warn(
            f"{name!r} is {source.place}; for the model in the folder here of this name give ./{folder}",
            PatchscopesWarning,
            stacklevel=3,
        )
    if request.revision is not None and source.kind != "hub":
        raise PatchscopesError(
            f"{name!r} has no revisions, which are of models of the hub: leave out the revision, or give a hub id "
            "(owner/name)"
        )
    if request.quantization is None:
        return
    if request.quantization not in QUANTIZATIONS:
        raise PatchscopesError(f"quantization must be {' or '.join(QUANTIZATIONS)}, got {request.quantization!r}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise PatchscopesError(
            "weights are quantised by the package bitsandbytes: run `pip install 'patchscopes[quantization]'`"
        )


def _load(source: Source, request: _Request, tokenizer: PreTrainedTokenizerBase | None) -> TransformerBridge:
    """The model of a source in a bridge: loaded by TransformerLens itself, unless it is quantised or adapted."""
    source = _unpack(source, request)
    budget = _plan(source, request)
    if request.quantization is not None or source.kind == "adapter" or budget is not None:
        hf_model, own_tokenizer = _load_hf_model(source, request, budget)
        return wrap(hf_model, tokenizer or own_tokenizer, source.place)
    placement = {"device_map": ALL_GPUS} if request.device == ALL_GPUS else {"device": request.device}
    with save_for_reloading(tokenizer) as reloadable:
        return boot(
            source.place,
            dtype=request.dtype,
            tokenizer=reloadable,
            revision=request.revision,
            trust_remote_code=request.trust_remote_code,
            **placement,
        )


def _plan(source: Source, request: _Request) -> dict[int | str, int] | None:
    """What weights may take of each memory where some of them must be offloaded, else None.

    Raises:
        PatchscopesError: they do not fit, and may not be offloaded.
    """
    if source.kind == "adapter" and not holds_model(source.place):
        # Of the model that it was made for.
        return None
    of_model: dict[str, Any] = {
        "dtype": request.dtype,
        "quantization": request.quantization,
        "revision": request.revision,
        "trust_remote_code": request.trust_remote_code,
    }
    budget = plan_offloading(source.place, **of_model) if request.may_offload else None
    if budget is None:
        check_weights_fit(source.place, device=request.device, **of_model)
    return budget


def _unpack(source: Source, request: _Request) -> Source:
    """The source, with a folder in place of what is unpacked into one, and an adapter of the hub as such."""
    if source.kind == "embedded":
        return Source(kind="folder", place=str(unpack_embedded_model(source.place)))
    if source.kind == "gguf":
        return Source(kind="folder", place=str(unpack_gguf(Path(source.place))))
    if source.kind == "hub" and find_adapter_config_file(source.place, revision=request.revision) is not None:
        return Source(kind="adapter", place=source.place)
    return source


def _load_hf_model(
    source: Source, request: _Request, budget: dict[int | str, int] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of Hugging Face and its tokenizer; an adapter stands for its model, with it merged into the weights.

    Args:
        budget: of `plan_offloading`.
    """
    remote = {"revision": request.revision, "trust_remote_code": request.trust_remote_code}
    if source.kind == "adapter" and not holds_model(source.place):
        base_name, base_revision = read_base(source.place, request.revision)
        base_source = _unpack(find_base_source(base_name), request)
        base_request = replace(request, revision=base_revision, may_offload=False)
        _plan(base_source, base_request)
        base, base_tokenizer = _load_hf_model(base_source, base_request)
        tokenizer = load_own_tokenizer(source.place, request.revision, request.trust_remote_code)
        return load_adapter(base, source.place, tokenizer, request.revision), tokenizer or base_tokenizer
    quantised = None
    if request.quantization is not None:
        # It tells at every product of 8-bit numbers that these are multiplied in float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        quantised = BitsAndBytesConfig(
            load_in_8bit=request.quantization == "8bit",
            load_in_4bit=request.quantization == "4bit",
            bnb_4bit_compute_dtype=request.dtype,
        )
    placement: dict[str, Any] = {"device_map": {"": request.device}}
    if budget is not None:
        placement = {"device_map": ALL_GPUS, "max_memory": budget, "offload_folder": make_offload_folder()}
    elif request.device == ALL_GPUS:
        placement = {"device_map": ALL_GPUS}
    hf_model = AutoModelForCausalLM.from_pretrained(
        source.place, dtype=request.dtype, quantization_config=quantised, **placement, **remote
    )
    if budget is not None:
        remove_with(hf_model, placement["offload_folder"])
    # Where a folder holds an adapter beside its model, transformers puts it into that.
    return merge_adapters(hf_model), AutoTokenizer.from_pretrained(source.place, **remote)


def _finish(model: TransformerBridge) -> TransformerBridge:
    """The model ready for use: in eval mode, without gradients, and a causal decoder."""
    model.requires_grad_(False)
    model.eval()
    check_is_causal_decoder(model)
    return model
