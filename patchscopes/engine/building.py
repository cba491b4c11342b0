"""Making a model's twin on first use: the module tree of its Hugging Face model, copied without the bridge."""

import copy
import weakref
from collections.abc import Callable
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from accelerate.hooks import add_hook_to_module
from torch import Tensor, nn
from transformers import PreTrainedConfig

from patchscopes.engine.clean_run import record_clean_run, run_base_model
from patchscopes.engine.prefix import SHARED_PREFIX_ATTENTION, cache_in_use
from patchscopes.engine.twin import Twin, block_forwards
from patchscopes.errors import PatchscopesError
from patchscopes.given import BRIDGE
from patchscopes.model.lens_model import LensModel

# How the forward of an unknown family can refuse our cache or the arguments recorded from another call.
REFUSALS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def build_twin(model: Any, shares_prefix: bool) -> Twin:
    """Copy the module tree of the Hugging Face model in `model`, leaving out the bridge's modules.

    Only the module objects are copied; parameters and buffers are the model's own, so weights edited in place are
    seen by both.

    Args:
        shares_prefix: let the attention be `shared_prefix_attention`; else it is the family's own, which sees a copy of
            the prefix in every row.

    Raises:
        TypeError: `model` is not a TransformerBridge around a decoder-only Hugging Face model, or it keeps no keys and
            values.
        one of REFUSALS: its blocks cannot be run one by one, or not with this attention.
    """
    bridged = getattr(model, "original_model", None)
    if bridged is None or not hasattr(model, "blocks") or not hasattr(bridged, "base_model"):
        raise TypeError("it is not a TransformerBridge around a decoder-only Hugging Face model")
    copies: dict[int, Any] = {}
    configs: dict[int, Any] = {}

    def copy_config(config: PreTrainedConfig) -> PreTrainedConfig:
        if id(config) not in configs:
            configs[id(config)] = copy.deepcopy(config)
            if shares_prefix:
                configs[id(config)]._attn_implementation = SHARED_PREFIX_ATTENTION
        return configs[id(config)]

    def copy_module(module: Any) -> Any:
        while getattr(module, "original_component", None) is not None:
            module = module.original_component
        if id(module) not in copies:
            twin_module = copies[id(module)] = copy.copy(module)
            children = module._modules.items()
            twin_module._modules = {name: None if child is None else copy_module(child) for name, child in children}
            if isinstance(getattr(module, "config", None), PreTrainedConfig):
                twin_module.config = copy_config(module.config)
            forward = vars(module).get("forward")
            if isinstance(forward, MethodType) and forward.__self__ is module:
                # The bridge gives some blocks (Falcon's) a forward of their own.
                twin_module.forward = MethodType(forward.__func__, twin_module)
            rebind_accelerate_hook(twin_module)
            # Twins are kept as long as their bridge is.
            vars(twin_module).pop(BRIDGE, None)
        return copies[id(module)]

    causal_lm = copy_module(bridged)
    blocks = tuple(copy_module(block) for block in model.blocks)
    twin = observe_blocks(Twin(causal_lm, blocks, shares_prefix))
    # A token behind a prefix of one: what cannot run is refused here.
    tokens = torch.zeros(2, dtype=torch.long, device=twin.device)
    run_base_model(twin, tokens[1:], twin.new_cache(record_clean_run(twin, tokens, position=1).prefixes))
    return twin


def observe_blocks(twin: Twin) -> Twin:
    """The twin with what one sequence, and then two, show about the form of its blocks."""
    returns_tuples: list[bool] = []
    sizes: list[dict[int | str, int]] = []

    def observe(forward: Callable[..., Any]) -> Callable[..., Any]:
        def observed(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = forward(hidden, *args, **kwargs)
            returns_tuples.append(isinstance(output, tuple))
            named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            sizes.append({key: len(value) for key, value in named if isinstance(value, Tensor) and value.ndim > 0})
            return output

        return observed

    with block_forwards(twin, [observe(block.forward) for block in twin.blocks]):
        for n_rows in (1, 2):
            cache = twin.new_cache()
            tokens = torch.zeros(n_rows, 1, dtype=torch.long, device=twin.device)
            with cache_in_use(cache):
                twin.causal_lm.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
    alone, together = sizes[0], sizes[len(twin.blocks)]
    per_row = frozenset(key for key, n in alone.items() if n > 1 and together[key] == 2 * n)
    return replace(twin, blocks_return_tuples=returns_tuples[0], per_row_arguments=per_row)


_twins: weakref.WeakKeyDictionary[LensModel, Twin] = weakref.WeakKeyDictionary()
# Why a model has none: what is refused once is not tried again.
_refusals: weakref.WeakKeyDictionary[LensModel, str] = weakref.WeakKeyDictionary()


def get_twin(model: LensModel) -> Twin:
    """The model's twin, built on first use: with `shared_prefix_attention` where the family takes its attention from
    Hugging Face's registry and calls it with nothing that `shared_prefix_attention` does not know.

    Raises:
        PatchscopesError: the model is not a TransformerBridge around a decoder-only Hugging Face model, or its
            blocks cannot be run one by one.
    """
    if model in _refusals:
        raise PatchscopesError(_refusals[model])
    if model not in _twins:
        bridged = getattr(model, "original_model", None)
        if getattr(bridged, "_supports_attention_backend", False):
            try:
                _twins[model] = build_twin(model, shares_prefix=True)
            except torch.OutOfMemoryError:
                raise
            except REFUSALS:
                use_family_attention(model)
        else:
            use_family_attention(model)
    return _twins[model]


def use_family_attention(model: LensModel) -> None:
    """Build the model's twin anew, with the attention of its own family.

    Raises:
        PatchscopesError: as for `get_twin`.
    """
    try:
        _twins[model] = build_twin(model, shares_prefix=False)
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        family = type(getattr(model, "original_model", model)).__name__
        _refusals[model] = f"the fast engine cannot run this {family} ({error}); plain hooks can (engine='hooks')"
        raise PatchscopesError(_refusals[model]) from error


def rebind_accelerate_hook(module: nn.Module) -> None:
    """Bind to the copied `module` accelerate's hook, which moves inputs between the devices of a spread model."""
    hook = vars(module).pop("_hf_hook", None)
    if hook is not None:
        for wrapped in ("forward", "_old_forward"):
            vars(module).pop(wrapped, None)
        add_hook_to_module(module, hook)
