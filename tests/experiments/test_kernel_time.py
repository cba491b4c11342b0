"""How busy a device is, tried with the operations of a CPU: no GPU is at hand."""

import time

import torch
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.experiments import benchmark
from patchscopes.experiments.benchmark import measure_task
from patchscopes.experiments.benchmark_tasks import FAST, Task, Way
from patchscopes.experiments.kernel_time import measure_kernel_share, measure_union

CPU = torch.device("cpu")


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10))))
def test_what_intervals_cover(pairs):
    covered = {moment for start, length in pairs for moment in range(start, start + length)}
    assert measure_union((float(start), float(start + length)) for start, length in pairs) == len(covered)


def test_computing_is_told_from_waiting():
    numbers = torch.randn(300, 300)

    def compute():
        for _ in range(50):
            numbers @ numbers

    def wait():
        time.sleep(0.2)
        numbers + numbers

    assert 0.3 < measure_kernel_share(compute, CPU) <= 1.0
    assert 0 < measure_kernel_share(wait, CPU) < 0.2


def make_task() -> Task:
    ways = [Way(name=name, call=lambda: torch.ones(3) * 2, n_runs=1) for name in (FAST, "slow")]
    return Task(title="twice", n_rows=3, ways=ways, compare=lambda answers: {"same": 1.0})


def test_it_is_measured_on_a_gpu_alone(llama, monkeypatch, capsys):
    import bench_engine

    assert all("kernel_share" not in way for way in measure_task(llama, make_task(), iter)["ways"])
    monkeypatch.setattr(benchmark, "is_on_gpu", lambda model: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    measured = measure_task(llama, make_task(), iter)
    fast, slow = measured["ways"]
    assert 0 < fast["kernel_share"] <= 1
    assert "kernel_share" not in slow
    fast["kernel_share"] = 0.5
    bench_engine.print_table({"results": {"tasks": [measured]}})
    assert "50% of its time kernels of the GPU run" in capsys.readouterr().out
