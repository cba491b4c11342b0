"""What all scripts do around their experiment."""

import json
import warnings
from argparse import Namespace

import pytest
import torch
from matplotlib.figure import Figure
from skeleton import run_experiment, run_script, time_total

from patchscopes.errors import PatchscopesError, PatchscopesWarning


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PatchscopesError("layer 9 does not exist"), "error: layer 9 does not exist"),
        (torch.OutOfMemoryError("2 GiB"), "error: out of memory on the device; try a smaller --batch-size"),
        (KeyboardInterrupt(), "interrupted: run the same command again"),
    ],
)
def test_what_ends_a_script_is_told_in_one_line(error, message):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_script(main)
    assert message in ended.value.code
    assert len(ended.value.code.strip().splitlines()) == 1


def test_a_mistake_of_the_code_keeps_its_traceback():
    def main():
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run_script(main)


def test_a_warning_of_the_library_is_one_plain_line_each_time(capsys):
    def main():
        for _ in range(2):
            warnings.warn("going on with 32 at a time", PatchscopesWarning, stacklevel=1)
        warnings.warn("another library's", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="another library's") as others:
        run_script(main)
    assert capsys.readouterr().err.splitlines() == ["warning: going on with 32 at a time"] * 2
    assert [str(warning.message) for warning in others] == ["another library's"]


@pytest.fixture
def options(tmp_path):
    return Namespace(output_json=tmp_path / "out.json", output_plot=tmp_path / "out.png", fresh=False)


def test_an_experiment_leaves_its_files_and_prints_its_table(options, capsys):
    def run(store, progress):
        return time_total(lambda: {"sum": sum(progress([1, 2, 3]))})

    run_experiment(
        options,
        "sum",
        run,
        config={"model": "m"},
        environment={"device": "cpu"},
        plot=lambda document: Figure(),
        print_table=lambda document: print("the sum is", document["results"]["sum"]),
    )
    document = json.loads(options.output_json.read_text())
    assert (document["experiment"], document["config"], document["results"]) == ("sum", {"model": "m"}, {"sum": 6})
    assert document["timing"]["seconds"]["total"] >= 0
    assert options.output_plot.read_bytes().startswith(b"\x89PNG")
    table, files, cost = capsys.readouterr().out.splitlines()
    assert table == "the sum is 6"
    assert files == f"wrote {options.output_plot} and {options.output_json}"
    assert "s of computing, peak memory" in cost


def test_chunks_are_those_of_the_same_options_and_inputs(options):
    def run_with(inputs=None, **config):
        found = []

        def run(store, progress):
            found.append(store.load("00000"))
            store.save("00000", "kept")
            return time_total(lambda: {})

        run_experiment(
            options,
            "chunks",
            run,
            config=config,
            environment={},
            plot=lambda document: Figure(),
            print_table=lambda document: None,
            inputs=inputs,
        )
        return found[0]

    assert run_with(seed=0) is None
    assert run_with(seed=0) == "kept"
    assert run_with(seed=1) is None
    assert run_with({"entities": ["Syria"]}, seed=0) is None
    assert run_with({"entities": ["Syria"]}, seed=0) == "kept"
    # Inputs stand in the result file with their results, and nowhere else.
    assert json.loads(options.output_json.read_text())["config"] == {"seed": 0}
    options.fresh = True
    assert run_with(seed=0) is None
