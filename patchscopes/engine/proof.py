"""Which engine answers: the fast one, once it has given the same answers as plain hooks on the model at hand."""

import warnings
import weakref
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.engine import fast, hooks
from patchscopes.engine.building import REFUSALS
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.generation import Advance, LogitsInParts, concatenate_logits
from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.model.layers import EMBEDDING
from patchscopes.model.lens_model import LensModel, has_hooks, is_16_bit

Engine: TypeAlias = Literal["auto", "fast", "hooks"]


def choose_engine(target: TargetPrompt, engine: Engine) -> Literal["fast", "hooks"]:
    """The engine to use: `engine` itself, or what `"auto"` means for this model and the hooks on it.

    Raises:
        PatchscopesError: no such engine.
    """
    if engine in ("fast", "hooks"):
        return engine
    if engine != "auto":
        raise PatchscopesError(f"engine must be 'auto', 'fast' or 'hooks', got {engine!r}")
    if has_hooks(target.model):
        return "hooks"
    return "hooks" if fast_engine_failure(target) is not None else "fast"


@dataclass(frozen=True)
class _Verdict:
    """What a model's proof found: why its fast engine is not used, or None; and under which conditions."""

    failure: str | None
    compatibility_mode: bool


_verdicts: weakref.WeakKeyDictionary[LensModel, _Verdict] = weakref.WeakKeyDictionary()


@torch.no_grad()
def fast_engine_failure(target: TargetPrompt) -> str | None:
    """Why `engine="auto"` does not use the fast engine on this model, or None if it does.

    On first use for a model (and again after TransformerLens's compatibility mode was switched), a few rows run
    through both engines, at i* and at an inner position, for the first token and for two generated on the cache.
    A failure is also given as a warning, once.
    """
    model = target.model
    compatibility_mode = bool(getattr(model, "compatibility_mode", False))
    verdict = _verdicts.get(model)
    if verdict is None or verdict.compatibility_mode != compatibility_mode:
        failure = _prove(target)
        verdict = _verdicts[model] = _Verdict(failure, compatibility_mode)
        if failure is not None:
            warnings.warn(f"patching uses the slow hooks engine on this model: {failure}", stacklevel=2)
    return verdict.failure


def _prove(target: TargetPrompt) -> str | None:
    """Compare both engines on a few rows; the reason why they differ, or None.

    The rows are states that are not at home (other layers than they were read at), in an order that is not that of
    their layers.
    """
    model = target.model
    middle, last = model.cfg.n_layers // 2, model.cfg.n_layers - 1
    vectors = extract_representations(model, [target.tokens], [-1], [last, middle, EMBEDDING, last, middle])[0]
    layers = torch.tensor([middle, last, middle, EMBEDDING, 0], device=vectors.device)
    n_more = min(2, model.cfg.n_ctx - len(target.tokens))
    for position in {target.position, len(target.tokens) // 2}:
        trial = TargetPrompt(model, target.tokens, position, soft_prompt=target.soft_prompt)
        try:
            fast_answers = _first_steps(fast.start_generation(trial, vectors, layers), n_more)
        except torch.OutOfMemoryError:
            raise
        except REFUSALS as error:
            return f"the fast engine cannot run it ({type(error).__name__}: {error})"
        hooks_answers = _first_steps(hooks.start_generation(trial, vectors, layers), n_more)
        rounded_answers = hooks_answers
        if is_16_bit(model.cfg.dtype):
            rounded_answers = _first_steps(hooks.start_generation(trial, round_otherwise(vectors), layers), n_more)
        for answers in zip(fast_answers, hooks_answers, rounded_answers, strict=True):
            difference = disagreement(*answers, model.cfg.dtype)
            if difference is not None:
                return f"the fast engine's logits differ from those of plain hooks: {difference}"
    return None


def _first_steps(started: tuple[LogitsInParts, Advance], n_more: int) -> list[Float[Tensor, "_ d_vocab"]]:
    """First logits, and those after each of `n_more` tokens on all rows but the first."""
    parts, advance = started
    logits = [concatenate_logits(parts)]
    kept = torch.arange(len(logits[0]), device=logits[0].device) > 0
    # The same tokens for both engines, since their argmax may differ by rounding; two rows say the same.
    tokens = torch.arange(len(kept), device=kept.device)[kept] % 3
    for _ in range(n_more):
        logits.append(concatenate_logits(advance(tokens, kept)))
        kept = kept[kept]
    return logits


def round_otherwise(vectors: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """The vectors with every component moved by about one unit in its last place, up or down."""
    signs = torch.randint(0, 2, vectors.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return vectors * (1 + torch.finfo(vectors.dtype).eps * signs.to(vectors))


def disagreement(
    logits: Float[Tensor, "row d_vocab"],
    expected: Float[Tensor, "row d_vocab"],
    rounded: Float[Tensor, "row d_vocab"],
    dtype: torch.dtype,
) -> str | None:
    """How two computations of the same logits, in arithmetic of type `dtype`, differ by more than rounding, or None.

    In float32 and float64 no logit may be off by 1e-3 or more, relative to the largest logit where that exceeds
    10. In 16-bit types rounding is amplified on the way through the network, on some vectors a hundredfold; so a
    row's error (root mean square, as part of the spread of its logits) may be 25 % (rounding alone has come to 18 %),
    or twice the largest change that rounding the vectors otherwise makes to any row.

    Args:
        rounded: `expected` for vectors rounded otherwise; only looked at in 16-bit types.
    """
    logits, expected, rounded = logits.double(), expected.double(), rounded.double()
    if not bool(torch.isfinite(logits).all()):
        return "some are not finite"
    if not is_16_bit(dtype):
        largest = (logits - expected).abs().max().item()
        allowed = 1e-3 * max(1.0, expected.abs().max().item() / 10)
        return None if largest < allowed else f"the largest difference is {largest:.2g}, {allowed:.2g} is allowed"

    def largest_change(other: Float[Tensor, "row d_vocab"]) -> float:
        return ((other - expected).square().mean(dim=-1).sqrt() / expected.std(dim=-1)).max().item()

    change, allowed = largest_change(logits), max(0.25, 2 * largest_change(rounded))
    return None if change < allowed else f"a row is off by {change:.0%} of its spread, {allowed:.0%} is allowed"
