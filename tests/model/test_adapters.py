"""Adapters of peft: folders, loaded ones, and those that cannot be merged."""

import json
import shutil

import peft
import pytest
import torch
from test_quantization import make_wide_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from patchscopes.errors import PatchscopesError
from patchscopes.learned.provenance import check_model, describe_provenance
from patchscopes.model import adapters
from patchscopes.model.fingerprint import weights_sha256
from patchscopes.model.loading import load_model
from patchscopes.patch import TargetPrompt, patch_logits

TOKENS = torch.arange(40, 52)[None]
LORA = {"r": 4, "lora_alpha": 16, "init_lora_weights": False, "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def base(model_folder):
    return model_folder


def adapt(base, config: peft.PeftConfig, seed: int = 0) -> peft.PeftModel:
    """The base with an adapter that has random weights."""
    torch.manual_seed(seed)
    return peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(**LORA, target_modules=["q_proj", "v_proj", "down_proj"]),
        peft.LoraConfig(**LORA, target_modules="all-linear", use_dora=True),
        peft.LoraConfig(**LORA, target_modules=["v_proj"], modules_to_save=["lm_head"]),
        peft.IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            init_ia3_weights=False,
        ),
    ],
    ids=["lora", "dora", "with-a-head", "ia3"],
)
def test_a_folder_with_an_adapter_is_its_model_with_it(base, tmp_path, config):
    adapted = adapt(base, config)
    adapted.save_pretrained(tmp_path)
    expected = adapted(TOKENS).logits
    model = load_model(str(tmp_path))
    torch.testing.assert_close(model(TOKENS), expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(load_model(str(base))(TOKENS), expected, atol=1e-2)
    assert model.cfg.model_name == str(tmp_path)
    assert not any("lora" in name or "ia3" in name for name, _ in model.named_parameters())
    target, vectors = TargetPrompt(model, TOKENS), torch.randn(3, model.cfg.d_model)
    fast, hooks = (patch_logits(target, vectors, [0, 2, 1], engine=engine) for engine in ("fast", "hooks"))
    torch.testing.assert_close(fast, hooks, atol=1e-3, rtol=1e-3)


def test_what_was_learned_from_the_base_is_refused(base, tmp_path):
    adapt(base, peft.LoraConfig(**LORA, target_modules=["v_proj"])).save_pretrained(tmp_path)
    model = load_model(str(base))
    made = describe_provenance("least_squares", model, "texts", 1, {})
    check_model(made.source_model, load_model(str(base)))
    with pytest.raises(PatchscopesError, match="the weights .* are others"):
        check_model(made.source_model, load_model(str(tmp_path)))


def test_a_peft_model_is_merged_where_it_is(base, tokenizer):
    adapted = adapt(base, peft.LoraConfig(**LORA, target_modules=["v_proj"]))
    expected = adapted(TOKENS).logits
    model = load_model(hf_model=adapted, tokenizer=tokenizer)
    torch.testing.assert_close(model(TOKENS), expected, atol=1e-3, rtol=1e-3)
    assert model.original_model is adapted.base_model.model


def test_of_several_adapters_the_active_one_counts(base, tokenizer):
    config = peft.LoraConfig(**LORA, target_modules=["v_proj"])
    adapted = adapt(base, config)
    adapted.add_adapter("second", config)
    adapted.set_adapter("second")
    expected = adapted(TOKENS).logits
    torch.testing.assert_close(load_model(hf_model=adapted)(TOKENS), expected, atol=1e-3, rtol=1e-3)


def test_an_adapter_that_transformers_put_into_the_model(base, tmp_path, tokenizer):
    adapted = adapt(base, peft.LoraConfig(**LORA, target_modules=["v_proj", "up_proj"]))
    adapted.save_pretrained(tmp_path)
    expected = adapted(TOKENS).logits
    injected = AutoModelForCausalLM.from_pretrained(tmp_path)
    model = load_model(hf_model=injected, tokenizer=tokenizer)
    torch.testing.assert_close(model(TOKENS), expected, atol=1e-3, rtol=1e-3)
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_a_folder_with_a_model_and_an_adapter_of_it(base, tmp_path):
    adapted = adapt(base, peft.LoraConfig(**LORA, target_modules=["v_proj", "up_proj"]))
    adapted.save_pretrained(tmp_path)
    # As some trainers do it; the name of the base counts as long as there are no weights.
    shutil.copy(base / "config.json", tmp_path)
    expected = adapted(TOKENS).logits
    torch.testing.assert_close(load_model(str(tmp_path))(TOKENS), expected, atol=1e-3, rtol=1e-3)
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "/gone"}))
    torch.testing.assert_close(load_model(str(tmp_path))(TOKENS), expected, atol=1e-3, rtol=1e-3)


def test_an_adapter_with_new_tokens_has_its_own_tokenizer(base, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<new-{number}>" for number in range(50)])
    model = AutoModelForCausalLM.from_pretrained(base)
    assert len(tokenizer) > model.config.vocab_size
    model.resize_token_embeddings(len(tokenizer))
    config = peft.LoraConfig(**LORA, target_modules=["v_proj"], modules_to_save=["embed_tokens", "lm_head"])
    adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    ids = loaded.to_tokens("a<new-49>b")
    assert ids.tolist()[0][-2] == len(tokenizer) - 1
    torch.testing.assert_close(loaded(ids), adapted(ids).logits, atol=1e-3, rtol=1e-3)


def test_of_another_type_and_in_16_bit(base, tmp_path):
    adapt(base, peft.LoraConfig(**LORA, target_modules=["v_proj"])).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


class TestRefused:
    def test_for_a_model_of_another_size(self, base, tokenizer, tmp_path):
        adapt(base, peft.LoraConfig(**LORA, target_modules=["v_proj"])).save_pretrained(tmp_path / "adapter")
        wider = AutoConfig.from_pretrained(base, hidden_size=64)
        AutoModelForCausalLM.from_config(wider).save_pretrained(tmp_path / "wider")
        tokenizer.save_pretrained(tmp_path / "wider")
        path = tmp_path / "adapter/adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "wider")}))
        with pytest.raises(PatchscopesError, match="does not fit the model that it names .*size mismatch"):
            load_model(str(tmp_path / "adapter"))

    def test_prompts_that_are_learned(self, base, tmp_path):
        adapted = adapt(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
        adapted.save_pretrained(tmp_path)
        with pytest.raises(PatchscopesError, match=r"\(PROMPT_TUNING\) puts vectors in front .* give one that does"):
            load_model(str(tmp_path))
        with pytest.raises(PatchscopesError, match=r"\(PROMPT_TUNING\) puts vectors in front"):
            load_model(hf_model=adapted)

    def test_another_task(self, base, tmp_path):
        adapt(
            base, peft.LoraConfig(**LORA | {"task_type": "FEATURE_EXTRACTION"}, target_modules=["v_proj"])
        ).save_pretrained(tmp_path)
        with pytest.raises(PatchscopesError, match="was made for FEATURE_EXTRACTION, not for a causal decoder"):
            load_model(str(tmp_path))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"base_model_name_or_path": "/no/such/base"}, "the model that it was made for could not be loaded"),
            ({"base_model_name_or_path": None}, "does not say which model it is for"),
            ({"peft_type": "MAGIC"}, "holds no adapter that peft can read"),
            (None, "holds no adapter that peft can read"),
        ],
    )
    def test_broken_folders(self, base, tmp_path, changes, message):
        adapt(base, peft.LoraConfig(**LORA, target_modules=["v_proj"])).save_pretrained(tmp_path)
        path = tmp_path / "adapter_config.json"
        path.write_text("{" if changes is None else json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(PatchscopesError, match=message) as error:
            load_model(str(tmp_path))
        assert "\n" not in str(error.value)

    def test_without_its_weights(self, base, tmp_path):
        adapt(base, peft.LoraConfig(**LORA, target_modules=["v_proj"])).save_pretrained(tmp_path)
        (tmp_path / "adapter_model.safetensors").unlink()
        with pytest.raises(PatchscopesError, match="could not be loaded"):
            load_model(str(tmp_path))

    def test_without_peft(self, base, tmp_path, monkeypatch):
        adapt(base, peft.LoraConfig(**LORA, target_modules=["v_proj"])).save_pretrained(tmp_path)
        monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda package: None)
        with pytest.raises(PatchscopesError, match=r"pip install 'patchscopes\[adapters\]'"):
            load_model(str(tmp_path))


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_an_adapter_is_merged_into_quantised_weights_too(tokenizer, tmp_path, bits):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_wide_model().save_pretrained(base)
    tokenizer.save_pretrained(base)
    adapted = adapt(base, peft.LoraConfig(**LORA, target_modules=["v_proj", "down_proj"]))
    adapted.save_pretrained(adapter)
    expected = adapted(TOKENS).logits
    model = load_model(str(adapter), quantization=bits)
    assert {parameter.dtype for parameter in model.parameters()} >= {torch.int8 if bits == "8bit" else torch.uint8}
    apart = [
        torch.nn.functional.cosine_similarity(one(TOKENS), expected, dim=-1).mean()
        for one in (model, load_model(str(base)))
    ]
    assert apart[0] > apart[1] + 0.1
    assert weights_sha256(model) != weights_sha256(load_model(str(base), quantization=bits))
