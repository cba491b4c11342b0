"""Gradient descent that can be interrupted: one loop for everything that the library learns by it."""

import io
import math
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from patchscopes.errors import PatchscopesError
from patchscopes.estimating.tally import do_some, standing_for
from patchscopes.learned.config import TrainingConfig
from patchscopes.results import write_atomically

# How often the parameters are in memory at a time: they, their gradients and best values, and what the optimizer keeps.
COPIES = {"sgd": 4, "adamw": 6}

# The parameters of one thing that is learned on its own, such as the map of one layer.
Part: TypeAlias = Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Trained:
    """The best values of each part, by held-out loss, and how that went.

    Attributes:
        held_out: one entry per measurement: the number of steps before it, and the loss of each part.
        n_steps: steps taken.
    """

    parts: list[list[Tensor]]
    held_out: list[tuple[int, list[float]]]
    n_steps: int


def train(
    parts: Sequence[Part],
    add_gradients: Callable[[int], None],
    held_out_losses: Callable[[], Sequence[float]],
    config: TrainingConfig,
    checkpoint: Path,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Trained:
    """Train `parts` in place, going on from the checkpoint if there is one.

    Args:
        parts: leaf tensors that require gradients; each part is clipped, and its best values are kept, on its own.
        add_gradients: computes the loss on the batch of a step (any function of the step's number alone) and its
            gradients.
        held_out_losses: the loss of each part on data that no step sees.
        checkpoint: written after each measurement, atomically; left for the caller to remove.
        progress: wraps the iteration over steps, `tqdm` for instance.

    Raises:
        PatchscopesError: a held-out loss is not finite, or the checkpoint cannot be read.
    """
    parameters = [parameter for part in parts for parameter in part]
    optimizer = _build_optimizer(parameters, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule_rate(step, config))
    held_out: list[tuple[int, list[float]]] = []
    best = [[parameter.detach().clone() for parameter in part] for part in parts]
    steps_done = 0
    if checkpoint.is_file():
        try:
            state = torch.load(checkpoint, weights_only=True, map_location=parameters[0].device)
            for parameter, value in zip(parameters, state["parameters"], strict=True):
                parameter.data.copy_(value)
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            best, steps_done, held_out = state["best"], state["steps_done"], state["held_out"]
        except (EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            raise PatchscopesError(
                f"{checkpoint} is damaged, so training cannot go on from it: remove it to start over"
            ) from error
    else:
        with standing_for(1 + config.n_steps // config.evaluate_every):
            held_out.append((0, _check_finite(held_out_losses(), 0)))

    for step in do_some(range(steps_done, config.n_steps), progress):
        if _has_stalled(held_out, config.patience):
            break
        optimizer.zero_grad(set_to_none=True)
        add_gradients(step)
        for part in parts:
            torch.nn.utils.clip_grad_norm_(part, config.gradient_clip)
        optimizer.step()
        schedule.step()
        steps_done = step + 1
        if steps_done % config.evaluate_every == 0 or steps_done == config.n_steps:
            losses = _check_finite(held_out_losses(), steps_done)
            for number, loss in enumerate(losses):
                if loss < min(earlier[number] for _, earlier in held_out):
                    best[number] = [parameter.detach().clone() for parameter in parts[number]]
            held_out.append((steps_done, losses))
            _save(
                checkpoint,
                {
                    "parameters": [parameter.detach() for parameter in parameters],
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "best": best,
                    "steps_done": steps_done,
                    "held_out": held_out,
                },
            )
    return Trained(best, held_out, steps_done)


def _check_finite(losses: Sequence[float], steps_done: int) -> list[float]:
    if not all(map(math.isfinite, losses)):
        raise PatchscopesError(
            f"the held-out loss is not a finite number after {steps_done} steps: take a smaller learning rate, or "
            "float32 or bfloat16 if the model runs in float16"
        )
    return list(losses)


def _build_optimizer(parameters: list[Tensor], config: TrainingConfig) -> torch.optim.Optimizer:
    rate = config.learning_rate or 0.0
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=config.weight_decay, amsgrad=True)
    momentum = 0.9
    return torch.optim.SGD(
        parameters, lr=rate * (1 - momentum), momentum=momentum, nesterov=True, weight_decay=config.weight_decay
    )


def _schedule_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up (for AdamW), then linear decay to 0."""
    warm_up = min(1000, config.n_steps // 5) if config.optimizer == "adamw" else 0
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return (config.n_steps - step) / (config.n_steps - warm_up)


def _has_stalled(held_out: Sequence[tuple[int, list[float]]], patience: int) -> bool:
    """Whether no part has improved on its best for `patience` measurements."""
    if len(held_out) <= patience:
        return False
    before = [min(losses) for losses in zip(*(losses for _, losses in held_out[:-patience]), strict=True)]
    since = [min(losses) for losses in zip(*(losses for _, losses in held_out[-patience:]), strict=True)]
    return all(now >= then for now, then in zip(since, before, strict=True))


def _save(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getbuffer())


def kl_divergence(log_probabilities: Tensor, logits: Tensor) -> Tensor:
    """KL divergence, in nats, of the distributions that `logits` give from the model's own, summed over rows."""
    return torch.nn.functional.kl_div(
        torch.log_softmax(logits.float(), dim=-1), log_probabilities, reduction="sum", log_target=True
    )
