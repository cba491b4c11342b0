"""The figure of the choice of target prompts, drawn from made-up documents."""

from typing import Any

import numpy as np
import pytest
from drawn_figures import check_texts, explained_curves
from matplotlib.patches import Rectangle

from patchscopes.plots.target_prompts import MOST_ROWS, choose_rows, plot_target_prompts

METHODS = ("best_prompt", "token_identity", "simplescope")
PROMPTS = ("cat -> cat\n1135 -> 1135\n?", "?", "costs $5 and $6 ?", "The end. ? ->", "very " * 80 + "?")


def make_document(n_layers: int = 12, n_candidates: int = 39, n_bands: int = 5) -> dict[str, Any]:
    generator = np.random.default_rng(0)

    def measure() -> dict[str, Any]:
        mean = generator.uniform(0, 1, n_layers)
        return {"mean": mean.tolist(), "ci95": np.stack([mean - 0.05, mean + 0.05], axis=-1).tolist()}

    def measures() -> dict[str, Any]:
        return {metric: measure() for metric in ("precision_at_1", "surprisal")}

    layers = np.linspace(0, 29, n_layers).round().astype(int).tolist()
    slots = np.array_split(np.arange(n_layers), min(n_bands, n_layers))
    bands = [
        {
            "first": layers[part[0]],
            "last": layers[part[-1]],
            "layers": [layers[slot] for slot in part],
            "candidate": number % n_candidates,
            "prompt": PROMPTS[number % len(PROMPTS)],
            "chosen_in": 0.6,
        }
        for number, part in enumerate(slots)
    ]
    candidates = [
        {
            "prompt": PROMPTS[number % len(PROMPTS)],
            "placeholder": "?",
            "family": f"family {number % 4}" if number else "A family with a name that goes on and on",
            **measures(),
        }
        for number in range(n_candidates)
    ]
    results = {
        "layers": layers,
        "n_samples": 400,
        "n_texts": 196,
        "methods": {method: measures() for method in METHODS},
        "differences": {method: measures() for method in METHODS[1:]},
        "bands": bands,
        "train": {"n_samples": 200, "n_texts": 188, "candidates": candidates},
        "left_out": [],
    }
    environment = {"model": {"id": "smollm2-135m-instruct"}, "dataset": {"name": "passages"}}
    return {"experiment": "target_prompts", "config": {}, "environment": environment, "results": results}


@pytest.mark.parametrize("n_layers", [1, 4, 12, 30])
@pytest.mark.parametrize("n_candidates", [1, 2, 39, 200])
def test_texts_are_whole_and_apart(n_layers, n_candidates):
    texts = " ".join(check_texts(plot_target_prompts(make_document(n_layers, n_candidates)))).replace("\n", " ")
    assert "200 positions in 188 train texts" in texts
    assert "400 positions in 196 texts (passages)" in texts
    assert ("of 200 (" in texts) == (n_candidates == 200)


def test_curves_and_differences():
    document = make_document()
    precision, surprisal, gain, table = plot_target_prompts(document).axes
    results = document["results"]
    for axis, metric in ((precision, "precision_at_1"), (surprisal, "surprisal")):
        shown = [line.get_ydata().tolist() for line in axis.lines[:3]]
        assert shown == [results["methods"][method][metric]["mean"] for method in METHODS]
    _, *curves = gain.lines
    differences = [results["differences"][method]["precision_at_1"]["mean"] for method in METHODS[1:]]
    assert [line.get_ydata().tolist() for line in curves[:2]] == differences
    for axis in (precision, surprisal, gain):
        _, names = axis.get_legend_handles_labels()
        assert set(names) <= set(explained_curves(axis))
    assert table.get_xlabel()


def test_families_stand_together_and_choices_are_framed():
    document = make_document()
    *_, table = plot_target_prompts(document).axes
    shown = choose_rows(document["results"])
    candidates = document["results"]["train"]["candidates"]
    families = [candidates[number]["family"] for number in shown]
    assert [family for family, before in zip(families, [None, *families], strict=False) if family != before] == list(
        dict.fromkeys(families)
    )
    frames = {(patch.get_x(), patch.get_y()) for patch in table.patches if isinstance(patch, Rectangle)}
    layers = document["results"]["layers"]
    assert frames == {
        (layers.index(layer), shown.index(band["candidate"]))
        for band in document["results"]["bands"]
        for layer in band["layers"]
    }


def test_of_many_candidates_the_best_are_shown():
    results = make_document(n_candidates=200)["results"]
    means = [np.mean(one["precision_at_1"]["mean"]) for one in results["train"]["candidates"]]
    chosen = {band["candidate"] for band in results["bands"]}
    shown = set(choose_rows(results))
    assert chosen | {int(np.argmax(means))} <= shown
    assert MOST_ROWS <= len(shown) <= MOST_ROWS + len(chosen)
    assert min(means[number] for number in shown - chosen) >= max(means[number] for number in set(range(200)) - shown)
