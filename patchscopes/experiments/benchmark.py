"""The fast engine beside plain hooks and the Logit Lens: how long each takes for the same rows, and whether all agree.

What is timed is in `benchmark_tasks`.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from patchscopes.data.texts import TextSet
from patchscopes.estimating.tally import do_some
from patchscopes.experiments.benchmark_tasks import (
    FAST,
    Task,
    Way,
    build_attributes_task,
    build_generation_task,
    build_grid_task,
    build_jacobian_task,
    build_next_token_task,
    build_questions_task,
    build_tracing_task,
)
from patchscopes.experiments.checks import check_methods
from patchscopes.experiments.chunks import Progress
from patchscopes.experiments.config import BenchmarkConfig
from patchscopes.experiments.kernel_time import measure_kernel_share
from patchscopes.model.lens_model import LensModel
from patchscopes.results import Json


def run(model: LensModel, texts: TextSet, config: BenchmarkConfig, *, progress: Progress = iter) -> Json:
    """The `results` of the result file: for each task the time per row of each way, and how well they agree.

    Args:
        progress: wraps the iteration over the ways of each task, `tqdm` for instance.

    Raises:
        PatchscopesError: a method does not exist, or the texts have too few positions.
    """
    check_methods(config.methods, BenchmarkConfig.METHODS)
    builders: dict[str, Callable[[], Task]] = {
        "next_token": lambda: build_next_token_task(model, texts, config),
        "generation": lambda: build_generation_task(model, config),
        "grid": lambda: build_grid_task(model),
        "questions": lambda: build_questions_task(model),
        "attributes": lambda: build_attributes_task(model),
        "tracing": lambda: build_tracing_task(model, config),
        "jacobian": lambda: build_jacobian_task(model),
    }
    return {"tasks": [measure_task(model, builders[method](), progress) for method in config.methods]}


def measure_task(model: LensModel, task: Task, progress: Progress) -> Json:
    """Time all ways of a task, and compare their answers; on a GPU, measure how much of the time it computes."""
    measured, answers = [], {}
    for way in progress(task.ways):
        seconds, answers[way.name] = time_way(model, way)
        measured.append({"name": way.name, "ms_per_row": 1000 * seconds / task.n_rows, "runs": way.n_runs})
        if way.name == FAST and is_on_gpu(model):
            measured[-1]["kernel_share"] = measure_kernel_share(way.call, torch.device(model.cfg.device))
    fastest = next(way["ms_per_row"] for way in measured if way["name"] == FAST)
    for way in measured:
        way["times_fast_engine"] = way["ms_per_row"] / fastest
    return {"title": task.title, "n_rows": task.n_rows, "ways": measured, **task.compare(answers)}


def time_way(model: LensModel, way: Way) -> tuple[float, Tensor]:
    """The median of the seconds that the way takes, and its answer. Fast ways get a call to warm up."""
    seconds = []
    for _ in do_some(range(way.n_runs + (way.n_runs > 1)), fewest=1):
        _synchronize(model)
        started = time.perf_counter()
        answer = way.call()
        _synchronize(model)
        seconds.append(time.perf_counter() - started)
    return median(seconds[-way.n_runs :]), answer


def _synchronize(model: LensModel) -> None:
    """Wait for the GPU, which works while Python goes on."""
    if is_on_gpu(model):
        torch.cuda.synchronize()


def is_on_gpu(model: LensModel) -> bool:
    """Whether the model runs on a GPU of NVIDIA's (or AMD's)."""
    return torch.device(model.cfg.device).type == "cuda"
