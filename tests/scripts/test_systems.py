"""The scripts on systems unlike this one: other modules, no home, folders and disks that take nothing, two at once."""

import errno
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, make_hf_model
from test_scripts import SCRIPTS, script

# What no Windows has.
POSIX_ONLY = ("fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
IMPORT_ALL = """
import builtins, importlib, pkgutil, sys
from pathlib import Path

scripts = [path.stem for path in Path({scripts!r}).glob("*.py")]
sys.path.insert(0, {scripts!r})
import_any = builtins.__import__


def import_as_on_windows(name, globals=None, *others, **named):
    # Other packages know where they are, and ask for nothing there that is not.
    asking = (globals or {{}}).get("__name__", "").partition(".")[0]
    if name in {posix_only!r} and asking in ("patchscopes", *scripts):
        raise ModuleNotFoundError(f"{{asking}} imports {{name}}")
    return import_any(name, globals, *others, **named)


builtins.__import__ = import_as_on_windows
import patchscopes

names = [module.name for module in pkgutil.walk_packages(patchscopes.__path__, "patchscopes.")] + scripts
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_nothing_needs_a_module_that_windows_lacks():
    program = IMPORT_ALL.format(scripts=str(SCRIPTS), posix_only=POSIX_ONLY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


@pytest.fixture(scope="module")
def common(tokenizer, tmp_path_factory):
    """A tiny saved model and some texts."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    make_hf_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    texts = tmp_path_factory.mktemp("texts") / "texts.txt"
    texts.write_text("\n".join(f"line {number} says something about {number % 7} dogs" for number in range(60)))
    return ["--model", folder, "--dataset", texts, "--samples", 100, "--methods", "logit_lens,tuned_lens"]


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path / "cache"))
    return ["--output-json", tmp_path / "out.json", "--output-plot", tmp_path / "out.png"]


def read(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_two_runs_at_the_same_time_end_with_the_same_files(common, output, tmp_path):
    command = [sys.executable, SCRIPTS / "run_fig2.py", *common, *output]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    ends = [(run.communicate(timeout=200), run.returncode) for run in runs]
    (table, _), (other_table, _) = (printed for printed, _ in ends)
    assert [returncode for _, returncode in ends] == [0, 0], ends
    assert table.splitlines()[:-1] == other_table.splitlines()[:-1]
    together = read(tmp_path / "out.json")
    assert len(list((tmp_path / "cache" / "lenses").glob("*.safetensors"))) == 1
    # Nothing half written is left.
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name.startswith(".")]
    assert left == []
    png = (tmp_path / "out.png").read_bytes()
    alone = script("run_fig2.py", *common, *output, "--fresh")
    assert alone.returncode == 0, alone.stderr
    assert read(tmp_path / "out.json")["results"] == together["results"]
    assert (tmp_path / "out.png").read_bytes() == png


def test_a_disk_that_fills_up_and_is_emptied(common, output, tmp_path, monkeypatch):
    written, sync = [], os.fsync

    def fill_up(descriptor):
        written.append(descriptor)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)
    full = script("run_fig2.py", *common, *output)
    assert full.returncode == 1
    assert "error: cannot write" in full.stderr.splitlines()[-1]
    assert "(No space left on device); make room there or choose another path" in full.stderr
    assert "Traceback" not in full.stderr
    # The lens, and two chunks.
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix in (".json", ".safetensors")}
    assert len(kept) == 3
    monkeypatch.undo()
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path / "cache"))
    emptied = script("run_fig2.py", *common, *output)
    assert emptied.returncode == 0, emptied.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (tmp_path / "out.json").is_file()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--output-json", "error: cannot write {path}.json (Not a directory); make room there or choose another path"),
        ("--output-plot", "error: cannot write {path}.png (Not a directory); make room there or choose another path"),
        ("PATCHSCOPES_CACHE", "(Not a directory); make room there, or name another cache folder in PATCHSCOPES_CACHE"),
    ],
)
def test_a_folder_that_takes_nothing(common, output, tmp_path, monkeypatch, option, message):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "deep" / "out"
    if option == "PATCHSCOPES_CACHE":
        monkeypatch.setenv(option, str(path))
    else:
        output = [*output, option, path.with_suffix(".json" if "json" in option else ".png")]
    done = script("run_fig2.py", *common, *output)
    assert done.returncode == 1
    assert message.format(path=path) in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.json").exists()


def test_nobody_home(common, output, tmp_path, monkeypatch):
    for name in ("PATCHSCOPES_CACHE", "HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "USERPROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    done = script("run_fig2.py", *common, *output)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: there is no home folder to keep a cache in: name a folder for it in PATCHSCOPES_CACHE"
    )
    # What needs no cache needs no home; and no folder is called ~.
    done = script("run_fig2.py", *common, *output, "--methods", "logit_lens")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.chunks", "out.json", "out.png"]


@pytest.mark.parametrize("option", ["--model", "--dataset"])
def test_the_home_of_nobody(output, option):
    done = script("run_fig2.py", option, "~nobody-of-this-name/texts.txt", *output)
    assert done.returncode != 0
    assert "~nobody-of-this-name" in done.stderr
    assert "Traceback" not in done.stderr
