"""From a loaded model of Hugging Face to one of TransformerLens, with its tokenizer as it is."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from patchscopes.errors import PatchscopesError
from patchscopes.model.adapters import merge_adapters
from patchscopes.model.devices import ALL_GPUS, parse_dtype, resolve_device
from patchscopes.model.failures import explain_failure
from patchscopes.model.offloading import get_execution_device, shown_where_it_runs
from patchscopes.model.sources import Source


def boot(place: str, **options: Any) -> TransformerBridge:
    """`TransformerBridge.boot_transformers`, which leaves the environment that it runs in as it is.

    For a model that sees images too, TransformerLens runs `pip install torchvision` where that is missing, which puts
    another torch under the process. Prompts here are text, so the processor that it wants for them is not needed.
    """
    check_call = subprocess.check_call

    def refuse_to_install(command: Any, *args: Any, **kwargs: Any) -> int:
        if "install" in command:
            raise OSError("no package is installed while a model is loaded")
        return check_call(command, *args, **kwargs)

    vars(subprocess)["check_call"] = refuse_to_install
    try:
        return TransformerBridge.boot_transformers(place, **options)
    finally:
        vars(subprocess)["check_call"] = check_call


def wrap_loaded(
    hf_model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    device: str | torch.device | None,
    dtype: torch.dtype | str | None,
    trust_remote_code: bool,
) -> TransformerBridge:
    """A bridge around a loaded model."""
    if not hasattr(hf_model, "config"):
        raise PatchscopesError(
            f"hf_model must be a model of Hugging Face, such as AutoModelForCausalLM gives, got a "
            f"{type(hf_model).__name__}"
        )
    if any(parameter.is_meta for parameter in hf_model.parameters()) and not (device is dtype is None):
        raise PatchscopesError(
            "a model with offloaded weights stays where and as it is: leave device and dtype out, or give them to "
            "from_pretrained"
        )
    hf_model = merge_adapters(hf_model)
    if device is not None:
        device = resolve_device(device)
        if device == ALL_GPUS:
            raise PatchscopesError("a loaded model stays where it is: spread it with device_map when you load it")
        hf_model = hf_model.to(device)
    if dtype is not None:
        if getattr(hf_model, "is_quantized", False):
            raise PatchscopesError("quantised weights keep their type: leave dtype out, or give it to from_pretrained")
        hf_model = hf_model.to(parse_dtype(dtype))
    name = hf_model.config.name_or_path or type(hf_model).__name__
    try:
        model = wrap(hf_model, tokenizer or _load_tokenizer(name, trust_remote_code), name)
    except AttributeError as error:
        raise PatchscopesError(
            f"TransformerLens cannot wrap this {type(hf_model).__name__} ({error}): load the model with its "
            "language-modelling head, as AutoModelForCausalLM does"
        ) from error
    except ValueError as error:
        raise PatchscopesError(explain_failure(name, Source(kind="hub", place=name), error)) from error
    model.cfg.model_name = name
    return model


def wrap(hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> TransformerBridge:
    """A bridge around a model of Hugging Face."""
    # Models made from a configuration do not carry the name by which TransformerLens finds their family.
    hf_model.config.architectures = hf_model.config.architectures or [type(hf_model).__name__]
    for module in hf_model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On some CPUs bitsandbytes lays 4-bit weights out anew when they first run: no gradient passes them any
            # more, and they cannot be saved.
            vars(module)["support_avx512bf16_for_cpu"] = False
    # Token ids go there.
    device = get_execution_device(hf_model.get_input_embeddings())
    dtype = next(hf_model.parameters()).dtype
    with save_for_reloading(tokenizer) as reloadable, shown_where_it_runs(hf_model):
        model = boot(f"loaded/{name}", hf_model=hf_model, tokenizer=reloadable, device=device, dtype=dtype)
    model.cfg.device = str(device)
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
        # Code that came with the tokenizer runs already, and was saved with it.
        yield AutoTokenizer.from_pretrained(folder, trust_remote_code=tokenizer._auto_class is not None)


def _load_tokenizer(name: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise PatchscopesError(
            f"found no tokenizer for the model {name!r}: give one with tokenizer=... to load_model(hf_model=...)"
        ) from error
