"""Multi-hop reasoning (paper, section 5): a question of two hops that fails alone, repaired by patching.

The query is [π2][π1], "The official currency of" + "the country whose capital is Tokyo", and a word that asks for the
answer, " is". Only questions are counted whose hops the model answers one by one. The methods:

* `vanilla`: the query as it is;
* `cot`: the query after "Let's think step by step." (Kojima et al. 2022), with room for more tokens;
* `patchscope`: the paper's. Source = target = the query; the representation of the last token of π1 at layer ℓ is
  written over the last token of π2 at layer ℓ*;
* `control`: the same with the representation of another question's π1, about something else and often of another kind.
  With as many tries as there are pairs (ℓ, ℓ*), some answer is found whatever is written: this is how often;
* `placeholder`: the representation of the last token of π1, read alone, is written over the x of "[π2] x is", the form
  of an earlier reproduction;
* `back_patch`: a later layer's representation of the last token of π1 is written back into an earlier layer at the
  same token, with no second prompt (Biran et al. 2024).

Three measures: `any`, a question counts as solved if any pair (ℓ, ℓ*) solves it (the paper's measure; `any_upwards`
takes the pairs with ℓ < ℓ* alone); `held_out`, the one pair that solves most of one half of the questions is scored on
the other half, both ways; and both measures for the control.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchscopes.errors import PatchscopesError
from patchscopes.experiments.sampling import measure_chunks, summed_timing
from patchscopes.extract import extract_representations
from patchscopes.layers import check_layer, spread_layers
from patchscopes.lens_model import LensModel
from patchscopes.metrics import mean_with_interval
from patchscopes.patch import generate_after, patch_generate
from patchscopes.positions import find_substring_token_position
from patchscopes.prompts import placeholder_target
from patchscopes.questions import TwoHopQuestion, answers, patch_positions
from patchscopes.results import ChunkStore, Json
from patchscopes.target import TargetPrompt
from patchscopes.tokens import to_token_ids

UNPATCHED = ("vanilla", "cot")
PATCHED = ("patchscope", "control", "placeholder", "back_patch")
METHODS = (*UNPATCHED, *PATCHED)
CHAIN_OF_THOUGHT = "Let's think step by step. "
PLACEHOLDER = "x"
# Layers on each side of the grid unless told: all of them take the square of the time.
N_LAYERS = 8
# Questions whose unpatched answers are finished together; patched ones are finished one by one.
CHUNK_QUESTIONS = 64
# Texts that are kept of each question and method.
N_TEXTS = 3

# S and i, and T with i*.
Patching: TypeAlias = tuple[Int[Tensor, " pos"], int, TargetPrompt]


@dataclass(frozen=True, kw_only=True)
class MultiHopConfig:
    """Options of the experiment.

    Attributes:
        layers: source layers ℓ; None for `N_LAYERS` of them at equal distances.
        target_layers: ℓ*; None for the same as `layers`.
        n_samples: questions to patch, drawn from those whose hops the model answers one by one.
        max_new_tokens: of an answer.
        cot_new_tokens: of a chain of thought with its answer.
        batch_size: rows at a time; None to choose by size.
    """

    methods: tuple[str, ...] = METHODS
    layers: tuple[int, ...] | None = None
    target_layers: tuple[int, ...] | None = None
    n_samples: int = 100
    max_new_tokens: int = 8
    cot_new_tokens: int = 32
    seed: int = 0
    batch_size: int | None = None


def run(
    model: LensModel,
    questions: Sequence[TwoHopQuestion],
    config: MultiHopConfig,
    store: ChunkStore,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> tuple[Json, Json]:
    """Run the experiment, going on from the chunks in `store`: each question is one.

    Args:
        progress: wraps the iteration over chunks, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file.

    Raises:
        PatchscopesError: a method or layer does not exist, or the model answers both hops of no question.
    """
    unknown = [method for method in config.methods if method not in METHODS]
    if unknown:
        raise PatchscopesError(f"no method is called {unknown[0]!r}; choose from {', '.join(METHODS)}")
    layers, target_layers = layers_in_use(model, config)
    n_given = len(questions)
    questions = [question for question in questions if _can_be_patched(model, question)]

    def ask(asked: Sequence[TwoHopQuestion], names: Sequence[str], folder: str) -> tuple[list[Json], list[Json]]:
        chunks = [asked[start : start + CHUNK_QUESTIONS] for start in range(0, len(asked), CHUNK_QUESTIONS)]
        finished = measure_chunks(
            chunks,
            ChunkStore(store.folder / folder),
            lambda chunk: _unpatched(model, chunk, names, config),
            progress,
        )
        return finished, [one for chunk in finished for one in chunk["questions"]]

    asked_hops, hops = ask(questions, ("hop1", "hop2"), "hops")
    passed = [number for number, one in enumerate(hops) if one["hop1"]["solved"] and one["hop2"]["solved"]]
    if not passed:
        raise PatchscopesError(
            f"{model.cfg.model_name!r} answers both hops of none of the {n_given} questions one by one: nothing "
            "can be said about their composition; give easier questions or a larger model"
        )
    drawn = sorted(np.random.default_rng(config.seed).permutation(passed)[: config.n_samples].tolist())
    chosen = [questions[number] for number in drawn]
    # Every measure is set against the vanilla answer.
    names = ["vanilla", *(["cot"] if "cot" in config.methods else [])]
    asked_whole, unpatched = ask(chosen, names, "unpatched")

    def patch(number: int) -> Json:
        question = questions[number]
        other = unrelated(question, questions, config.seed)
        return patched(model, question, other, layers, target_layers, config) | {"control_id": other and other.id}

    finished = measure_chunks(drawn, ChunkStore(store.folder / "patched"), patch, progress)
    answered = [
        hops[number] | one | chunk["methods"] | {"control_id": chunk["control_id"]}
        for number, one, chunk in zip(drawn, unpatched, finished, strict=True)
    ]
    results = {
        "layers": layers,
        "target_layers": target_layers,
        "n_questions": n_given,
        "n_unpatchable": n_given - len(questions),
        "n_passed": len(passed),
        "n_samples": len(drawn),
        "hops_alone": _hops_alone(questions, hops),
        "methods": summary(chosen, answered, layers, target_layers, config),
        "questions": [asdict(question) | one for question, one in zip(chosen, answered, strict=True)],
    }
    return results, summed_timing([*asked_hops, *asked_whole, *finished])


def _can_be_patched(model: LensModel, question: TwoHopQuestion) -> bool:
    """Whether a token ends where π2 ends."""
    try:
        patch_positions(model, question)
    except PatchscopesError:
        return False
    return True


def layers_in_use(model: LensModel, config: MultiHopConfig) -> tuple[list[int], list[int]]:
    """The source and target layers of the configuration.

    Raises:
        PatchscopesError: a layer does not exist.
    """
    layers = spread_layers(model, N_LAYERS) if config.layers is None else list(config.layers)
    target_layers = layers if config.target_layers is None else list(config.target_layers)
    for layer in [*layers, *target_layers]:
        check_layer(model, layer)
    return layers, target_layers


# --- Answers ---------------------------------------------------------------------------------------------------


def _unpatched(
    model: LensModel, questions: Sequence[TwoHopQuestion], names: Sequence[str], config: MultiHopConfig
) -> Json:
    """What the model says to some of `hop1`, `hop2`, `vanilla` and `cot` of some questions."""
    started = time.perf_counter()
    prompts: dict[str, Callable[[TwoHopQuestion], str]] = {
        "hop1": lambda one: one.hop1_prompt,
        "hop2": lambda one: one.hop2_prompt,
        "vanilla": lambda one: one.combined_question,
        "cot": lambda one: CHAIN_OF_THOUGHT + one.combined_question,
    }
    said: list[Json] = [{} for _ in questions]
    for name in names:
        tokens = generate_after(
            model,
            [prompts[name](one) for one in questions],
            max_new_tokens=config.cot_new_tokens if name == "cot" else config.max_new_tokens,
            batch_size=config.batch_size,
        )
        texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        for one, text, question in zip(said, texts, questions, strict=True):
            accepted = question.accepted_hop1 if name == "hop1" else question.accepted
            one[name] = {"text": text, "solved": int(answers(text, accepted))}
    return {"questions": said, "seconds": {" and ".join(names): time.perf_counter() - started}}


def unrelated(question: TwoHopQuestion, questions: Sequence[TwoHopQuestion], seed: int) -> TwoHopQuestion | None:
    """A question about something else, drawn at random, of another category if there is one; None if there is none.

    Neither its words nor its answers hold an accepted answer of `question`, and its first hop has another answer.
    """
    unlike = [
        other
        for other in questions
        if not answers(other.hop1_answer, question.accepted_hop1)
        and not answers("; ".join((other.combined_question, *other.accepted_hop1, *other.accepted)), question.accepted)
    ]
    candidates = [other for other in unlike if other.category != question.category] or unlike
    return candidates[np.random.default_rng([seed, question.id]).integers(len(candidates))] if candidates else None


def patched(
    model: LensModel,
    question: TwoHopQuestion,
    other: TwoHopQuestion | None,
    layers: Sequence[int],
    target_layers: Sequence[int],
    config: MultiHopConfig,
) -> Json:
    """What each patching method finds for one question, over all pairs (ℓ, ℓ*), and the seconds that each took.

    Args:
        other: whose representations the control writes; None to leave the control out.
    """
    methods: Json = {}
    seconds: dict[str, float] = {}
    grid = [(layer, target_layer) for layer in layers for target_layer in target_layers]
    for method in PATCHED:
        if method in config.methods and (other is not None or method != "control"):
            source, position, target = patching(model, method, question, other or question)
            pairs = [pair for pair in grid if method != "back_patch" or pair[0] > pair[1]]
            if not pairs:
                continue
            started = time.perf_counter()
            states = extract_representations(model, [source], [position], layers)[0]
            texts = said_when_patched(model, target, states, layers, pairs, question, config)
            methods[method] = _solved(pairs, texts, question)
            seconds[method] = time.perf_counter() - started
    return {"methods": methods, "seconds": seconds}


def patching(model: LensModel, method: str, question: TwoHopQuestion, other: TwoHopQuestion) -> Patching:
    """S and i, and T with i*, of one patching method.

    Args:
        other: whose representations the control writes.

    Raises:
        PatchscopesError: the placeholder is no token of its own.
    """
    query = to_token_ids(model, question.combined_question)
    end_of_pi1, end_of_pi2 = patch_positions(model, question)
    if method == "patchscope":
        return query, end_of_pi1, TargetPrompt(model, query, end_of_pi2)
    if method == "control":
        end_of_other = patch_positions(model, other)[0]
        return to_token_ids(model, other.combined_question), end_of_other, TargetPrompt(model, query, end_of_pi2)
    if method == "back_patch":
        return query, end_of_pi1, TargetPrompt(model, query, end_of_pi1)
    hop1 = question.hop1_prompt
    end_of_hop1 = find_substring_token_position(model, hop1, hop1.removesuffix(question.cue))
    prompt = f"{question.hop2_prompt_prefix} {PLACEHOLDER}{question.cue}"
    return to_token_ids(model, hop1), end_of_hop1, placeholder_target(model, prompt, PLACEHOLDER)


def said_when_patched(
    model: LensModel,
    target: TargetPrompt,
    states: Float[Tensor, "layer d_model"],
    layers: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    question: TwoHopQuestion,
    config: MultiHopConfig,
) -> list[str]:
    """What the model says for each pair (ℓ, ℓ*); a row that has answered says no more."""

    def answered(tokens: Int[Tensor, "row new_token"]) -> Bool[Tensor, " row"]:
        # On the CPU, and each text once: rows say few different things.
        different, which = tokens.cpu().unique(dim=0, return_inverse=True)
        texts = model.tokenizer.batch_decode(different, skip_special_tokens=True)
        answer = torch.tensor([answers(text, question.accepted, closed=True) for text in texts])
        return answer[which].to(tokens.device)

    slots = {layer: slot for slot, layer in enumerate(layers)}
    tokens = patch_generate(
        target,
        states[[slots[layer] for layer, _ in pairs]],
        [target_layer for _, target_layer in pairs],
        max_new_tokens=config.max_new_tokens,
        stop=answered,
        batch_size=config.batch_size,
    )
    return model.tokenizer.batch_decode(tokens, skip_special_tokens=True)


def _solved(pairs: Sequence[tuple[int, int]], texts: Sequence[str], question: TwoHopQuestion) -> Json:
    """Which pairs solve the question, and some of what was said then (or else)."""
    right = [answers(text, question.accepted) for text in texts]
    solved = [list(pair) for pair, is_right in zip(pairs, right, strict=True) if is_right]
    shown = [(pair, text) for pair, text, is_right in zip(pairs, texts, right, strict=True) if is_right or not solved]
    return {
        "solved": solved,
        "n_pairs": len(pairs),
        "texts": [{"layer": pair[0], "target_layer": pair[1], "text": text} for pair, text in shown[:N_TEXTS]],
    }


# --- Measures --------------------------------------------------------------------------------------------------


def _hops_alone(questions: Sequence[TwoHopQuestion], hops: Sequence[Json]) -> Json:
    """For each category: how many questions there are, and of how many the model answers each hop alone, and both."""
    counts: dict[str, dict[str, int]] = {}
    for question, one in zip(questions, hops, strict=True):
        solved = one["hop1"]["solved"], one["hop2"]["solved"]
        count = counts.setdefault(question.category, {"n_questions": 0, "hop1": 0, "hop2": 0, "both": 0})
        for name, value in zip(count, (1, *solved, min(solved)), strict=True):
            count[name] += value
    return counts


def summary(
    questions: Sequence[TwoHopQuestion],
    answered: Sequence[Json],
    layers: Sequence[int],
    target_layers: Sequence[int],
    config: MultiHopConfig,
) -> Json:
    """All measures of all methods, with intervals over questions; those about the same thing are resampled together.

    The intervals of `held_out` take the chosen pairs as given. A patching method that could not be tried on every
    question is left out.
    """
    bridges = sorted({question.hop1_answer for question in questions})
    groups = np.array([bridges.index(question.hop1_answer) for question in questions])

    def interval(values: Float[np.ndarray, " question"]) -> Json:
        return mean_with_interval(values, groups=groups, seed=config.seed).as_json()

    of_methods: Json = {}
    values: dict[str, dict[str, Any]] = {}
    vanilla = np.array([one["vanilla"]["solved"] for one in answered], dtype=float)
    for method in UNPATCHED:
        if method in config.methods:
            solved = np.array([one[method]["solved"] for one in answered], dtype=float)
            of_methods[method] = {"accuracy": interval(solved)}
    for method in PATCHED:
        if not all(method in one for one in answered):
            continue
        table = solved_table([one[method]["solved"] for one in answered], layers, target_layers)
        upwards = np.array([[layer < target_layer for target_layer in target_layers] for layer in layers])
        held_out, pairs = held_out_accuracy(table, groups, config.seed)
        values[method] = {"any": table.any(axis=(1, 2)).astype(float), "held_out": held_out}
        if method != "back_patch":
            values[method]["any_upwards"] = (table & upwards).any(axis=(1, 2)).astype(float)
        of_methods[method] = {measure: interval(of) for measure, of in values[method].items()} | {
            "held_out_pairs": [(layers[row], target_layers[column]) for row, column in pairs],
            "held_out_gain": interval(held_out - vanilla),
            "accuracy": mean_with_interval(table.astype(float), groups=groups, seed=config.seed).as_json(),
        }
    if "patchscope" in values and "control" in values:
        for measure in ("any", "any_upwards", "held_out"):
            difference = values["patchscope"][measure] - values["control"][measure]
            of_methods["patchscope"][f"{measure}_above_control"] = interval(difference)
    failed = vanilla == 0
    for method, of in values.items():
        of_methods[method]["n_failed"] = int(failed.sum())
        of_methods[method]["n_repaired"] = int(of["any"][failed].sum())
    return of_methods


def solved_table(
    solved: Sequence[Sequence[Sequence[int]]], layers: Sequence[int], target_layers: Sequence[int]
) -> Bool[np.ndarray, "question layer target_layer"]:
    """Whether each pair (ℓ, ℓ*) solves each question, from the pairs that do."""
    table = np.zeros((len(solved), len(layers), len(target_layers)), dtype=bool)
    for number, pairs in enumerate(solved):
        for layer, target_layer in pairs:
            table[number, layers.index(layer), target_layers.index(target_layer)] = True
    return table


def held_out_accuracy(
    table: Bool[np.ndarray, "question layer target_layer"], groups: Int[np.ndarray, " question"], seed: int
) -> tuple[Float[np.ndarray, " question"], list[tuple[int, int]]]:
    """Whether each question is solved by the pair that solves most of the other half, and the pairs of both halves.

    The halves are drawn at random, once; questions of one group (about the same thing) are in the same half. Of pairs
    that solve equally many, the first counts.
    """
    order = np.random.default_rng(seed).permutation(np.unique(groups))
    in_first = np.isin(groups, order[: len(order) // 2])
    scores = np.zeros(len(table))
    pairs = []
    for chosen_on, scored_on in ((in_first, ~in_first), (~in_first, in_first)):
        best = int(table[chosen_on].sum(axis=0).argmax())
        row, column = divmod(best, table.shape[2])
        scores[scored_on] = table[scored_on, row, column]
        pairs.append((row, column))
    return scores, pairs
