"""The options of the scripts: what they accept, and that they are parsed before anything heavy is imported."""

import json
import subprocess
import sys
import time
from argparse import ArgumentTypeError

import pytest
from conftest import ROOT
from parsing import (
    existing_file,
    file_name,
    layer_list,
    model_name,
    name_list,
    natural,
    positive,
    real_from_zero,
    target_layer,
)

SHARED = ("estimate", "layer_grid_tables", "learned", "live_grid", "options", "parsing", "processes", "skeleton")
SHARED += ("texts",)
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py") if path.stem not in SHARED)
HEAVY = ("torch", "transformer_lens", "transformers", "matplotlib", "datasets")
# Runs a script as `python SCRIPT OPTIONS` does, then says how it ended and which of the heavy packages it imported.
RUN = """
import json, runpy, sys
heavy, sys.argv, status = json.loads(sys.argv[1]), sys.argv[2:], 0
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as ended:
    status = ended.code
print(json.dumps([status, [name for name in heavy if name in sys.modules]]))
"""


def run_lightly(script: str, *arguments: str) -> tuple[object, str]:
    """The status and what was printed; the script must end at once and import nothing heavy."""
    command = [sys.executable, "-c", RUN, json.dumps(HEAVY), str(ROOT / "scripts" / script), *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    seconds = time.perf_counter() - started
    *printed, ended = done.stdout.splitlines()
    status, imported = json.loads(ended)
    assert imported == []
    # A tenth of that on an idle machine.
    assert seconds < 3
    return status, "\n".join(printed) + done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_comes_at_once(script):
    status, printed = run_lightly(script, "--help")
    assert status == 0
    assert "usage" in printed


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_option_is_refused_at_once(script):
    status, printed = run_lightly(script, "--no-such-option")
    assert status == 2
    # train_lens.py asks for its --output first.
    assert "--no-such-option" in printed or "required: --output" in printed


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("run_fig2.py", ["--model", "lama-3-8b"], "did you mean 'llama-3-8b'"),
        ("run_fig2.py", ["--layers", "5-2"], "expected layers like"),
        ("run_fig2.py", ["--chat", "sources"], "expected source, target or both, got 'sources'"),
        ("run_fig2.py", ["--system", "Hush."], "--system is the system message of a chat; give --chat too"),
        ("run_multi_hop.py", ["--chat", "target"], "S and T are the same prompt here"),
        ("run_causal_tracing.py", ["--chat", "source"], "S and T are the same prompt here"),
        ("run_fig2.py", ["--samples", "0"], "at least 1"),
        ("run_fig2.py", ["--dtype", "int8"], "invalid choice: 'int8'"),
        ("run_fig2.py", ["--quantization", "3bit"], "invalid choice: '3bit'"),
        ("run_fig2.py", ["--model", "nowhere.gguf"], "there is no file nowhere.gguf"),
        ("run_fig2.py", ["--model", str(ROOT)], "does not hold a complete model"),
        ("run_fig2.py", ["--methods", "magic"], "expected some of logit_lens,tuned_lens,"),
        ("run_fig2.py", ["--output-plot", "fig.pdf"], "expected the name of a .png file"),
        ("run_fig2.py", ["--dataset", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        ("run_fig2.py", ["--tuned-lens", "no.safetensors"], "there is no file no.safetensors; write one with"),
        ("run_fig2.py", ["--methods", "best_prompt"], "best_prompt needs --best-prompt FILE; write one with"),
        ("run_fig2.py", ["--best-prompt", "no.json"], "there is no file no.json; write one with"),
        ("run_target_prompts.py", ["nowhere.txt"], "there is no file nowhere.txt"),
        ("run_target_prompts.py", ["prompts.docx"], " or .csv or .tsv or .parquet or .txt file of target prompts"),
        ("run_target_prompts.py", ["--bands", "0"], "expected a whole number of at least 1"),
        ("demo_fig1.py", ["--mode", "guess"], "invalid choice: 'guess'"),
        ("demo_fig1.py", ["--target-layer", "first"], "expected same, embedding, last or a number"),
        ("run_entity.py", ["nowhere.json"], "there is no file nowhere.json"),
        ("run_entity_interactive.py", [""], "the name is empty"),
        ("run_cross_model.py", ["--source-model", "gpt2"], "Give --target-model"),
        ("run_cross_model.py", ["--entities", "nowhere.csv"], "there is no file nowhere.csv"),
        ("run_layer_grid.py", ["--mode", "slow"], "argument --mode: invalid choice: 'slow'"),
        ("run_layer_grid.py", ["--mode", "patchscope"], "give both or neither"),
        ("run_layer_grid.py", ["--source-prompt", "Nobody at all"], "no name of the file stands in the source prompt"),
        ("run_layer_grid.py", ["--template", "magic"], "there is no template 'magic'"),
        ("run_multi_hop.py", ["nowhere.json"], "there is no file nowhere.json"),
        ("run_multi_hop_interactive.py", ["--example-id", "99999"], "no question with the id 99999"),
        ("train_lens.py", ["--output", "a.safetensors", "--layers", "1"], "--layers is for tuned_lens_kl"),
        ("train_lens.py", ["--output", "a.safetensors", "--pretrained"], "--pretrained is for jacobian_lens"),
        ("train_lens.py", ["--output", "a.safetensors", "--centred"], "--centred is for jacobian_lens"),
        (
            "train_lens.py",
            ["--output", "a.safetensors", "--lens", "jacobian_lens", "--pretrained", "gpt2", "--texts", "3"],
            "--texts is for fitting; leave it out with --pretrained",
        ),
        ("run_attributes.py", ["nowhere.json"], "there is no file nowhere.json"),
        ("run_attributes.py", ["--split", "test"], "are for a --dataset with texts, not for carriers"),
        ("run_attributes.py", ["--methods", "guess"], "expected some of patchscope,probe,lre,lre_patchscope"),
        ("run_attributes.py", ["--attribute-lens", "We met in Canada"], "asks for one relation, and 17 were given"),
        ("run_attention_knockout.py", ["nowhere.json"], "there is no file nowhere.json"),
        ("run_attention_knockout.py", ["--window", "0"], "expected a whole number of at least 1"),
        ("run_prompt_table.py", [""], "the prompt is empty; give at least one character"),
        ("run_prompt_table.py", ["--lens", "magic"], "argument --lens: invalid choice: 'magic'"),
        ("run_prompt_table.py", ["--lens", "best_prompt"], "best_prompt needs --best-prompt FILE; write one with"),
        ("run_prompt_table.py", ["--color", "size"], "argument --color: invalid choice: 'size'"),
        (
            "run_attributes_interactive.py",
            ["Canada", "--relation", "king"],
            "no relation is called 'king': choose from",
        ),
        ("bench_peers.py", [], "nnterp is not installed here: run `make bench-peers`"),
        ("run_attributes_interactive.py", ["Canada", "--source-text", "Here"], "does not stand in --source-text"),
    ],
)
def test_a_mistake_is_told_at_once(script, arguments, message):
    status, printed = run_lightly(script, *arguments)
    assert message in f"{status} {printed}"
    assert "Traceback" not in printed


class TestParsers:
    def test_layers(self):
        assert layer_list("all") is None
        assert layer_list("0,4,8") == (0, 4, 8)
        assert layer_list("0-3,7") == (0, 1, 2, 3, 7)
        assert layer_list("embedding") == layer_list("EMBEDDING") == layer_list("-1") == (-1,)
        assert layer_list("embedding,0,4-6") == layer_list("-1, 0, 4-6") == (-1, 0, 4, 5, 6)
        assert layer_list("embedding-2") == layer_list("-1-2") == (-1, 0, 1, 2)
        for wrong in ("", "a", "3-", "-2", "4,4", "2-1", "0-embedding", "embedding,-1", "embedding-", "all,embedding"):
            with pytest.raises(ArgumentTypeError):
                layer_list(wrong)

    def test_positive(self):
        assert positive("12") == 12
        for wrong in ("0", "-3", "x", "1.5"):
            with pytest.raises(ArgumentTypeError):
                positive(wrong)

    def test_real_from_zero(self):
        assert real_from_zero("1e-3") == 0.001
        for wrong in ("-1", "nan", "inf", "x"):
            with pytest.raises(ArgumentTypeError):
                real_from_zero(wrong)

    def test_natural(self):
        assert natural("0") == 0
        with pytest.raises(ArgumentTypeError):
            natural("-1")

    def test_names(self):
        assert name_list(("a", "b", "c"))("c, a,c") == ("c", "a")
        with pytest.raises(ArgumentTypeError):
            name_list(("a",))("a,x")

    def test_files(self, tmp_path):
        (tmp_path / "a.safetensors").touch()
        parse = existing_file(".safetensors", "write one")
        assert parse(str(tmp_path / "a.safetensors")) == tmp_path / "a.safetensors"
        for wrong in ("b.safetensors", "a.pt"):
            with pytest.raises(ArgumentTypeError):
                parse(str(tmp_path / wrong))
        assert file_name(".png")("new.png").name == "new.png"

    def test_models(self, tmp_path):
        (tmp_path / "config.json").touch()
        for right in ("gpt2", "GPT2", "owner/name", str(tmp_path)):
            assert model_name(right) == right
        with pytest.raises(ArgumentTypeError, match="did you mean 'gpt2'"):
            model_name("gpt3")

    def test_target_layers(self):
        for right in ("same", "embedding", "last", "3", "-1"):
            assert target_layer(right) == right
        for wrong in ("first", "", "1.5", "--1"):
            with pytest.raises(ArgumentTypeError):
                target_layer(wrong)
