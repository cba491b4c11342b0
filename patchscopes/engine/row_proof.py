"""Which engine answers for a row: the fast one, once it has been proved to do on the model what the row says.

What a plain row needs is proved by `proof`. What rows may say beyond it is proved here, each `Need` by itself and on
first use: every block of both engines starts from the same residual streams, those of the unpatched runs of two
prompts, and what it adds is compared while rows write and cut in it. So no rounding is carried between blocks.
"""

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.engine.building import REFUSALS, get_twin
from patchscopes.engine.joint_run import join_clean_runs, run_cleanly_together
from patchscopes.engine.prefix import cache_in_use
from patchscopes.engine.proof import Engine, choose_engine
from patchscopes.engine.reference import build_trials
from patchscopes.engine.row_blocks import collect_changes, cut_calls, run_block
from patchscopes.engine.row_hooks import build_row_hooks
from patchscopes.engine.rows import Cut, Feature, Row, Write, get_model
from patchscopes.engine.sublayers import check_plain_hooks
from patchscopes.engine.target import TargetPrompt
from patchscopes.engine.tolerance import get_tolerance, measure_error
from patchscopes.engine.twin import Twin
from patchscopes.errors import PatchscopesWarning
from patchscopes.estimating.tally import preparing
from patchscopes.model.layers import EMBEDDING, get_hook_name
from patchscopes.model.lens_model import LensModel

# What rows may need of the fast engine beyond writing over the residual stream of one prompt.
Need: TypeAlias = Feature | Literal["prompts"]


def choose_row_engines(rows: Sequence[Row], engine: Engine) -> list[Literal["fast", "hooks"]]:
    """The engine of each row.

    Raises:
        PatchscopesError: no such engine, or the model's hooks cannot do what the rows say.
    """
    model = get_model(rows)
    for feature in sorted(frozenset[Feature]().union(*(row.features for row in rows))):
        if feature != "cuts" or engine != "fast":
            check_plain_hooks(model, feature)
    chosen = choose_engine(rows[0].target, engine)
    if engine != "auto" or chosen == "hooks":
        return [chosen] * len(rows)
    several = len({id(row.target) for row in rows}) > 1
    engines: list[Literal["fast", "hooks"]] = []
    for row in rows:
        needs: list[Need] = [*sorted(row.features)]
        if several:
            needs.append("prompts")
        failures = [find_failure(row.target, need) for need in needs]
        engines.append("fast" if all(failure is None for failure in failures) else "hooks")
    return engines


_failures: weakref.WeakKeyDictionary[LensModel, dict[tuple[Need, bool], str | None]] = weakref.WeakKeyDictionary()


@torch.no_grad()
def find_failure(target: TargetPrompt, need: Need) -> str | None:
    """Why `engine="auto"` leaves rows with this need to hooks on this model, or None if it does not.

    It is proved on first use; a failure is also given as a warning, once.
    """
    model = target.model
    key = need, bool(getattr(model, "compatibility_mode", False))
    failures = _failures.setdefault(model, {})
    if key not in failures:
        with preparing():
            failures[key] = _prove(target, need)
        if failures[key] is not None:
            warnings.warn(
                f"rows with {need} use the slow hooks engine on this model: {failures[key]}",
                PatchscopesWarning,
                stacklevel=2,
            )
    return failures[key]


def _prove(target: TargetPrompt, need: Need) -> str | None:
    """Compare what the blocks of both engines add; why they differ, or None."""
    model, twin = target.model, get_twin(target.model)
    rows, start = _build_rows(target, need)
    try:
        answers = _run_fast(model, twin, rows, start)
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        return f"the fast engine cannot do it ({type(error).__name__}: {error})"
    entering = _stack_residuals(rows)
    tolerance = get_tolerance(twin, entering.dtype)
    expected = _run_hooks(model, rows, entering)
    for number, (answer, right) in enumerate(zip(answers, expected, strict=True)):
        before, after = entering[number][:, start:].to(right), right[:, start:]
        differences = measure_error(answer.to(right) - before, after - before, after)
        if not bool((differences <= tolerance).all()):
            return (
                f"the fast engine differs from plain hooks: what block {number} adds differs by "
                f"{float(differences.max()):.2g} of it, {tolerance:.2g} is allowed"
            )
    return None


def _build_rows(target: TargetPrompt, need: Need) -> tuple[list[Row], int]:
    """Rows of two prompts that do in every block what is to be proved, others that do not, and where they start."""
    model = target.model
    trials = build_trials(target)
    n_tokens, last = len(trials[0].tokens), len(trials[0].tokens) - 1
    start = n_tokens // 2
    # From their first token on: the residual stream of every token is known, and none is written.
    prompts = [TargetPrompt(model, trial.tokens, 0, soft_prompt=trial.soft_prompt) for trial in trials]
    run_cleanly_together(get_twin(model), prompts)
    blocks = tuple(range(model.cfg.n_layers))
    generator = torch.Generator().manual_seed(0)
    rows = [Row(target=prompt) for prompt in prompts]
    for prompt in prompts[::-1]:
        writes: list[Write] = []
        cuts: list[Cut] = []
        for position in (start, last):
            for layer, residual in zip(blocks, prompt.clean_run.residuals[1:], strict=True):
                vector = torch.randn(model.cfg.d_model, generator=generator).to(residual) * residual[0, position].std()
                if need in ("attn_out", "mlp_out"):
                    writes.append(Write(position=position, layer=layer, vector=vector, site=need))
            if need == "cuts":
                # Of the tokens before the start, and of those that the rows run; near ones are in every window.
                cuts.append(Cut(query=position, keys=(0, start - 1, position - 1), layers=blocks))
        rows += [Row(target=prompt, writes=tuple(writes), cuts=tuple(cuts))]
    return rows, start


def _run_fast(
    model: LensModel, twin: Twin, rows: Sequence[Row], start: int
) -> list[Float[Tensor, "row suffix d_model"]]:
    """What leaves each block of the twin when the unpatched residual stream enters it."""
    targets = list({id(row.target): row.target for row in rows}.values())
    target_of_row = torch.tensor([targets.index(row.target) for row in rows])
    clean, changes = join_clean_runs(twin, targets, start), collect_changes(twin, rows, start)
    cache = twin.new_cache(clean.prefixes)
    answers = []
    with cache_in_use(cache):
        for number, call in enumerate(cut_calls(twin, clean.calls, [len(rows)] * len(twin.blocks), changes)):
            cache.prefix_layers[number].prefix_of_row = target_of_row
            hidden = clean.residuals[number][target_of_row.to(clean.residuals[number].device)]
            answers.append(run_block(model, twin, number, call, hidden, cache, changes))
    return answers


def _stack_residuals(rows: Sequence[Row]) -> Float[Tensor, "residual row pos d_model"]:
    """The unpatched residual stream of each row."""
    return torch.stack(
        [torch.cat(of_rows).cpu() for of_rows in zip(*(row.target.clean_run.residuals for row in rows), strict=True)]
    )


def _run_hooks(
    model: LensModel, rows: Sequence[Row], entering: Float[Tensor, "residual row pos d_model"]
) -> list[Float[Tensor, "row pos d_model"]]:
    """What leaves each block with plain hooks when the unpatched residual stream enters it."""
    computed: list[Tensor] = []

    def replacing(number: int) -> Callable[..., Tensor]:
        def hook_function(residual: Float[Tensor, "row pos d_model"], hook: Any) -> Float[Tensor, "row pos d_model"]:
            computed.append(residual.cpu())
            return entering[number].to(residual)

        return hook_function

    layers = range(EMBEDDING, model.cfg.n_layers)
    replaced = [(get_hook_name(layer), replacing(layer + 1)) for layer in layers]
    tokens = torch.stack([row.target.tokens for row in rows])
    model.run_with_hooks(tokens, fwd_hooks=[*build_row_hooks(rows), *replaced])
    return computed[1:]
