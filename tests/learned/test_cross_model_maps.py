"""f between two models: fitted, and known where the second model is the first one in another basis."""

import copy

import pytest
import torch
import transformers
from conftest import make_hf_model

from patchscopes.data.texts import TextSet, load_texts
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.errors import PatchscopesError
from patchscopes.learned.cached_fits import fit_or_load_cross_model_maps
from patchscopes.learned.fitting import fit_affine_maps, fit_cross_model_maps
from patchscopes.learned.mappings import MapKey
from patchscopes.model.embedded import unpack_embedded_model
from patchscopes.model.loading import load_model
from patchscopes.patch import patch_generate, patch_logits
from patchscopes.prompts import build_entity_description_prompt, build_token_identity_prompt

TRAIN = TextSet("made up", "train", tuple(f"text {n}: {n * 7919 % 1000} dogs and {n**3 % 101} cats" for n in range(40)))


@pytest.fixture(scope="module")
def pair(models_by_tokenizer):
    """Two tiny models that differ in everything."""
    return models_by_tokenizer["byte_level"], models_by_tokenizer["sentencepiece_like"]


def rotated(hf_model: transformers.LlamaForCausalLM, tokenizer) -> tuple:
    """The same function of its tokens with the residual stream in another, random, basis; and that rotation."""
    torch.manual_seed(7)
    rotation = torch.linalg.qr(torch.randn(hf_model.config.hidden_size, hf_model.config.hidden_size))[0]
    config = copy.deepcopy(hf_model.config)
    config.tie_word_embeddings = False
    weights = {name: weight.clone() for name, weight in hf_model.state_dict().items()}

    def read(norm: str, *names: str) -> None:
        for name in names:
            weights[name] = weights[name] * weights[norm] @ rotation
        weights[norm] = torch.ones_like(weights[norm])

    weights["model.embed_tokens.weight"] @= rotation
    for layer in range(config.num_hidden_layers):
        block = f"model.layers.{layer}"
        read(f"{block}.input_layernorm.weight", *(f"{block}.self_attn.{part}_proj.weight" for part in "qkv"))
        read(
            f"{block}.post_attention_layernorm.weight", *(f"{block}.mlp.{part}_proj.weight" for part in ("gate", "up"))
        )
        for writing in ("self_attn.o_proj", "mlp.down_proj"):
            weights[f"{block}.{writing}.weight"] = rotation.T @ weights[f"{block}.{writing}.weight"]
    read("model.norm.weight", "lm_head.weight")
    other = transformers.LlamaForCausalLM(config).eval()
    other.load_state_dict(weights)
    return load_model(hf_model=other, tokenizer=tokenizer), rotation


class TestFit:
    def test_of_a_model_to_itself_it_is_the_map_of_one_model(self, llama):
        """The same positions, the same sums."""
        ours = fit_cross_model_maps(llama, llama, TRAIN, [0, 2], [1, 3], n_positions=400)
        of_one = fit_affine_maps(llama, TRAIN, [0, 2], [1, 3], n_positions=400)
        assert ours.keys() == of_one.keys()
        for key, affine in ours.items():
            torch.testing.assert_close(affine.weight, of_one[key].weight, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(affine.bias, of_one[key].bias, atol=1e-4, rtol=1e-4)

    def test_finds_the_rotation(self, llama, tokenizer):
        other, rotation = rotated(make_hf_model("llama"), tokenizer)
        maps = fit_cross_model_maps(llama, other, TRAIN, [0, 1, 2, 3], [0, 1, 2, 3])
        for layer in range(4):
            torch.testing.assert_close(maps[MapKey(layer, layer)].weight, rotation.T, atol=1e-3, rtol=1e-3)

    def test_provenance(self, pair):
        source, target = pair
        made = fit_cross_model_maps(source, target, TRAIN, [1], [2], n_positions=200)[MapKey(1, 2)].provenance
        assert made.source_model["weights_sha256"] != made.target_model["weights_sha256"]
        assert made.n_positions == 200 <= made.options["source_positions_in_the_same_texts"]
        assert (made.options["source_layers"], made.options["target_layers"]) == ([1], [2])

    def test_mistakes(self, pair):
        with pytest.raises(PatchscopesError, match="train split"):
            fit_cross_model_maps(*pair, TextSet("made up", "evaluation", TRAIN.texts), [0], [0])
        with pytest.raises(PatchscopesError, match="layer 3 does not exist"):
            fit_cross_model_maps(*pair, TRAIN, [3], [3])
        with pytest.raises(PatchscopesError, match="n_positions must be at least 1"):
            fit_cross_model_maps(*pair, TRAIN, [0], [0], n_positions=0)

    def test_the_cache_is_reused(self, pair, tmp_path, monkeypatch):
        monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))
        source, target = pair
        first = fit_or_load_cross_model_maps(source, target, TRAIN, [0, 1], [2], n_positions=200)

        def never(groups):
            raise AssertionError("fitted again")

        again = fit_or_load_cross_model_maps(source, target, TRAIN, [0, 1], [2], n_positions=200, progress=never)
        assert all(torch.equal(first[key].weight, again[key].weight) for key in first)
        for other in ((target, source), (source, source)):
            with pytest.raises(AssertionError, match="fitted again"):
                fit_or_load_cross_model_maps(*other, TRAIN, [0, 1], [2], n_positions=200, progress=never)


class TestRotatedModel:
    """A model that is known to be the same: through the fitted map it must say what the model itself says."""

    def test_same_logits_and_generations(self, llama, tokenizer):
        other, _ = rotated(make_hf_model("llama"), tokenizer)
        text = "cats chase dogs"
        layers = [0, 1, 2, 3]
        maps = fit_cross_model_maps(llama, other, TRAIN, layers, layers)
        states = extract_representations(llama, [text], [-1], layers)[0]
        mapped = torch.stack([maps[MapKey(layer, layer)](state) for layer, state in zip(layers, states, strict=True)])
        ours, theirs = (TargetPrompt(model, "x ? y", -3) for model in (llama, other))
        torch.testing.assert_close(
            patch_logits(theirs, mapped, layers), patch_logits(ours, states, layers), atol=2e-2, rtol=2e-2
        )
        assert torch.equal(patch_generate(theirs, mapped, layers), patch_generate(ours, states, layers))

    def test_on_the_embedded_model(self, smollm):
        hf_model = transformers.AutoModelForCausalLM.from_pretrained(unpack_embedded_model())
        other, rotation = rotated(hf_model, smollm.tokenizer)
        layers = [2, 6, 12]
        maps = fit_cross_model_maps(smollm, other, load_texts(split="train"), layers, layers, n_positions=3000)
        names = ["Diana, Princess of Wales", "Alexander the Great", "New York City"]
        states = extract_representations(smollm, names, [-1] * len(names), layers)
        mapped = torch.stack([maps[MapKey(layer, layer)](states[:, slot]) for slot, layer in enumerate(layers)], dim=1)
        exact = states @ rotation
        assert float((mapped - exact).norm() / exact.norm()) < 0.01
        for prompt, placeholder in ((build_token_identity_prompt(), "?"), (build_entity_description_prompt(), "x")):
            ours, theirs = (placeholder_target(model, prompt, placeholder) for model in (smollm, other))
            same_model = patch_logits(ours, states.flatten(0, 1), layers * len(names))
            across = patch_logits(theirs, mapped.flatten(0, 1), layers * len(names))
            assert torch.equal(across.argmax(dim=-1), same_model.argmax(dim=-1))
            assert float((across - same_model).abs().max()) < 0.5
