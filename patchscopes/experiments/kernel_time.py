"""How busy a device is while a call runs: the time of its kernels over the time that passes."""

import time
from collections.abc import Callable, Iterable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def measure_kernel_share(call: Callable[[], object], device: torch.device) -> float:
    """The share of a call's time in which kernels run on the GPU; on a CPU, in which operations of PyTorch do."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU], acc_events=True) as profiler:
        started = time.perf_counter()
        call()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [event.time_range for event in profiler.events() or [] if event.device_type == kind]
    # The profiler counts microseconds.
    return measure_union((span.start, span.end) for span in events) / 1e6 / seconds


def measure_union(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of what intervals cover: operations call others, and kernels run beside each other."""
    covered, last = 0.0, float("-inf")
    for start, end in sorted(intervals):
        covered += max(0.0, end - max(start, last))
        last = max(last, end)
    return covered
