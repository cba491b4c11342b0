"""The registry: what it says of each model follows from the configuration that is published with the weights."""

import subprocess

import pytest
import torch
import transformers
from conftest import CONFIGS, SIZES
from transformers import AutoConfig, AutoModelForCausalLM

from patchscopes.engine.proof import find_fast_engine_failure
from patchscopes.engine.target import TargetPrompt
from patchscopes.model.loading import load_model
from patchscopes.model.registry import EXPLAINED_BY, MODELS, load_configurations
from patchscopes.model.wrapping import boot
from patchscopes.patch import patch_generate, patch_logits


@pytest.mark.parametrize("alias", MODELS)
def test_sizes_are_those_of_the_configuration(alias):
    info = MODELS[alias]
    numbers = load_configurations()[alias]
    config = AutoConfig.for_model(**numbers)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == info.n_parameters
    assert config.get_text_config().num_hidden_layers == info.n_layers
    # Its family is among those that the fast engine is tried on, as a tiny model.
    text_family = config.get_text_config().model_type.removesuffix("_text")
    assert text_family in CONFIGS


def test_each_has_a_repository_of_its_own():
    assert len({info.hub_id for info in MODELS.values()}) == len(MODELS)
    assert set(load_configurations()) == set(MODELS)
    assert all(name in MODELS for pair in EXPLAINED_BY.items() for name in pair)


@pytest.fixture(scope="module")
def folder_of_gemma(tokenizer, tmp_path_factory):
    """A tiny checkpoint that sees images too, as Gemma 3 is from 4B on."""
    folder = tmp_path_factory.mktemp("gemma")
    config = transformers.Gemma3Config(
        text_config=SIZES | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(6)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_that_sees_images_reads_text(folder_of_gemma, monkeypatch):
    commands = []
    monkeypatch.setattr(subprocess, "check_call", lambda command, *args, **kwargs: commands.append(command))
    model = load_model(str(folder_of_gemma))
    # TransformerLens would install a package for the images, and with it another torch.
    assert commands == []
    assert type(model.original_model).__name__ == "Gemma3ForConditionalGeneration"
    target = TargetPrompt(model, "a dog; a cat; x", -1)
    assert find_fast_engine_failure(target) is None
    torch.manual_seed(0)
    vectors, layers = torch.randn(5, 32), torch.tensor([-1, 0, 1, 2, 3])
    logits = [patch_logits(target, vectors, layers, engine=engine) for engine in ("fast", "hooks")]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-4)
    said = [patch_generate(target, vectors, layers, max_new_tokens=4, engine=engine) for engine in ("fast", "hooks")]
    assert torch.equal(*said)


def test_other_commands_run_while_a_model_is_loaded(monkeypatch, llama):
    calls = []

    def boot_transformers(place, **options):
        calls.append(subprocess.check_call(["true"]))
        with pytest.raises(OSError, match="no package is installed"):
            subprocess.check_call(["pip", "install", "torchvision"])
        return llama

    monkeypatch.setattr("transformer_lens.model_bridge.TransformerBridge.boot_transformers", boot_transformers)
    before = subprocess.check_call
    boot("somewhere")
    assert calls == [0]
    assert subprocess.check_call is before
