"""Causal tracing on tiny random models: both forms, what restoring does, windows, token classes, a stopped run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_facts import make_facts

from patchscopes.data.facts import Fact
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import causal_tracing
from patchscopes.experiments.causal_tracing import FORMS
from patchscopes.experiments.causal_tracing_measures import (
    classify_tokens,
    list_restorations,
    measure_effects,
    summarise_effects,
)
from patchscopes.experiments.causal_tracing_states import Place, Restoration, measure_spread, prepare_trace
from patchscopes.experiments.config import CausalTracingConfig
from patchscopes.experiments.facts import KnownFact
from patchscopes.model.layers import EMBEDDING, find_window
from patchscopes.results import ChunkStore

SITES = CausalTracingConfig.SITES
# Of each kind of block: attention and MLP after each other and side by side, with norms behind them, with experts.
FAMILIES = ("gpt2", "gptj", "llama", "gemma2", "mixtral")
TOKENS = tuple(range(40, 48))
# The subject at the very beginning, of one token, of many, and at the end.
SUBJECTS = ((0,), (0, 1, 2), (3,), (2, 3, 4, 5), (5, 6, 7))


def make_known(subject=(2, 3, 4), tokens=TOKENS, answer=50):
    fact = Fact(prompt="x", span=(0, 1), attribute="y")
    return KnownFact(fact=fact, tokens=tokens, subject=subject, answer=answer)


def make_trace(model, fact=None, scale=1.0, n_samples=3):
    return prepare_trace(model, fact or make_known(), scale, n_samples, (0, 0))


def list_all(fact, n_layers, window=2):
    """All restorations of an experiment on one fact."""
    positions, layers = range(fact.subject[0], len(fact.tokens)), range(n_layers)
    return [one for site in SITES for one in list_restorations(site, positions, layers, n_layers, window)]


class TestForms:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("subject", SUBJECTS)
    def test_both_agree(self, tiny_models, family, subject):
        model = tiny_models(family)
        trace = make_trace(model, make_known(subject))
        restorations = list_all(trace.fact, model.cfg.n_layers)
        original, patchscope = (form(trace, restorations, None) for form in FORMS.values())
        assert original.shape == (len(restorations), 3)
        torch.testing.assert_close(original, patchscope, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("method", FORMS)
    def test_batches_make_no_difference(self, llama, method):
        trace = make_trace(llama)
        restorations = list_all(trace.fact, llama.cfg.n_layers)
        whole, parts = (FORMS[method](trace, restorations, size) for size in (None, 7))
        torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
class TestRestoring:
    def measure(self, trace, method, *restorations):
        return FORMS[method](trace, restorations, None)

    def test_everything_gives_the_clean_run(self, tiny_models, family, method):
        model = tiny_models(family)
        trace = make_trace(model)
        subject, everywhere = trace.fact.subject, tuple(range(2, len(TOKENS)))
        last = model.cfg.n_layers - 1
        restored = self.measure(
            trace,
            method,
            Restoration(positions=subject, restored=(Place("resid", EMBEDDING),)),
            *(Restoration(positions=everywhere, restored=(Place("resid", layer),)) for layer in range(last)),
            Restoration(positions=(len(TOKENS) - 1,), restored=(Place("resid", last),)),
        )
        logits = model(torch.tensor([TOKENS]))[0, -1]
        clean = torch.softmax(logits, dim=-1)[trace.fact.answer]
        torch.testing.assert_close(restored, clean.expand_as(restored), atol=1e-5, rtol=1e-4)

    def test_nothing_gives_the_corrupted_run(self, tiny_models, family, method):
        model = tiny_models(family)
        trace = make_trace(model)
        before = Restoration(positions=(2, 3), restored=())
        nothing, also_nothing = self.measure(trace, method, Restoration(), before)
        assert torch.equal(nothing, also_nothing)

        def write(residual, hook):
            return trace.inputs

        tokens = torch.tensor([TOKENS]).expand(3, -1)
        logits = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_pre", write)])[:, -1]
        corrupted = torch.softmax(logits, dim=-1)[:, trace.fact.answer]
        torch.testing.assert_close(nothing, corrupted, atol=1e-5, rtol=1e-4)
        assert corrupted.std() > 0

    def test_what_no_later_token_reads_changes_nothing(self, tiny_models, family, method):
        model = tiny_models(family)
        trace = make_trace(model)
        last = model.cfg.n_layers - 1
        nothing, restored = self.measure(
            trace, method, Restoration(), Restoration(positions=(4,), restored=(Place("resid", last),))
        )
        torch.testing.assert_close(nothing, restored, atol=1e-6, rtol=1e-5)

    def test_all_that_is_added_gives_the_clean_state_of_the_last_token(self, tiny_models, family, method):
        """The last token has no noise of its own: with all that is added to it restored, none is left."""
        model = tiny_models(family)
        trace = make_trace(model)
        added = tuple(Place(site, block) for site in ("mlp_out", "attn_out") for block in range(model.cfg.n_layers))
        ((clean,),) = self.measure(trace.without_noise(), method, Restoration())
        (restored,) = self.measure(trace, method, Restoration(positions=(len(TOKENS) - 1,), restored=added))
        torch.testing.assert_close(restored, clean.expand_as(restored), atol=1e-5, rtol=1e-4)

    def test_noise_of_zero_has_no_effects(self, tiny_models, family, method):
        model = tiny_models(family)
        trace = make_trace(model, scale=0.0)
        runs = self.measure(trace, method, Restoration(), *list_all(trace.fact, model.cfg.n_layers))
        torch.testing.assert_close(runs, runs[:1, :1].expand_as(runs), atol=1e-5, rtol=1e-4)

    def test_severed_mlps_stay_corrupted(self, tiny_models, family, method):
        """Held at their clean values instead, the clean state goes on as in the clean run."""
        model = tiny_models(family)
        trace = make_trace(model, make_known(subject=(7,)))
        n = model.cfg.n_layers
        plain, severed = (list_restorations(site, [7], [0], n, 1)[0] for site in ("resid", "resid_severed"))
        assert severed.severed == tuple(Place("mlp_out", block) for block in range(1, n))
        restored, held, with_clean_mlps = self.measure(
            trace, method, plain, severed, replace(severed, restored=severed.restored + severed.severed, severed=())
        )
        torch.testing.assert_close(restored, with_clean_mlps, atol=1e-5, rtol=1e-4)
        assert ((restored - held).abs() / restored).max() > 1e-2


class TestRestorations:
    def test_windows_are_centred_and_clipped(self):
        # As in the published code: max(0, l - w // 2) to min(n, l - (-w // 2)).
        for window in range(1, 14):
            for layer in range(12):
                expected = range(max(0, layer - window // 2), min(12, layer - (-window // 2)))
                assert find_window(layer, window, 12) == expected
                assert layer in expected
        assert find_window(0, 10, 30) == range(5)
        assert find_window(29, 10, 30) == range(24, 30)
        assert find_window(15, 10, 30) == range(10, 20)

    def test_by_position_and_then_by_layer(self):
        restorations = list_restorations("mlp_out", [3, 4], [0, 2, 5], 6, 3)
        assert [one.positions for one in restorations] == [(3,)] * 3 + [(4,)] * 3
        blocks = [[place.layer for place in one.restored] for one in restorations]
        assert blocks == [[0, 1], [1, 2, 3], [4, 5]] * 2
        (one,) = list_restorations("resid_severed", [3], [4], 6, 3)
        assert (one.restored, one.severed) == ((Place("resid", 4),), (Place("mlp_out", 5),))
        (one,) = list_restorations("resid_severed", [3], [5], 6, 3)
        assert one.severed == ()


class TestMeasures:
    @pytest.mark.parametrize(
        ("subject", "n_tokens", "classes"),
        [
            ((0,), 2, ["last_subject", "last"]),
            ((1, 2), 4, ["first_subject", "last_subject", "last"]),
            ((1, 2, 3, 4), 6, ["first_subject", "middle_subject", "middle_subject", "last_subject", "last"]),
            ((1,), 4, ["last_subject", "next", "last"]),
            ((1,), 6, ["last_subject", "next", "further", "further", "last"]),
            ((1, 2), 3, ["first_subject", "last_subject"]),
        ],
    )
    def test_every_token_has_one_class(self, subject, n_tokens, classes):
        assert classify_tokens(make_known(subject, TOKENS[:n_tokens])) == classes

    def test_effects_are_means_over_noise_samples(self):
        restored = {site: np.array([[[0.1, 0.3], [0.2, 0.8]]]) for site in SITES}
        effects = measure_effects(0.9, np.array([0.0, 0.2]), restored)
        assert effects["total_effect"] == pytest.approx(0.8)
        assert effects["corrupted"] == pytest.approx(0.1)
        np.testing.assert_allclose(effects["indirect_effect"]["resid"], [[0.1, 0.4]])

    def test_a_class_counts_in_the_facts_that_have_it(self):
        facts = [make_known((0,), TOKENS[:2]), make_known((0, 1, 2, 3), TOKENS[:5])]
        measured = [
            measure_effects(1.0, np.zeros(2), {site: table[..., None].repeat(2, axis=-1) for site in SITES})
            for table in (np.array([[0.5], [0.1]]), np.array([[0.1], [0.2], [0.4], [0.9], [0.3]]))
        ]
        summary = summarise_effects(facts, measured, seed=0)
        effects = summary["indirect_effect"]["mlp_out"]
        found = {name: (effect["mean"], effect["n_facts"]) for name, effect in effects.items()}
        assert found == {
            "first_subject": ([0.1], 1),
            "middle_subject": ([pytest.approx(0.3)], 1),
            "last_subject": ([pytest.approx(0.7)], 2),
            "last": ([pytest.approx(0.2)], 2),
        }
        assert summary["total_effect"] == {"mean": 1.0, "ci95": [1.0, 1.0]}


class TestNoise:
    def test_only_at_the_subject_and_of_the_asked_width(self, llama):
        trace = make_trace(llama, make_known((2, 3, 4)), scale=0.5, n_samples=200)
        noise = trace.inputs - trace.clean[Place("resid", EMBEDDING)]
        assert noise[:, [0, 1, 5, 6, 7]].abs().max() == 0
        assert float(noise[:, 2:5].std()) == pytest.approx(0.5, rel=0.02)
        assert float(noise[:, 2:5].mean()) == pytest.approx(0, abs=0.01)

    def test_drawn_by_the_seed(self, llama):
        first, again, other = (prepare_trace(llama, make_known(), 1.0, 2, (seed, 0)).inputs for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_spread_of_the_embeddings_of_all_subjects(self, llama):
        facts = [make_known((2, 3)), make_known((0,), TOKENS[::-1])]
        embeddings = llama.original_model.get_input_embeddings().weight[[TOKENS[2], TOKENS[3], TOKENS[-1]]]
        assert measure_spread(llama, facts) == pytest.approx(float(embeddings.std()))


@pytest.fixture(scope="module")
def model(models_by_tokenizer):
    return models_by_tokenizer["byte_level"]


@pytest.fixture(scope="module")
def facts(model):
    return make_facts(model, 8)


CONFIG = CausalTracingConfig(n_samples=5, n_original=2, n_noise_samples=2, window=2)


class TestExperiment:
    def test_results(self, model, facts, tmp_path):
        results, timing = causal_tracing.run(model, facts, CONFIG, ChunkStore(tmp_path))
        assert (results["n_facts"], results["n_known"], results["n_samples"]) == (8, 8, 5)
        assert results["largest_probability_difference"] < 1e-4
        assert [results["methods"][method]["n_samples"] for method in CONFIG.METHODS] == [2, 5]
        for measures in results["methods"].values():
            assert np.shape(measures["total_effect"]["ci95"]) == (2,)
            assert set(measures["indirect_effect"]) == set(SITES)
            for classes in measures["indirect_effect"].values():
                assert {"last_subject"} <= set(classes) <= set(CONFIG.TOKEN_CLASSES)
                for effect in classes.values():
                    assert np.shape(effect["mean"]) == (4,)
                    assert np.shape(effect["ci95"]) == (4, 2)
        for fact in results["facts"]:
            assert "".join(fact["tokens"]).strip().startswith(fact["subject"])
            n_tokens = len(fact["tokens"])
            assert all(np.shape(table) == (n_tokens, 4) for table in fact["indirect_effect"].values())
            assert fact["total_effect"] == pytest.approx(fact["clean"] - fact["corrupted"], abs=2e-6)
        assert timing["both_forms"]["n_facts"] == 2
        assert set(timing["seconds"]) == {"known", "states", "original", "patchscope", "total"}

    @pytest.mark.parametrize("method", CausalTracingConfig.METHODS)
    def test_one_form_alone_is_measured_on_all_facts(self, model, facts, tmp_path, method):
        both, _ = causal_tracing.run(model, facts, replace(CONFIG, n_original=5), ChunkStore(tmp_path / "both"))
        one, timing = causal_tracing.run(model, facts, replace(CONFIG, methods=(method,)), ChunkStore(tmp_path / "one"))
        assert one["largest_probability_difference"] is None
        assert "both_forms" not in timing
        assert one["methods"] == {method: both["methods"][method]}

    def test_noise_of_zero(self, model, facts, tmp_path):
        results, _ = causal_tracing.run(model, facts, replace(CONFIG, noise=0.0), ChunkStore(tmp_path))
        for measures in results["methods"].values():
            np.testing.assert_allclose(measures["total_effect"]["mean"], 0, atol=2e-6)
            for classes in measures["indirect_effect"].values():
                for effect in classes.values():
                    np.testing.assert_allclose(effect["mean"], 0, atol=2e-6)

    def test_an_interrupted_run_goes_on(self, model, facts, tmp_path, monkeypatch):
        whole, _ = causal_tracing.run(model, facts, CONFIG, ChunkStore(tmp_path / "whole"))
        save = ChunkStore.save

        def interrupted(store, name, content):
            if name == "facts/00003":
                raise KeyboardInterrupt
            save(store, name, content)

        monkeypatch.setattr(ChunkStore, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            causal_tracing.run(model, facts, CONFIG, ChunkStore(tmp_path / "stopped"))
        monkeypatch.setattr(ChunkStore, "save", save)
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped").glob("*/*.json")}
        assert sorted(path.name for path in kept) == ["00000.json", "00000.json", "00001.json", "00002.json"]
        resumed, _ = causal_tracing.run(model, facts, CONFIG, ChunkStore(tmp_path / "stopped"))
        assert resumed == whole
        assert kept == {path: path.stat().st_mtime_ns for path in kept}

    def test_mistakes(self, model, facts, tmp_path):
        with pytest.raises(PatchscopesError, match="no method is called 'guess'"):
            causal_tracing.run(model, facts, replace(CONFIG, methods=("guess",)), ChunkStore(tmp_path))
        with pytest.raises(PatchscopesError, match="layer 9 does not exist"):
            causal_tracing.run(model, facts, replace(CONFIG, layers=(9,)), ChunkStore(tmp_path))
        unknown = [replace(fact, attribute=f"not {fact.attribute}") for fact in facts]
        with pytest.raises(PatchscopesError, match="begins the attribute after none of the 8 prompts"):
            causal_tracing.run(model, unknown, CONFIG, ChunkStore(tmp_path))
