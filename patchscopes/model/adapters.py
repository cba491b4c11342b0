"""Adapters (LoRA and its kin) of the package peft, merged into the weights of the model that they were made for."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import has_file

from patchscopes.errors import PatchscopesError
from patchscopes.model.sources import CONFIG_FILE


def read_base(folder: str, revision: str | None = None) -> tuple[str, str | None]:
    """The name or path of the model that an adapter was made for, and its revision if that matters.

    Args:
        folder: that holds the adapter, or its hub id.
        revision: of the hub.

    Raises:
        PatchscopesError: peft is not installed, the adapter is none that could be merged, or it does not say which
            model it is for.
    """
    if importlib.util.find_spec("peft") is None:
        raise PatchscopesError(
            f"{folder!r} is an adapter, and those are merged by the package peft: run "
            "`pip install 'patchscopes[adapters]'`"
        )
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(folder, revision=revision)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise PatchscopesError(
            f"{folder!r} holds no adapter that peft can read ({error}); save it again with save_pretrained"
        ) from error
    _check_mergeable(folder, config)
    if config.task_type not in (None, "CAUSAL_LM"):
        raise PatchscopesError(
            f"the adapter {folder!r} was made for {config.task_type}, not for a causal decoder (CAUSAL_LM); give "
            "another one"
        )
    if not config.base_model_name_or_path:
        raise PatchscopesError(
            f"the adapter {folder!r} does not say which model it is for: load that with transformers and the adapter "
            "with peft, and give the result to load_model(hf_model=...)"
        )
    return str(config.base_model_name_or_path), config.revision


def load_adapter(
    base: PreTrainedModel, folder: str, tokenizer: PreTrainedTokenizerBase | None, revision: str | None = None
) -> PreTrainedModel:
    """The base model with an adapter merged into its weights (in place).

    Args:
        folder, revision: as for `read_base`.
        tokenizer: the adapter's own, if it has one: the base is made larger where it lacks tokens of it.

    Raises:
        PatchscopesError: it cannot be merged.
    """
    from peft import PeftModel

    embeddings: Any = base.get_input_embeddings()
    if tokenizer is not None and len(tokenizer) > len(embeddings.weight):
        base.resize_token_embeddings(len(tokenizer))
    try:
        adapted = PeftModel.from_pretrained(base, folder, revision=revision)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:2])
        raise PatchscopesError(
            f"the adapter {folder!r} does not fit the model that it names ({reason}); give the model that it was "
            "trained on"
        ) from error
    return merge_adapters(adapted)


def load_own_tokenizer(
    folder: str, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | None:
    """The tokenizer that was saved with an adapter, if there is one."""
    if not has_file(folder, "tokenizer_config.json", revision=revision):
        return None
    return AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=trust_remote_code)


@torch.no_grad()
def merge_adapters(model: Any) -> PreTrainedModel:
    """The model without adapters: those that are active merged into its weights (in place).

    It is one of peft's around another one, one that transformers has put adapters into, or has none.

    Raises:
        PatchscopesError: they cannot be merged.
    """
    in_peft = any(kind.__module__.startswith("peft.") for kind in type(model).__mro__)
    if not in_peft and not getattr(model, "_hf_peft_config_loaded", False):
        return model
    name = str(getattr(model.config, "name_or_path", "") or type(model).__name__)
    for config in model.peft_config.values():
        _check_mergeable(name, config)
    try:
        return model.merge_and_unload() if in_peft else _merge_injected(model)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise PatchscopesError(
            f"the adapter of {name!r} cannot be merged into its weights ({error}); give one that can, such as LoRA"
        ) from error


def _merge_injected(model: PreTrainedModel) -> PreTrainedModel:
    """`merge_and_unload` of peft, for a model that is not inside one of peft's."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    model._hf_peft_config_loaded = False
    return model


def holds_model(folder: str) -> bool:
    """Whether the folder of an adapter holds the whole model that it is for too."""
    files = ("model*.safetensors", "pytorch_model*.bin")
    return (Path(folder) / CONFIG_FILE).is_file() and any(any(Path(folder).glob(pattern)) for pattern in files)


def _check_mergeable(name: str, config: Any) -> None:
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise PatchscopesError(
            f"the adapter {name!r} ({config.peft_type.value}) puts vectors in front of the prompt and changes no "
            "weights, so it cannot be merged; give one that does, such as LoRA"
        )
