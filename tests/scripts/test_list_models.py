"""The table of models that have an alias, and which of them fit."""

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from conftest import ROOT
from test_scripts import script

from patchscopes.model.registry import MODELS


def read_rows(printed: str) -> dict[str, str]:
    return {line.split()[0]: line for line in printed.splitlines() if line.split()[0] in MODELS}


def test_columns_line_up():
    done = script("list_models.py")
    rows = read_rows(done.stdout)
    assert list(rows) == list(MODELS)
    header = next(line for line in done.stdout.splitlines() if line.startswith("alias"))
    for title in ("layers", "parameters", "float32", "bfloat16"):
        end = header.index(title) + len(title)
        assert all(row[end - 1] != " " and row[end] == " " for row in rows.values())
    assert {row.split()[-1] for row in rows.values()} == {"yes", "no"}


def test_nothing_heavy_is_imported_unless_asked():
    code = "import sys, runpy; sys.argv = ['x']; runpy.run_path('scripts/list_models.py', run_name='__main__'); "
    check = "assert not {'torch', 'transformers', 'transformer_lens'} & set(sys.modules)"
    path = f"sys.path.insert(0, 'scripts'); {code}"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {path}{check}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_which_fit(monkeypatch, device):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20 * 2**30))
    done = script("list_models.py", "--device", device)
    assert done.stdout.startswith("20.0 GiB are free on cpu")
    fitting = {alias: row.split("GiB")[2].split(maxsplit=1)[1].strip() for alias, row in read_rows(done.stdout).items()}
    assert fitting["gpt2"] == fitting["qwen-3-4b"] == "float32, bfloat16, 8bit, 4bit"
    assert fitting["llama-3.1-8b-instruct"] == "bfloat16, 8bit, 4bit"
    assert fitting["qwen-3-14b"] == "8bit, 4bit"
    assert fitting["qwen-3-32b"] == "4bit"
    assert fitting["llama-3.3-70b-instruct"] == "no"


@pytest.mark.parametrize("device", ["cuda:99", "cuda:abc", "gpu", "cpu:1", ""])
def test_a_device_that_is_not_there_is_one_line(device):
    done = script("list_models.py", "--device", device)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: device {device!r} is not on this machine, which has ")
    assert len(done.stderr.splitlines()) == 1
