"""What the benchmark times: for each task the ways to compute the same thing, and how their answers are compared.

The next token from each sample at every layer (`next_token`), descriptions of entities at ten layers (`generation`),
one two-hop question at every pair of layers (`grid`) and many at some pairs (`questions`), the attribute of some
subjects at pairs of layers (`attributes`), all restorations of one fact (`tracing`), and the Jacobians that an LRE is
made of (`jacobian`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchscopes.data.facts import load_own_facts
from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.questions import contains_answer, load_questions
from patchscopes.data.relations import RELATIONS_FOLDER, load_relations
from patchscopes.data.texts import TextSet, draw_samples
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.jacobian import compute_jacobians
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.engine.unembedding import logit_lens
from patchscopes.experiments.attribute_patching import build_attribute_target
from patchscopes.experiments.attributes import resolve_layer_grid
from patchscopes.experiments.causal_tracing import FORMS
from patchscopes.experiments.causal_tracing_measures import list_restorations
from patchscopes.experiments.causal_tracing_states import measure_spread, prepare_trace
from patchscopes.experiments.config import AttributesConfig, BenchmarkConfig, CausalTracingConfig, MultiHopConfig
from patchscopes.experiments.facts import find_answers, tokenize_fact
from patchscopes.experiments.multi_hop_patching import build_patching, can_be_patched, choose_pairs, patch_questions
from patchscopes.learned.lre import build_lre_prompt, find_subject_position
from patchscopes.model.layers import spread_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import patch_generate, patch_logits
from patchscopes.prompts import DESCRIPTION_PLACEHOLDER, build_entity_description_prompt, build_token_identity_prompt
from patchscopes.tokens import to_token_ids

FAST = "fast engine"
HOOKS = "hooks, batches of 32"
LAYER_BY_LAYER = "layer by layer"
ONE_BY_ONE = "fast engine, one by one"
WHOLE_PASSES = "hooks, whole passes"

# Of the attribute task, and of the two-hop ones.
N_SUBJECTS = 32
N_QUESTIONS = 8
# The fact that is traced: its subject has two tokens.
TRACED = "South Korea"

# Well and little known names.
ENTITIES = (
    "Diana, Princess of Wales",
    "Alexander the Great",
    "Muhammad Ali",
    "Mount Kilimanjaro",
    "the Suez Canal",
    "Marie Curie",
    "the Gobi Desert",
    "Johann Sebastian Bach",
    "Lake Titicaca",
    "the Hubble Space Telescope",
)


@dataclass(frozen=True)
class Way:
    """One way to compute something: its name, the call, and how often it is timed."""

    name: str
    call: Callable[[], Tensor]
    n_runs: int


@dataclass(frozen=True, kw_only=True)
class Task:
    """Something that several ways compute, `FAST` among them.

    Attributes:
        compare: from the answer of each way, figures on how well they agree.
    """

    title: str
    n_rows: int
    ways: Sequence[Way]
    compare: Callable[[dict[str, Tensor]], dict[str, float]]


def build_next_token_task(model: LensModel, texts: TextSet, config: BenchmarkConfig) -> Task:
    """The next token after the token-identity prompt, each sample at every layer."""
    tokens = [to_token_ids(model, text) for text in texts.texts]
    samples = draw_samples([len(ids) for ids in tokens], texts.texts, config.n_samples, config.seed)
    sources, positions = [tokens[sample.text] for sample in samples], [sample.position for sample in samples]
    vectors = extract_representations(model, sources, positions).flatten(0, 1)
    layers = list(range(model.cfg.n_layers)) * config.n_samples
    target = placeholder_target(model, build_token_identity_prompt())

    def patch_with_hooks(batch_size: int) -> Float[Tensor, "row d_vocab"]:
        return patch_logits(target, vectors, layers, engine="hooks", batch_size=batch_size)

    def compare(answers: dict[str, Tensor]) -> dict[str, float]:
        fast, hooks = answers[FAST], answers[HOOKS]
        return {
            "largest_logit_difference": (fast - hooks).abs().max().item(),
            "same_argmax": (fast.argmax(dim=-1) == hooks.argmax(dim=-1)).float().mean().item(),
        }

    return Task(
        title=f"next token, {config.n_samples} samples × {model.cfg.n_layers} layers",
        n_rows=len(layers),
        ways=(
            Way("logit lens", lambda: logit_lens(model, vectors), n_runs=5),
            Way(FAST, lambda: patch_logits(target, vectors, layers, engine="fast"), n_runs=5),
            Way(HOOKS, lambda: patch_with_hooks(batch_size=32), n_runs=1),
            Way("hooks, one by one", lambda: patch_with_hooks(batch_size=1), n_runs=1),
        ),
        compare=compare,
    )


def build_generation_task(model: LensModel, config: BenchmarkConfig) -> Task:
    """A description of each entity from its representation at ten layers."""
    layers = [round(place * (model.cfg.n_layers - 1) / 9) for place in range(10)]
    vectors = extract_representations(model, ENTITIES, [-1] * len(ENTITIES), layers).flatten(0, 1)
    target = placeholder_target(model, build_entity_description_prompt(), DESCRIPTION_PLACEHOLDER)
    return build_generating_task(
        f"{config.max_new_tokens} tokens, 10 entities × 10 layers",
        target,
        vectors,
        layers * len(ENTITIES),
        config.max_new_tokens,
        plain_way="recomputing loop, one by one",
        plain_batch_size=1,
    )


def build_grid_task(model: LensModel) -> Task:
    """The answers of one two-hop question, patched at every pair (ℓ, ℓ*)."""
    question = load_questions(DATA_FOLDER / "multihop_examples.json")[0]
    layers = list(range(model.cfg.n_layers))
    source, position, target = build_patching(model, "patchscope", question, question)
    states = extract_representations(model, [source], [position], layers)[0]
    max_new_tokens = MultiHopConfig.max_new_tokens
    return build_generating_task(
        f"{max_new_tokens} tokens, one question at {len(layers)} × {len(layers)} pairs of layers",
        target,
        states.repeat_interleave(len(layers), dim=0),
        layers * len(layers),
        max_new_tokens,
        plain_way=HOOKS,
        plain_batch_size=32,
    )


def build_questions_task(model: LensModel) -> Task:
    """Which pairs (ℓ, ℓ*) solve some two-hop questions, by all patching methods.

    Question by question and method by method, every row says all its tokens; together, it stops once it has answered.
    """
    every = load_questions(DATA_FOLDER / "multihop_examples.json")
    step = len(every) // N_QUESTIONS
    # From all parts of the file, and no more of them looked at than are needed.
    spread = (one for start in range(step) for one in every[start::step])
    questions = list(islice((one for one in spread if can_be_patched(model, one)), N_QUESTIONS))
    unrelated = [*questions[1:], questions[0]]
    layers = spread_layers(model, MultiHopConfig.N_LAYERS)
    config = MultiHopConfig()
    pairs = {method: choose_pairs(method, layers, layers) for method in MultiHopConfig.PATCHED}

    def solve_together() -> Bool[Tensor, " row"]:
        found = patch_questions(model, questions, unrelated, layers, layers, config)["questions"]
        return torch.tensor(
            [
                list(pair) in of_question["methods"][method]["solved"]
                for of_question in found
                for method in pairs
                for pair in pairs[method]
            ]
        )

    def solve_one_by_one() -> Bool[Tensor, " row"]:
        solved = []
        for question, other in zip(questions, unrelated, strict=True):
            for method in pairs:
                source, position, target = build_patching(model, method, question, other)
                states = dict(zip(layers, extract_representations(model, [source], [position], layers)[0], strict=True))
                tokens = patch_generate(
                    target,
                    torch.stack([states[layer] for layer, _ in pairs[method]]),
                    [target_layer for _, target_layer in pairs[method]],
                    max_new_tokens=config.max_new_tokens,
                    engine="fast",
                )
                said = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
                solved += [contains_answer(continuation, question.accepted) for continuation in said]
        return torch.tensor(solved)

    def compare(answers: dict[str, Tensor]) -> dict[str, float]:
        return {"same_verdicts": (answers[FAST] == answers[ONE_BY_ONE]).float().mean().item()}

    return Task(
        title=f"{len(questions)} two-hop questions by {len(pairs)} methods at up to {len(layers) ** 2} pairs of layers",
        n_rows=len(questions) * sum(map(len, pairs.values())),
        ways=(Way(FAST, solve_together, n_runs=2), Way(ONE_BY_ONE, solve_one_by_one, n_runs=1)),
        compare=compare,
    )


def build_attributes_task(model: LensModel) -> Task:
    """The capitals of some countries, each patched at the pairs (ℓ, ℓ*) of the experiment's default."""
    (relation,) = load_relations([RELATIONS_FOLDER / "capital.json"])
    layers, target_layers = resolve_layer_grid(model, AttributesConfig())
    subjects = [sample.subject for sample in relation.samples[:N_SUBJECTS]]
    states = extract_representations(model, subjects, [-1] * len(subjects), layers)
    n_pairs = len(layers) * len(target_layers)
    return build_generating_task(
        f"{AttributesConfig.max_new_tokens} tokens, {len(subjects)} subjects at {n_pairs} pairs of layers",
        build_attribute_target(model, relation),
        states.flatten(0, 1).repeat_interleave(len(target_layers), dim=0),
        target_layers * (len(layers) * len(subjects)),
        AttributesConfig.max_new_tokens,
        plain_way=HOOKS,
        plain_batch_size=32,
    )


def build_tracing_task(model: LensModel, config: BenchmarkConfig) -> Task:
    """All that causal tracing restores of one fact, at all its sites, in each noise sample."""
    (fact,) = (fact for fact in load_own_facts("capital") if fact.subject == TRACED)
    (answer,) = find_answers(model, [fact.prompt], None)
    traced = tokenize_fact(model, fact, answer)
    n_noise_samples = CausalTracingConfig.n_noise_samples
    scale = CausalTracingConfig.noise * measure_spread(model, [traced])
    trace = prepare_trace(model, traced, scale, n_noise_samples, (config.seed,))
    layers = spread_layers(model, CausalTracingConfig.N_LAYERS)
    restorations = [
        restoration
        for site in CausalTracingConfig.SITES
        for restoration in list_restorations(
            site, range(traced.subject[0], len(traced.tokens)), layers, model.cfg.n_layers, CausalTracingConfig.window
        )
    ]

    def compare(answers: dict[str, Tensor]) -> dict[str, float]:
        difference = (answers[FAST] - answers[WHOLE_PASSES]).abs().max()
        return {"largest_probability_difference": difference.item()}

    return Task(
        title=f"causal tracing of a fact, {len(restorations)} restorations × {n_noise_samples} noise samples",
        n_rows=len(restorations) * n_noise_samples,
        ways=(
            Way(FAST, lambda: FORMS["patchscope"](trace, restorations, None), n_runs=3),
            Way(WHOLE_PASSES, lambda: FORMS["original"](trace, restorations, None), n_runs=1),
        ),
        compare=compare,
    )


def build_jacobian_task(model: LensModel) -> Task:
    """The Jacobians of all layers for one example of an LRE, in one backward pass and layer by layer.

    The slower way keeps the tokens before the subject too, and its backward passes are batched: one for each dimension
    of o and layer, as plain hooks need it, would take half an hour.
    """
    (relation,) = load_relations([RELATIONS_FOLDER / "capital.json"])
    *examples, sample = relation.samples[: AttributesConfig.n_examples]
    prompt = build_lre_prompt(relation, examples, sample.subject)
    position = find_subject_position(model, relation, prompt)

    def compute(layers: Sequence[int]) -> Float[Tensor, "layer d_model d_model"]:
        return compute_jacobians(model, prompt, position, layers, engine="fast").jacobians

    def compute_layer_by_layer() -> Float[Tensor, "layer d_model d_model"]:
        return torch.cat([compute([layer]) for layer in layers])

    def compare(answers: dict[str, Tensor]) -> dict[str, float]:
        fast, slow = answers[FAST], answers[LAYER_BY_LAYER]
        return {"largest_relative_difference": ((fast - slow).norm() / slow.norm()).item()}

    layers = range(model.cfg.n_layers)

    return Task(
        title=f"Jacobians of {model.cfg.n_layers} layers, a prompt of {len(to_token_ids(model, prompt))} tokens",
        n_rows=model.cfg.n_layers,
        ways=(
            Way(FAST, lambda: compute(layers), n_runs=3),
            Way(LAYER_BY_LAYER, compute_layer_by_layer, n_runs=1),
        ),
        compare=compare,
    )


def build_generating_task(
    title: str,
    target: TargetPrompt,
    vectors: Float[Tensor, "row d_model"],
    layers: Sequence[int],
    max_new_tokens: int,
    *,
    plain_way: str,
    plain_batch_size: int,
) -> Task:
    """Generation by the fast engine beside plain hooks, and how many rows say the same."""

    def generate_fast() -> Tensor:
        return patch_generate(target, vectors, layers, max_new_tokens=max_new_tokens, engine="fast")

    def generate_plainly() -> Tensor:
        return patch_generate(
            target, vectors, layers, max_new_tokens=max_new_tokens, engine="hooks", batch_size=plain_batch_size
        )

    ways = (Way(FAST, generate_fast, n_runs=3), Way(plain_way, generate_plainly, n_runs=1))
    return Task(
        title=title, n_rows=len(layers), ways=ways, compare=lambda answers: compare_generations(answers, plain_way)
    )


def compare_generations(answers: dict[str, Tensor], other_way: str) -> dict[str, float]:
    """The share of rows of which both ways say the same."""
    return {"same_generations": (answers[FAST] == answers[other_way]).all(dim=1).float().mean().item()}
