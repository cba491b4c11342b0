"""The options that say which model and how it is loaded, through a script."""

import peft
import pytest
from made_up_gguf import make_qwen2, write_gguf
from test_scripts import read, script
from transformers import AutoModelForCausalLM


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def draw(tmp_path):
    """Figure 1 with some options; its result file."""
    output = ["--output-json", tmp_path / "out.json", "--output-plot", tmp_path / "out.png"]

    def run(*options):
        done = script("demo_fig1.py", "--source-text", "a big dog", "--target-word", "big", *options, *output)
        assert done.returncode == 0, done.stderr
        return read(tmp_path / "out.json")

    return run


def test_quantised(draw, model_folder):
    model = draw("--model", model_folder, "--quantization", "4bit")["environment"]["model"]
    assert model["quantization"]["load_in_4bit"] is True
    assert model["weights_sha256"] != draw("--model", model_folder)["environment"]["model"]["weights_sha256"]


def test_an_adapter(draw, model_folder, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["v_proj"], init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).save_pretrained(
        tmp_path / "adapter"
    )
    model = draw("--model", tmp_path / "adapter")["environment"]["model"]
    assert model["id"] == str(tmp_path / "adapter")
    assert model["weights_sha256"] != draw("--model", model_folder)["environment"]["model"]["weights_sha256"]


def test_a_gguf_file(draw, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", make_qwen2())
    assert draw("--model", tmp_path / "tiny.gguf")["environment"]["model"]["id"] == str(tmp_path / "tiny.gguf")


def test_each_of_two_models_has_its_revision(model_folder, tmp_path):
    models = ["--source-model", model_folder, "--target-model", model_folder]
    for which in ("source", "target"):
        done = script("run_cross_model.py", *models, f"--{which}-revision", "main")
        assert "error: " in done.stderr
        assert "has no revisions, which are of models of the hub" in done.stderr
