"""The package as `pip install .` makes it works outside the checkout, with its data."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, make_hf_model

from patchscopes.data.entities import load_entities
from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.questions import load_questions
from patchscopes.data.relations import find_relation_files, load_carriers, load_relations
from patchscopes.data.texts import load_texts


def run_python(*arguments: object, folder, **environment: str) -> str:
    """What Python prints when it is run in another folder than the checkout."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package that is installed from the wheel of this checkout."""
    wheels, folder = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    # Everything that building takes is in the environment already: nothing is fetched.
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
    run_python("-m", "pip", "wheel", *offline, "--no-build-isolation", "--wheel-dir", wheels, ROOT, folder=wheels)
    (wheel,) = wheels.glob("patchscopes-*.whl")
    run_python("-m", "pip", "install", *offline, "--target", folder, wheel, folder=wheels)
    return folder


def test_the_data_come_along(installed, tmp_path):
    code = """
import json
from patchscopes.data.entities import load_entities
from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.questions import load_questions
from patchscopes.data.relations import find_relation_files, load_carriers, load_relations
from patchscopes.data.texts import load_texts
entities = load_entities(DATA_FOLDER / "entities.json")
questions = load_questions(DATA_FOLDER / "multihop_examples.json")
relations = [relation.name for relation in load_relations(find_relation_files())]
counts = [len(entities), len(questions), len(load_carriers())]
print(json.dumps([str(DATA_FOLDER), load_texts().sha256, counts, relations]))
"""
    found = json.loads(run_python("-c", code, folder=tmp_path, PYTHONPATH=str(installed)))
    entities = load_entities(DATA_FOLDER / "entities.json")
    questions = load_questions(DATA_FOLDER / "multihop_examples.json")
    relations = [relation.name for relation in load_relations(find_relation_files())]
    counts = [len(entities), len(questions), len(load_carriers())]
    assert found == [str(installed / "patchscopes" / "_data"), load_texts().sha256, counts, relations]


def test_figure_1_from_another_folder(installed, tokenizer, tmp_path):
    """By a copy of the script, beside which there is no package."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    make_hf_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = ["--model", "model", "--output-json", "out.json", "--output-plot", "out.png"]
    printed = run_python("scripts/demo_fig1.py", *arguments, folder=tmp_path, PYTHONPATH=str(installed))
    assert "layer  3:" in printed
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((tmp_path / "out.json").read_text())
    assert len(document["results"]["methods"]["token_identity"]["generations"]) == 4
    # The checkout has a commit, what is installed has none.
    assert document["environment"]["git_commit"] is None
