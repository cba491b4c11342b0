"""The experiments over positions of texts: next token, Future Lens, and the lenses side by side."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import CONTEXT
from drawn_figures import check_texts

from patchscopes.data.texts import TextSet, load_texts
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import future_lens, lenses, next_token
from patchscopes.experiments.config import FutureLensConfig, LensesConfig, NextTokenConfig
from patchscopes.experiments.sampling import sample_positions
from patchscopes.learned.config import JacobianLensConfig
from patchscopes.learned.fitting import fit_affine_maps
from patchscopes.learned.future_lens import SoftPrompt, build_fixed_prompt_target
from patchscopes.learned.jacobian_lens import fit_jacobian_lens
from patchscopes.learned.mappings import LayerMapping
from patchscopes.learned.provenance import describe_provenance
from patchscopes.patch import patch_generate, patch_logits
from patchscopes.plots.lenses import plot_lenses
from patchscopes.prompts import build_token_identity_prompt
from patchscopes.results import ChunkStore

PHRASES = [f"{one} {two} in the {three}" for one in "abc" for two in ("dog", "cat") for three in ("sun", "rain", "fog")]
TEXTS = TextSet("made up", "evaluation", tuple(PHRASES))


TRAIN = TextSet("made up", "train", tuple(f"{n} dogs are {n * n} cats" for n in range(20)))


@pytest.fixture
def store(tmp_path):
    return ChunkStore.beside(tmp_path / "out.json", {}, {})


@pytest.fixture(scope="module")
def maps(llama):
    return fit_affine_maps(llama, TRAIN, ahead=(0, 1, 2))


@pytest.fixture(scope="module")
def jacobian_maps(llama, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHSCOPES_CACHE", str(tmp_path_factory.mktemp("cache")))
        return fit_jacobian_lens(llama, TRAIN, JacobianLensConfig(skip_first=4, dim_batch=32))


@pytest.fixture(scope="module")
def soft_prompt(llama):
    """Not learned, but a prompt of vectors all the same."""
    made = describe_provenance("kl", llama, TRAIN, 0, {})
    torch.manual_seed(0)
    tokens = build_fixed_prompt_target(llama).tokens
    return SoftPrompt(tokens, torch.randn(len(tokens), 32), made)


PLAIN = ("logit_lens", "token_identity", "simplescope")


def draw_up(results, config):
    """A result file of which the plot has all that it shows."""
    environment = {"model": {"id": "tiny"}, "dtype": "float32", "dataset": {"name": "made up"}}
    return {"config": asdict(config), "environment": environment, "results": results}


def run(model, config, store, **learned):
    return next_token.run(model, TEXTS, config, store, **learned)[0]


class TestNextToken:
    CONFIG = NextTokenConfig(n_samples=80, methods=PLAIN)

    def test_shape_of_the_results(self, llama, store, maps):
        config = NextTokenConfig(n_samples=80)
        results, timing = next_token.run(llama, TEXTS, config, store, maps={"tuned_lens": maps})
        assert results["layers"] == [0, 1, 2, 3]
        assert (results["n_samples"], results["n_texts"]) == (80, len(PHRASES))
        assert set(results["methods"]) == {"logit_lens", "tuned_lens", "token_identity", "simplescope"}
        for method, metrics in results["methods"].items():
            assert np.shape(metrics["precision_at_1"]["ci95"]) == (4, 2)
            assert metrics["precision_at_1"]["mean"][-1] == 1.0 or method == "tuned_lens"
            assert min(metrics["surprisal"]["mean"]) > 0
        assert set(timing["seconds"]) == {"sources", "total", *results["methods"]}

    def test_an_interrupted_run_goes_on_and_ends_the_same(self, llama, tmp_path, monkeypatch):
        whole = run(llama, self.CONFIG, ChunkStore(tmp_path / "whole"))
        measured = []
        measure = next_token.measure_samples

        def measure_two(*args):
            if len(measured) == 2:
                raise KeyboardInterrupt
            measured.append(args)
            return measure(*args)

        monkeypatch.setattr(next_token, "measure_samples", measure_two)
        with pytest.raises(KeyboardInterrupt):
            run(llama, self.CONFIG, ChunkStore(tmp_path / "killed"))
        assert len(list((tmp_path / "killed").iterdir())) == 2
        measured.pop()
        assert run(llama, self.CONFIG, ChunkStore(tmp_path / "killed")) == whole

    def test_some_layers_are_the_same_numbers(self, llama, tmp_path):
        whole = run(llama, self.CONFIG, ChunkStore(tmp_path / "whole"))
        some = run(llama, NextTokenConfig(n_samples=80, layers=(2, 0), methods=("simplescope",)), ChunkStore(tmp_path))
        assert some["layers"] == [2, 0]
        everything = whole["methods"]["simplescope"]["precision_at_1"]["mean"]
        assert some["methods"]["simplescope"]["precision_at_1"]["mean"] == [everything[2], everything[0]]

    def test_the_jacobian_lens_only_when_asked_for(self, llama, store, jacobian_maps):
        assert "jacobian_lens" not in NextTokenConfig.methods
        config = NextTokenConfig(n_samples=20, methods=("logit_lens", "jacobian_lens"))
        methods = run(llama, config, store, maps={"jacobian_lens": jacobian_maps})["methods"]
        assert methods["jacobian_lens"]["precision_at_1"]["mean"][-1] == 1.0
        assert methods["jacobian_lens"] != methods["logit_lens"]

    def test_the_batch_size_changes_nothing(self, llama, tmp_path):
        whole = run(llama, self.CONFIG, ChunkStore(tmp_path / "whole"))
        small = run(llama, NextTokenConfig(n_samples=80, batch_size=3, methods=PLAIN), ChunkStore(tmp_path / "small"))
        for method, metrics in whole["methods"].items():
            for metric in metrics:
                np.testing.assert_allclose(metrics[metric]["mean"], small["methods"][method][metric]["mean"], atol=1e-4)

    def test_reading_is_the_plain_computation(self, llama):
        states = torch.randn(3, 2, 32)
        layers = [1, 3]
        lens = next_token.build_lenses(llama, ["token_identity"], {})["token_identity"]
        read = next_token.read_tokens(llama, lens, states, layers, batch_size=4)
        target = TargetPrompt(llama, build_token_identity_prompt())
        for sample in range(3):
            plain = patch_logits(target, states[sample], layers, engine="hooks").argmax(dim=-1)
            assert torch.equal(read[sample], plain)

    def test_mistakes(self, llama, store):
        with pytest.raises(PatchscopesError, match="no method is called 'magic'"):
            run(llama, NextTokenConfig(methods=("magic",)), store)
        with pytest.raises(PatchscopesError, match="layer 4 does not exist"):
            run(llama, NextTokenConfig(n_samples=3, layers=(4,), methods=PLAIN), store)
        with pytest.raises(PatchscopesError, match="samples asked for"):
            run(llama, NextTokenConfig(n_samples=10_000, methods=PLAIN), store)
        with pytest.raises(PatchscopesError, match="best_prompt needs a prompt for each"):
            run(llama, NextTokenConfig(methods=("best_prompt",)), store)
        with pytest.raises(PatchscopesError, match="tuned_lens_kl needs its maps"):
            run(llama, NextTokenConfig(methods=("tuned_lens_kl",)), store)


def test_figure_2_on_the_embedded_model(smollm, store):
    """The order of the methods that the paper reports, on a few samples and layers."""
    maps = fit_affine_maps(smollm, load_texts(split="train"), [14, 19, 24, 29], n_positions=3000)
    config = NextTokenConfig(n_samples=64, layers=(14, 19, 24, 29))
    results, _ = next_token.run(smollm, load_texts(), config, store, maps={"tuned_lens": maps})
    precision = {method: np.array(m["precision_at_1"]["mean"]) for method, m in results["methods"].items()}
    assert (precision["token_identity"][:3] > precision["logit_lens"][:3]).all()
    assert (precision["simplescope"][:2] >= precision["token_identity"][:2]).all()
    assert (precision["tuned_lens"][:3] > precision["logit_lens"][:3]).all()
    assert precision["token_identity"][2] > precision["tuned_lens"][2]
    assert all(values[3] == 1.0 for values in precision.values())


class TestFutureLens:
    CONFIG = FutureLensConfig(n_samples=40)

    def test_shape_of_the_results(self, llama, store, maps, soft_prompt):
        results, timing = future_lens.run(llama, TEXTS, self.CONFIG, store, maps=maps, soft_prompt=soft_prompt)
        assert (results["layers"], results["ahead"]) == ([0, 1, 2, 3], [1, 2, 3])
        assert tuple(results["methods"]) == FutureLensConfig.METHODS
        for metrics in results["methods"].values():
            assert np.shape(metrics["surprisal"]["ci95"]) == (3, 4, 2)
            assert np.min(metrics["surprisal"]["mean"]) > 0
            at = [np.array(metrics[f"precision_at_{k}"]["mean"]) for k in (1, 5, 10)]
            assert (at[0] <= at[1]).all()
            assert (at[1] <= at[2]).all()
        # At the last layer and the next token, prompts read the model's own prediction.
        assert results["methods"]["fixed_prompt"]["precision_at_1"]["mean"][0][3] == 1.0
        assert set(timing["seconds"]) == {"sources", "total", *FutureLensConfig.METHODS}

    def test_is_the_plain_computation(self, llama, store, maps, soft_prompt):
        config = FutureLensConfig(n_samples=9, layers=(1, 3))
        results, _ = future_lens.run(llama, TEXTS, config, store, maps=maps, soft_prompt=soft_prompt)
        drawn = sample_positions(llama, TEXTS, 9, 0, room=2)
        targets = {
            "fixed_prompt": build_fixed_prompt_target(llama),
            "learned_prompt": soft_prompt.target(llama),
            "token_identity": TargetPrompt(llama, build_token_identity_prompt()),
        }
        hits = {method: torch.zeros(3, 2) for method in FutureLensConfig.METHODS}
        for sample in drawn.samples:
            text = drawn.tokens[sample.text][: sample.position + 1]
            vectors = extract_representations(llama, [text], [-1], [1, 3])[0]
            own = []
            for _ in range(3):
                own.append(llama(torch.cat([text, torch.tensor(own, dtype=torch.long)])[None])[0, -1].argmax())
            for method, target in targets.items():
                said = patch_generate(target, vectors, [1, 3], max_new_tokens=3, engine="hooks")
                hits[method] += torch.stack(own)[:, None] == said.T
            for later in range(3):
                mapped = LayerMapping.to_last(llama, maps, later)(vectors, torch.tensor([1, 3]))
                said = llama.unembed(llama.ln_final(mapped[None]))[0].argmax(dim=-1)
                hits["linear"][later] += said == own[later]
        for method, counted in hits.items():
            np.testing.assert_allclose(results["methods"][method]["precision_at_1"]["mean"], counted / 9, atol=1e-6)

    def test_the_batch_size_changes_nothing(self, llama, tmp_path, maps, soft_prompt):
        learned = {"maps": maps, "soft_prompt": soft_prompt}
        whole, _ = future_lens.run(llama, TEXTS, self.CONFIG, ChunkStore(tmp_path / "whole"), **learned)
        config = FutureLensConfig(n_samples=40, batch_size=7)
        small, _ = future_lens.run(llama, TEXTS, config, ChunkStore(tmp_path / "small"), **learned)
        for method, metrics in whole["methods"].items():
            for metric in metrics:
                np.testing.assert_allclose(metrics[metric]["mean"], small["methods"][method][metric]["mean"], atol=1e-4)

    def test_positions_leave_room_for_the_continuation(self, llama, store):
        texts = TextSet("long", "evaluation", ("x" * (2 * CONTEXT),))
        config = FutureLensConfig(n_samples=CONTEXT - 4, layers=(3,), methods=("fixed_prompt",))
        results, _ = future_lens.run(llama, texts, config, store)
        assert results["methods"]["fixed_prompt"]["precision_at_1"]["mean"][0] == [1.0]
        with pytest.raises(PatchscopesError, match=f"have only {CONTEXT - 3} positions"):
            future_lens.run(llama, texts, FutureLensConfig(n_samples=CONTEXT - 2, methods=("fixed_prompt",)), store)

    def test_mistakes(self, llama, store):
        with pytest.raises(PatchscopesError, match="linear must be learned first"):
            future_lens.run(llama, TEXTS, self.CONFIG, store)
        with pytest.raises(PatchscopesError, match="no method is called 'magic'"):
            future_lens.run(llama, TEXTS, FutureLensConfig(methods=("magic",)), store)


class TestLenses:
    @pytest.mark.parametrize("form", ["learned_prompt", "fixed_prompt"])
    def test_the_seven_forms(self, llama, store, maps, soft_prompt, form):
        config = LensesConfig(n_samples=40, future_lens=form)
        results, timing = lenses.run(llama, TEXTS, config, store, maps=maps, soft_prompt=soft_prompt)
        assert len(results["methods"]) == 7
        for original, twin in results["twins"].items():
            assert twin["largest_difference"] < 1e-3
            assert (twin["largest_difference_hooks"] is None) == (original == "future_lens")
            assert (twin["largest_difference_hooks"] or 0) < 1e-4
            assert twin["largest_logit"] > 1
            assert twin["same_token"] == 1.0
            ours, theirs = (results["methods"][name] for name in (f"{original}_patchscope", original))
            assert ours == theirs
        assert timing["seconds"]["checks with hooks"] > 0

    def test_the_jacobian_lens_and_its_twin_when_asked_for(self, llama, store, maps, jacobian_maps, soft_prompt):
        config = LensesConfig(n_samples=20, methods=LensesConfig.METHODS)
        learned = {"maps": maps, "jacobian_maps": jacobian_maps, "soft_prompt": soft_prompt}
        results, _ = lenses.run(llama, TEXTS, config, store, **learned)
        assert tuple(results["methods"]) == LensesConfig.METHODS
        twin = results["twins"]["jacobian_lens"]
        assert max(twin["largest_difference"], twin["largest_difference_hooks"]) < 1e-4
        assert results["methods"]["jacobian_lens"] == results["methods"]["jacobian_lens_patchscope"]
        texts = check_texts(plot_lenses(draw_up(results, config)))
        assert any(text.startswith("Nine lenses on") for text in texts)
        assert "Jacobian Lens via Patchscope" in texts

    def test_some_methods(self, llama, tmp_path, maps):
        whole_config = LensesConfig(n_samples=20, future_lens="fixed_prompt")
        whole, _ = lenses.run(llama, TEXTS, whole_config, ChunkStore(tmp_path / "whole"), maps=maps)
        config = LensesConfig(n_samples=20, methods=("token_identity", "logit_lens_patchscope"))
        some, _ = lenses.run(llama, TEXTS, config, ChunkStore(tmp_path / "some"))
        assert some["methods"] == {method: whole["methods"][method] for method in config.methods}
        assert some["twins"] == {}
        assert any(text.startswith("Two lenses on") for text in check_texts(plot_lenses(draw_up(some, config))))

    def test_agrees_with_figure_2(self, llama, tmp_path, maps):
        side_by_side, _ = lenses.run(
            llama, TEXTS, LensesConfig(n_samples=40, future_lens="fixed_prompt"), ChunkStore(tmp_path / "a"), maps=maps
        )
        config = NextTokenConfig(n_samples=40, methods=("logit_lens", "tuned_lens", "token_identity"))
        figure_2 = run(llama, config, ChunkStore(tmp_path / "b"), maps={"tuned_lens": maps})
        for method in config.methods:
            assert side_by_side["methods"][method] == figure_2["methods"][method]

    def test_mistakes(self, llama, store, maps):
        with pytest.raises(PatchscopesError, match="learned_prompt with a prompt; got 'learned_prompt'"):
            lenses.run(llama, TEXTS, LensesConfig(), store, maps=maps)
        with pytest.raises(PatchscopesError, match="jacobian_lens needs its maps"):
            lenses.run(llama, TEXTS, LensesConfig(methods=("jacobian_lens_patchscope",)), store)
        with pytest.raises(PatchscopesError, match="no method is called 'magic'"):
            lenses.run(llama, TEXTS, LensesConfig(methods=("magic",)), store)
