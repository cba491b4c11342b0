"""Models that are spread by accelerate, with weights that wait on the CPU or the disk until a module runs.

Such a weight is a tensor without data (on torch's device `meta`); a hook of accelerate on its module brings it.
"""

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook
from torch import Tensor, nn

from patchscopes.model.devices import measure_free_memory_of, require_memory
from patchscopes.model.embedded import CACHE_ADVICE, get_cache_folder
from patchscopes.model.lens_model import LensModel
from patchscopes.model.sizes import read_size
from patchscopes.results import explain_writing

# Of the free memory, what weights may take: the rest is for what is computed.
SHARE_FOR_WEIGHTS = 0.85
# What TransformerLens adds to the names of the modules that it wraps.
WRAPPED = "._original_component"


def plan_offloading(
    place: str,
    *,
    dtype: torch.dtype,
    quantization: str | None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> dict[int | str, int] | None:
    """The bytes that weights may take on each GPU and of the CPU's memory, where the GPUs (or the CPU, without one)
    cannot hold them all and some must wait elsewhere; None where they can. Quantised weights are never offloaded."""
    size = None if quantization else read_size(place, revision, trust_remote_code)
    gpus: dict[int | str, int] = {
        number: int(SHARE_FOR_WEIGHTS * measure_free_memory_of(f"cuda:{number}"))
        for number in range(torch.cuda.device_count())
    }
    of_cpu = {"cpu": int(SHARE_FOR_WEIGHTS * measure_free_memory_of("cpu"))}
    if size is None or size.count_bytes(dtype) <= sum((gpus or of_cpu).values()):
        return None
    return gpus | of_cpu


def make_offload_folder() -> str:
    """A new folder in the user's cache folder, for weights that are not on the disk in the form in which they run.

    Raises:
        PatchscopesError: the cache folder cannot be written to.
    """
    parent = get_cache_folder() / "offloaded"
    with explain_writing(parent, CACHE_ADVICE):
        parent.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(dir=parent)


def remove_with(model: object, folder: str) -> None:
    """Remove the folder when the model is gone, or the process ends."""
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)


def find_offloading_hook(module: nn.Module) -> AlignDevicesHook | None:
    """The hook that brings a module's own weights when it runs, or None if they stay where they are."""
    pending: list[ModelHook | None] = [getattr(module, "_hf_hook", None)]
    while pending:
        hook = pending.pop()
        if isinstance(hook, SequentialHook):
            pending.extend(hook.hooks)
        elif isinstance(hook, AlignDevicesHook) and hook.offload:
            return hook
    return None


def get_execution_device(module: nn.Module) -> torch.device:
    """Where a module runs: where its weights are, or are brought to."""
    device = next(module.parameters()).device
    hook = find_offloading_hook(module) if device.type == "meta" else None
    return device if hook is None else torch.device(hook.execution_device)


def list_parameters(model: LensModel) -> Iterator[tuple[str, nn.Parameter]]:
    """The model's parameters by name, tied ones once: offloaded ones are tied by their names alone."""
    tied = getattr(getattr(model, "original_model", None), "all_tied_weights_keys", None) or {}
    for name, parameter in model.named_parameters():
        if not (parameter.is_meta and name.replace(WRAPPED, "") in tied):
            yield name, parameter


def read_offloaded(model: Any, name: str) -> Tensor:
    """The values of an offloaded parameter, by its name in the model of Hugging Face."""
    path, _, own_name = name.rpartition(".")
    hook = find_offloading_hook(model.original_model.get_submodule(path))
    assert hook is not None
    return hook.weights_map[own_name]


def count_offloaded_bytes(model: LensModel) -> int:
    """Bytes of the weights that are offloaded."""
    return sum(parameter.nbytes for _, parameter in list_parameters(model) if parameter.is_meta)


_offloaded: weakref.WeakKeyDictionary[LensModel, bool] = weakref.WeakKeyDictionary()


def is_offloaded(model: LensModel) -> bool:
    """Whether weights of the model wait elsewhere until they are needed, which never changes once it is loaded."""
    if model not in _offloaded:
        _offloaded[model] = any(parameter.is_meta for _, parameter in model.named_parameters())
    return _offloaded[model]


def check_gradients_fit(model: LensModel) -> None:
    """Refuse gradients through blocks whose weights do not fit into memory together: a gradient keeps all of them.

    Raises:
        PatchscopesError: they need clearly more memory than there is.
    """
    n_bytes = count_offloaded_bytes(model)
    if n_bytes:
        require_memory(
            "the offloaded weights, which a gradient through them keeps in memory,",
            n_bytes,
            model.cfg.device,
            "load the model in a smaller form (--dtype bfloat16), or choose what needs no gradient",
        )


@contextmanager
def shown_where_it_runs(hf_model: Any) -> Iterator[None]:
    """Within the context, the model's map of devices says where modules run, not where their weights wait.

    TransformerLens refuses maps with both GPUs and other memory, because nobody had tried them on a GPU.
    """
    placed = getattr(hf_model, "hf_device_map", None)
    if not placed:
        yield
        return
    running = [device for device in placed.values() if device not in ("cpu", "disk")]
    main = running[0] if running else "cpu"
    hf_model.hf_device_map = {name: main if where in ("cpu", "disk") else where for name, where in placed.items()}
    try:
        yield
    finally:
        hf_model.hf_device_map = placed
