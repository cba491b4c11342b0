"""Figure 1: one representation, layer by layer."""

import pytest

from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import layer_readout
from patchscopes.experiments.config import LayerReadoutConfig
from patchscopes.model.layers import EMBEDDING, resolve_target_layers
from patchscopes.tokens import to_token_ids


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
        assert resolve_target_layers(llama, [0, 3], "same") == [0, 3]
        assert resolve_target_layers(llama, [0, 3], "embedding") == [EMBEDDING, EMBEDDING]
        assert resolve_target_layers(llama, [0, 3], "last") == [3, 3]
        assert resolve_target_layers(llama, [0, 3], "1") == [1, 1]
        with pytest.raises(PatchscopesError, match="layer 4 does not exist"):
            resolve_target_layers(llama, [0], "4")
        with pytest.raises(PatchscopesError, match="same, embedding, last or a number"):
            resolve_target_layers(llama, [0], "first")


def test_unpatched_is_what_the_target_prompt_alone_says(tiny_models):
    model = tiny_models("llama")
    config = LayerReadoutConfig(source_prompt="ab", source_word="b", target_prompt="x is ?", max_new_tokens=3, k=2)
    unpatched = layer_readout.run(model, config)["methods"]["unpatched"]
    tokens = generate_after(model, ["x is ?"], max_new_tokens=3)
    assert unpatched["generation"] == model.tokenizer.batch_decode(tokens, skip_special_tokens=True)[0]
    probabilities = model(to_token_ids(model, "x is ?")[None])[0, -1].softmax(dim=-1)
    assert [one["probability"] for one in unpatched["top_k"]] == pytest.approx(probabilities.topk(2).values.tolist())
