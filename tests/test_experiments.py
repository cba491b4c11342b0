"""The experiments as functions, and what the figures of the paper must show on the embedded model."""

import numpy as np
import pytest
import torch

from patchscopes.data import TextSet, load_texts
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import layer_readout, next_token
from patchscopes.experiments.layer_readout import LayerReadoutConfig
from patchscopes.experiments.next_token import NextTokenConfig
from patchscopes.patch import EMBEDDING, TargetPrompt, patch_logits
from patchscopes.prompts import build_token_identity_prompt
from patchscopes.results import ChunkStore

PHRASES = [f"{one} {two} in the {three}" for one in "abc" for two in ("dog", "cat") for three in ("sun", "rain", "fog")]
TEXTS = TextSet("made up", "evaluation", tuple(PHRASES))


@pytest.fixture
def store(tmp_path):
    return ChunkStore.beside(tmp_path / "out.json", {}, {})


def run(model, config, store):
    return next_token.run(model, TEXTS, config, store)[0]


class TestNextToken:
    CONFIG = NextTokenConfig(n_samples=80)

    def test_shape_of_the_results(self, llama, store):
        results, timing = next_token.run(llama, TEXTS, self.CONFIG, store)
        assert results["layers"] == [0, 1, 2, 3]
        assert (results["n_samples"], results["n_texts"]) == (80, len(PHRASES))
        assert set(results["methods"]) == {"logit_lens", "token_identity", "simplescope"}
        for metrics in results["methods"].values():
            assert np.shape(metrics["precision_at_1"]["ci95"]) == (4, 2)
            assert metrics["precision_at_1"]["mean"][-1] == 1.0
            assert min(metrics["surprisal"]["mean"]) > 0
        assert set(timing["seconds"]) == {"sources", "logit_lens", "token_identity", "simplescope", "total"}

    def test_an_interrupted_run_goes_on_and_ends_the_same(self, llama, tmp_path, monkeypatch):
        whole = run(llama, self.CONFIG, ChunkStore(tmp_path / "whole"))
        measured = []
        measure = next_token._measure

        def measure_two(*args):
            if len(measured) == 2:
                raise KeyboardInterrupt
            measured.append(args)
            return measure(*args)

        monkeypatch.setattr(next_token, "_measure", measure_two)
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

    def test_the_batch_size_changes_nothing(self, llama, tmp_path):
        whole = run(llama, self.CONFIG, ChunkStore(tmp_path / "whole"))
        small = run(llama, NextTokenConfig(n_samples=80, batch_size=3), ChunkStore(tmp_path / "small"))
        for method, metrics in whole["methods"].items():
            for metric in metrics:
                np.testing.assert_allclose(metrics[metric]["mean"], small["methods"][method][metric]["mean"], atol=1e-4)

    def test_readers_are_the_plain_computation(self, llama):
        states = torch.randn(3, 2, 32)
        layers = [1, 3]
        read = next_token.token_identity_reader(llama, layers, None)(states)
        target = TargetPrompt(llama, build_token_identity_prompt())
        for sample in range(3):
            plain = patch_logits(target, states[sample], layers, engine="hooks").argmax(dim=-1)
            assert torch.equal(read[sample], plain)

    def test_mistakes(self, llama, store):
        with pytest.raises(PatchscopesError, match="no method is called 'magic'"):
            run(llama, NextTokenConfig(methods=("magic",)), store)
        with pytest.raises(PatchscopesError, match="layer 4 does not exist"):
            run(llama, NextTokenConfig(n_samples=3, layers=(4,)), store)
        with pytest.raises(PatchscopesError, match="samples asked for"):
            run(llama, NextTokenConfig(n_samples=10_000), store)


def test_figure_2_on_the_embedded_model(smollm, store):
    """The order of the methods that the paper reports, on a few samples and layers."""
    config = NextTokenConfig(n_samples=64, layers=(14, 19, 24, 29))
    results, _ = next_token.run(smollm, load_texts(), config, store)
    precision = {method: np.array(m["precision_at_1"]["mean"]) for method, m in results["methods"].items()}
    assert (precision["token_identity"][:3] > precision["logit_lens"][:3]).all()
    assert (precision["simplescope"][:2] >= precision["token_identity"][:2]).all()
    assert all(values[3] == 1.0 for values in precision.values())


class TestLayerReadout:
    def test_figure_1_on_the_embedded_model(self, smollm):
        results = layer_readout.run(smollm, LayerReadoutConfig())
        readout = results["methods"]["token_identity"]
        assert results["source_tokens"][results["source_position"]] == " CEO"
        assert results["target_tokens"][results["target_position"]] == "?"
        assert len(readout["top_k"]) == len(readout["generations"]) == 30
        assert all(text.startswith(" -> CEO") for text in readout["generations"][:10])
        for row in readout["top_k"]:
            probabilities = [entry["probability"] for entry in row]
            assert probabilities == sorted(probabilities, reverse=True)
            assert 0 < sum(probabilities) <= 1

    @pytest.mark.parametrize(("mode", "parts"), [("top_k", {"top_k"}), ("generate", {"generations"})])
    def test_modes(self, llama, mode, parts):
        config = LayerReadoutConfig(source_prompt="a big dog", source_word="big", mode=mode, layers=(0, 2))
        results = layer_readout.run(llama, config)
        assert set(results["methods"]["token_identity"]) == parts
        assert results["layers"] == [0, 2]

    def test_target_layers(self, llama):
        assert layer_readout.target_layers(llama, [0, 3], "same") == [0, 3]
        assert layer_readout.target_layers(llama, [0, 3], "embedding") == [EMBEDDING, EMBEDDING]
        assert layer_readout.target_layers(llama, [0, 3], "last") == [3, 3]
        assert layer_readout.target_layers(llama, [0, 3], "1") == [1, 1]
        with pytest.raises(PatchscopesError, match="layer 4 does not exist"):
            layer_readout.target_layers(llama, [0], "4")
        with pytest.raises(PatchscopesError, match="same, embedding, last or a number"):
            layer_readout.target_layers(llama, [0], "first")
