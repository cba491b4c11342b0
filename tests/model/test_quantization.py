"""Weights in 8 and 4 bits: that they stay so, that the fast engine is proved on them, and which weights they are."""

import pytest
import torch
from conftest import CONFIGS, make_hf_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from patchscopes.engine.jacobian import compute_jacobians
from patchscopes.engine.proof import find_fast_engine_failure
from patchscopes.errors import PatchscopesError
from patchscopes.model import loading
from patchscopes.model.environment import describe_environment
from patchscopes.model.fingerprint import weights_sha256
from patchscopes.model.loading import load_model
from patchscopes.patch import TargetPrompt, patch_logits

PROMPT = "cat -> cat\n1135 -> 1135\nhello -> hello\n?"
STORED = {"8bit": torch.int8, "4bit": torch.uint8}


def make_wide_model(seed: int = 0):
    """One of which every matrix is wide enough for 4 bits: bitsandbytes scales 64 numbers together."""
    torch.manual_seed(seed)
    config = CONFIGS["llama"]()
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    hf_model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in hf_model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(6)
    return hf_model


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_wide_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("bits", "dtype"), [("8bit", "float32"), ("8bit", "bfloat16"), ("4bit", "float32"), ("4bit", "bfloat16")]
)
def test_weights_stay_quantised_and_the_fast_engine_is_proved(folder, bits, dtype):
    model = load_model(str(folder), quantization=bits, dtype=dtype)
    stored = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {kind for name, kind in stored.items() if "proj" in name or "mlp" in name} == {STORED[bits]}
    assert model.cfg.dtype == getattr(torch, dtype)
    assert torch.equal(model.to_tokens("a dog"), load_model(str(folder)).to_tokens("a dog"))
    target = TargetPrompt(model, PROMPT)
    assert find_fast_engine_failure(target) is None
    vectors, layers = torch.randn(6, model.cfg.d_model), [0, 3, -1, 2, 1, 1]
    fast, hooks = (patch_logits(target, vectors, layers, engine=engine).float() for engine in ("fast", "hooks"))
    assert torch.nn.functional.cosine_similarity(fast, hooks).min() > 0.99
    # It is the model that it was, as far as so few bits say.
    whole = patch_logits(TargetPrompt(load_model(str(folder)), PROMPT), vectors, layers)
    assert torch.nn.functional.cosine_similarity(fast, whole).mean() > (0.95 if bits == "8bit" else 0.7)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_fingerprint_knows_the_scales_and_not_how_a_processor_keeps_them(folder, tmp_path, tokenizer, bits):
    model = load_model(str(folder), quantization=bits, dtype="bfloat16")
    before = weights_sha256(model)
    model(torch.arange(5)[None])
    assert (
        weights_sha256(model) == before == weights_sha256(load_model(str(folder), quantization=bits, dtype="bfloat16"))
    )
    twice = make_wide_model()
    twice.get_submodule("model.layers.1.mlp.down_proj").weight.data.mul_(2)
    twice.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert weights_sha256(load_model(str(tmp_path), quantization=bits, dtype="bfloat16")) != before


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_gradients_pass_through_quantised_weights(folder, bits):
    """On some CPUs bitsandbytes would lose them, all but those along the residual stream, without a word."""
    model, whole = load_model(str(folder), quantization=bits), load_model(str(folder))
    found, expected = (compute_jacobians(one, "a big dog", 3, [0, 2]).jacobians.flatten(1) for one in (model, whole))
    identity = torch.eye(model.cfg.d_model).flatten()
    alike = torch.nn.functional.cosine_similarity
    assert (alike(found - identity, expected - identity) > (0.9 if bits == "8bit" else 0.4)).all()
    by_hooks = compute_jacobians(model, "a big dog", 3, [0, 2], engine="hooks").jacobians.flatten(1)
    assert (alike(found, by_hooks) > 0.99).all()


def test_the_environment_says_so(folder):
    described = describe_environment(load_model(str(folder), quantization="4bit"))["model"]
    assert described["quantization"]["load_in_4bit"] is True
    assert "quantization" not in describe_environment(load_model(str(folder)))["model"]


def test_a_folder_that_was_saved_quantised(folder, tmp_path, tokenizer):
    config = BitsAndBytesConfig(load_in_8bit=True)
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert torch.int8 in {parameter.dtype for parameter in model.parameters()}
    assert find_fast_engine_failure(TargetPrompt(model, PROMPT)) is None


class TestRefused:
    def test_other_bits(self, folder):
        with pytest.raises(PatchscopesError, match="quantization must be 8bit or 4bit, got '3bit'"):
            load_model(str(folder), quantization="3bit")

    def test_another_type_of_loaded_weights(self, folder):
        quantised = load_model(folder, quantization="8bit")
        with pytest.raises(PatchscopesError, match="quantised weights keep their type"):
            load_model(hf_model=quantised.original_model, tokenizer=quantised.tokenizer, dtype="bfloat16")

    def test_of_a_loaded_model(self, tokenizer):
        with pytest.raises(PatchscopesError, match="of a model that is not loaded yet"):
            load_model(hf_model=make_hf_model("llama"), tokenizer=tokenizer, quantization="8bit")

    def test_without_its_package(self, folder, monkeypatch):
        monkeypatch.setattr(loading.importlib.util, "find_spec", lambda package: None)
        with pytest.raises(PatchscopesError, match=r"pip install 'patchscopes\[quantization\]'"):
            load_model(str(folder), quantization="8bit")
