"""Processes beside threads, and what samples cost."""

import sys

import bench_scale
import pytest
from conftest import ROOT
from test_scripts import PNG, read

from patchscopes.data.texts import load_texts
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.scaling import find_largest_difference, fit_line, summarise_scaling
from patchscopes.plots.scaling import plot_scaling


def test_a_line_is_found():
    line = fit_line([250, 500, 1000], [3.0, 5.0, 9.0])
    assert line == pytest.approx({"intercept": 1.0, "slope": 0.008, "largest_deviation": 0.0}, abs=1e-9)
    assert fit_line([250, 500, 1000], [3.0, 5.0, 18.0])["largest_deviation"] > 0.2
    assert fit_line([1, 2], [1.0, 2.0]) is None


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ({"a": [1, 2.0], "b": "x"}, {"a": [1, 2.0], "b": "x"}, 0.0),
        ({"a": [1, 2.0], "b": None}, {"a": [1, 2.5], "b": None}, 0.5),
        ({"a": "x"}, {"a": "y"}, None),
        ({"a": 1}, {"b": 1}, None),
        ([1], [1, 2], None),
        ([[], {}], [[], {}], 0.0),
        (["x", 1], ["x", "1"], None),
    ],
)
def test_what_differs_is_found(one, other, difference):
    assert find_largest_difference(one, other) == difference


def test_the_summary_is_of_both_ways():
    timed = {
        ("entity", "threads"): {"seconds": 10.0, "command_seconds": 15.0, "results": {"a": 1}},
        ("entity", "processes"): {"seconds": 8.0, "command_seconds": 16.0, "results": {"a": 1}},
    }
    grown = {n: {"seconds": n / 100, "peak_memory_gib": 1.5} for n in (250, 500, 1000)}
    results = summarise_scaling(timed, grown)
    assert results["experiments"]["entity"]["throughput"] == 1.25
    assert results["experiments"]["entity"]["largest_difference"] == 0
    assert results["growth"]["line"]["slope"] == pytest.approx(0.01)
    environment = {"model": {"id": "m"}, "dtype": "float32", "device": "cpu"}
    figure = plot_scaling({"results": results, "config": {"processes": 2}, "environment": environment})
    throughput, growth = figure.axes
    assert [bar.get_width() for bar in throughput.patches] == [1.25]
    assert list(growth.lines[0].get_ydata()) == [2.5, 5.0, 10.0]


def test_it_times_every_experiment_in_both_ways(tmp_path, monkeypatch, capsys):
    ran, growing = [], []

    def time_script(experiment, arguments, *, n_processes=1, n_threads):
        ran.append((experiment, n_processes, n_threads))
        if "--dataset" in arguments:
            texts = load_texts(arguments[arguments.index("--dataset") + 1])
            growing.append((arguments[arguments.index("--samples") + 1], len(texts.texts)))
        assert arguments[-2:] == [
            "--target-model" if experiment == "cross_model" else "--model",
            "smollm2-135m-instruct",
        ]
        environment = {"model": {"id": "m"}, "dtype": "float32", "device": "cpu"}
        seconds = {"seconds": 4.0 / n_processes, "command_seconds": 6.0, "peak_memory_gib": 1.0}
        return seconds | {"results": {}, "environment": environment}

    monkeypatch.setattr(bench_scale, "time_script", time_script)
    output = ["--output-json", str(tmp_path / "scale.json"), "--output-plot", str(tmp_path / "scale.png")]
    monkeypatch.setattr(sys, "argv", ["bench_scale.py", "--samples", "20,40", *output])
    bench_scale.main()
    document = read(tmp_path / "scale.json")
    assert document["timing"]["peak_memory_gib"] == 1.0
    experiments = document["results"]["experiments"]
    scripts = {path.stem.removeprefix("run_") for path in (ROOT / "scripts").glob("run_*.py")}
    assert set(experiments) == {name for name in scripts if "interactive" not in name} - {"prompt_table"}
    assert all(one["throughput"] == 2 for one in experiments.values())
    assert ran[:2] == [("fig2", 1, 2), ("fig2", 2, 1)]
    assert ran[-2:] == [("fig2", 1, 2)] * 2
    n_texts = len(load_texts().texts)
    # Which of the texts are held out is another matter.
    assert growing == [("20", pytest.approx(n_texts / 2, rel=0.1)), ("40", n_texts)]
    assert (tmp_path / "scale.png").read_bytes().startswith(PNG)
    assert "1 × 2 threads" in capsys.readouterr().out


def test_a_script_is_timed(model_folder, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"line {number} says something about {number % 7} dogs" for number in range(40)))
    options = ["--model", str(model_folder), "--dataset", str(texts), "--methods", "logit_lens", "--samples", "9"]
    timed = bench_scale.time_script("fig2", options, n_threads=1)
    assert 0 < timed["seconds"] < timed["command_seconds"]
    assert timed["environment"]["threads"] == 1
    assert set(timed["results"]["methods"]) == {"logit_lens"}


def test_what_fails_is_told():
    with pytest.raises(PatchscopesError, match="run_fig2.py failed: .*expected a whole number of at least 1"):
        bench_scale.time_script("fig2", ["--samples", "none"], n_threads=1)
