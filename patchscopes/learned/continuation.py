"""Representations together with what the model itself says after them: the truth that a Future Lens is held against."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.engine.building import get_twin
from patchscopes.engine.clean_run import record_clean_run
from patchscopes.engine.decoding import decode_next_residual
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.generation import find_most_likely
from patchscopes.engine.proof import Engine, choose_engine
from patchscopes.engine.target import TargetPrompt
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.estimating.tally import do_some
from patchscopes.model.lens_model import LensModel
from patchscopes.tokens import Text, resolve_position, to_token_ids


@dataclass(frozen=True, eq=False)
class Continued:
    """Representations of token t, and the model's own greedy continuation of the text up to t.

    Attributes:
        representations: of token t.
        tokens: the tokens t+1, t+2, … that the model finds most likely.
        final: the last layer's representations at t, t+1, …: their logits predict `tokens`.
    """

    representations: Float[Tensor, "sample layer d_model"]
    tokens: Int[Tensor, "sample ahead"]
    final: Float[Tensor, "sample ahead d_model"]


@torch.no_grad()
def read_with_continuation(
    model: LensModel,
    texts: Sequence[Text],
    positions: Sequence[int],
    layers: Sequence[int],
    n_tokens: int,
    *,
    engine: Engine = "auto",
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Continued:
    """Read token `positions[s]` of `texts[s]` at each of `layers`, and let the model go on from there.

    A text is run once, however many of its positions are asked for: the keys and values of its first tokens are those
    of every continuation that begins after them. With `engine="hooks"` everything is run again for every token.

    Args:
        progress: wraps the iteration over texts, `tqdm` for instance.

    Raises:
        PatchscopesError: as `extract_representations`, or `n_tokens` is below 1.
    """
    if n_tokens < 1:
        raise PatchscopesError(f"at least 1 token must be continued with, got {n_tokens}")
    ids = [to_token_ids(model, text) for text in texts]
    ends = [resolve_position(len(of_text), position) + 1 for of_text, position in zip(ids, positions, strict=True)]
    longest = max(ends, default=0) + n_tokens - 1
    if longest > model.cfg.n_ctx:
        raise PatchscopesError(
            f"{longest} tokens, {n_tokens - 1} of them the model's own, do not fit its context of {model.cfg.n_ctx}; "
            "read earlier positions"
        )
    if not ids:
        return Continued(*_allocate(model, len(layers), n_tokens))
    # A short prompt, in case the engine must be proved first.
    if choose_engine(TargetPrompt(model, ids[0][:8]), engine) == "hooks":
        return _read_plainly(model, ids, ends, layers, n_tokens)

    samples_of: dict[tuple[int, ...], list[int]] = {}
    for sample, of_text in enumerate(ids):
        samples_of.setdefault(tuple(of_text.tolist()), []).append(sample)
    representations, tokens, final = _allocate(model, len(layers), n_tokens, len(ids))
    for text, samples in do_some(list(samples_of.items()), progress):
        own_ends = [ends[sample] for sample in samples]
        run = torch.tensor(text[: max(own_ends)], device=model.cfg.device)
        read = _read_text(model, run, own_ends, layers, n_tokens)
        # The blocks of a spread model leave their results on several devices.
        for room, part in zip((representations, tokens, final), read, strict=True):
            room[samples] = part.to(room)
    return Continued(representations, tokens, final)


def _allocate(model: LensModel, n_layers: int, n_tokens: int, n_samples: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the parts of a `Continued`."""
    cfg = model.cfg
    like = {"dtype": cfg.dtype, "device": cfg.device}
    return (
        torch.zeros(n_samples, n_layers, cfg.d_model, **like),
        torch.zeros(n_samples, n_tokens, dtype=torch.long, device=cfg.device),
        torch.zeros(n_samples, n_tokens, cfg.d_model, **like),
    )


def _read_text(
    model: LensModel, text: Int[Tensor, " pos"], ends: Sequence[int], layers: Sequence[int], n_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of a `Continued` for several positions of one text; sample s goes on after `ends[s]` tokens."""
    twin = get_twin(model)
    clean = record_clean_run(twin, text, position=0)
    last_tokens = [end - 1 for end in ends]
    read = [clean.residuals[layer + 1][0, last_tokens] for layer in layers]
    representations = torch.stack([states.to(read[0].device) for states in read], dim=1)
    final = [clean.residuals[-1][0, last_tokens]]
    tokens = [find_most_likely(logit_lens(model, final[-1]))]
    caches = [
        twin.new_cache([(keys[:, :, :end], values[:, :, :end]) for keys, values in clean.suffixes]) for end in ends
    ]
    while len(tokens) < n_tokens:
        going_on = zip(tokens[-1].split(1), caches, strict=True)
        final.append(torch.cat([decode_next_residual(twin, token, cache) for token, cache in going_on]))
        tokens.append(find_most_likely(logit_lens(model, final[-1])))
    return representations, torch.stack(tokens, dim=1), torch.stack(final, dim=1)


def _read_plainly(
    model: LensModel, ids: Sequence[Int[Tensor, " _"]], ends: Sequence[int], layers: Sequence[int], n_tokens: int
) -> Continued:
    """The same by running every text again for every token."""
    runs = [of_text[:end] for of_text, end in zip(ids, ends, strict=True)]
    representations = extract_representations(model, runs, [-1] * len(runs), layers)
    final: list[Tensor] = []
    tokens: list[Tensor] = []
    for _ in range(n_tokens):
        final.append(extract_representations(model, runs, [-1] * len(runs), [model.cfg.n_layers - 1])[:, 0])
        tokens.append(find_most_likely(logit_lens(model, final[-1])))
        runs = [torch.cat([run, token]) for run, token in zip(runs, tokens[-1].split(1), strict=True)]
    return Continued(representations, torch.stack(tokens, dim=1), torch.stack(final, dim=1))
