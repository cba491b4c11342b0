"""The documents: their code runs, and what they name is there (files, figures, commands, options, times and counts)."""

import importlib
import json
import re
import runpy
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO

import pytest
from conftest import FAMILIES, ROOT

import patchscopes
from patchscopes.data.entities import load_entities
from patchscopes.data.questions import load_questions
from patchscopes.data.relations import find_relation_files, load_carriers, load_relations
from patchscopes.data.target_prompts import load_candidates
from patchscopes.data.templates import load_templates
from patchscopes.data.texts import load_texts
from patchscopes.model.registry import EMBEDDED_MODEL

README, GALLERY, DATA, OF_SCRIPTS = DOCUMENTS = (
    "README.md",
    "figures/README.md",
    "data/README.md",
    "scripts/README.md",
)
FIGURES = sorted(path.stem for path in (ROOT / "figures").glob("*.png"))
ESTIMATES = json.loads((ROOT / "figures" / "estimates.json").read_text(encoding="utf-8"))["results"]["figures"]


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def read_code(document: str) -> list[str]:
    """The lines of its blocks of code, continued ones as one and without comments, and its code within sentences."""
    block = re.compile(r"^```\w*\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
    blocks = "".join(block.findall(read(document))).replace("\\\n", " ")
    lines = [line.partition(" #")[0] for line in blocks.splitlines()]
    return lines + re.findall(r"`([^`]+)`", block.sub("", read(document)))


@cache
def get_options(script: str) -> set[str]:
    """The options that a script names in its help."""
    printed = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), suppress(SystemExit):
        patch.setattr(sys, "argv", [script, "--help"])
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    return find_options(printed.getvalue())


def find_options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text))


def test_the_notebook_example(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", read(README), flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 15
    exec(compile(code, README, "exec"), {})
    printed = capsys.readouterr().out
    # Generations keep their leading space.
    assert printed.startswith("0  -> CEO")
    assert len(re.findall(r"^(?:0|10|20) ", printed, flags=re.MULTILINE)) == 3


def test_the_readme_is_short():
    assert len(read(README).splitlines()) < 200


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_every_file_it_links_to_is_there(document):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", read(document)) if "://" not in link]
    missing = [link for link in links if not (ROOT / document).parent.joinpath(link.partition("#")[0]).is_file()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_it_names_is_there(document):
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {target for code in read_code(document) for target in re.findall(r"\bmake ([a-z][a-z0-9-]*)", code)}
    assert named <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_script_it_names_takes_the_options_beside_it(document):
    wrong = []
    for code in read_code(document):
        for script, arguments in re.findall(r"\bscripts/(\w+\.py)([^|;&]*)", code):
            if not (ROOT / "scripts" / script).is_file():
                wrong.append(script)
            elif unknown := find_options(arguments) - get_options(script):
                wrong.append(f"{script} {' '.join(sorted(unknown))}")
    assert not wrong


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_option_it_names_is_one_of_some_script(document):
    scripts = set(re.findall(r"\bscripts/(\w+\.py)", "".join(map(read, DOCUMENTS))))
    options = set().union(*map(get_options, scripts))
    # Those of pip are pip's, and a launcher's stand before the script.
    launcher = re.compile(r"\b(?:torchrun|accelerate launch) .*?(?=scripts/|$)")
    code = [launcher.sub("", line) for line in read_code(document) if "pip install" not in line]
    assert find_options("\n".join(code)) <= options


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_module_it_names_is_there(document):
    for name in re.findall(r"`(patchscopes(?:\.\w+)+)`", read(document)):
        importlib.import_module(name)


def test_the_families_are_those_that_the_tests_run():
    (names,) = re.findall(r"^<!-- families -->$(.*?)^<!-- /families -->$", read(OF_SCRIPTS), re.DOTALL | re.MULTILINE)
    named = re.findall(r"`([^`]+)`", names)
    assert len(named) == len(set(named))
    assert set(named) == set(FAMILIES)


def read_costs(document: str) -> tuple[str, str]:
    """What a figure took, by its JSON file."""
    timing = json.loads(document)["timing"]
    return f"{timing['seconds']['total']:.0f} s", f"{timing['peak_memory_gib']:.1f} GiB"


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_has_an_entry_with_what_it_took(figure):
    """In the gallery and in the README's table: by its JSON file, or the committed one if it was drawn anew."""
    path = f"figures/{figure}.json"
    costs = [read_costs(read(path))]
    if (ROOT / ".git").exists():
        committed = subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True)
        costs += [read_costs(committed.stdout)] if committed.returncode == 0 else []
    (row,) = [line for line in read(README).splitlines() if line.startswith("|") and f"(figures/{figure}.png)" in line]
    # A command that draws several names them in one row, and what each takes in the same order.
    shown, _, *taken = (cell.strip() for cell in row.strip("|").split("|"))
    place = re.findall(r"figures/(\w+)\.png", shown).index(figure)
    time, estimated, memory = (cell.split(", ")[place] for cell in taken)
    said = time, memory
    assert said in costs
    assert estimated == (f"{ESTIMATES[figure]['estimated_seconds']:.0f} s" if figure in ESTIMATES else "–")
    (section,) = [part for part in read(GALLERY).split("\n## ") if "![" in part and f"]({figure}.png)" in part]
    assert ", ".join(said) in section


def test_the_estimates_are_as_good_as_said():
    (said,) = re.findall(r"off by a factor of at most\s+([\d.]+)", read(README))
    factors = [one["seconds"] / one["estimated_seconds"] for one in ESTIMATES.values()]
    assert float(said) == pytest.approx(max(max(factor, 1 / factor) for factor in factors), abs=0.005)


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_are_those_of_the_present_scripts(figure):
    """Every figure in the repository says which model and options made it."""
    document = json.loads((ROOT / "figures" / f"{figure}.json").read_text(encoding="utf-8"))
    model = document["config"]["source_model" if figure == "cross_model" else "model"]
    assert model == document["environment"]["model"]["id"] == EMBEDDED_MODEL
    assert len(document["environment"]["git_commit"]) == 40


def test_the_data_are_as_many_as_said():
    said = read(DATA)
    train, evaluation = (load_texts(split=split).texts for split in ("train", "evaluation"))
    n_words = sum(len(text.split()) for text in train + evaluation)
    assert f"{len(train) + len(evaluation)} passages" in said
    assert f"{n_words:,} words in all" in said
    assert f"{len(train)} are for training and {len(evaluation)} for evaluation" in said
    assert f"{len(load_entities(ROOT / 'data' / 'entities.json'))} names" in said
    assert f"{len(load_templates())} templates of target prompts in five families" in said
    questions = load_questions(ROOT / "data" / "multihop_examples.json")
    categories = [question.category for question in questions]
    assert f"{len(questions)} questions in {len(set(categories))} pairs of relations" in said
    table = {
        f"{asked} of {of}": int(number)
        for asked, of, number in re.findall(r"^\| ([\w ]+) \| (the [\w ]+) \| (\d+) \|$", said, flags=re.MULTILINE)
    }
    assert table == Counter(categories)
    relations = load_relations(find_relation_files())
    assert f"{len(relations)} relations, one to a file" in said
    for relation in relations:
        n_objects = len({sample.object for sample in relation.samples})
        prompt = relation.fill("…")
        row = f"| `{relation.name}` | {prompt} | {relation.subject_kind} | {len(relation.samples)} | {n_objects} |"
        assert row in said
    carriers = load_carriers()
    assert f"{sum(map(len, carriers.values()))} sentences for a subject to stand in, 16 for each kind" in said
    assert {len(sentences) for sentences in carriers.values()} == {16}
    prompts = load_candidates()
    assert f"{len(prompts)} target prompts that read the next token" in said
    for family, number in Counter(prompt.family for prompt in prompts).items():
        assert f"| `{family}` | {number} |" in said


def test_the_citation_is_of_this_version():
    cited = dict(re.findall(r"^([\w-]+): (.+)$", read("CITATION.cff"), flags=re.MULTILINE))
    assert cited["version"] == patchscopes.__version__
    assert f"## [{cited['version']}]" in read("CHANGELOG.md")
    assert cited["license"] == "MIT"
    assert read("LICENSE").startswith("MIT License")
