"""The engine: read hidden states of one prompt, write them into another, and let the model go on from there.

A Patchscope (Ghandeharioun et al., ICML 2024, section 3) takes the representation of token i at layer ℓ of a
source prompt, and writes it over token i* at layer ℓ* of a target prompt. Every experiment of the library asks one
question of this module: *here are R vectors and R target layers; what does the model say after the target prompt
when vector r is written at (i*, layer r)?* (`patch_logits`, `patch_generate`.)

Layer ℓ means the residual stream after block ℓ (`blocks.{ℓ}.hook_resid_post`); `EMBEDDING` is what enters block 0.

Two engines answer. `"hooks"` is the plain one: a full forward pass with TransformerLens hooks, for each batch of
rows. `"fast"` (see `patchscopes.fast`) computes the same and skips what rows have in common. `"auto"` uses the fast
engine once it has given the same answer as hooks on this model, and otherwise warns and uses hooks.
"""

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchscopes import fast
from patchscopes.errors import PatchscopesError
from patchscopes.lens_model import LensModel

EMBEDDING = -1

Engine: TypeAlias = Literal["auto", "fast", "hooks"]
Text: TypeAlias = str | Sequence[int] | Int[Tensor, "..."]


# --- Tokens, positions and layers ---------------------------------------------------------------------------


def to_token_ids(model: LensModel, text: Text) -> Int[Tensor, "pos"]:
    """The token ids of `text` as the model reads it (with BOS where TransformerLens puts it), or ids given as such.

    Raises:
        PatchscopesError: no token at all, or more than the model's context.
    """
    if isinstance(text, str):
        if model.tokenizer is None:
            raise PatchscopesError("this model has no tokenizer: give token ids, or load it with tokenizer=...")
        ids = model.to_tokens(text, truncate=False)[0]
    else:
        ids = torch.as_tensor(text, device=model.cfg.device)
        if len(ids) > 0 and (ids.is_floating_point() or ids.squeeze().ndim > 1):
            raise PatchscopesError(
                f"text must be a string or the token ids of one text, got a tensor of shape {tuple(ids.shape)} "
                f"and type {ids.dtype}; give one text at a time"
            )
        ids = ids.reshape(-1).long()
    if len(ids) == 0:
        raise PatchscopesError("the text has no tokens; give at least one character")
    if len(ids) > model.cfg.n_ctx:
        raise PatchscopesError(f"the text has {len(ids)} tokens, the model reads at most {model.cfg.n_ctx}; shorten it")
    return ids


def resolve_position(n_tokens: int, position: int) -> int:
    """A position counted from the start; negative ones count from the end.

    Raises:
        PatchscopesError: the text has no such token.
    """
    if not -n_tokens <= position < n_tokens:
        raise PatchscopesError(f"position {position} does not exist in a text of {n_tokens} tokens (BOS included)")
    return position % n_tokens


def check_layer(model: LensModel, layer: int) -> int:
    """`layer` if the model has it.

    Raises:
        PatchscopesError: it has not.
    """
    if not EMBEDDING <= layer < model.cfg.n_layers:
        raise PatchscopesError(
            f"layer {layer} does not exist: the model has layers 0 to {model.cfg.n_layers - 1} and EMBEDDING (-1)"
        )
    return layer


def hook_name(layer: int) -> str:
    """The TransformerLens hook point whose value is the representation at `layer`."""
    return "blocks.0.hook_resid_pre" if layer == EMBEDDING else f"blocks.{layer}.hook_resid_post"


# --- Reading representations --------------------------------------------------------------------------------


def extract_representation(model: LensModel, text: Text, layer: int, position: int) -> Float[Tensor, "d_model"]:
    """The representation of one token of one text at one layer. See `extract_representations`."""
    return extract_representations(model, [text], [position], [layer])[0, 0]


class _LastLayerRead(Exception):
    """Ends a forward pass when everything asked for has been read."""


@torch.no_grad()
def extract_representations(
    model: LensModel,
    texts: Sequence[Text],
    positions: Sequence[int],
    layers: Sequence[int] | None = None,
    *,
    batch_size: int = 32,
) -> Float[Tensor, "text layer d_model"]:
    """The representations of token `positions[t]` of `texts[t]` at each of `layers` (all blocks unless given).

    Texts of different lengths share a batch of `batch_size`; a text given several times (with different positions)
    is read once. Nothing is run that no one asked for: not the tokens after the last position, not the blocks
    after the last layer, not the unembedding. Hooks that the user put on the model fire.

    Raises:
        PatchscopesError: a position or layer does not exist, or texts and positions differ in number.
    """
    if len(texts) != len(positions):
        raise PatchscopesError(f"{len(texts)} texts and {len(positions)} positions given; give one position per text")
    layers = list(range(model.cfg.n_layers)) if layers is None else [check_layer(model, layer) for layer in layers]
    out = torch.empty(len(texts), len(layers), model.cfg.d_model, dtype=model.cfg.dtype, device=model.cfg.device)
    if not texts or not layers:
        return out

    requests: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for index, (text, position) in enumerate(zip(texts, positions, strict=True)):
        ids = to_token_ids(model, text).tolist()
        requests.setdefault(tuple(ids), []).append((index, resolve_position(len(ids), position)))
    runs = [ids[: 1 + max(position for _, position in wanted)] for ids, wanted in requests.items()]
    wanted_of_run = list(requests.values())
    for batch in _batches_by_length(model, [len(run) for run in runs], batch_size):
        indices, rows, columns = zip(
            *((index, row, position) for row, run in enumerate(batch) for index, position in wanted_of_run[run]),
            strict=True,
        )
        _read_batch(model, [runs[run] for run in batch], (rows, columns), layers, out, indices)
    return out


def _batches_by_length(model: LensModel, lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of texts in batches of similar length.

    On a CPU a batch holds at most about 1,024 tokens: larger activations fall out of the caches of the processor
    (32 passages of 150 tokens: 1.5 ms per token in batches of 4, 2.6 ms in one of 32).
    """
    max_tokens = 1024 if torch.device(model.cfg.device).type == "cpu" else float("inf")
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == batch_size or (len(batch) + 1) * lengths[index] > max_tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _read_batch(
    model: LensModel,
    runs: list[tuple[int, ...]],
    where: tuple[Sequence[int], Sequence[int]],
    layers: list[int],
    out: Float[Tensor, "text layer d_model"],
    indices: Sequence[int],
) -> None:
    """Run token sequences as one batch and store the residuals at (row, position) `where` under `out[indices]`."""
    # Padding goes to the right, where causal attention keeps it from the tokens that are read.
    longest = max(map(len, runs))
    tokens = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in runs], device=model.cfg.device)
    rows, columns = (torch.tensor(part) for part in where)
    slots: dict[int, list[int]] = {}
    for slot, layer in enumerate(layers):
        slots.setdefault(layer, []).append(slot)
    last = max(slots)

    def reading(layer: int) -> Callable[..., None]:
        def read(residual: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
            for slot in slots[layer]:
                out[list(indices), slot] = residual[rows, columns].to(out)
            if layer == last:
                raise _LastLayerRead

        return read

    hooks = [(hook_name(layer), reading(layer)) for layer in slots]
    with suppress(_LastLayerRead):
        model.run_with_hooks(tokens, return_type=None, fwd_hooks=hooks)


# --- The target -----------------------------------------------------------------------------------------------


class TargetPrompt:
    """A target prompt T and the position i* in it that vectors are written to.

    Attributes:
        model: the target model M*.
        tokens: the prompt's token ids, `[pos]`.
        position: i*, counted from the start.

    The clean (unpatched) run over T, which all rows share in the fast engine, is computed once, on first use.

    Raises:
        PatchscopesError: the prompt has no token at `position`.
    """

    def __init__(self, model: LensModel, text: Text, position: int = -1) -> None:
        self.model = model
        self.tokens = to_token_ids(model, text)
        self.position = resolve_position(len(self.tokens), position)

    @property
    def suffix_length(self) -> int:
        """The number of tokens that see the patch: i* and all after it."""
        return len(self.tokens) - self.position

    @cached_property
    def clean_run(self) -> fast.CleanRun:
        """The unpatched run over the prompt, for the fast engine."""
        with torch.no_grad():
            return fast.clean_run(_twin(self.model), self.tokens, self.position)

    def __repr__(self) -> str:
        return f"TargetPrompt({len(self.tokens)} tokens, position {self.position})"


def _checked_rows(
    target: TargetPrompt, vectors: Float[Tensor, "row d_model"], layers: Sequence[int] | Int[Tensor, "row"]
) -> tuple[Float[Tensor, "row d_model"], Int[Tensor, "row"]]:
    """Vectors and layers on the model's device, if they fit the model and each other."""
    cfg = target.model.cfg
    if vectors.ndim != 2 or vectors.shape[1] != cfg.d_model:
        raise PatchscopesError(
            f"vectors must be [row, d_model] with d_model = {cfg.d_model}, got shape {tuple(vectors.shape)}"
        )
    layers = torch.as_tensor(layers, dtype=torch.long, device=cfg.device)
    if layers.shape != vectors.shape[:1]:
        raise PatchscopesError(f"{vectors.shape[0]} vectors need as many layers, got {tuple(layers.shape)}")
    for layer in layers.unique().tolist():
        check_layer(target.model, layer)
    return vectors.to(cfg.device), layers


# --- Asking the model -----------------------------------------------------------------------------------------


@torch.no_grad()
def patch_logits(
    target: TargetPrompt,
    vectors: Float[Tensor, "row d_model"],
    layers: Sequence[int] | Int[Tensor, "row"],
    *,
    engine: Engine = "auto",
    batch_size: int | None = None,
) -> Float[Tensor, "row d_vocab"]:
    """Logits of the token after the target prompt, for each row patched at (i*, its layer).

    Args:
        target: the prompt T and the position i*.
        vectors: what to write over the representation of token i*, one row each.
        layers: the target layer ℓ* of each row, in any order and mix; `EMBEDDING` is what enters block 0.
        engine: `"hooks"` runs the whole prompt through the whole model, and every hook that the user put on the
            model fires. `"fast"` shares what rows have in common; it runs the model's own modules without the
            bridge around them, so **no TransformerLens hook fires in it**. `"auto"` takes hooks when the model has
            hooks of the user's on it; otherwise fast, once it has given the same answer as hooks on this model,
            and hooks with a warning where it has not.
        batch_size: rows at a time; chosen by size unless given. Results do not depend on it beyond rounding.

    Raises:
        PatchscopesError: shapes or layers do not fit the model, or `engine="fast"` cannot run this model.
    """
    batches = list(patch_logits_in_batches(target, vectors, layers, engine=engine, batch_size=batch_size))
    return torch.cat(batches) if batches else vectors.new_empty(0, target.model.cfg.d_vocab)


@torch.no_grad()
def patch_logits_in_batches(
    target: TargetPrompt,
    vectors: Float[Tensor, "row d_model"],
    layers: Sequence[int] | Int[Tensor, "row"],
    *,
    engine: Engine = "auto",
    batch_size: int | None = None,
) -> Iterator[Float[Tensor, "batch d_vocab"]]:
    """`patch_logits`, one batch of rows at a time: for more rows than their logits would fit into memory."""
    vectors, layers = _checked_rows(target, vectors, layers)
    ask = _fast_logits if _chosen_engine(target, engine) == "fast" else _hooks_logits
    batch_size = batch_size or rows_per_batch(target.model, target.suffix_length)
    for start in range(0, len(vectors), batch_size):
        yield ask(target, vectors[start : start + batch_size], layers[start : start + batch_size])


@torch.no_grad()
def patch_generate(
    target: TargetPrompt,
    vectors: Float[Tensor, "row d_model"],
    layers: Sequence[int] | Int[Tensor, "row"],
    *,
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    engine: Engine = "auto",
    batch_size: int | None = None,
) -> Int[Tensor, "row new_token"]:
    """What the model says after the target prompt, for each row patched at (i*, its layer).

    The patch is written once, while the prompt is read; generated tokens see it through the keys and values that
    it caused. A row that has produced an end-of-sequence token is padded with that token. With a `temperature`
    above 0 tokens are sampled; the draws come from torch's global generator (`torch.manual_seed`), and depend
    neither on the engine nor on the batch size.

    Args and errors: as for `patch_logits`.
    """
    vectors, layers = _checked_rows(target, vectors, layers)
    if max_new_tokens < 1 or temperature < 0:
        raise PatchscopesError(
            f"max_new_tokens must be at least 1 and temperature at least 0, got {max_new_tokens} and {temperature}"
        )
    start = _start_fast if _chosen_engine(target, engine) == "fast" else _start_hooks
    batch_size = batch_size or rows_per_batch(target.model, target.suffix_length, max_new_tokens)
    draws = torch.rand(len(vectors), max_new_tokens) if temperature > 0 else None
    out = torch.empty(len(vectors), max_new_tokens, dtype=torch.long, device=vectors.device)
    for first in range(0, len(vectors), batch_size):
        rows = slice(first, first + batch_size)
        logits, advance = start(target, vectors[rows], layers[rows])
        some_draws = None if draws is None else draws[rows]
        out[rows] = _generate(logits, advance, end_tokens(target.model), max_new_tokens, temperature, some_draws)
    return out


@torch.no_grad()
def run_with_patch(
    model: LensModel,
    target_text: Text,
    target_position: int,
    source_vec: Float[Tensor, "d_model"],
    layer: int = EMBEDDING,
) -> Float[Tensor, "1 pos d_vocab"]:
    """Logits at every position of the target prompt, with `source_vec` written at (`target_position`, `layer`).

    Raises:
        PatchscopesError: the position or layer does not exist, or the vector is not as wide as the model.
    """
    target = TargetPrompt(model, target_text, target_position)
    vectors, layers = _checked_rows(target, source_vec[None], [layer])
    return model.run_with_hooks(target.tokens[None], fwd_hooks=_writing_hooks(target.position, vectors, layers))


def generate_with_patch(
    model: LensModel,
    target_text: Text,
    target_position: int,
    source_vec: Float[Tensor, "d_model"],
    max_new_tokens: int = 5,
    layer: int = EMBEDDING,
    temperature: float = 0.0,
) -> tuple[list[str], Int[Tensor, "new_token"]]:
    """Continue the target prompt with `source_vec` written at (`target_position`, `layer`).

    Returns the new tokens, each as text and as id, up to and including the first end-of-sequence token.

    Raises:
        PatchscopesError: as for `run_with_patch`.
    """
    target = TargetPrompt(model, target_text, target_position)
    tokens = patch_generate(target, source_vec[None], [layer], max_new_tokens=max_new_tokens, temperature=temperature)[
        0
    ]
    ended = torch.isin(tokens, end_tokens(model)).nonzero()
    if len(ended) > 0:
        tokens = tokens[: int(ended[0]) + 1]
    return [model.tokenizer.decode([token]) for token in tokens.tolist()], tokens


def end_tokens(model: LensModel) -> Int[Tensor, "end_token"]:
    """The ids that end a generation: the tokenizer's end-of-sequence token and those of the generation config."""
    ids = {getattr(model.tokenizer, "eos_token_id", None)}
    generation_config = getattr(getattr(model, "original_model", None), "generation_config", None)
    configured = getattr(generation_config, "eos_token_id", None)
    ids.update(configured if isinstance(configured, list) else [configured])
    return torch.tensor(sorted(token for token in ids if token is not None), device=model.cfg.device, dtype=torch.long)


def rows_per_batch(model: LensModel, suffix: int = 1, new_tokens: int = 0) -> int:
    """Rows to compute at a time: enough to keep matrix products efficient, few enough to fit into memory.

    Measured on two cores with a 135M model, time per row falls until about 500 rows and is flat from there. The
    other bounds are 64 Mi logits, and 256 Mi numbers in the caches of rows that generate.

    Args:
        suffix: tokens from i* to the end of the target prompt, which every row runs.
        new_tokens: tokens that every row generates.
    """
    cfg = model.cfg
    kv_width = 2 * (getattr(cfg, "n_key_value_heads", None) or cfg.n_heads) * cfg.d_head
    by_tokens = 1024 // suffix
    by_logits = 2**26 // cfg.d_vocab
    by_cache = 2**28 // (cfg.n_layers * kv_width * (suffix + new_tokens))
    return max(1, min(by_tokens, by_logits, by_cache))


# --- Generation, the same for both engines ------------------------------------------------------------------

# Appends the chosen tokens to the rows that go on (a mask over the rows so far) and returns their next logits.
Advance: TypeAlias = Callable[[Int[Tensor, "kept_row"], Bool[Tensor, "row"]], Float[Tensor, "kept_row d_vocab"]]


def _generate(
    logits: Float[Tensor, "row d_vocab"],
    advance: Advance,
    ends: Int[Tensor, "end_token"],
    max_new_tokens: int,
    temperature: float,
    draws: Float[Tensor, "row max_new_tokens"] | None,
) -> Int[Tensor, "row max_new_tokens"]:
    """Choose and append tokens until every row has ended or is long enough; rows that have ended drop out."""
    tokens = torch.empty(len(logits), max_new_tokens, dtype=torch.long, device=logits.device)
    going_on = torch.arange(len(logits), device=logits.device)
    for step in range(max_new_tokens):
        chosen = _choose(logits, temperature, None if draws is None else draws[going_on.cpu(), step])
        # Filling the rest of the row pads it, should this be its end-of-sequence token.
        tokens[going_on, step:] = chosen[:, None]
        kept = ~torch.isin(chosen, ends)
        going_on = going_on[kept]
        if step + 1 == max_new_tokens or len(going_on) == 0:
            break
        logits = advance(chosen[kept], kept)
    return tokens


def _choose(
    logits: Float[Tensor, "row d_vocab"], temperature: float, draws: Float[Tensor, "row"] | None
) -> Int[Tensor, "row"]:
    """The most likely token; with draws, the token at which the cumulative probability passes the row's draw."""
    if draws is None:
        return logits.argmax(dim=-1)
    cumulative = torch.softmax(logits.float() / temperature, dim=-1).cumsum(dim=-1)
    passing = draws.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, passing, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


# --- The hooks engine ---------------------------------------------------------------------------------------


def _writing_hooks(
    position: int, vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, "row"]
) -> list[tuple[str, Callable[..., Tensor]]]:
    """TransformerLens hooks that write each row's vector at (`position`, its layer) of that row's forward pass."""

    def writing(layer: int) -> Callable[..., Tensor]:
        rows = (layers == layer).nonzero()[:, 0]

        def write(residual: Float[Tensor, "row pos d_model"], hook: Any) -> Float[Tensor, "row pos d_model"]:
            residual = residual.clone()
            residual[rows, position] = vectors[rows].to(residual)
            return residual

        return write

    return [(hook_name(layer), writing(layer)) for layer in layers.unique().tolist()]


def _hooks_logits(
    target: TargetPrompt, vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, "row"]
) -> Float[Tensor, "row d_vocab"]:
    return _start_hooks(target, vectors, layers)[0]


def _start_hooks(
    target: TargetPrompt, vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, "row"]
) -> tuple[Float[Tensor, "row d_vocab"], Advance]:
    """First logits, and a way to go on that runs the whole sequence again for every token."""
    sequences = target.tokens.expand(len(vectors), -1)

    def logits() -> Float[Tensor, "row d_vocab"]:
        hooks = _writing_hooks(target.position, vectors, layers)
        return target.model.run_with_hooks(sequences, fwd_hooks=hooks)[:, -1]

    def advance(chosen: Int[Tensor, "kept_row"], kept: Bool[Tensor, "row"]) -> Float[Tensor, "kept_row d_vocab"]:
        nonlocal sequences, vectors, layers
        sequences, vectors, layers = torch.cat([sequences[kept], chosen[:, None]], dim=1), vectors[kept], layers[kept]
        return logits()

    return logits(), advance


# --- The fast engine ----------------------------------------------------------------------------------------


def _fast_logits(
    target: TargetPrompt, vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, "row"]
) -> Float[Tensor, "row d_vocab"]:
    twin = _twin(target.model)
    residual, _, order = fast.staggered_forward(twin, target.clean_run, vectors, layers)
    return fast.unembed(twin, residual[order.argsort()])


def _start_fast(
    target: TargetPrompt, vectors: Float[Tensor, "row d_model"], layers: Int[Tensor, "row"]
) -> tuple[Float[Tensor, "row d_vocab"], Advance]:
    """First logits, and a way to go on that runs one new token per row on the cache."""
    twin = _twin(target.model)
    residual, cache, order = fast.staggered_forward(twin, target.clean_run, vectors, layers)
    fast.complete_cache(target.clean_run, cache, order)

    def advance(chosen: Int[Tensor, "kept_row"], kept: Bool[Tensor, "row"]) -> Float[Tensor, "kept_row d_vocab"]:
        if not bool(kept.all()):
            cache.batch_select_indices(kept.nonzero()[:, 0])
        return fast.next_token_logits(twin, chosen, cache)

    return fast.unembed(twin, residual[order.argsort()]), advance


_twins: weakref.WeakKeyDictionary[LensModel, fast.Twin] = weakref.WeakKeyDictionary()


def _twin(model: LensModel) -> fast.Twin:
    if model not in _twins:
        _twins[model] = fast.build_twin(model)
    return _twins[model]


@torch.no_grad()
def final_logits(model: LensModel, residual: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
    """What the model does after its last block: final norm, unembedding, output scaling or capping."""
    if hasattr(model, "original_model"):
        return fast.unembed(_twin(model), residual)
    hooked: Any = model  # a HookedTransformer
    logits = hooked.unembed(hooked.ln_final(residual[:, None]))[:, 0]
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or 0.0
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


# --- Which engine -------------------------------------------------------------------------------------------


def _chosen_engine(target: TargetPrompt, engine: Engine) -> Literal["fast", "hooks"]:
    if engine in ("fast", "hooks"):
        return engine
    if engine != "auto":
        raise PatchscopesError(f"engine must be 'auto', 'fast' or 'hooks', got {engine!r}")
    if any(point.has_hooks(including_permanent=True) for point in target.model.hook_dict.values()):
        return "hooks"
    return "hooks" if fast_engine_failure(target) is not None else "fast"


@dataclass(frozen=True)
class _Verdict:
    """What a model's proof found: why its fast engine is not used, or None; and under which conditions."""

    failure: str | None
    compatibility_mode: bool


_verdicts: weakref.WeakKeyDictionary[LensModel, _Verdict] = weakref.WeakKeyDictionary()


def fast_engine_failure(target: TargetPrompt) -> str | None:
    """Why `engine="auto"` does not use the fast engine on this model, or None if it does.

    On first use for a model (and again after TransformerLens's compatibility mode was switched), a few rows run
    through both engines, at i* and at an inner position, for the first token and for one generated on the cache.
    A failure is also given as a warning, once.
    """
    model = target.model
    compatibility_mode = bool(getattr(model, "compatibility_mode", False))
    verdict = _verdicts.get(model)
    if verdict is None or verdict.compatibility_mode != compatibility_mode:
        failure = _prove(target)
        verdict = _verdicts[model] = _Verdict(failure, compatibility_mode)
        if failure is not None:
            warnings.warn(f"patching uses the slow hooks engine on this model: {failure}", stacklevel=4)
    return verdict.failure


def _prove(target: TargetPrompt) -> str | None:
    """Compare both engines on a few rows; the reason why they differ, or None."""
    model = target.model
    layers = torch.tensor([EMBEDDING, model.cfg.n_layers // 2, model.cfg.n_layers - 1], device=model.cfg.device)
    for position in {target.position, len(target.tokens) // 2}:
        trial = TargetPrompt(model, target.tokens, position)
        vectors = extract_representations(model, [target.tokens] * 3, [-1] * 3, layers.tolist())[range(3), range(3)]
        try:
            fast_logits, fast_advance = _start_fast(trial, vectors, layers)
            chosen, kept = fast_logits.argmax(dim=-1), torch.ones(3, dtype=torch.bool, device=vectors.device)
            fast_answers = [fast_logits, fast_advance(chosen, kept)]
        except torch.OutOfMemoryError:
            raise
        # An unknown family can refuse the shared cache or the recorded arguments in any of these ways.
        except (
            AttributeError,
            IndexError,
            KeyError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            return f"the fast engine cannot run it ({type(error).__name__}: {error})"
        hooks_logits, hooks_advance = _start_hooks(trial, vectors, layers)
        for fast_answer, hooks_answer in zip(fast_answers, [hooks_logits, hooks_advance(chosen, kept)], strict=True):
            difference = disagreement(fast_answer, hooks_answer, model.cfg.dtype)
            if difference is not None:
                return f"the fast engine's logits differ from those of plain hooks: {difference}"
    return None


def disagreement(
    logits: Float[Tensor, "row d_vocab"], expected: Float[Tensor, "row d_vocab"], dtype: torch.dtype
) -> str | None:
    """How two computations of the same logits, in arithmetic of type `dtype`, differ by more than rounding, or None.

    In float32 and float64 no logit may be off by 1e-3 or more, relative to the largest logit where that exceeds
    10. In 16-bit types rounding alone moves single logits by several units of their last place, so the error is
    compared as a whole: its root mean square may reach 5 % of the logits' standard deviation.
    """
    logits, expected = logits.double(), expected.double()
    if not bool(torch.isfinite(logits).all()):
        return "some are not finite"
    error = logits - expected
    if torch.finfo(dtype).bits >= 32:
        largest, allowed = error.abs().max().item(), 1e-3 * max(1.0, expected.abs().max().item() / 10)
        return None if largest < allowed else f"the largest difference is {largest:.2g}, {allowed:.2g} is allowed"
    ratio = (error.square().mean().sqrt() / expected.std()).item()
    return None if ratio < 0.05 else f"their error is {ratio:.1%} of the logits' spread, 5% is allowed"
