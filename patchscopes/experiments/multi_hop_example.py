"""One two-hop question over layers: as it is, after a chain of thought, patched, and with another question's state.

π1 is the source prompt that the reader points into: the state of any of its tokens is written, at each pair (ℓ, ℓ*)

* `patchscope`: over the last token of π2 in the query [π2][π1], as the paper does with the last token of π1;
* `control`: there too, but the state is that of the last token of another question's π1;
* `placeholder`: π1 is read alone, and its state is written over the x of "[π2] x is".

How near a model is to the answer is the probability of the answer's first token at its likeliest place within what the
model says: before "yen" it may say "the Japanese", so the very first place tells little.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.data.questions import TwoHopQuestion, contains_answer
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.chunks import Progress, split_into_chunks
from patchscopes.experiments.config import MultiHopExampleConfig
from patchscopes.experiments.multi_hop import PROMPTS
from patchscopes.experiments.multi_hop_patching import (
    PLACEHOLDER,
    Patching,
    build_patching,
    find_last_tokens,
    find_patch_positions,
)
from patchscopes.model.layers import EMBEDDING, resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import patch_logits, patch_logits_ahead_in_batches
from patchscopes.positions import find_first_tokens, find_token_spans
from patchscopes.prompts import ChatForm
from patchscopes.results import Json
from patchscopes.tokens import Text, decode_each_token, get_end_tokens, resolve_position, to_token_ids

# Of one method, that go on together.
ROWS_AT_A_TIME = 32


class Answering(NamedTuple):
    """What is said, whether that answers the question, and how likely the answer's first token gets within it."""

    text: str
    solved: int
    probability: float


def run(
    model: LensModel,
    question: TwoHopQuestion,
    control: TwoHopQuestion,
    config: MultiHopExampleConfig,
    *,
    source_position: int = -1,
    unpatched: Json | None = None,
    progress: Progress = iter,
) -> Json:
    """The `results` of the result file, with tables [ℓ][ℓ*] for each patching method.

    Args:
        control: the question whose π1 the control reads.
        source_position: i, in the tokens of π1 read alone, counted from either end.
        unpatched: what `ask_unpatched` has said already; it depends neither on layers nor on i.
        progress: wraps the iteration over target layers, `tqdm` for instance.

    Raises:
        PatchscopesError: the question has no answer, or it cannot be patched there; a layer does not exist.
    """
    layers, target_layers = resolve_layers(model, config.layers), resolve_targets(model, config)
    patchings = build_patchings(model, question, control, source_position, config.chat)
    alone = ask_unpatched(model, question, config) if unpatched is None else unpatched
    sources, positions, _ = zip(*patchings.values(), strict=True)
    read = extract_representations(model, list(sources), list(positions), layers)
    states = dict(zip(patchings, read, strict=True))
    tables: Json = {method: {field: [] for field in Answering._fields} for method in patchings}
    # Many rows at a time take little more than few; the control's are written into the same T as the Patchscope's.
    sides = (("patchscope", "control"), ("placeholder",))
    chunks = split_into_chunks(target_layers, max(1, ROWS_AT_A_TIME // len(layers)))
    for side, some in progress([(side, some) for some in chunks for side in sides]):
        vectors = torch.cat([states[method] for method in side for _ in some])
        at = [target_layer for _ in side for target_layer in some for _ in layers]
        target = patchings[side[0]][2]
        said = iter(answer(target, vectors, at, question, config.max_new_tokens, config.batch_size))
        for method in side:
            for _ in some:
                column = [next(said) for _ in layers]
                for field, values in zip(Answering._fields, zip(*column, strict=True), strict=True):
                    tables[method][field].append(values)
    source, position, _ = patchings["placeholder"]
    query, query_position, target = patchings["patchscope"]
    return {
        "layers": layers,
        "target_layers": target_layers,
        "n_samples": 1,
        "source_tokens": decode_each_token(model, source),
        "source_position": position,
        "query_tokens": decode_each_token(model, query),
        "query_source_position": query_position,
        "query_target_position": target.position,
        "placeholder_position": patchings["placeholder"][2].position,
        "control_query": control.query[: control.pi1_end],
        "first_tokens": decode_each_token(model, find_first_tokens(model, question.accepted)),
        "methods": alone | {method: _by_source_layer(of_method) for method, of_method in tables.items()},
    }


def resolve_targets(model: LensModel, config: MultiHopExampleConfig) -> list[int]:
    """The target layers of the configuration.

    Raises:
        PatchscopesError: a layer does not exist.
    """
    if config.target_layers is not None:
        return resolve_layers(model, config.target_layers)
    return [round(config.DEPTH * (model.cfg.n_layers - 1))]


def build_patchings(
    model: LensModel, question: TwoHopQuestion, control: TwoHopQuestion, source_position: int, chat: ChatForm
) -> dict[str, Patching]:
    """S and i, and T with i*, of each patching method.

    Raises:
        PatchscopesError: the token stands for no part of π1, or is no token of its own in the query; or as
            `build_patching`.
    """
    source: Text = chat.of_source(question.pi1)
    tokens = to_token_ids(model, source)
    position = resolve_position(len(tokens), source_position)
    start, end = find_token_spans(model, source)[position]
    if start == end:
        raise PatchscopesError(
            f"token {position} of {question.pi1!r} ({decode_each_token(model, tokens)[position]!r}) stands for no part "
            "of it; choose a token of one of its words"
        )
    query = chat.of_target(question.query)
    (query_position,) = find_last_tokens(model, query, question.pi1_end - len(question.pi1) + end)
    _, end_of_pi2 = find_patch_positions(model, question, chat)
    ids = to_token_ids(model, query)
    return {
        "patchscope": (ids, query_position, TargetPrompt(model, ids, end_of_pi2)),
        "control": build_patching(model, "control", question, control, chat),
        "placeholder": (tokens, position, build_patching(model, "placeholder", question, question, chat)[2]),
    }


def ask_unpatched(model: LensModel, question: TwoHopQuestion, config: MultiHopExampleConfig) -> Json:
    """What is said with nothing patched: to the question, after a chain of thought, and of the placeholder itself.

    Each is also measured as a Patchscope with T = S, i* = i (the last token) and ℓ* = ℓ, which writes every state over
    itself: `largest_difference` is how far the probability of the answer's first token is then from the unpatched one.

    Raises:
        PatchscopesError: the question has no answer.
    """
    prompts = {method: PROMPTS[method](question) for method in ("vanilla", "cot")}
    prompts["unpatched"] = question.ask_hop2(PLACEHOLDER)
    said: Json = {}
    for method, prompt in prompts.items():
        target = TargetPrompt(model, config.chat.of_target(prompt), -1)
        # An embedding that is written over itself changes nothing.
        own = extract_representations(model, [target.tokens], [-1], [EMBEDDING])[0]
        n_tokens = config.cot_new_tokens if method == "cot" else config.max_new_tokens
        (answering,) = answer(target, own, [EMBEDDING], question, n_tokens, config.batch_size)
        difference = measure_difference(target, question, config.batch_size)
        said[method] = {"prompt": prompt} | answering._asdict() | {"largest_difference": difference}
    return said


def answer(
    target: TargetPrompt,
    vectors: Float[Tensor, "row d_model"],
    layers: Sequence[int],
    question: TwoHopQuestion,
    n_tokens: int,
    batch_size: int | None = None,
) -> list[Answering]:
    """What is said with each vector written at (i*, its layer), within so many tokens.

    Raises:
        PatchscopesError: the question has no answer.
    """
    if not question.hop2_answer.strip():
        raise PatchscopesError(
            f"{question.combined_question!r} has no answer to measure the probability of; give it in a word or two"
        )
    model = target.model
    first, ends = find_first_tokens(model, question.accepted), get_end_tokens(model)
    said: list[Answering] = []
    for logits in patch_logits_ahead_in_batches(target, vectors, layers, n_tokens, batch_size=batch_size):
        tokens: Int[Tensor, "batch new_token"] = logits.argmax(dim=-1)
        has_ended = torch.isin(tokens, ends).cumsum(dim=1) > 0
        # The place of the end-of-sequence token itself is the last one where the answer may begin.
        is_behind = has_ended.roll(1, dims=1)
        is_behind[:, 0] = False
        likely = torch.softmax(logits.float(), dim=-1)[..., first].sum(dim=-1).masked_fill(is_behind, 0)
        for of_row, behind, probability in zip(tokens, has_ended, likely.amax(dim=1).tolist(), strict=True):
            text = model.tokenizer.decode(of_row[~behind], skip_special_tokens=True)
            said.append(Answering(text, int(contains_answer(text, question.accepted)), probability))
    return said


def measure_difference(target: TargetPrompt, question: TwoHopQuestion, batch_size: int | None) -> float:
    """By how much the probability of the answer's first token changes at most when the state at i* is written over
    itself, at any layer."""
    model = target.model
    layers, first = range(model.cfg.n_layers), find_first_tokens(model, question.accepted)
    states = extract_representations(model, [target.tokens], [target.position], layers)[0]
    patched = patch_logits(target, states, layers, batch_size=batch_size)
    likely = torch.softmax(torch.cat([patched, logit_lens(model, states[-1:])]).float(), dim=-1)[:, first].sum(dim=-1)
    return float((likely[:-1] - likely[-1]).abs().max())


def _by_source_layer(tables: Json) -> Json:
    """Tables [ℓ*][ℓ] as tables [ℓ][ℓ*]."""
    return {field: [list(row) for row in zip(*columns, strict=True)] for field, columns in tables.items()}
