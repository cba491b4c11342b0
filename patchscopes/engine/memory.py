"""Memory that is freed, kept for the next tensor; and how much of a GPU's is free."""

import ctypes
import platform

import torch

from patchscopes.model.devices import measure_free_memory_of
from patchscopes.model.lens_model import LensModel

# Of glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

KEPT_BYTES = 512 * 2**20
LARGEST_KEPT_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let this process keep freed memory instead of giving it back to the operating system; whether it could.

    Left alone, glibc gives back the memory of a batch's activations when they are freed, and the operating system hands
    out empty pages for the next ones: a grid of 900 rows takes 5 to 10 % longer. Up to 512 MiB are kept, of tensors up
    to 64 MiB each.

    It sets something for the whole process, so the scripts call it, and importing the library does not. Where the C
    library is not glibc it does nothing. Memory of a GPU is not concerned.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # Each of the two would otherwise follow from what is freed; setting one alone fixes the other where it stands.
    return bool(libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES) and libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))


def measure_free_memory(model: LensModel) -> int | None:
    """Bytes that new tensors may take on the GPU of a model, or None if it is on none.

    Of a model that is spread over several GPUs, on the fullest of them.
    """
    if torch.device(model.cfg.device).type != "cuda":
        return None
    devices = {parameter.device for _, parameter in model.named_parameters()}
    gpus = {device for device in devices if device.type == "cuda"}
    # All weights may be offloaded.
    return min(map(measure_free_memory_of, gpus or {torch.device(model.cfg.device)}))
