"""What all scripts do around their experiment."""

import io
import json
import subprocess
import sys
import warnings
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from skeleton import load_chosen_model, run_experiment, run_script, time_total

from patchscopes.errors import PatchscopesError, PatchscopesWarning


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PatchscopesError("layer 9 does not exist"), "error: layer 9 does not exist"),
        (torch.OutOfMemoryError("2 GiB"), "error: out of memory on the device; try a smaller --batch-size"),
        (KeyboardInterrupt(), "interrupted: run the same command again"),
        (
            OSError(28, "No space left on device", "/tmp/x"),
            "device: '/tmp/x'): make room or choose other folders, then",
        ),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "No usable temporary directory"),
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


PRINTING = """
import sys
sys.path.insert(0, {scripts!r})
from skeleton import run_script
run_script(lambda: [print("ℓ* = ℓ") for _ in range({n})])
"""


def run_printing(n: int, **options: object) -> subprocess.CompletedProcess:
    """A script that prints, in a process of its own."""
    program = PRINTING.format(scripts=str(Path(sys.modules["skeleton"].__file__).parent), n=n)
    return subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=False, **options)


class TestPrinting:
    def test_to_a_full_disk(self):
        full = Path("/dev/full")
        if not full.exists():
            pytest.skip("this system has no disk that is always full")
        with full.open("w") as output:
            done = run_printing(3, stdout=output)
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_to_someone_who_has_seen_enough(self):
        program = PRINTING.format(scripts=str(Path(sys.modules["skeleton"].__file__).parent), n=20_000)
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1
        process.stderr.close()

    def test_where_there_is_no_sign_for_it(self, monkeypatch):
        """As in the code page of Windows."""
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
        run_script(lambda: print("ℓ* = ℓ, “f” → identity"))
        assert sys.stdout.buffer.getvalue().decode("cp1252").split() == ["?*", "=", "?,", "“f”", "?", "identity"]


@pytest.mark.parametrize("option", ["output_json", "output_plot", "output", "history_file"])
def test_where_nothing_can_be_written_is_told_before_the_model_is_loaded(tmp_path, option):
    (tmp_path / "file").write_text("")
    options = Namespace(
        model="no-such-model", revision=None, device=None, dtype=None, **{option: tmp_path / "file" / "out"}
    )
    with pytest.raises(PatchscopesError, match=f"cannot write {tmp_path}/file/out .*choose another path"):
        load_chosen_model(options)


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
