"""Causal tracing in its original form (Meng et al. 2022), and as the paper writes it: T = S + ε, i* = i, ℓ* = ℓ.

Both say how likely the answer is in every corrupted run with every restoration.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.engine.batching import RowSize, run_in_batches
from patchscopes.engine.overflow import check_finite
from patchscopes.experiments.causal_tracing_states import (
    Place,
    Restoration,
    Trace,
    build_input_hook,
    get_site_hook_name,
)
from patchscopes.patch import Row, TargetPrompt, Write, patch_rows_in_batches


def find_probability(trace: Trace, logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, " row"]:
    """How likely the answer's first token is."""
    return torch.softmax(logits.float(), dim=-1)[:, trace.fact.answer]


@torch.no_grad()
def trace_with_hooks(
    trace: Trace, restorations: Sequence[Restoration], batch_size: int | None
) -> Float[Tensor, "restoration noise"]:
    """The original form: whole forward passes with plain hooks, many restorations and noise samples in a batch."""
    model, n_tokens = trace.model, len(trace.fact.tokens)
    runs = [(restoration, sample) for restoration in restorations for sample in range(len(trace.inputs))]
    tokens = torch.tensor(trace.fact.tokens, device=model.cfg.device)

    def run(rows: slice) -> Float[Tensor, " batch"]:
        batch = runs[rows]
        entering = build_input_hook(trace.inputs[[sample for _, sample in batch]])
        hooks = [entering, *build_restoring_hooks(trace, batch)]
        logits = model.run_with_hooks(tokens.expand(len(batch), -1), fwd_hooks=hooks)
        return find_probability(trace, check_finite(logits[:, -1], model.cfg.dtype, "logits"))

    row = RowSize(run=n_tokens, unembedded=n_tokens)
    found = [likely for _, likely in run_in_batches(model, len(runs), run, row=row, batch_size=batch_size)]
    return torch.cat(found).reshape(len(restorations), len(trace.inputs))


def build_restoring_hooks(
    trace: Trace, batch: Sequence[tuple[Restoration, int]]
) -> list[tuple[str, Callable[..., Tensor]]]:
    """TransformerLens hooks that hold what each row of a batch, a restoration and a noise sample, holds."""
    # At each place: rows, positions and values.
    writes: dict[Place, list[tuple[int, int, Tensor]]] = {}
    for row, (restoration, sample) in enumerate(batch):
        for position in restoration.positions:
            for place in restoration.restored:
                writes.setdefault(place, []).append((row, position, trace.clean[place][0, position]))
            for place in restoration.severed:
                writes.setdefault(place, []).append((row, position, trace.corrupted[place][sample, position]))

    def writing(place: Place) -> Callable[..., Tensor]:
        rows, positions, values = zip(*writes[place], strict=True)

        def write(value: Float[Tensor, "row pos d_model"], hook: Any) -> Float[Tensor, "row pos d_model"]:
            value = value.clone()
            value[list(rows), list(positions)] = torch.stack(values).to(value)
            return value

        return write

    return [(get_site_hook_name(place), writing(place)) for place in writes]


def trace_with_patchscopes(
    trace: Trace, restorations: Sequence[Restoration], batch_size: int | None
) -> Float[Tensor, "restoration noise"]:
    """The paper's form: each corrupted run is a target prompt, and what is restored is patched from S to its place."""
    rows = []
    for sample, inputs in enumerate(trace.inputs):
        # No token before the subject sees any noise.
        target = TargetPrompt(trace.model, trace.fact.tokens, trace.fact.subject[0], soft_prompt=inputs)
        rows += [Row(target=target, writes=build_writes(trace, restoration, sample)) for restoration in restorations]
    batches = patch_rows_in_batches(rows, batch_size=batch_size)
    found = torch.cat([find_probability(trace, logits) for logits in batches])
    return found.reshape(len(trace.inputs), len(restorations)).T


def build_writes(trace: Trace, restoration: Restoration, sample: int) -> tuple[Write, ...]:
    """What a restoration writes into the corrupted run of one noise sample."""
    held = [(place, trace.clean[place][0]) for place in restoration.restored]
    held += [(place, trace.corrupted[place][sample]) for place in restoration.severed]
    return tuple(
        Write(position=position, layer=place.layer, site=place.site, vector=values[position])
        for position in restoration.positions
        for place, values in held
    )
