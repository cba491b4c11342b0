"""A model that overflows in float16: every script says so in one line, and writes nothing."""

import pytest
from conftest import ROOT, make_hf_model
from test_scripts import script

SCRIPTS = {
    "demo_fig1.py": [[], ["--mode", "generate"]],
    "run_fig2.py": [["--methods", "logit_lens"], ["--methods", "token_identity"], []],
    "run_prompt_table.py": [["a dog"]],
    "run_target_prompts.py": [[]],
    "run_future_lens.py": [["--methods", "fixed_prompt"], []],
    "run_lenses.py": [[]],
    "run_entity.py": [[]],
    "run_entity_interactive.py": [["Oslo"]],
    "run_attributes.py": [
        [],
        [
            ROOT / "data/relations/capital.json",
            "--attribute-lens",
            "She flew from Japan to Brazil, and drove on to Peru",
        ],
    ],
    "run_attributes_interactive.py": [["Canada", "--relation", "capital"]],
    "run_causal_tracing.py": [[]],
    "run_attention_knockout.py": [[]],
    "run_entity_resolution.py": [[]],
    "run_multi_hop.py": [[]],
    "run_multi_hop_interactive.py": [[]],
    "run_layer_grid.py": [["--mode", mode] for mode in ("quick", "comprehensive")],
    "bench_engine.py": [[]],
    "train_lens.py": [["--lens", lens] for lens in ("tuned_lens", "tuned_lens_kl", "learned_prompt", "jacobian_lens")],
}


def save_overflowing(folder, tokenizer, *modules: str) -> None:
    """A tiny model in which products are larger than float16 can say, and not than float32."""
    hf_model = make_hf_model("llama")
    for module in modules:
        hf_model.get_submodule(module).weight.data.mul_(60000 if "up_proj" not in module else 8)
    hf_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("overflowing")
    save_overflowing(folder, tokenizer, "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj")
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(f"line {number} says something about dogs" for number in range(20)))
    return path


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHSCOPES_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_every_script_is_here():
    two_models = {"run_cross_model.py"}
    assert {path.name for path in (ROOT / "scripts").glob("run_*.py")} - two_models <= set(SCRIPTS)


@pytest.mark.parametrize(
    ("name", "arguments"), [(name, arguments) for name, runs in SCRIPTS.items() for arguments in runs]
)
def test_it_is_one_line(folder, texts, tmp_path, name, arguments):
    output = ["--output-json", tmp_path / "out.json", "--output-plot", tmp_path / "out.png"]
    if name == "train_lens.py":
        output = ["--output", tmp_path / "out.safetensors"]
    if name == "run_layer_grid.py":
        output += ["--history-file", tmp_path / "runs.jsonl"]
    if name == "bench_engine.py":
        arguments = ["--dataset", texts]
    done = script(name, *arguments, "--model", folder, "--dtype", "float16", *output)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    assert "overflow in float16" in done.stderr
    assert "use float32 or bfloat16" in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_two_models(folder, tmp_path):
    output = ["--output-json", tmp_path / "out.json", "--output-plot", tmp_path / "out.png"]
    models = ["--source-model", folder, "--target-model", folder]
    done = script("run_cross_model.py", *models, "--dtype", "float16", *output)
    assert "use float32 or bfloat16" in done.stderr


@pytest.mark.parametrize(("module", "name"), [("lm_head", "demo_fig1.py"), ("model.norm", "run_entity.py")])
def test_wherever_it_happens(tokenizer, tmp_path, module, name):
    save_overflowing(tmp_path, tokenizer, module)
    output = ["--output-json", tmp_path / "out.json", "--output-plot", tmp_path / "out.png"]
    done = script(name, "--model", tmp_path, "--dtype", "float16", *output)
    assert "use float32 or bfloat16" in done.stderr


def test_in_float32_it_works(folder, tmp_path):
    output = ["--output-json", tmp_path / "out.json", "--output-plot", tmp_path / "out.png"]
    done = script("demo_fig1.py", "--model", folder, *output)
    assert done.returncode == 0, done.stderr
