"""Estimates beside what the figures took."""

import json

import check_estimates
import pytest
from conftest import ROOT

from patchscopes.errors import PatchscopesError

ENVIRONMENT = {"model": {"id": "smollm2-135m-instruct"}}
ESTIMATED = """step members
memory: about 1.4 GiB at the peak; the largest batch takes 0.1 GiB
time: about 2.5 min (150 s), from 8 s of measuring; nothing was written
the run would write {png} and {json}
"""


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """Instead of running them, each that is run, and a result file in a folder."""
    done = []

    def run(command):
        done.append(command)
        path = tmp_path / f"{command[0].removesuffix('.py')}.json"
        if "--estimate" in command:
            return ESTIMATED.format(png=path.with_suffix(".png"), json=path)
        timing = {"seconds": {"total": 200.0}, "peak_memory_gib": 1.5}
        path.write_text(json.dumps({"timing": timing, "environment": ENVIRONMENT}))
        return ""

    monkeypatch.setattr(check_estimates, "run", run)
    return done


@pytest.fixture
def call(monkeypatch, tmp_path):
    def call_with(*arguments):
        output = ["--output-json", str(tmp_path / "out.json")]
        monkeypatch.setattr("sys.argv", ["check_estimates.py", *arguments, *output])
        check_estimates.main()

    return call_with


def test_the_commands_are_those_that_draw_figures():
    commands = check_estimates.find_commands(ROOT / "Makefile", [])
    assert commands["run_fig2.py/0"] == ["run_fig2.py"]
    assert "--output-json" in commands["demo_fig1.py/1"]
    assert not any(command[0] == "tutorial.py" for command in commands.values())
    assert list(check_estimates.find_commands(ROOT / "Makefile", ["run_attributes.py"])) == [
        "run_attributes.py/0",
        "run_attributes.py/1",
    ]
    with pytest.raises(PatchscopesError, match=r"no figure is drawn by fig2: choose from demo_fig1\.py, run_fig2\.py"):
        check_estimates.find_commands(ROOT / "Makefile", ["fig2"])


def test_each_is_estimated_and_then_drawn_once(commands, call, tmp_path, capsys):
    call("run_fig2.py")
    assert commands == [["run_fig2.py", "--fresh", "--estimate"], ["run_fig2.py", "--fresh"]]
    printed = capsys.readouterr().out
    assert "150 s" in printed
    assert "1.33" in printed
    call("run_fig2.py", "run_lenses.py")
    assert [command[0] for command in commands[2:]] == ["run_lenses.py"] * 2
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["config"]["commands"] == ["run_fig2.py", "run_lenses.py"]
    assert document["environment"] == ENVIRONMENT
    of_fig2 = document["results"]["figures"]["run_fig2"]
    assert of_fig2.pop("estimate_seconds") >= 0
    assert of_fig2 == {
        "estimated_seconds": 150,
        "estimated_memory_gib": 1.4,
        "seconds": 200,
        "peak_memory_gib": 1.5,
    }
    call("run_fig2.py", "--fresh")
    assert len(commands) == 6


def test_figures_that_are_there_need_not_be_drawn(commands, call):
    with pytest.raises(PatchscopesError, match=r"there is no .*run_fig2\.json: leave out --drawn"):
        call("run_fig2.py", "--drawn")
    call("run_fig2.py")
    n_before = len(commands)
    call("run_fig2.py", "--drawn")
    assert commands[n_before:] == [["run_fig2.py", "--fresh", "--estimate"]]


def test_what_cannot_be_read_is_said(call, monkeypatch):
    monkeypatch.setattr(check_estimates, "run", lambda command: "something else")
    with pytest.raises(PatchscopesError, match=r"run_fig2\.py --fresh has not printed what this script reads"):
        call("run_fig2.py")


def test_a_command_that_fails(capfd):
    with pytest.raises(PatchscopesError, match=r"run_fig2\.py --samples none failed; see above"):
        check_estimates.run(["run_fig2.py", "--samples", "none"])
    assert "--samples" in capfd.readouterr().err
