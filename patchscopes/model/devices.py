"""Where a model runs, in which type of numbers, and how much room there is."""

import psutil
import torch
from torch import Tensor

from patchscopes.errors import PatchscopesError

ALL_GPUS = "auto"
GIB = 2**30
# What a step takes is only estimated: it is refused where the estimate is beyond what is there by more than this.
MARGIN = 1.1


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
    kind, colon, number = str(device).partition(":")
    n_devices = torch.cuda.device_count() if kind == "cuda" else 1
    if kind not in available or (colon and not (number.isdecimal() and int(number) < n_devices)):
        raise PatchscopesError(f"device {str(device)!r} is not on this machine, which has {', '.join(available)}")
    return str(device)


def default_dtype(device: str) -> torch.dtype:
    """float32 on a CPU, bfloat16 elsewhere."""
    return torch.float32 if device.startswith("cpu") else torch.bfloat16


def send(values: Tensor, device: torch.device) -> Tensor:
    """The values on a device; a GPU is not waited for, though the copy lies behind all that it has still to do."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A floating-point type, also by its name.

    Raises:
        PatchscopesError: no such type.
    """
    parsed = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(parsed, torch.dtype) or not parsed.is_floating_point:
        raise PatchscopesError(f"dtype must be float32, bfloat16, float16 or float64, got {dtype!r}")
    return parsed


def measure_free_memory_of(device: str | torch.device) -> int:
    """Bytes that new tensors may take on a device, or on all GPUs together (`"auto"`; the CPU where there is none)."""
    if str(device) == ALL_GPUS:
        places = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        return sum(map(measure_free_memory_of, places or ["cpu"]))
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What PyTorch has taken and does not use is there for new tensors too.
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    # Memory of Apple's GPUs is that of the machine.
    return int(psutil.virtual_memory().available)


def fits(n_bytes: int, device: str | torch.device) -> bool:
    """Whether so many bytes are not clearly more than there is room for (on a CPU, with what can be swapped out)."""
    swap = 0 if "cuda" in str(device) else psutil.swap_memory().free
    return n_bytes <= MARGIN * (measure_free_memory_of(device) + swap)


def require_memory(what: str, n_bytes: int, device: str | torch.device, advice: str) -> None:
    """Refuse a step before it starts that needs clearly more memory than there is.

    Args:
        what: needs it, in the plural.
        n_bytes: that it takes, at least.
        advice: what to do, as the end of a sentence.

    Raises:
        PatchscopesError: it says how much there is and how much is needed.
    """
    if not fits(n_bytes, device):
        raise PatchscopesError(
            f"{what} take {n_bytes / GIB:,.1f} GiB, and {measure_free_memory_of(device) / GIB:,.1f} GiB are free on "
            f"{device}: {advice}"
        )


def require_memory_for_layers(
    what: str, n_layers: int, bytes_of_layer: int, device: str | torch.device, otherwise: str
) -> None:
    """`require_memory` for what takes as much for each layer: fewer of them would fit.

    Args:
        otherwise: what to do where not even one layer fits.
    """
    n_fitting = measure_free_memory_of(device) // bytes_of_layer
    advice = f"{n_fitting} of them would fit, whatever the texts (--layers)" if n_fitting > 0 else otherwise
    require_memory(f"{what} of {n_layers} layers", n_layers * bytes_of_layer, device, advice)
