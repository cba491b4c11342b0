"""Which engine answers: the fast one, once it has been proved to do what plain hooks do on the model at hand.

The proof is local. A few rows run through the plain engine (`reference`), and then through the fast one while every
block is given the plain engine's numbers and compared on its own (`checking`). Compared at the end of the network,
rounding would have been amplified on the way, and the verdict would be about the processor.
"""

import warnings
import weakref
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from patchscopes.engine import fast
from patchscopes.engine.building import REFUSALS, get_twin, use_family_attention
from patchscopes.engine.checking import supervise_blocks
from patchscopes.engine.generation import concatenate_logits
from patchscopes.engine.overflow import Overflow
from patchscopes.engine.reference import Reference, build_trials, record_reference
from patchscopes.engine.target import TargetPrompt
from patchscopes.engine.tolerance import Difference, get_tolerance, measure_error
from patchscopes.engine.twin import block_forwards
from patchscopes.errors import PatchscopesError, PatchscopesWarning
from patchscopes.estimating.tally import preparing
from patchscopes.model.lens_model import LensModel, has_hooks, is_bridge

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
    return "hooks" if find_fast_engine_failure(target) is not None else "fast"


@dataclass(frozen=True)
class _Verdict:
    """What a model's proof found: why its fast engine is not used, or None; and under which conditions."""

    failure: str | None
    compatibility_mode: bool


_verdicts: weakref.WeakKeyDictionary[LensModel, _Verdict] = weakref.WeakKeyDictionary()


@torch.no_grad()
def find_fast_engine_failure(target: TargetPrompt) -> str | None:
    """Why `engine="auto"` does not use the fast engine on this model, or None if it does.

    The proof runs on first use for a model (and again after TransformerLens's compatibility mode was switched). If the
    engine fails it with attention over a shared prefix, it is tried with the family's own attention. A failure is also
    given as a warning, once, but not of a HookedTransformer, for which there is no other engine than hooks.
    """
    model = target.model
    compatibility_mode = bool(getattr(model, "compatibility_mode", False))
    verdict = _verdicts.get(model)
    if verdict is None or verdict.compatibility_mode != compatibility_mode:
        with preparing():
            failure = prove(target)
        verdict = _verdicts[model] = _Verdict(failure, compatibility_mode)
        if failure is not None and is_bridge(model):
            warnings.warn(
                f"patching uses the slow hooks engine on this model: {failure}", PatchscopesWarning, stacklevel=2
            )
    return verdict.failure


@torch.no_grad()
def prove(target: TargetPrompt) -> str | None:
    """Compare both engines on a few rows after the target's tokens (see `build_trials`); why they differ, or None.

    What the proof does not see: windows and rotary angles that change with more tokens than it runs; and in 16 bit,
    what changes less of a block's result than rounding may.

    Raises:
        Overflow: the unpatched states of the target's tokens hold NaN or infinity.
    """
    try:
        twin = get_twin(target.model)
        references = [record_reference(trial) for trial in build_trials(target)]
        failure = compare(references)
        if failure is not None and twin.shares_prefix:
            use_family_attention(target.model)
            failure = compare(references)
    except Overflow:
        raise
    except PatchscopesError as error:
        return str(error)
    return failure


def compare(references: list[Reference]) -> str | None:
    """Why the fast engine differs from the references, or None."""
    try:
        for reference in references:
            _check_residuals(reference)
            _check_logits(reference)
    except Difference as difference:
        return f"the fast engine differs from plain hooks: {difference}"
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        return f"the fast engine cannot run it ({type(error).__name__}: {error})"
    return None


def _check_residuals(reference: Reference) -> None:
    """Run the rows through the fast engine, block by block from the plain engine's numbers, for the tokens after the
    prompt; every row must end as the plain engine has it, to the last bit.

    Raises:
        Difference: it does not.
    """
    target = TargetPrompt(
        reference.target.model,
        reference.target.tokens,
        reference.target.position,
        soft_prompt=reference.target.soft_prompt,
    )
    twin, n_rows = get_twin(target.model), len(reference.vectors)
    with block_forwards(twin, supervise_blocks(twin, reference)):
        answers = [fast.first_residual(target, reference.vectors, reference.layers)]
        residual, advance = fast.start_residuals(target, reference.vectors, reference.layers)
        answers.append(residual)
        going_on = torch.arange(n_rows)
        for step in range(reference.n_steps):
            kept = torch.tensor([len(reference.continuations[row]) > step for row in going_on.tolist()])
            going_on = going_on[kept]
            tokens = torch.tensor([reference.continuations[row][step] for row in going_on.tolist()])
            answers.append(advance(tokens, kept))
            expected = reference.streams[-1, going_on, reference.n_tokens + step]
            _check_ends(answers.pop(), expected)
    for answer in answers:
        _check_ends(answer, reference.streams[-1, :n_rows, reference.n_tokens - 1])


def _check_ends(residual: torch.Tensor, expected: torch.Tensor) -> None:
    if not torch.equal(residual, expected.to(residual)):
        raise Difference("a row ends as another one")


def _check_logits(reference: Reference) -> None:
    """Unembed the plain engine's final residuals.

    Raises:
        Difference: the logits are others than the plain engine's.
    """
    twin = get_twin(reference.target.model)
    for step in range(reference.n_steps + 1):
        going_on = [row for row, tokens in enumerate(reference.continuations) if len(tokens) >= step]
        residual = reference.streams[-1, going_on, reference.n_tokens - 1 + step]
        logits = concatenate_logits(fast.unembed_in_parts(twin, residual))
        expected = reference.logits[going_on, step].to(logits.device)
        centre = expected.mean(dim=-1, keepdim=True)
        error = measure_error(logits - centre, expected - centre, expected)
        if not bool((error <= get_tolerance(twin, logits.dtype)).all()):
            raise Difference(f"logits of the same residual differ by {float(error.max()):.2g} of their spread")
