"""The figures of layer grids, drawn from made-up documents."""

from typing import Any

import numpy as np
import pytest
from drawn_figures import check_texts, explained_curves
from matplotlib.patches import Rectangle

from patchscopes.plots.layer_grid import plot_layer_grid
from patchscopes.plots.layer_grid_compare import plot_layer_grid_compare

LONG = "Internationalisation $5 and $6 of\nall the things " * 8


def share(generator: np.random.Generator, *shape: int, interval: bool = True) -> dict[str, Any]:
    mean = generator.uniform(0, 1, shape)
    ci95 = np.stack([mean - 0.1, mean + 0.1], axis=-1).tolist() if interval else None
    return {"mean": mean.tolist(), "ci95": ci95}


def make_grid(
    n_layers: int = 6, n_names: int = 1, n_templates: int = 1, *, text: str = "an American actor", others: bool = True
) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    layers = list(range(n_layers))
    labels = [f"name {number} {text}" for number in range(max(n_names, n_templates))]
    correlation = generator.uniform(-1, 1, (len(labels), len(labels))).tolist()
    correlation[0][-1] = None
    several = n_names > 1

    def view(*shape: int) -> dict[str, Any]:
        other = share(generator, *shape) if others else None
        own = {name: share(generator, *shape, interval=several) for name in ("strong", "strong_or_partial")}
        return own | {"other_state": other}

    return {
        "stage": "targeted",
        "layers": layers,
        "target_layers": layers,
        "names": [{"name": f"name {number} {text}"} for number in range(n_names)],
        "others": ["horse"],
        "templates": [{"name": f"template_{number}"} for number in range(n_templates)],
        "success": {name: share(generator, interval=several) for name in ("failed", "partial", "strong")},
        "other_state": share(generator) if others else None,
        "unpatched": share(generator, interval=several),
        "by_pair": view(n_layers, n_layers),
        "by_layer": view(n_layers),
        "by_target_layer": view(n_layers),
        "by_name": [0.5] * n_names,
        "hotspots": {
            "pairs": [{"layer": 0, "target_layer": n_layers - 1, "strong": 1.0, "other_state": 0.0, "p": 0.01}],
            "layers": [{"layer": 0, "strong": 1.0, "other_state": 0.0, "p": 0.01}],
            "target_layers": [],
        },
        "consistency": {
            "labels": labels,
            "rank_correlation": correlation,
            "mean_rank_correlation": 0.4,
            "strong_for": np.zeros((n_layers, n_layers), dtype=int).tolist(),
            "at_least": 2,
            "pairs": [[0, 1]],
        }
        if len(labels) > 1
        else None,
        "classes": generator.integers(0, 3, (n_templates, n_names, n_layers, n_layers)).tolist(),
        "texts": np.full((n_templates, n_names, n_layers, n_layers), text).tolist(),
    }


def make_document(*grids: dict[str, Any], source: str | None = "Albert Einstein") -> dict[str, Any]:
    return {
        "experiment": "layer_grid",
        "config": {},
        "environment": {"model": {"id": "smollm2-135m-instruct"}},
        "results": {
            "mode": "comprehensive",
            "n_layers": 30,
            "source": source and {"name": source, "source_prompt": source, "keywords": ["physicist", "German"]},
            "grids": list(grids),
        },
    }


@pytest.mark.parametrize(
    "document",
    [
        make_document(make_grid(2)),
        make_document(make_grid(1, others=False)),
        make_document(make_grid(6, text=LONG), source=LONG),
        make_document(make_grid(30)),
        make_document(make_grid(6, n_names=24), source=None),
        make_document(make_grid(11, n_templates=17, text=LONG)),
        make_document(make_grid(), make_grid(10), make_grid(4, n_templates=17), make_grid(6, n_names=24)),
    ],
)
def test_texts_are_whole_and_apart(document):
    texts = " ".join(check_texts(plot_layer_grid(document))).replace("\n", " ")
    assert "smollm2-135m-instruct" in texts
    assert "strong by another name's state" in texts


def test_each_grid_has_its_panels():
    figure = plot_layer_grid(make_document(make_grid(), make_grid(6, n_names=3)))
    names = [axis.get_label() for axis in figure.axes]
    assert sorted(names) == sorted([*"TLR" * 2, "M", "<colorbar>"])
    for axis in figure.axes:
        _, curves = axis.get_legend_handles_labels()
        if curves:
            assert set(curves) == set(explained_curves(axis))
    table, by_layer = (figure.axes[names.index(name)] for name in ("T", "L"))
    # The framed hotspot: ℓ 0 at the bottom, the last ℓ*.
    (frame,) = [patch for patch in table.patches if isinstance(patch, Rectangle)]
    assert frame.get_y() == -0.5
    assert frame.get_x() + frame.get_width() == pytest.approx(table.get_xlim()[1])
    strong = make_grid()["by_layer"]["strong"]["mean"]
    assert by_layer.lines[0].get_ydata().tolist() == strong


def test_cells_of_one_grid_say_what_is_said_and_those_of_several_how_many():
    one, several = make_grid(text="an actor"), make_grid(n_names=4, text="an actor")
    figure = plot_layer_grid(make_document(one, several))
    tables = [axis for axis in figure.axes if axis.get_label() == "T"]
    assert {text.get_text() for text in tables[0].texts} == {"an actor"}
    of_pairs = np.array(several["classes"])[0] == 2
    assert tables[1].texts[0].get_text() == f"{of_pairs[:, 0, 0].mean():.2f} an actor"


@pytest.mark.parametrize("n_layers", [1, 6, 30])
@pytest.mark.parametrize("interval", [None, [0.1, 0.3]])
def test_two_runs_side_by_side(n_layers, interval):
    grid = make_grid(n_layers, n_names=3)
    grid = grid | {"names": ["lion", "tiger", "horse"], "templates": ["is"]}
    run = {
        "model": "smollm2-135m-instruct",
        "time": "2026-11-26T20:00:00+00:00",
        "summary": {"mode": "multi", "n_layers": max(2, n_layers), "grids": [grid]},
    }
    compared = {
        "runs": [run, run | {"model": "gemma-3-270m"}],
        "differences": {"model": ["smollm2-135m-instruct", "gemma-3-270m"]},
        "grids": [
            {"stage": "multi", "of": [grid, grid], "names": ["lion"], "difference": {"mean": 0.2, "ci95": interval}},
            {"stage": "templates", "of": [grid, grid], "names": [], "difference": None},
        ],
    }
    texts = " ".join(check_texts(plot_layer_grid_compare(compared))).replace("\n", " ")
    assert "A: smollm2-135m-instruct" in texts
    assert "B: gemma-3-270m" in texts
    assert "B - A over “lion”: +0.20" in texts
