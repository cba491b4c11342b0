"""`--estimate` of every script, on tiny models."""

import shlex
from pathlib import Path

import estimate
import pytest
import test_scripts
from test_scripts import SCRIPTS, script

from patchscopes.estimating import tally

other_folder, word_folder = test_scripts.other_folder, test_scripts.word_folder
texts, questions, relation_file = test_scripts.texts, test_scripts.questions, test_scripts.relation_file
fact_file, name_files = test_scripts.fact_file, test_scripts.name_files
cache, output = test_scripts.cache, test_scripts.output

# By script: its arguments, with the names of fixtures in capitals, and the steps that its estimate tells apart.
MODEL = "--model MODEL_FOLDER --max-new-tokens 3"
TEXTS = f"{MODEL} --dataset TEXTS"
FACTS = "FACT_FILE --model OTHER_FOLDER"
CASES = {
    "demo_fig1.py": (f"{MODEL} --source-text 'a big dog' --target-word big", ["layer_readout"]),
    "run_fig2.py": (f"{TEXTS} --samples 90", ["next_token"]),
    "run_prompt_table.py": (f"'a dog' {TEXTS}", ["prompt_table"]),
    "run_target_prompts.py": (f"{TEXTS} --samples 90 --train-samples 70", ["train", "evaluation"]),
    "run_future_lens.py": (f"{TEXTS} --samples 70", ["future_lens"]),
    "run_lenses.py": (f"{TEXTS} --samples 70", ["lenses", "checks_with_hooks"]),
    "run_entity.py": (MODEL, ["entity"]),
    "run_entity_interactive.py": (f"'a big dog' {MODEL}", ["entity_layers"]),
    "run_attributes.py": (
        f"RELATION_FILE {MODEL} --examples 4 --layers 0-1 --target-layers 1-2",
        ["known", "patchscope", "controls", "probe", "lre"],
    ),
    "run_attributes_interactive.py": (f"'red dog' {MODEL} --relation RELATION_FILE", ["attribute_layers"]),
    "run_causal_tracing.py": (f"{FACTS} --noise-samples 3", ["known", "facts_with_original", "facts"]),
    "run_attention_knockout.py": (FACTS, ["known", "facts"]),
    "run_entity_resolution.py": (f"{FACTS} --noise-samples 2 --max-new-tokens 3", ["known", "in_clear", "facts"]),
    "run_cross_model.py": (
        "--source-model MODEL_FOLDER --target-model OTHER_FOLDER --dataset TEXTS --samples 70 --max-new-tokens 3 "
        "--layers 0-1",
        ["next_token", "entity"],
    ),
    "run_multi_hop.py": (
        "QUESTIONS --model MODEL_FOLDER --max-new-tokens 5 --cot-new-tokens 5",
        ["hops", "unpatched", "patched"],
    ),
    "run_multi_hop_interactive.py": (f"{MODEL} --cot-new-tokens 3", ["multi_hop_grid"]),
    "run_layer_grid.py": (
        "--mode comprehensive --full-grid --model WORD_FOLDER --entities NAME_FILES/names.json --max-new-tokens 4 "
        "--samples 4 --templates NAME_FILES/templates.json --template identity",
        ["targeted", "unpatched", "templates", "multi"],
    ),
    "bench_engine.py": (f"{TEXTS} --samples 4 --methods next_token,jacobian", ["bench"]),
}


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Little is measured, as of a large model."""
    monkeypatch.setattr(estimate, "SECONDS_PER_STEP", 0.1)
    monkeypatch.setattr(estimate, "SECONDS_OF_ALL", 0.3)
    monkeypatch.setattr(tally, "SECONDS_OF_ITEMS", 0.1)
    monkeypatch.setattr(tally, "FEWEST_SECONDS", 0.05)


@pytest.fixture
def fill(request):
    """Arguments with the files of fixtures."""

    def fill_one(argument: str) -> str:
        name, slash, rest = argument.partition("/")
        return f"{request.getfixturevalue(name.lower())}{slash}{rest}" if name.isupper() else argument

    return lambda arguments: [fill_one(argument) for argument in shlex.split(arguments)]


def read_table(printed: str) -> dict[str, dict[str, float]]:
    """The numbers of each step."""
    lines = printed[printed.index("step ") :].splitlines()
    names = ("members", "finished", "rows", "tokens", "TFLOP", "seconds")
    table = {}
    for line in lines[1:]:
        numbers = line[24:].split()
        if line.startswith(("in all", "before", "memory")):
            break
        table[line[:24].strip()] = dict(zip(names, map(float, numbers), strict=True))
    table.pop("proof of the engine", None)
    return table


def list_files(*folders: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_every_script_with_an_experiment_is_tried():
    experiments = {path.name for path in SCRIPTS.glob("*.py") if "run_experiment(" in path.read_text()}
    # What other libraries take is not this one's to estimate.
    assert experiments - {"skeleton.py", "bench_peers.py"} == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_an_estimate_of_each_step_that_writes_nothing(name, fill, output, tmp_path, cache):
    arguments, steps = CASES[name]
    arguments = fill(arguments)
    before = list_files(tmp_path, cache)
    done = script(name, *arguments, *output, "--estimate")
    assert done.returncode == 0, done.stderr
    assert list_files(tmp_path, cache) == before
    table = read_table(done.stdout)
    assert list(table) == steps
    for step in table.values():
        assert step["members"] >= 1
        # Rounded to tenths.
        assert step["seconds"] >= 0
    assert "memory: about " in done.stdout
    assert "nothing was written" in done.stdout


class TestFig2:
    def test_rows_and_tokens_are_those_of_the_run(self, fill, output):
        """90 samples at 4 layers by a lens that runs no token and by one that runs one; and their texts, read once."""
        arguments = fill(f"{TEXTS} --samples 90 --methods logit_lens,token_identity")
        table = read_table(script("run_fig2.py", *arguments, *output, "--estimate").stdout)
        n_rows = table["next_token"]["rows"] - 2 * 90 * 4
        assert 0 < n_rows <= 90

    def test_finished_chunks_count_as_done_unless_it_is_to_start_over(self, fill, output, tmp_path):
        arguments = [*fill(f"{TEXTS} --samples 90 --methods logit_lens"), *output]
        assert script("run_fig2.py", *arguments).returncode == 0
        kept = list_files(tmp_path)
        next(path for path in kept if path.name == "00001.json").unlink()
        half = read_table(script("run_fig2.py", *arguments, "--estimate").stdout)["next_token"]
        assert (half["members"], half["finished"]) == (90, 58)
        whole = read_table(script("run_fig2.py", *arguments, "--estimate", "--fresh").stdout)["next_token"]
        assert whole["finished"] == 0
        assert half["rows"] < whole["rows"] / 2
        assert list_files(tmp_path).items() < kept.items()

    def test_several_processes_share_the_time(self, fill, output):
        done = script("run_fig2.py", *fill(f"{TEXTS} --samples 90"), *output, "--shard", "1/4", "--estimate")
        assert "for each of 4 processes with a machine like this" in done.stdout


class TestLearning:
    def test_what_is_learned_first_is_estimated_and_not_kept(self, fill, output, cache):
        arguments = [*fill(f"{TEXTS} --samples 20 --methods tuned_lens"), *output, "--train-positions", 1999]
        done = script("run_fig2.py", *arguments, "--estimate")
        assert "before that, affine maps are learned and kept in the cache folder: about " in done.stdout
        assert script("run_fig2.py", *arguments).returncode == 0
        assert "are learned" not in script("run_fig2.py", *arguments, "--estimate").stdout

    @pytest.mark.parametrize("lens", ["tuned_lens", "tuned_lens_kl", "jacobian_lens", "linear", "learned_prompt"])
    def test_of_each_lens(self, lens, fill, tmp_path, cache):
        before = list_files(cache)
        arguments = ["--lens", lens, *fill("--model MODEL_FOLDER --dataset TEXTS"), "--seed", 7]
        done = script("train_lens.py", *arguments, "--output", tmp_path / "lens.safetensors", "--estimate")
        assert done.returncode == 0, done.stderr
        assert "memory: about " in done.stdout
        assert "time: about " in done.stdout
        assert list_files(cache) == before
        assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_here_is_not_fetched(output):
    done = script("run_fig2.py", "--model", "llama-3.1-8b-instruct", *output, "--estimate")
    assert done.returncode == 1
    assert "is not on this machine: fetch it first (hf download meta-llama/" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_mistakes_are_told_as_ever(output):
    done = script("run_fig2.py", "--layers", "0-50", *output, "--estimate")
    assert "error: layer 30 does not exist" in done.stderr
