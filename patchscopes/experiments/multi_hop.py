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
from dataclasses import asdict
from typing import Any

import numpy as np

from patchscopes.data.questions import TwoHopQuestion, contains_answer
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import MultiHopConfig
from patchscopes.experiments.multi_hop_measures import count_hops_alone, summarise_methods
from patchscopes.experiments.multi_hop_patching import build_patching, can_be_patched, generate_patched
from patchscopes.experiments.sampling import measure_chunks, sum_timing
from patchscopes.model.layers import check_layer, spread_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.results import ChunkStore, Json

CHAIN_OF_THOUGHT = "Let's think step by step. "
# Questions whose unpatched answers are finished together; patched ones are finished one by one.
CHUNK_QUESTIONS = 64
# Texts that are kept of each question and method.
N_TEXTS = 3


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
    unknown = [method for method in config.methods if method not in MultiHopConfig.METHODS]
    if unknown:
        raise PatchscopesError(f"no method is called {unknown[0]!r}; choose from {', '.join(MultiHopConfig.METHODS)}")
    layers, target_layers = resolve_layer_grid(model, config)
    n_given = len(questions)
    questions = [question for question in questions if can_be_patched(model, question)]

    def ask(asked: Sequence[TwoHopQuestion], names: Sequence[str], folder: str) -> tuple[list[Json], list[Json]]:
        chunks = [asked[start : start + CHUNK_QUESTIONS] for start in range(0, len(asked), CHUNK_QUESTIONS)]
        finished = measure_chunks(
            chunks,
            ChunkStore(store.folder / folder),
            lambda chunk: _ask_unpatched(model, chunk, names, config),
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
        other = draw_unrelated(question, questions, config.seed)
        return patch_question(model, question, other, layers, target_layers, config) | {
            "control_id": other and other.id
        }

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
        "hops_alone": count_hops_alone(questions, hops),
        "methods": summarise_methods(chosen, answered, layers, target_layers, config),
        "questions": [asdict(question) | one for question, one in zip(chosen, answered, strict=True)],
    }
    return results, sum_timing([*asked_hops, *asked_whole, *finished])


def resolve_layer_grid(model: LensModel, config: MultiHopConfig) -> tuple[list[int], list[int]]:
    """The source and target layers of the configuration.

    Raises:
        PatchscopesError: a layer does not exist.
    """
    layers = spread_layers(model, MultiHopConfig.N_LAYERS) if config.layers is None else list(config.layers)
    target_layers = layers if config.target_layers is None else list(config.target_layers)
    for layer in [*layers, *target_layers]:
        check_layer(model, layer)
    return layers, target_layers


# --- Answers ---------------------------------------------------------------------------------------------------


def _ask_unpatched(
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
            one[name] = {"text": text, "solved": int(contains_answer(text, accepted))}
    return {"questions": said, "seconds": {" and ".join(names): time.perf_counter() - started}}


def draw_unrelated(question: TwoHopQuestion, questions: Sequence[TwoHopQuestion], seed: int) -> TwoHopQuestion | None:
    """A question about something else, drawn at random, of another category if there is one; None if there is none.

    Neither its words nor its answers hold an accepted answer of `question`, and its first hop has another answer.
    """
    unlike = [
        other
        for other in questions
        if not contains_answer(other.hop1_answer, question.accepted_hop1)
        and not contains_answer(
            "; ".join((other.combined_question, *other.accepted_hop1, *other.accepted)), question.accepted
        )
    ]
    candidates = [other for other in unlike if other.category != question.category] or unlike
    return candidates[np.random.default_rng([seed, question.id]).integers(len(candidates))] if candidates else None


def patch_question(
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
    for method in MultiHopConfig.PATCHED:
        if method in config.methods and (other is not None or method != "control"):
            source, position, target = build_patching(model, method, question, other or question)
            pairs = [pair for pair in grid if method != "back_patch" or pair[0] > pair[1]]
            if not pairs:
                continue
            started = time.perf_counter()
            states = extract_representations(model, [source], [position], layers)[0]
            texts = generate_patched(model, target, states, layers, pairs, question, config)
            methods[method] = _find_solved(pairs, texts, question)
            seconds[method] = time.perf_counter() - started
    return {"methods": methods, "seconds": seconds}


def _find_solved(pairs: Sequence[tuple[int, int]], texts: Sequence[str], question: TwoHopQuestion) -> Json:
    """Which pairs solve the question, and some of what was said then (or else)."""
    right = [contains_answer(text, question.accepted) for text in texts]
    solved = [list(pair) for pair, is_right in zip(pairs, right, strict=True) if is_right]
    shown = [(pair, text) for pair, text, is_right in zip(pairs, texts, right, strict=True) if is_right or not solved]
    return {
        "solved": solved,
        "n_pairs": len(pairs),
        "texts": [{"layer": pair[0], "target_layer": pair[1], "text": text} for pair, text in shown[:N_TEXTS]],
    }


# --- Measures --------------------------------------------------------------------------------------------------
