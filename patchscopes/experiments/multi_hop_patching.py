"""What is patched in two-hop questions, by which method, and what the model says then."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchscopes.data.files import PLACE
from patchscopes.data.questions import TwoHopQuestion, contains_answer
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.chunks import StopWatch
from patchscopes.experiments.config import MultiHopConfig
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import Row, Write, generate_rows
from patchscopes.positions import find_characters
from patchscopes.prompts import NO_CHAT, Chat, ChatForm
from patchscopes.results import Json
from patchscopes.tokens import to_token_ids, write_out

PLACEHOLDER = "x"
# Continuations that are kept of each question and method.
N_SHOWN = 3

# S and i, and T with i*.
Patching: TypeAlias = tuple[Int[Tensor, " pos"], int, TargetPrompt]


def patch_questions(
    model: LensModel,
    questions: Sequence[TwoHopQuestion],
    unrelated: Sequence[TwoHopQuestion | None],
    layers: Sequence[int],
    target_layers: Sequence[int],
    config: MultiHopConfig,
) -> Json:
    """What each patching method finds for some questions, over all pairs (ℓ, ℓ*), and the seconds that this took.

    All methods of all questions go on together: that takes the least time where their prompts have the same length.

    Args:
        unrelated: for each question the one whose representations the control writes; None to leave the control out.
    """
    watch = StopWatch()
    pairs_of = {method: choose_pairs(method, layers, target_layers) for method in MultiHopConfig.PATCHED}
    patched = [
        (number, method)
        for number, other in enumerate(unrelated)
        for method, pairs in pairs_of.items()
        if method in config.methods and pairs and not (method == "control" and other is None)
    ]
    with watch.time("states"):
        patchings = [
            build_patching(model, method, questions[number], unrelated[number] or questions[number], config.chat)
            for number, method in patched
        ]
        states = extract_representations(
            model, [source for source, _, _ in patchings], [position for _, position, _ in patchings], layers
        )
    with watch.time("patched"):
        # Rows of one T and i* share its unpatched run.
        targets: dict[tuple[int, ...], TargetPrompt] = {}
        rows, asked = [], []
        for (number, method), (_, _, target), of_source in zip(patched, patchings, states, strict=True):
            target = targets.setdefault((target.position, *target.tokens.tolist()), target)
            rows += build_rows(target, dict(zip(layers, of_source, strict=True)), pairs_of[method])
            asked += [questions[number]] * len(pairs_of[method])
        continuations = iter(generate_until_answered(rows, asked, config))
    found: list[Json] = [{"methods": {}, "control_id": other and other.id} for other in unrelated]
    for number, method in patched:
        said = [next(continuations) for _ in pairs_of[method]]
        found[number]["methods"][method] = _find_solved(pairs_of[method], said, questions[number])
    return {"questions": found, "seconds": watch.seconds}


def choose_pairs(method: str, layers: Sequence[int], target_layers: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs (ℓ, ℓ*) that a method patches: all, or for `back_patch` those that go back."""
    grid = [(layer, target_layer) for layer in layers for target_layer in target_layers]
    return [pair for pair in grid if pair[0] > pair[1]] if method == "back_patch" else grid


def build_patching(
    model: LensModel,
    method: str,
    question: TwoHopQuestion,
    unrelated: TwoHopQuestion,
    chat: ChatForm = NO_CHAT,
) -> Patching:
    """S and i, and T with i*, of one patching method.

    Args:
        unrelated: whose representations the control writes.
        chat: in which form the model reads S and T.

    Raises:
        PatchscopesError: the placeholder is no token of its own, or no token ends where π1 or π2 ends.
    """
    query = to_token_ids(model, chat.of_target(question.query))
    end_of_pi1, end_of_pi2 = find_patch_positions(model, question, chat)
    if method == "patchscope":
        return query, end_of_pi1, TargetPrompt(model, query, end_of_pi2)
    if method == "control":
        end_of_unrelated, _ = find_patch_positions(model, unrelated, chat)
        source = to_token_ids(model, chat.of_source(unrelated.query))
        return source, end_of_unrelated, TargetPrompt(model, query, end_of_pi2)
    if method == "back_patch":
        return query, end_of_pi1, TargetPrompt(model, query, end_of_pi1)
    hop1 = chat.of_source(question.hop1_prompt)
    (end_of_hop1,) = find_last_tokens(model, hop1, len(question.hop1_prompt) - len(question.cue))
    # Its place in the prompt, where π2 has an x of its own behind it.
    occurrence = question.pi2.partition(PLACE)[0].count(PLACEHOLDER)
    prompt = chat.of_target(question.ask_hop2(PLACEHOLDER))
    target = placeholder_target(model, prompt, PLACEHOLDER, occurrence=occurrence)
    return to_token_ids(model, hop1), end_of_hop1, target


def find_patch_positions(model: LensModel, question: TwoHopQuestion, chat: ChatForm = NO_CHAT) -> tuple[int, int]:
    """The last token of π1 and the last token of π2, in the tokens of the query.

    Raises:
        PatchscopesError: the model has one token for the end of π1 or π2 and what follows.
    """
    query = chat.of_target(question.query)
    end_of_pi1, end_of_pi2 = find_last_tokens(model, query, question.pi1_end, question.pi2_end)
    return end_of_pi1, end_of_pi2


def find_last_tokens(model: LensModel, text: str | Chat, *ends: int) -> list[int]:
    """For each of some numbers of characters, the last token of the text (of a chat: its prompt) up to there."""
    characters, spans = find_characters(model, text)
    positions = []
    for end in ends:
        # Special tokens stand for no characters.
        position = max(number for number, (start, stop) in enumerate(spans) if start < min(end, stop))
        if characters[end : spans[position][1]].strip():
            raise PatchscopesError(
                f"{model.cfg.model_name!r} has one token for the end of {characters[:end]!r} and what follows in "
                f"{characters!r}; write the question so that a word ends there"
            )
        positions.append(position)
    return positions


def find_obstacle(
    model: LensModel, question: TwoHopQuestion, methods: Sequence[str], chat: ChatForm = NO_CHAT
) -> str | None:
    """Why a question cannot be patched with this model by all of these methods; None if it can.

    Raises:
        PatchscopesError: the model has no chat template, and one is asked for.
    """
    # What no question can be blamed for.
    write_out(model, chat.of_target(question.query))
    try:
        find_patch_positions(model, question, chat)
        if "placeholder" in methods:
            build_patching(model, "placeholder", question, question, chat)
    except PatchscopesError as error:
        return str(error)
    return None


def can_be_patched(model: LensModel, question: TwoHopQuestion) -> bool:
    """Whether a question can be patched with this model by every method."""
    return find_obstacle(model, question, MultiHopConfig.PATCHED) is None


def build_rows(
    target: TargetPrompt, states: Mapping[int, Float[Tensor, " d_model"]], pairs: Sequence[tuple[int, int]]
) -> list[Row]:
    """A row for each pair (ℓ, ℓ*), given the representation at each ℓ."""
    return [
        Row(target=target, writes=(Write(position=target.position, layer=target_layer, vector=states[layer]),))
        for layer, target_layer in pairs
    ]


def generate_until_answered(rows: Sequence[Row], asked: Sequence[TwoHopQuestion], config: MultiHopConfig) -> list[str]:
    """What the model says for each row; a row that has answered what it was asked says no more."""
    if not rows:
        return []
    tokenizer = rows[0].target.model.tokenizer
    questions = list(dict.fromkeys(asked))
    numbers = {question: number for number, question in enumerate(questions)}
    question_of_row = torch.tensor([numbers[question] for question in asked])

    def has_answered(tokens: Int[Tensor, "row new_token"], rows: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
        # On the CPU, and each continuation once: rows of one question say few different things.
        said = torch.cat([question_of_row[rows.cpu()][:, None], tokens.cpu()], dim=1)
        different, which = said.unique(dim=0, return_inverse=True)
        continuations = tokenizer.batch_decode(different[:, 1:], skip_special_tokens=True)
        answered = [
            contains_answer(continuation, questions[number].accepted, closed=True)
            for number, continuation in zip(different[:, 0].tolist(), continuations, strict=True)
        ]
        return torch.tensor(answered)[which].to(tokens.device)

    tokens = generate_rows(rows, max_new_tokens=config.max_new_tokens, stop=has_answered, batch_size=config.batch_size)
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


def _find_solved(pairs: Sequence[tuple[int, int]], continuations: Sequence[str], question: TwoHopQuestion) -> Json:
    """Which pairs solve the question, and some of what was said then (or else)."""
    is_right = [contains_answer(continuation, question.accepted) for continuation in continuations]
    solved = [list(pair) for pair, right in zip(pairs, is_right, strict=True) if right]
    said = zip(pairs, continuations, is_right, strict=True)
    shown = [(pair, continuation) for pair, continuation, right in said if right or not solved]
    return {
        "solved": solved,
        "n_pairs": len(pairs),
        "texts": [
            {"layer": layer, "target_layer": target_layer, "text": continuation}
            for (layer, target_layer), continuation in shown[:N_SHOWN]
        ],
    }
