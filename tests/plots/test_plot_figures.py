"""Every figure, drawn from the documents in figures/ and from smaller ones made of them."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from drawn_figures import check_texts, draw, explained_curves
from matplotlib.figure import Figure

from patchscopes.plots.style import NotebookFigure, save_png

ROOT = Path(__file__).parent.parent.parent
FIGURES = ROOT / "figures"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The module of each document's plot, by experiment.
PLOTS = {
    "attention_knockout": "attention_knockout",
    "attribute_layers": "attribute_layers",
    "attribute_lens": "attribute_lens",
    "attributes": "attributes",
    "bench": "benchmark",
    "bench_peers": "benchmark",
    "causal_tracing": "causal_tracing",
    "cross_model": "cross_model",
    "entity": "entity",
    "entity_layers": "entity_layers",
    "entity_resolution": "entity_resolution",
    "future_lens": "future_lens",
    "layer_grid": "layer_grid",
    "layer_readout": "layer_readout",
    "lenses": "lenses",
    "multi_hop": "multi_hop",
    "multi_hop_grid": "multi_hop_grid",
    "next_token": "next_token",
    "prompt_table": "prompt_table",
    "scale": "scaling",
    "target_prompts": "target_prompts",
}
# Estimates are a column of the README's table.
NAMES = sorted(path.stem for path in FIGURES.glob("*.json") if path.stem != "estimates")


def load(name: str) -> dict[str, Any]:
    return json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))


def plot(document: dict[str, Any]) -> Figure:
    module = PLOTS[document["experiment"]]
    return getattr(import_module(f"patchscopes.plots.{module}"), f"plot_{module}")(document)


def test_every_committed_document_has_its_figure():
    assert {load(name)["experiment"] for name in NAMES} == set(PLOTS)
    assert sorted(path.stem for path in FIGURES.glob("*.png")) == NAMES


@pytest.mark.parametrize("name", NAMES)
class TestCommittedDocuments:
    def test_texts_are_whole_and_apart(self, name):
        document = load(name)
        texts = check_texts(plot(document))
        # Titles may be wrapped.
        assert document["environment"]["model"]["id"] in " ".join(texts).replace("\n", " ")

    def test_axes_are_named(self, name):
        for axis in plot(load(name)).axes:
            place = axis.get_subplotspec()
            if axis.get_label() == "<colorbar>":
                assert axis.get_ylabel() or axis.get_xlabel()
                continue
            # Panels that share an axis are labelled at the edge of the figure; columns and bars are named.
            headings = [tick.label2.get_text() for tick in axis.xaxis.get_major_ticks() if tick.label2.get_visible()]
            bars = [label.get_text() for label in axis.get_yticklabels() if not label.get_text().isdecimal()]
            assert axis.get_xlabel() or any(headings) or not place.is_last_row()
            assert axis.get_ylabel() or any(bars) or not place.is_first_col()

    def test_legends_name_every_curve_once(self, name):
        for axis in plot(load(name)).axes:
            _, curves = axis.get_legend_handles_labels()
            if curves:
                entries = explained_curves(axis)
                assert set(curves) <= set(entries)
                assert len(set(entries)) == len(entries)

    def test_saved_as_png(self, name, tmp_path):
        path = tmp_path / "new" / "figure.png"
        figure = plot(load(name))
        assert isinstance(figure, NotebookFigure)
        save_png(figure, path)
        assert path.read_bytes().startswith(PNG_SIGNATURE)
        assert [file.name for file in path.parent.iterdir()] == ["figure.png"]


def keep_layers(n: int) -> Callable[[dict[str, Any]], None]:
    """Figure 2 with its first layers only."""

    def change(document: dict[str, Any]) -> None:
        results = document["results"]
        results["layers"] = results["layers"][:n]
        for metrics in results["methods"].values():
            for curve in metrics.values():
                curve["mean"], curve["ci95"] = curve["mean"][:n], curve["ci95"][:n]

    return change


def remove(*path: str) -> Callable[[dict[str, Any]], None]:
    """The document without one of its parts."""

    def change(document: dict[str, Any]) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


def replace_text(text: str, *path: str) -> Callable[[dict[str, Any]], None]:
    """The document with another text."""

    def change(document: dict[str, Any]) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = text

    return change


LONG = "What is the price of $5 and $6, said the man who came from the city at the river? " * 4


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("fig1", remove("results", "methods", "token_identity", "top_k")),
        ("fig1", remove("results", "methods", "token_identity", "generations")),
        ("fig1", replace_text(LONG, "config", "source_prompt")),
        ("fig1", replace_text("last", "config", "target_layer")),
        ("fig2", keep_layers(1)),
        ("fig2", keep_layers(2)),
        ("fig2", remove("results", "methods", "logit_lens")),
        ("future_lens", remove("results", "methods", "linear")),
        ("entity", remove("results", "popularity", "well_known")),
        ("entity", replace_text("embedding", "config", "target_layer")),
        ("entity_diana", replace_text(LONG, "results", "name")),
        ("cross_model", remove("results", "entity")),
        ("cross_model", remove("results", "next_token", "methods", "source_prompt")),
        ("multi_hop", remove("results", "methods", "patchscope")),
        ("multi_hop", remove("results", "methods", "vanilla")),
        ("multi_hop_example", replace_text("", "config", "question", "hop2_answer")),
        ("multi_hop_example", replace_text(LONG, "config", "question", "combined_question")),
    ],
)
def test_other_options_are_drawn_too(name, change):
    document = load(name)
    change(document)
    check_texts(plot(document))


@pytest.mark.parametrize(
    ("name", "sides", "named"),
    [
        ("fig1", ("source", "target"), "with S and T as chats"),
        ("fig2", ("source",), "with S as a chat"),
        ("lenses", ("target",), "with T as a chat"),
        ("cross_model", ("source", "target"), "with S and T as chats"),
        ("multi_hop_example", ("source", "target"), "with S and T as chats"),
    ],
)
def test_titles_say_which_prompts_are_chats(name, sides, named):
    document = load(name)
    document["config"]["chat"] = {side: side in sides for side in ("source", "target")} | {"system": None}
    assert named in " ".join(check_texts(plot(document))).replace("\n", " ")


def test_ones_own_target_prompt_is_named():
    document = load("fig1")
    document["config"]["target_prompt"] = "say $x$: ?"
    assert "T: “say $x$: ?”" in " ".join(check_texts(plot(document)))


def test_a_figure_shows_itself_in_a_notebook():
    figure = plot(load("fig2"))
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(PNG_SIGNATURE)


def test_the_row_of_layer_0_is_whole():
    figure = plot(load("fig1"))
    texts = [text for text, _ in draw(figure)]
    layers = load("fig1")["results"]["layers"]
    assert [text for text in texts if text.isdecimal()] == [str(layer) for layer in layers]
    bottom = figure.axes[0].get_window_extent().y0
    assert bottom > 0.09 * figure.dpi


def test_legends_say_whose_name_is_in_clear():
    (_, _, descriptions, *_) = plot(load("cross_model")).axes
    named = [entry for entry in explained_curves(descriptions) if "name in clear" in entry]
    assert [entry.split(",")[0] for entry in named] == ["smollm2-135m-instruct", "gemma-3-270m"]


def test_panels_of_one_scale_show_all_their_lines():
    """The limits of the first panel once cut off a line of the second."""
    for axis in plot(load("entity")).axes:
        low, high = axis.get_ylim()
        assert all(low <= value <= high for line in axis.lines for value in line.get_ydata())


DRAW_AND_LIST_MODULES = """
import json, pkgutil, sys
from importlib import import_module
from pathlib import Path
import matplotlib

settings = dict(matplotlib.rcParams.copy())
import patchscopes.plots, patchscopes.results
for module in pkgutil.iter_modules(patchscopes.plots.__path__):
    import_module(f"patchscopes.plots.{module.name}")
from patchscopes.plots.next_token import plot_next_token
from patchscopes.plots.style import save_png

save_png(plot_next_token(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]))
assert dict(matplotlib.rcParams.copy()) == settings
print(json.dumps(list(sys.modules)))
"""


def test_a_figure_is_drawn_without_models_and_leaves_matplotlib_alone(tmp_path):
    png = tmp_path / "fig2.png"
    command = [sys.executable, "-c", DRAW_AND_LIST_MODULES, str(FIGURES / "fig2.json"), str(png)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert png.read_bytes().startswith(PNG_SIGNATURE)
    loaded = set(json.loads(done.stdout))
    assert loaded & {"torch", "transformer_lens", "transformers", "datasets", "matplotlib.pyplot"} == set()


def test_texts_for_tables_need_no_matplotlib():
    code = "import sys, patchscopes.plots.text; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
