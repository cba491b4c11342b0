"""Multi-hop reasoning (paper, section 5): a question of two hops that fails alone, repaired by patching.

The query is [π2][π1], "The official currency of" + "the country whose capital is Tokyo", and a word that asks for the
answer, " is"; or [π1][π2] in languages that say it so. A question may be asked in other words; what is patched is the
query. Only questions are counted whose hops the model answers one by one. The methods:

* `vanilla`: the question as it is;
* `cot`: the question after "Let's think step by step." (Kojima et al. 2022), with room for more tokens;
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

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from patchscopes.data.questions import TwoHopQuestion, contains_answer
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.checks import check_methods
from patchscopes.experiments.chunks import Progress, StopWatch, measure_chunks, split_into_chunks, sum_timing
from patchscopes.experiments.config import MultiHopConfig
from patchscopes.experiments.multi_hop_measures import count_hops_alone, summarise_methods
from patchscopes.experiments.multi_hop_patching import find_obstacle, find_patch_positions, patch_questions
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.prompts import ChatForm
from patchscopes.results import ChunkStore, Json
from patchscopes.tokens import to_token_ids

CHAIN_OF_THOUGHT = "Let's think step by step. "
PROMPTS: dict[str, Callable[[TwoHopQuestion], str]] = {
    "hop1": lambda question: question.hop1_prompt,
    "hop2": lambda question: question.hop2_prompt,
    "vanilla": lambda question: question.combined_question,
    "cot": lambda question: CHAIN_OF_THOUGHT + question.combined_question,
}
# Questions whose unpatched answers are finished together.
CHUNK_QUESTIONS = 50
# Pairs (ℓ, ℓ*), of as many questions as that makes, that are patched and finished together.
CHUNK_PAIRS = 1024


def run(
    model: LensModel,
    questions: Sequence[TwoHopQuestion],
    config: MultiHopConfig,
    store: ChunkStore,
    progress: Progress = iter,
) -> tuple[Json, Json]:
    """Run the experiment, going on from the chunks in `store`.

    Args:
        progress: wraps the iteration over chunks, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file.

    Raises:
        PatchscopesError: a method or layer does not exist, no question can be patched, or the model answers both hops
            of none.
    """
    check_methods(config.methods, MultiHopConfig.METHODS)
    layers, target_layers = resolve_layer_grid(model, config)
    obstacles = [find_obstacle(model, question, config.methods, config.chat) for question in questions]
    patchable = [question for question, obstacle in zip(questions, obstacles, strict=True) if obstacle is None]
    if questions and not patchable:
        raise PatchscopesError(f"none of the {len(questions)} questions can be patched; of the first, {obstacles[0]}")

    def ask(asked: Sequence[TwoHopQuestion], prompts: Sequence[str], folder: str) -> list[Json]:
        chunks, of_phase = split_into_chunks(asked, CHUNK_QUESTIONS), store.at(folder)
        return measure_chunks(chunks, of_phase, lambda some: _ask(model, some, prompts, config), progress, decides=True)

    def patch(numbers: Sequence[int]) -> Json:
        some = [chosen[number] for number in numbers]
        unrelated = [draw_unrelated(question, patchable, config.seed) for question in some]
        return patch_questions(model, some, unrelated, layers, target_layers, config)

    asked_hops = ask(patchable, ("hop1", "hop2"), "hops")
    hops = [answers for chunk in asked_hops for answers in chunk["questions"]]
    passed = [number for number, hop in enumerate(hops) if hop["hop1"]["solved"] and hop["hop2"]["solved"]]
    if not passed:
        raise PatchscopesError(
            f"{model.cfg.model_name!r} answers both hops of none of the {len(patchable)} questions one by one: nothing "
            "can be said about their composition; give easier questions or a larger model"
        )
    drawn = sorted(np.random.default_rng(config.seed).permutation(passed)[: config.n_samples].tolist())
    chosen = [patchable[number] for number in drawn]
    # Every measure is set against the vanilla answer.
    asked_whole = ask(chosen, ("vanilla", "cot") if "cot" in config.methods else ("vanilla",), "unpatched")
    unpatched = [answers for chunk in asked_whole for answers in chunk["questions"]]
    # Alike questions next to each other: rows whose prompts have one length and i* are computed together.
    order = sorted(range(len(chosen)), key=lambda number: measure_prompt(model, chosen[number], config.chat))
    chunks = split_into_chunks(order, max(1, CHUNK_PAIRS // (len(layers) * len(target_layers))))
    patched = measure_chunks(chunks, store.at("patched"), patch, progress)
    found_in_order = [found for chunk in patched for found in chunk["questions"]]
    found_of = dict(zip(order, found_in_order, strict=True))
    answered = [
        hops[drawn[number]] | answers | found_of[number]["methods"] | {"control_id": found_of[number]["control_id"]}
        for number, answers in enumerate(unpatched)
    ]
    results = {
        "layers": layers,
        "target_layers": target_layers,
        "n_questions": len(questions),
        "n_unpatchable": len(questions) - len(patchable),
        "unpatchable": [
            {"id": question.id, "reason": obstacle}
            for question, obstacle in zip(questions, obstacles, strict=True)
            if obstacle is not None
        ],
        "n_passed": len(passed),
        "n_samples": len(drawn),
        "hops_alone": count_hops_alone(patchable, hops),
        "methods": summarise_methods(chosen, answered, layers, target_layers, config),
        "questions": [asdict(question) | answers for question, answers in zip(chosen, answered, strict=True)],
    }
    return results, sum_timing([*asked_hops, *asked_whole, *patched])


def resolve_layer_grid(model: LensModel, config: MultiHopConfig) -> tuple[list[int], list[int]]:
    """The source and target layers of the configuration.

    Raises:
        PatchscopesError: a layer does not exist.
    """
    layers = resolve_layers(model, config.layers, MultiHopConfig.N_LAYERS)
    return layers, layers if config.target_layers is None else resolve_layers(model, config.target_layers)


def measure_prompt(model: LensModel, question: TwoHopQuestion, chat: ChatForm) -> tuple[int, int]:
    """How many tokens the query has, and the position of the last one of π2."""
    n_tokens = len(to_token_ids(model, chat.of_target(question.query)))
    return n_tokens, find_patch_positions(model, question, chat)[1]


def _ask(model: LensModel, questions: Sequence[TwoHopQuestion], prompts: Sequence[str], config: MultiHopConfig) -> Json:
    """The answers of some questions to each of `prompts`, and the seconds that this took."""
    watch = StopWatch()
    with watch.time(" and ".join(prompts)):
        answers = {prompt: ask_unpatched(model, questions, prompt, config) for prompt in prompts}
    by_question = [
        {prompt: of_prompt[number] for prompt, of_prompt in answers.items()} for number in range(len(questions))
    ]
    return {"questions": by_question, "seconds": watch.seconds}


def ask_unpatched(
    model: LensModel, questions: Sequence[TwoHopQuestion], prompt: str, config: MultiHopConfig
) -> list[Json]:
    """What the model says to one of `PROMPTS` of each question, and whether that answers it."""
    tokens = generate_after(
        model,
        [config.chat.of_target(PROMPTS[prompt](question)) for question in questions],
        max_new_tokens=config.cot_new_tokens if prompt == "cot" else config.max_new_tokens,
        batch_size=config.batch_size,
    )
    continuations = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    accepted = [question.accepted_hop1 if prompt == "hop1" else question.accepted for question in questions]
    return [
        {"text": text, "solved": int(contains_answer(text, of_question))}
        for text, of_question in zip(continuations, accepted, strict=True)
    ]


def draw_unrelated(question: TwoHopQuestion, questions: Sequence[TwoHopQuestion], seed: int) -> TwoHopQuestion | None:
    """A question about something else, drawn at random, of another category if there is one; None if there is none.

    Neither its words nor its answers hold an accepted answer of `question`, and its first hop has another answer.
    """
    unlike = [
        other
        for other in questions
        if not contains_answer(other.hop1_answer, question.accepted_hop1)
        and not contains_answer(
            "; ".join((other.query, other.combined_question, *other.accepted_hop1, *other.accepted)), question.accepted
        )
    ]
    candidates = [other for other in unlike if other.category != question.category] or unlike
    return candidates[np.random.default_rng([seed, question.number]).integers(len(candidates))] if candidates else None
