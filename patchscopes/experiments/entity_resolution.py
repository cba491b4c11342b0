"""Entity resolution in one picture: when a subject is resolved, and when its attribute leaves it for the last token.

Measures of the same facts on one axis of layers:

* `description` (paper, section 4.3): the state of the subject's last token is described by the entity-description
  prompt. S is the fact's prompt, not the name alone as in the paper, so that all measures are about the same state; and
  behind nothing but BOS the embedded model says nothing of use about a country from layer 5 on. No one wrote references
  for these subjects, so the reference is what the model itself says about the name in clear, in the same place of the
  same prompt: this measures not whether a description is true, but how much of what the model can say about the name is
  in the state. Score: ROUGE-L (F1) with that, minus the mean ROUGE-L with what it says about the other subjects, so
  that what is said about all of them ("country in …") counts for nothing.
* `tracing_subject`, `tracing_last` (Meng et al. 2022): the indirect effect of the state of the subject's last token and
  of the prompt's, in the form of a Patchscope.
* `knockout` (Geva et al. 2023): how much of the answer's probability is lost when the last position does not read the
  subject in a window of layers around ℓ; attention edges are cut, as in the original.
* `lre`, `lre_in_context` (Hernandez et al. 2023): how often the LRE Attribute Lens reads the attribute from the
  subject's last token, in the fact's own prompt, and after the solved examples as in that paper. It is estimated for
  each prompt from some of its known facts, on which nothing is measured.

Intervals are over facts, of which those about the same subject are resampled together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from patchscopes.data.facts import Fact
from patchscopes.data.relations import PLACE, Relation
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt
from patchscopes.estimating.tally import counted_before
from patchscopes.experiments.attention_knockout import select_asking
from patchscopes.experiments.attention_knockout_rows import check_blocks, choose_window
from patchscopes.experiments.causal_tracing_states import measure_spread
from patchscopes.experiments.checks import check_methods
from patchscopes.experiments.chunks import Progress, StopWatch, measure_chunks, split_into_chunks, sum_timing
from patchscopes.experiments.config import EntityConfig, EntityResolutionConfig
from patchscopes.experiments.entity import CHUNK_ENTITIES, build_description_target
from patchscopes.experiments.entity_layers import describe_in_clear
from patchscopes.experiments.entity_resolution_changes import summarise_measure
from patchscopes.experiments.entity_resolution_measures import (
    build_relation_sample,
    describe_states,
    measure_loss,
    read_attribute,
    score_descriptions,
    trace_fact,
)
from patchscopes.experiments.facts import KnownFact, ask_facts, describe_fact, draw_known_facts
from patchscopes.learned.cached_fits import fit_or_load_lre
from patchscopes.learned.mappings import LayerMapping
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.results import ChunkStore, Json

UNITS = {
    "description": "ROUGE-L above that with other subjects'",
    "tracing_subject": "indirect effect, probability",
    "tracing_last": "indirect effect, probability",
    "knockout": "% of the probability lost",
    "lre": "share read rightly",
    "lre_in_context": "share read rightly",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """What the measures of all facts share.

    Attributes:
        methods: those that are measured.
        layers: upwards.
        window: layers of a window of the knockout.
        scale: standard deviation of the noise.
        target: T and i* of the descriptions.
        in_clear: by subject, what the model says about its name.
        fit_lre: the relation and the LRE Attribute Lens of a template.
    """

    config: EntityResolutionConfig
    describing: EntityConfig
    methods: Sequence[str]
    layers: Sequence[int]
    window: int
    scale: float
    target: TargetPrompt
    in_clear: Mapping[str, str]
    fit_lre: Callable[[str], tuple[Relation, LayerMapping]]


def run(
    model: LensModel,
    facts: Sequence[Fact],
    config: EntityResolutionConfig,
    store: ChunkStore,
    *,
    progress: Progress = iter,
) -> tuple[Json, Json]:
    """Run the experiment, going on from the chunks in `store`.

    Where LREs are asked for, the facts are those of prompts with more than `config.n_examples` known subjects. If there
    is no such prompt, they are all facts, and no LRE is measured.

    Args:
        progress: wraps the iteration over facts, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file.

    Raises:
        PatchscopesError: a method or layer does not exist, all prompts end with their subjects, or the model knows none
            of the facts.
    """
    check_methods(config.methods, EntityResolutionConfig.METHODS)
    layers = sorted(resolve_layers(model, config.layers))
    if "knockout" in config.methods:
        check_blocks(layers)
    asking = select_asking(facts)
    known, asked = ask_facts(model, asking, store, config.batch_size, config.chat)
    examples = draw_lre_examples(asking, known, config) if "lre" in config.methods else {}
    drawn = draw_measured(model, asking, known, examples, config)
    subjects = list(dict.fromkeys(fact.fact.subject for fact in drawn))
    describing = EntityConfig(max_new_tokens=config.max_new_tokens, batch_size=config.batch_size, chat=config.chat)
    described = measure_chunks(
        split_into_chunks(subjects, CHUNK_ENTITIES) if "description" in config.methods else [],
        store.at("in_clear"),
        lambda names: describe_subjects(model, names, describing),
        iter,
        decides=True,
    )
    in_clear = {name: text for some in described for name, text in some["descriptions"].items()}

    fit_lre, fitted = prepare_lres(model, examples, layers, store)
    setting = Setting(
        config=config,
        describing=describing,
        methods=[method for method in config.methods if method != "lre" or examples],
        layers=layers,
        window=config.window or min(EntityResolutionConfig.WINDOW, choose_window(model.cfg.n_layers, None)),
        scale=config.noise * measure_spread(model, drawn),
        target=build_description_target(model, describing),
        in_clear=in_clear,
        fit_lre=fit_lre,
    )
    measured = measure_chunks(
        range(len(drawn)),
        store.at("facts"),
        lambda number: measure_fact(setting, drawn[number], number),
        progress,
    )
    results = {
        "layers": layers,
        "window": setting.window,
        "n_facts": len(facts),
        "n_left_out": len(facts) - len(asking),
        "n_known": sum(answer["known"] for answer in known),
        "n_samples": len(drawn),
        "n_subjects": len(subjects),
        "lre_examples": {template: [fact.subject for fact in some] for template, some in examples.items()},
        "in_clear": in_clear,
        "measures": summarise_measures(measured, drawn, layers, config.seed),
        "facts": [one["found"] for one in measured],
    }
    return results, sum_timing([*asked, *described, *fitted, *measured])


def prepare_lres(
    model: LensModel, examples: Mapping[str, Sequence[Fact]], layers: Sequence[int], store: ChunkStore
) -> tuple[Callable[[str], tuple[Relation, LayerMapping]], list[Json]]:
    """Fit the LRE of each template once, in a step that processes share; how to have one, and the step's chunks.

    Args:
        examples: by template, the facts that its LRE is estimated from.
    """

    def fit_lre(template: str) -> tuple[Relation, LayerMapping]:
        samples = tuple(map(build_relation_sample, examples[template]))
        relation = Relation(name=examples[template][0].relation, prompt=template, samples=samples)
        return relation, fit_or_load_lre(model, relation, samples, layers).mapping(model)

    def time_fit(template: str) -> Json:
        watch = StopWatch()
        with watch.time("lre_fit"):
            fit_lre(template)
        return {"seconds": watch.seconds}

    return cache(fit_lre), measure_chunks(list(examples), store.at("lre_fits"), time_fit, iter)


def find_template(fact: Fact) -> str:
    """The prompt with `PLACE` for its subject."""
    start, end = fact.span
    return fact.prompt[:start] + PLACE + fact.prompt[end:]


def draw_lre_examples(
    facts: Sequence[Fact], found: Sequence[Json], config: EntityResolutionConfig
) -> dict[str, list[Fact]]:
    """By template, the known facts that its LRE is estimated from, where it has more of them than that takes."""
    known: dict[str, list[Fact]] = {}
    for fact, answer in zip(facts, found, strict=True):
        if answer["known"]:
            known.setdefault(find_template(fact), []).append(fact)
    generator = np.random.default_rng(config.seed)
    return {
        template: [of_template[place] for place in generator.permutation(len(of_template))[: config.n_examples]]
        for template, of_template in known.items()
        if len(of_template) > config.n_examples
    }


def draw_measured(
    model: LensModel,
    facts: Sequence[Fact],
    found: Sequence[Json],
    examples: Mapping[str, Sequence[Fact]],
    config: EntityResolutionConfig,
) -> list[KnownFact]:
    """The facts that are measured: where there are examples, others of the same templates.

    Raises:
        PatchscopesError: the model knows none.
    """

    def is_candidate(fact: Fact) -> bool:
        template = find_template(fact)
        return not examples or (template in examples and fact not in examples[template])

    numbers = [number for number, fact in enumerate(facts) if is_candidate(fact)]
    return draw_known_facts(
        model,
        [facts[number] for number in numbers],
        [found[number] for number in numbers],
        config.n_samples,
        config.seed,
        config.chat,
    )


def describe_subjects(model: LensModel, subjects: Sequence[str], config: EntityConfig) -> Json:
    """What the model says about each subject in clear, and the seconds that this took."""
    watch = StopWatch()
    with watch.time("in_clear"):
        meanings = describe_in_clear(model, subjects, config)
    descriptions = {meaning.ending: meaning.description for meaning in meanings}
    return {"descriptions": descriptions, "seconds": watch.seconds}


def measure_fact(setting: Setting, fact: KnownFact, number: int) -> Json:
    """All measures of one fact at each layer, and the seconds that each method took."""
    model, layers, config = setting.target.model, setting.layers, setting.config
    watch = StopWatch()
    with watch.time("states"):
        states = extract_representations(model, [list(fact.tokens)], [fact.subject[-1]], layers)[0]
    found = describe_fact(model, fact)
    measures: Json = {}
    if "description" in setting.methods:
        with watch.time("description"):
            texts = describe_states(setting.target, states, layers, setting.describing)
            scores = score_descriptions(texts, fact.fact.subject, setting.in_clear)
        found |= {"descriptions": texts, "rougeL_with": scores}
        measures["description"] = np.subtract(scores["own"], scores["others"]).tolist()
    if "tracing" in setting.methods:
        with watch.time("tracing"):
            effects = trace_fact(model, fact, layers, setting.scale, config, number)
        found |= {name: effects[name] for name in ("clean", "corrupted", "total_effect")}
        measures["tracing_subject"], measures["tracing_last"] = effects["indirect_effect"]["resid"]
    if "knockout" in setting.methods:
        with watch.time("knockout"):
            measures["knockout"] = measure_loss(model, fact, layers, setting.window, config)
    if "lre" in setting.methods:
        with watch.time("lre_fit"), counted_before():
            relation, mapping = setting.fit_lre(find_template(fact.fact))
        with watch.time("lre"):
            measures |= read_attribute(model, fact, states, relation, mapping)
    return {"found": found | {"measures": measures}, "seconds": watch.seconds}


def summarise_measures(measured: Sequence[Json], facts: Sequence[KnownFact], layers: Sequence[int], seed: int) -> Json:
    """The curve of each measure, its unit, and where it changes."""
    subjects = [fact.fact.subject for fact in facts]
    groups = np.unique(subjects, return_inverse=True)[1]
    curves = [one["found"]["measures"] for one in measured]
    return {
        name: {"unit": UNITS[name]}
        | summarise_measure(np.array([of_fact[name] for of_fact in curves], dtype=float), layers, groups, seed)
        for name in curves[0]
    }
