"""Where a model runs, and in which type of numbers."""

import torch

from patchscopes.errors import PatchscopesError

ALL_GPUS = "auto"


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
