"""Generating after a patched prompt: the part that is the same for both engines."""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchscopes.engine.overflow import check_later
from patchscopes.estimating.tally import count_steps
from patchscopes.model.devices import send

# Whether each of some rows has said what it was asked for, given its new tokens so far and its number (on the CPU).
Stop: TypeAlias = Callable[[Int[Tensor, "row new_token"], Int[Tensor, " row"]], Bool[Tensor, " row"]]

# The logits of each row, some rows at a time: those of all rows together can be larger than all the rest.
LogitsInParts: TypeAlias = Iterable[Float[Tensor, "_ d_vocab"]]

# Appends the chosen tokens to the rows that go on (a mask over the rows so far) and returns their next logits. Both may
# be on the CPU.
Advance: TypeAlias = Callable[[Int[Tensor, " kept_row"], Bool[Tensor, " row"]], LogitsInParts]


def follow(progress: Callable[[Iterable[Any]], Iterable[Any]], max_new_tokens: int, stop: Stop | None = None) -> Stop:
    """`stop`, or one that ends no row, during which each new token is a step of the progress."""
    steps = iter(progress(range(max_new_tokens)))

    def step_and_stop(tokens: Int[Tensor, "row new_token"], rows: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
        next(steps, None)
        return torch.zeros_like(rows, dtype=torch.bool) if stop is None else stop(tokens, rows)

    return step_and_stop


def number_rows(stop: Stop, numbers: Int[Tensor, " row"]) -> Stop:
    """`stop` of a batch of the rows with these numbers."""
    numbers = numbers.cpu()

    def stop_in_batch(tokens: Int[Tensor, "row new_token"], rows: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
        return stop(tokens, numbers[rows])

    return stop_in_batch


def concatenate_logits(parts: LogitsInParts) -> Float[Tensor, "row d_vocab"]:
    """The logits of all rows at once, for those who need them."""
    return torch.cat(list(parts))


def generate(
    n_rows: int,
    logits: LogitsInParts,
    advance: Advance,
    ends: Int[Tensor, " end_token"],
    max_new_tokens: int,
    temperature: float,
    draws: Float[Tensor, "row max_new_tokens"] | None,
    forced: Int[Tensor, "row forced_token"] | None = None,
    stop: Stop | None = None,
    likely: Float[Tensor, "row max_new_tokens"] | None = None,
) -> Int[Tensor, "row max_new_tokens"]:
    """Choose and append tokens until every row has ended or is long enough; rows that have ended drop out.

    Which row goes on with which token is worked out on the CPU, so a GPU is waited for once a token.

    Args:
        stop: ends rows before that; they are padded with the end-of-sequence token (without one, no row ends).
        forced: tokens that each row begins with whatever the model says, -1 from where it may choose. An
            end-of-sequence token among them does not end the row.
        likely: where to write the probability of each token, as far as rows go on.
    """
    device, ends, forced = ends.device, ends.cpu(), None if forced is None else forced.cpu()
    tokens = torch.empty(n_rows, max_new_tokens, dtype=torch.long)
    going_on = torch.arange(n_rows)
    some_draws = None if draws is None else send(draws[:, 0], device)
    for step in count_steps(max_new_tokens):
        given = torch.full_like(going_on, -1)
        if forced is not None and step < forced.shape[1]:
            given = forced[going_on, step]
        chosen, probabilities = choose_tokens_in_parts(logits, temperature, some_draws, given, likely is not None)
        if likely is not None and probabilities is not None:
            likely[going_on.to(likely.device), step] = probabilities
        # Filling the rest of the row pads it, should this be its end-of-sequence token.
        tokens[going_on, step:] = chosen[:, None]
        kept = (given >= 0) | ~torch.isin(chosen, ends)
        if stop is not None and len(ends) > 0:
            stopped = stop(tokens[going_on, : step + 1], going_on).cpu() & kept
            tokens[going_on[stopped], step + 1 :] = ends[0]
            kept &= ~stopped
        going_on = going_on[kept]
        if step + 1 == max_new_tokens or len(going_on) == 0:
            break
        some_draws = None if draws is None else send(draws[going_on, step + 1], device)
        logits = advance(chosen[kept], kept)
    return tokens.to(device)


def choose_tokens_in_parts(
    parts: LogitsInParts,
    temperature: float,
    draws: Float[Tensor, " row"] | None,
    given: Int[Tensor, " row"],
    with_probabilities: bool,
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"] | None]:
    """For all rows `choose_tokens`, or the given token where it is not -1, on the CPU; and perhaps the tokens'
    probabilities, where the logits are."""
    if not with_probabilities and bool((given >= 0).all()):
        # Logits that no one asks for are not even computed.
        return given, None
    tokens: list[Tensor] = []
    probabilities: list[Tensor] = []
    n_done = 0
    with check_later() as checks:
        for logits in parts:
            rows = slice(n_done, n_done + len(logits))
            n_done = rows.stop
            chosen = choose_tokens(logits, temperature, None if draws is None else draws[rows])
            tokens.append(chosen)
            if with_probabilities:
                of_rows = given[rows].to(chosen.device)
                tokens[-1] = torch.where(of_rows >= 0, of_rows, chosen)
                of_tokens = logits.gather(1, tokens[-1][:, None])[:, 0].float()
                probabilities.append(torch.exp(of_tokens - torch.logsumexp(logits.float(), dim=-1)))
    on_cpu = checks.fetch(torch.cat(tokens))
    return torch.where(given >= 0, given, on_cpu), torch.cat(probabilities) if with_probabilities else None


def choose_tokens(
    logits: Float[Tensor, "row d_vocab"], temperature: float, draws: Float[Tensor, " row"] | None
) -> Int[Tensor, " row"]:
    """The most likely token; with draws, the token at which the cumulative probability passes the row's draw."""
    if draws is None:
        return find_most_likely(logits)
    cumulative = torch.softmax(logits.float() / temperature, dim=-1).cumsum(dim=-1)
    passing = draws.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, passing, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def find_most_likely(logits: Float[Tensor, "row d_vocab"]) -> Int[Tensor, " row"]:
    """The first token with the largest logit.

    First the stretch of the vocabulary that it is in: a CPU finds maxima much faster than where they are (a ninth of
    the time of `argmax` in bfloat16).
    """
    n_tokens = logits.shape[-1]
    n_together = min(512, n_tokens)
    stretches = logits.unfold(-1, n_together, n_together)
    # The last stretch overlaps the one before it where the vocabulary cannot be cut into equal ones.
    highest = torch.cat([stretches.amax(dim=-1), logits[:, -n_together:].amax(dim=-1, keepdim=True)], dim=-1)
    # Unlike argmax, max is fast in 16 bit.
    start = (highest.max(dim=-1).indices * n_together).clamp(max=n_tokens - n_together)
    stretch = logits.gather(1, start[:, None] + torch.arange(n_together, device=logits.device))
    return start + stretch.max(dim=-1).indices
