"""Making a model's twin on first use: the module tree of its Hugging Face model, copied without the bridge around it."""

import copy
import weakref
from dataclasses import replace
from typing import Any

import torch
from accelerate.hooks import add_hook_to_module
from torch import nn
from transformers import PreTrainedConfig

from patchscopes.engine.clean_run import record_clean_run
from patchscopes.engine.prefix import SHARED_PREFIX_ATTENTION
from patchscopes.engine.twin import Twin
from patchscopes.errors import PatchscopesError
from patchscopes.model.lens_model import LensModel

# How the forward of an unknown family can refuse our cache or the arguments recorded from another call.
REFUSALS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def build_twin(model: Any) -> Twin:
    """Copy the module tree of the Hugging Face model in `model`, leaving out the bridge's modules.

    Only the module objects are copied; parameters and buffers are the model's own, so weights edited in place are
    seen by both. Families that take their attention from Hugging Face's registry get `shared_prefix_attention`.

    Raises:
        TypeError: `model` is not a TransformerBridge around a decoder-only Hugging Face model.
        one of REFUSALS: its blocks cannot be run one by one.
    """
    bridged = getattr(model, "original_model", None)
    if bridged is None or not hasattr(model, "blocks") or not hasattr(bridged, "base_model"):
        raise TypeError("it is not a TransformerBridge around a decoder-only Hugging Face model")
    shares_prefix = bool(getattr(bridged, "_supports_attention_backend", False))
    copies: dict[int, Any] = {}
    configs: dict[int, Any] = {}

    def copied_config(config: PreTrainedConfig) -> PreTrainedConfig:
        if id(config) not in configs:
            configs[id(config)] = copy.deepcopy(config)
            if shares_prefix:
                configs[id(config)]._attn_implementation = SHARED_PREFIX_ATTENTION
        return configs[id(config)]

    def copied(module: Any) -> Any:
        while getattr(module, "original_component", None) is not None:
            module = module.original_component
        if id(module) not in copies:
            twin_module = copies[id(module)] = copy.copy(module)
            children = module._modules.items()
            twin_module._modules = {name: None if child is None else copied(child) for name, child in children}
            if isinstance(getattr(module, "config", None), PreTrainedConfig):
                twin_module.config = copied_config(module.config)
            rebind_accelerate_hook(twin_module)
        return copies[id(module)]

    causal_lm = copied(bridged)
    blocks = tuple(copied(block) for block in model.blocks)
    twin = Twin(causal_lm, blocks, shares_prefix)
    probe = record_clean_run(twin, torch.zeros(1, dtype=torch.long, device=twin.device), position=0)
    return replace(twin, blocks_return_tuples=probe.calls[0].returns_tuple)


_twins: weakref.WeakKeyDictionary[LensModel, Twin] = weakref.WeakKeyDictionary()


def get_twin(model: LensModel) -> Twin:
    """The model's twin, built on first use.

    Raises:
        PatchscopesError: the model is not a TransformerBridge around a decoder-only Hugging Face model, or its
            blocks cannot be run one by one.
    """
    if model not in _twins:
        try:
            _twins[model] = build_twin(model)
        except torch.OutOfMemoryError:
            raise
        except REFUSALS as error:
            raise PatchscopesError(
                f"the fast engine cannot run this {type(model).__name__} ({error}); use engine='hooks'"
            ) from error
    return _twins[model]


def rebind_accelerate_hook(module: nn.Module) -> None:
    """Bind to the copied `module` accelerate's hook, which moves inputs between the devices of a spread model."""
    hook = vars(module).pop("_hf_hook", None)
    if hook is not None:
        for wrapped in ("forward", "_old_forward"):
            vars(module).pop(wrapped, None)
        add_hook_to_module(module, hook)
