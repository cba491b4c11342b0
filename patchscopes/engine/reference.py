"""The plain engine's residual streams, which the proof of the fast engine starts every block from.

Plain TransformerLens hooks run some patched rows, each with tokens of its own behind the target prompt. What two rows
have in common (the prompt, a beginning of their continuations, everything up to a row's ℓ*) is taken from one run and
written into the others, so that it is the same number in all of them, however the machine rounds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt
from patchscopes.engine.tolerance import measure_error
from patchscopes.model.layers import EMBEDDING, get_hook_name

# The tokens that a row has generated; the empty one is the target prompt itself.
Continuation: TypeAlias = tuple[int, ...]
# What a residual stream belongs to: the number of a row, or the unpatched prompt with a continuation.
Identity: TypeAlias = int | Continuation

# For each row of the proof the tokens that it generates. The first row stops after the prompt; two rows go on alike and
# then part, and two end alike. The numbers are twelfths of the vocabulary: its first tokens, for special purposes, may
# be all the same to the model.
CONTINUATIONS: tuple[Continuation, ...] = ((), (5, 9), (7, 9), (3, 8), (5, 6), (5, 9))
N_ROUNDINGS = 16
# A prompt of fewer tokens is repeated, and of a longer one the first tokens are taken: the plain engine's residuals of
# all blocks must fit into memory.
FEWEST_TOKENS, MOST_TOKENS = 12, 64


@dataclass(frozen=True, eq=False)
class Reference:
    """What the plain engine computes for the rows of a proof.

    A residual is counted as in the engine: number ℓ enters block ℓ, and number ℓ + 1 leaves it.

    Attributes:
        target: T and i*.
        vectors, layers: what is written, and at which ℓ*.
        continuations: of each row.
        streams: residual streams over the prompt and a continuation, as long as the longest: of each row, and behind
            them of the unpatched prompt with each different continuation. On the CPU.
        logits: of the token after the prompt of each row, and after each token of its continuation.
    """

    target: TargetPrompt
    vectors: Float[Tensor, "row d_model"]
    layers: Int[Tensor, " row"]
    continuations: tuple[Continuation, ...]
    streams: Float[Tensor, "residual stream pos d_model"]
    logits: Float[Tensor, "row step d_vocab"]

    @property
    def n_tokens(self) -> int:
        """The number of tokens of T."""
        return len(self.target.tokens)

    @property
    def n_steps(self) -> int:
        """How many tokens the rows generate."""
        return max(map(len, self.continuations))

    def find_candidates(self, block: int, start: int) -> list[Identity]:
        """All whose tokens from `start` on may run in `block`: what is unpatched, and rows after their ℓ*."""
        step = max(0, start - self.n_tokens + 1)
        beginnings = dict.fromkeys(tokens[:step] for tokens in self.continuations if len(tokens) >= step)
        rows = [
            row
            for row, (layer, tokens) in enumerate(zip(self.layers.tolist(), self.continuations, strict=True))
            if layer < block and start >= self.target.position and len(tokens) >= step
        ]
        return [*rows, *beginnings]

    def get_stream(self, identity: Identity) -> int:
        """Which of the streams has the residuals of a row, or of the unpatched prompt with a continuation."""
        if isinstance(identity, int):
            return identity
        unpatched = list(dict.fromkeys(self.continuations))
        return len(self.continuations) + next(
            number for number, tokens in enumerate(unpatched) if tokens[: len(identity)] == identity
        )

    @cached_property
    def sensitivity(self) -> Float[Tensor, "block stream pos"]:
        """How much what each block adds changes, as a part of it, when its input is rounded otherwise.

        The largest of several roundings: the choice of an expert changes with some and not with others. Where a vector
        is written, it means nothing.
        """
        tokens = torch.stack([_append_continuation(self.target, tokens, self.n_steps) for tokens in self.continuations])
        unpatched = [
            _append_continuation(self.target, tokens, self.n_steps) for tokens in dict.fromkeys(self.continuations)
        ]
        tokens = torch.cat([tokens, torch.stack(unpatched)])
        changes = [_measure_change(self.target, tokens, self.streams, seed) for seed in range(N_ROUNDINGS)]
        return torch.stack(changes).amax(dim=0)


def build_trials(target: TargetPrompt) -> list[TargetPrompt]:
    """Prompts to prove an engine on: the target's tokens, patched at the last one; and patched at an inner one, with
    other vectors in place of what the tokens put into block 0."""
    model = target.model
    n_tokens = min(MOST_TOKENS, model.cfg.n_ctx, max(FEWEST_TOKENS, len(target.tokens)))
    tokens = target.tokens.repeat(-(-n_tokens // len(target.tokens)))[:n_tokens]
    entering = extract_representations(model, [tokens] * n_tokens, list(range(n_tokens)), [EMBEDDING])[:, 0]
    inner = TargetPrompt(model, tokens, n_tokens // 2, soft_prompt=entering.flip(0))
    return [TargetPrompt(model, tokens), inner]


def record_reference(target: TargetPrompt) -> Reference:
    """Run the rows of the proof with plain hooks.

    The rows are made of states of the prompt, in an order that is not that of their layers. Where the model's context
    has no room, they generate less.
    """
    model = target.model
    middle, last = model.cfg.n_layers // 2, model.cfg.n_layers - 1
    read_at, written_at = [last, middle, EMBEDDING, last, middle, 0], [middle, last, middle, EMBEDDING, 0, 0]
    states = extract_representations(model, [target.tokens], [-1], read_at)[0]
    # Never at home, and no two alike, however few layers there are.
    vectors = torch.stack([state.roll(1 + row) for row, state in enumerate(states)])
    room = max(0, model.cfg.n_ctx - len(target.tokens))
    continuations = tuple(
        tuple(number * model.cfg.d_vocab // 12 for number in numbers[:room]) for numbers in CONTINUATIONS
    )
    n_tokens, n_steps = len(target.tokens), max(map(len, continuations))

    unpatched = _run_unpatched(target, continuations)
    known = torch.stack([_concatenate_unpatched(unpatched, tokens, n_steps) for tokens in continuations], dim=1)
    is_known = torch.zeros(known.shape[:3], dtype=torch.bool)
    for row, layer in enumerate(written_at):
        is_known[: layer + 2, row] = True
        is_known[:, row, : target.position] = True
        known[layer + 1, row, target.position] = vectors[row].to(known)
    tokens = torch.stack([_append_continuation(target, continuation, n_steps) for continuation in continuations])
    rows, logits = _replay(target, tokens, known, is_known)
    others = [_concatenate_unpatched(unpatched, continuation, n_steps) for continuation in dict.fromkeys(continuations)]
    streams = torch.cat([rows, torch.stack(others, dim=1)], dim=1)
    layers = torch.tensor(written_at, device=vectors.device)
    # A copy: a part of them would keep the logits of all tokens in memory.
    return Reference(target, vectors, layers, continuations, streams, logits[:, n_tokens - 1 :].clone())


def _round_otherwise(residual: Float[Tensor, "*token d_model"], seed: int) -> Float[Tensor, "*token d_model"]:
    """The residual with every component moved by about one unit in its last place, up or down."""
    signs = torch.randint(0, 2, residual.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return residual * (1 + torch.finfo(residual.dtype).eps * signs.to(residual))


def _append_continuation(target: TargetPrompt, continuation: Continuation, n_steps: int) -> Int[Tensor, " pos"]:
    """The prompt and a continuation, padded with tokens that nothing looks at."""
    padded = [*continuation, *[0] * (n_steps - len(continuation))]
    return torch.cat([target.tokens, torch.tensor(padded, dtype=torch.long, device=target.tokens.device)])


def _concatenate_unpatched(
    unpatched: dict[Continuation, Tensor], continuation: Continuation, n_steps: int
) -> Float[Tensor, "residual pos d_model"]:
    """The unpatched residual stream over the prompt and all tokens of a continuation, padded with zeros."""
    parts = [unpatched[continuation[:step]] for step in range(len(continuation) + 1)]
    padding = parts[0].new_zeros(len(parts[0]), n_steps - len(continuation), parts[0].shape[2])
    return torch.cat([*parts, padding], dim=1)


def _run_unpatched(target: TargetPrompt, continuations: Sequence[Continuation]) -> dict[Continuation, Tensor]:
    """Unpatched residuals, `[residual, pos, d_model]`: under the empty continuation of the prompt, where a soft prompt
    enters in place of its tokens; under each beginning of a continuation of its last token."""
    shape = (target.model.cfg.n_layers + 1, 1, len(target.tokens))
    is_known = torch.zeros(shape, dtype=torch.bool)
    known = torch.zeros(*shape, target.model.cfg.d_model)
    if target.soft_prompt is not None:
        known[0, 0], is_known[0] = target.soft_prompt, True
    streams, _ = _replay(target, target.tokens[None], known, is_known)
    unpatched: dict[Continuation, Tensor] = {(): streams[:, 0]}
    for step in range(1, 1 + max(map(len, continuations))):
        beginnings = list(dict.fromkeys(tokens[:step] for tokens in continuations if len(tokens) >= step))
        known = torch.stack([_concatenate_unpatched(unpatched, tokens[:-1], step - 1) for tokens in beginnings], dim=1)
        tokens = torch.stack([_append_continuation(target, beginning, step) for beginning in beginnings])
        streams, _ = _replay(target, tokens, known, torch.ones(known.shape[:3], dtype=torch.bool))
        unpatched |= {beginning: streams[:, row, -1:] for row, beginning in enumerate(beginnings)}
    return unpatched


def _replay(
    target: TargetPrompt,
    tokens: Int[Tensor, "row pos"],
    known: Float[Tensor, "residual row known_pos d_model"],
    is_known: Bool[Tensor, "residual row known_pos"],
) -> tuple[Float[Tensor, "residual row pos d_model"], Float[Tensor, "row pos d_vocab"]]:
    """A plain forward pass in which known residuals of the first tokens are written over what is computed there."""

    def write(number: int, residual: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        residual = residual.clone()
        first_tokens = residual[:, : known.shape[2]]
        where = is_known[number].to(residual.device)[..., None]
        residual[:, : known.shape[2]] = torch.where(where, known[number].to(residual), first_tokens)
        return residual

    streams: list[Tensor] = []

    def keep(number: int, residual: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        written = write(number, residual)
        streams.append(written.cpu())
        return written

    logits = _run_through(target, tokens, keep)
    return torch.stack(streams), logits


def _measure_change(
    target: TargetPrompt,
    tokens: Int[Tensor, "stream pos"],
    streams: Float[Tensor, "residual stream pos d_model"],
    seed: int,
) -> Float[Tensor, "block stream pos"]:
    """How much what each block adds changes when every block runs on the streams, rounded otherwise."""
    rounded = torch.stack([_round_otherwise(residual, seed) for residual in streams])
    computed: list[Tensor] = []

    def write(number: int, residual: Float[Tensor, "stream pos d_model"]) -> Float[Tensor, "stream pos d_model"]:
        computed.append(residual.cpu())
        return rounded[number].to(residual)

    _run_through(target, tokens, write)
    changes = [
        measure_error(after - before, leaving - entering, leaving)
        for after, before, entering, leaving in zip(computed[1:], rounded[:-1], streams[:-1], streams[1:], strict=True)
    ]
    return torch.stack(changes)


def _run_through(
    target: TargetPrompt, tokens: Int[Tensor, "row pos"], replace: Callable[[int, Tensor], Tensor]
) -> Float[Tensor, "row pos d_vocab"]:
    """A plain forward pass in which every residual is replaced by what `replace` makes of its number and itself."""

    def replacing(number: int) -> Callable[..., Tensor]:
        def hook_function(residual: Float[Tensor, "row pos d_model"], hook: Any) -> Float[Tensor, "row pos d_model"]:
            return replace(number, residual)

        return hook_function

    layers: Sequence[int] = range(EMBEDDING, target.model.cfg.n_layers)
    hooks = [(get_hook_name(layer), replacing(layer + 1)) for layer in layers]
    return target.model.run_with_hooks(tokens, fwd_hooks=hooks)
