"""Entity resolution on a tiny random model: each measure is that of its own experiment; where curves change."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_questions import NAMES

from patchscopes.data.facts import Fact
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import attention_knockout, causal_tracing, entity_resolution
from patchscopes.experiments.config import AttentionKnockoutConfig, CausalTracingConfig, EntityResolutionConfig
from patchscopes.experiments.entity_resolution import UNITS, find_template
from patchscopes.experiments.entity_resolution_changes import find_half_way, find_steepest, summarise_measure
from patchscopes.experiments.entity_resolution_measures import score_descriptions
from patchscopes.metrics import rouge
from patchscopes.positions import find_first_tokens
from patchscopes.results import ChunkStore

CONFIG = EntityResolutionConfig(n_samples=4, n_examples=2, n_noise_samples=2, window=2, max_new_tokens=4)
# Of one all known subjects are measured or examples; the other has too few.
TEMPLATES = ("Colour of {} is", "We saw {} there")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """LREs of tiny models stay out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHSCOPES_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model(models_by_tokenizer):
    return models_by_tokenizer["byte_level"]


@pytest.fixture(scope="module")
def facts(model) -> tuple[Fact, ...]:
    """Facts that the model knows: many of the first template, two of the second; and one that asks for nothing."""
    made = []
    for template, n_facts in zip(TEMPLATES, (8, 2), strict=True):
        of_template, start = [], template.index("{}")
        prompts = [template.format(name) for name in NAMES]
        says = generate_after(model, prompts, max_new_tokens=1)[:, 0].tolist()
        for prompt, name, token in zip(prompts, NAMES, says, strict=True):
            attribute = model.tokenizer.decode(token).strip()
            if attribute and token in find_first_tokens(model, [attribute]):
                of_template.append(Fact(prompt=prompt, span=(start, start + len(name)), attribute=attribute))
        assert len(of_template) >= n_facts
        made += of_template[:n_facts]
    return *made, Fact(prompt="We saw a DOG", span=(9, 12), attribute="yes")


@pytest.fixture(scope="module")
def results(model, facts, tmp_path_factory):
    found, timing = entity_resolution.run(model, facts, CONFIG, ChunkStore(tmp_path_factory.mktemp("whole")))
    steps = {"known", "in_clear", "states", "description", "tracing", "knockout", "lre_fit", "lre", "total"}
    assert set(timing["seconds"]) == steps
    return found


class TestExperiment:
    def test_one_set_of_facts(self, results):
        counts = {name: results[name] for name in ("n_facts", "n_left_out", "n_known", "n_samples", "window")}
        assert counts == {"n_facts": 11, "n_left_out": 1, "n_known": 10, "n_samples": 4, "window": 2}
        assert len(results["facts"]) == 4
        ((template, examples),) = results["lre_examples"].items()
        assert (template, len(examples)) == (TEMPLATES[0], 2)
        for fact in results["facts"]:
            assert fact["prompt"] == TEMPLATES[0].format(fact["subject"])
            assert fact["subject"] not in examples
            assert set(fact["measures"]) == set(UNITS)

    def test_means_over_facts(self, results):
        assert list(results["measures"]) == list(UNITS)
        for name, measure in results["measures"].items():
            by_fact = [fact["measures"][name] for fact in results["facts"]]
            np.testing.assert_allclose(measure["mean"], np.mean(by_fact, axis=0))
            assert np.shape(measure["ci95"]) == (4, 2)
            assert measure["unit"] == UNITS[name]
            assert measure["n_samples"] == 4

    def test_tracing_is_that_of_causal_tracing(self, model, facts, results, tmp_path):
        shown = [fact for fact in facts if any(fact.prompt == one["prompt"] for one in results["facts"])]
        config = CausalTracingConfig(methods=("patchscope",), n_samples=4, n_noise_samples=2)
        traced, _ = causal_tracing.run(model, shown, config, ChunkStore(tmp_path))
        for one, other in zip(results["facts"], traced["facts"], strict=True):
            table = dict(zip(other["token_classes"], other["indirect_effect"]["resid"], strict=True))
            assert one["measures"]["tracing_subject"] == pytest.approx(table["last_subject"], abs=2e-6)
            assert one["measures"]["tracing_last"] == pytest.approx(table["last"], abs=2e-6)
            assert one["total_effect"] == pytest.approx(other["total_effect"], abs=2e-6)

    def test_knockout_is_that_of_attention_knockout(self, model, facts, results, tmp_path):
        shown = [fact for fact in facts if any(fact.prompt == one["prompt"] for one in results["facts"])]
        config = AttentionKnockoutConfig(methods=("original",), n_samples=4, window=2)
        knocked, _ = attention_knockout.run(model, shown, config, ChunkStore(tmp_path))
        change = knocked["methods"]["original"]["relative_change"]["subject"]["mean"]
        assert results["measures"]["knockout"]["mean"] == pytest.approx([-one for one in change], abs=1e-3)

    def test_descriptions_are_compared_with_the_models_own(self, results):
        in_clear = results["in_clear"]
        assert set(in_clear) == {fact["subject"] for fact in results["facts"]}
        for fact in results["facts"]:
            own = [rouge(text, in_clear[fact["subject"]])["rougeL"]["f1"] for text in fact["descriptions"]]
            assert fact["rougeL_with"]["own"] == pytest.approx(own)
            scores = np.subtract(own, fact["rougeL_with"]["others"])
            assert fact["measures"]["description"] == pytest.approx(scores.tolist())

    def test_the_lre_reads_rightly_or_not(self, results):
        for fact in results["facts"]:
            for name in ("lre", "lre_in_context"):
                assert set(fact["measures"][name]) <= {0, 1}

    def test_an_interrupted_run_goes_on(self, model, facts, results, tmp_path, monkeypatch):
        store = ChunkStore(tmp_path)

        def two(items):
            yield from list(items)[:2]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            entity_resolution.run(model, facts, CONFIG, store, progress=two)
        measured = []
        measure = entity_resolution.measure_fact
        monkeypatch.setattr(
            entity_resolution, "measure_fact", lambda *given: measured.append(given[2]) or measure(*given)
        )
        resumed, _ = entity_resolution.run(model, facts, CONFIG, store)
        assert measured == [2, 3]
        assert resumed == results

    def test_without_examples_all_facts_count_and_no_lre(self, model, facts, tmp_path):
        config = replace(CONFIG, n_examples=8, n_samples=10, methods=("knockout", "lre"), layers=(3, 1))
        found, _ = entity_resolution.run(model, facts, config, ChunkStore(tmp_path))
        assert list(found["measures"]) == ["knockout"]
        assert (found["layers"], found["lre_examples"], found["in_clear"]) == ([1, 3], {}, {})
        assert [fact["prompt"] for fact in found["facts"]] == [fact.prompt for fact in facts[:-1]]

    def test_noise_of_zero(self, model, facts, tmp_path):
        config = replace(CONFIG, methods=("tracing",), noise=0.0)
        found, _ = entity_resolution.run(model, facts, config, ChunkStore(tmp_path))
        for measure in found["measures"].values():
            np.testing.assert_allclose(measure["mean"], 0, atol=2e-6)

    def test_mistakes(self, model, facts, tmp_path):
        with pytest.raises(PatchscopesError, match="no method is called 'guess'"):
            entity_resolution.run(model, facts, replace(CONFIG, methods=("guess",)), ChunkStore(tmp_path))
        with pytest.raises(PatchscopesError, match="layer 9 does not exist"):
            entity_resolution.run(model, facts, replace(CONFIG, layers=(9,)), ChunkStore(tmp_path))
        with pytest.raises(PatchscopesError, match="all 1 prompts end with their subjects"):
            entity_resolution.run(model, facts[-1:], CONFIG, ChunkStore(tmp_path))


def test_the_template_has_a_place_for_the_subject_that_is_meant():
    assert find_template(Fact(prompt="is it is", span=(0, 2), attribute="x")) == "{} it is"


class TestScores:
    def test_what_is_said_of_all_subjects_counts_for_nothing(self):
        in_clear = {"Japan": "country in Asia", "Peru": "country in America", "Chad": "country in Africa"}
        scores = score_descriptions(["country in", "country in Asia", "river"], "Japan", in_clear)
        excess = np.subtract(scores["own"], scores["others"])
        assert excess[0] == pytest.approx(0)
        assert scores["own"][1] == 1
        assert excess[1] == pytest.approx(1 / 3)
        assert (scores["own"][2], scores["others"][2]) == (0, 0)

    def test_one_subject_alone(self):
        assert score_descriptions(["a country"], "Japan", {"Japan": "a country"}) == {"own": [1.0], "others": [0.0]}


class TestChanges:
    @pytest.mark.parametrize(
        ("curve", "expected"),
        [
            ([1, 1, 0, 0], (None, 3.0)),
            ([0, 0, 1, 1], (3.0, None)),
            ([0, 0.25, 1, 0.25], (2 + 2 / 3, 4 + 4 / 3)),
            ([1, 1, 1, 1], (None, None)),
            ([0, 0, 0, 0], (None, None)),
            ([-1, -2, -1, -1], (None, None)),
            # A dip between them moves neither end.
            ([1, 0, 1, 0], (None, 5.0)),
        ],
    )
    def test_half_way(self, curve, expected):
        found = find_half_way(np.array(curve, dtype=float), [0, 2, 4, 6])
        assert found == tuple(one if one is None else pytest.approx(one) for one in expected)

    def test_half_way_is_where_a_logistic_curve_is_centred(self):
        layers = list(range(30))
        late = 1 / (1 + np.exp(21.4 - np.array(layers, dtype=float)))
        assert find_half_way(late, layers) == (pytest.approx(21.4, abs=0.05), None)
        assert find_half_way(1 - late, layers) == (None, pytest.approx(21.4, abs=0.05))
        assert find_steepest(late, layers)["layers"] == [21, 22]
        assert find_steepest(1 - late, layers)["change_per_layer"] < 0

    def test_slopes_are_per_layer(self):
        assert find_steepest(np.array([0.0, 0.3, 0.9]), [0, 1, 7]) == {"layers": [0, 1], "change_per_layer": 0.3}
        assert find_steepest(np.array([1.0]), [3]) is None

    def test_intervals_hold_the_layer_and_narrow_with_facts(self):
        layers, generator = list(range(30)), np.random.default_rng(0)
        widths = []
        for n_facts in (10, 160):
            centres = generator.normal(20, 2, n_facts)
            values = 1 / (1 + np.exp(np.array(layers) - centres[:, None]))
            found = summarise_measure(values, layers, np.arange(n_facts), seed=0)
            low, high = found["falls"]["ci95"]
            assert low < found["falls"]["layer"] < high
            assert found["rises"] is None
            widths.append(high - low)
        assert widths[1] < widths[0] / 2

    def test_facts_of_one_subject_are_resampled_together(self):
        generator = np.random.default_rng(0)
        values = np.repeat(generator.uniform(size=(10, 3)), 2, axis=0)
        alone, together = (
            summarise_measure(values, [0, 1, 2], groups, seed=0)["ci95"]
            for groups in (np.arange(20), np.arange(20) // 2)
        )
        assert (np.ptp(alone, axis=1) < np.ptp(together, axis=1)).all()
