"""`--estimate` of every script, on tiny models."""

from pathlib import Path

import estimate
import pytest
from test_scripts import (  # noqa: F401 (fixtures)
    cache,
    fact_file,
    model_folder,
    name_files,
    other_folder,
    output,
    questions,
    read,
    relation_file,
    script,
    texts,
    word_folder,
)

from patchscopes.estimating import tally

# By script: its arguments (names of fixtures in capitals), and the steps that its estimate tells apart.
FEW_FACTS = ["FACT_FILE", "--model", "OTHER_FOLDER"]
CASES = {
    "demo_fig1.py": (
        ["--model", "MODEL_FOLDER", "--source-text", "a big dog", "--target-word", "big"],
        ["layer_readout"],
    ),
    "run_fig2.py": (["--model", "MODEL_FOLDER", "--dataset", "TEXTS", "--samples", "90"], ["next_token"]),
    "run_prompt_table.py": (["a dog", "--model", "MODEL_FOLDER", "--dataset", "TEXTS"], ["prompt_table"]),
    "run_target_prompts.py": (
        ["--model", "MODEL_FOLDER", "--dataset", "TEXTS", "--samples", "90", "--train-samples", "70"],
        ["train", "evaluation"],
    ),
    "run_future_lens.py": (
        ["--model", "MODEL_FOLDER", "--dataset", "TEXTS", "--samples", "70"],
        ["future_lens"],
    ),
    "run_lenses.py": (["--model", "MODEL_FOLDER", "--dataset", "TEXTS", "--samples", "70"], ["lenses"]),
    "run_entity.py": (["--model", "MODEL_FOLDER"], ["entity"]),
    "run_entity_interactive.py": (["a big dog", "--model", "MODEL_FOLDER"], ["entity_layers"]),
    "run_attributes.py": (
        ["RELATION_FILE", "--model", "MODEL_FOLDER", "--examples", "4", "--layers", "0-1", "--target-layers", "1-2"],
        ["known", "patchscope", "controls", "probe", "lre"],
    ),
    "run_attributes_interactive.py": (
        ["red dog", "--relation", "RELATION_FILE", "--model", "MODEL_FOLDER"],
        ["attribute_layers"],
    ),
    "run_causal_tracing.py": ([*FEW_FACTS, "--noise-samples", "3"], ["known", "facts"]),
    "run_attention_knockout.py": (FEW_FACTS, ["known", "facts"]),
    "run_entity_resolution.py": ([*FEW_FACTS, "--noise-samples", "2"], ["known", "in_clear", "facts"]),
    "run_cross_model.py": (
        ["--source-model", "MODEL_FOLDER", "--target-model", "OTHER_FOLDER", "--dataset", "TEXTS", "--samples", "70"],
        ["next_token", "entity"],
    ),
    "run_multi_hop.py": (["QUESTIONS", "--model", "MODEL_FOLDER"], ["hops", "unpatched", "patched"]),
    "run_multi_hop_interactive.py": (["--example-id", "0", "--model", "MODEL_FOLDER"], ["multi_hop_grid"]),
    "run_layer_grid.py": (
        ["--mode", "comprehensive", "--model", "WORD_FOLDER", "--entities", "NAME_FILES/names.json"],
        ["targeted", "unpatched", "templates", "multi"],
    ),
    "bench_engine.py": (
        ["--model", "MODEL_FOLDER", "--dataset", "TEXTS", "--samples", "4", "--max-new-tokens", "3"],
        ["bench"],
    ),
}


@pytest.fixture
def fill(request):
    """Arguments with the files of fixtures."""

    def fill(arguments):
        def fill_one(argument):
            name, slash, rest = argument.partition("/")
            return f"{request.getfixturevalue(name.lower())}{slash}{rest}" if name.isupper() else argument

        return [fill_one(argument) for argument in arguments]

    return fill


def read_table(printed: str) -> dict[str, list[float]]:
    """The numbers of each line."""
    lines = printed.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("step "))
    table = {}
    for line in lines[start + 1 :]:
        name, *numbers = line[:24].strip(), *line[24:].split()
        if not name or line.startswith(("memory", "time", "before")):
            break
        table[name] = [float(number) for number in numbers]
    return table


def list_files(*folders: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Little is measured, as of a large model."""
    monkeypatch.setattr(estimate, "SECONDS_PER_STEP", 0.1)
    monkeypatch.setattr(estimate, "SECONDS_OF_ALL", 0.3)
    monkeypatch.setattr(tally, "SECONDS_OF_ITEMS", 0.1)


@pytest.mark.parametrize("name", CASES)
def test_an_estimate_of_each_step_that_writes_nothing(name, fill, output, tmp_path, cache):
    arguments, steps = CASES[name]
    arguments = fill(arguments)
    before = list_files(tmp_path, cache)
    done = script(name, *arguments, *output, "--estimate")
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert list_files(tmp_path, cache) == before
    table = read_table(done.stdout)
    assert [step for step in table if step not in ("proof of the engine", "in all")] == steps
