"""One model reads the hidden states of another."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.plots.fonts import fit_lines
from patchscopes.plots.style import (
    BLUE,
    METRIC_LABELS,
    ORANGE,
    SMALL_SIZE,
    TITLE_SIZE,
    CurveStyle,
    create_figure,
    describe_chat,
    describe_positions,
    draw_baseline,
    draw_curve,
    finish_metric_axis,
)
from patchscopes.plots.tables import draw_layer_table
from patchscopes.results import Json

NAME_CHARACTERS = 30
METHOD_NAMES = {"token_identity": "Token-identity prompt", "source_prompt": "T = S (no extra prompt)"}


def plot_cross_model(document: Json) -> Figure:
    """Precision@1 and Surprisal over (ℓ, ℓ*) for each method, and ROUGE of descriptions (paper, section 4.4)."""
    results = document["results"]
    source, target = name_models(document)
    methods = [method for method in results["next_token"]["methods"] if method != "target_model_alone"]
    n_columns = len(methods) + ("entity" in results)
    figure = create_figure(
        f"{target} reads the hidden states of {source}{describe_chat(document)} (f: {document['config']['mapping']}). "
        "Next token: "
        f"{describe_positions(document)}, against {source}'s own prediction",
        width=4.6 * n_columns + 0.6,
        height=8.4,
    )
    axes = figure.subplots(2, n_columns, squeeze=False)
    for row, metric in zip(axes, ("precision_at_1", "surprisal"), strict=True):
        draw_next_token(row[: len(methods)], document, methods, metric)
    if "entity" in results:
        metrics = ("rougeL_f1_of_description", "rouge1_f1_of_description")
        for axis, metric in zip(axes[:, -1], metrics, strict=True):
            draw_descriptions(axis, document, metric)
    return figure


def name_models(document: Json) -> tuple[str, str]:
    """The names of M and M*, of which the ends are said where they are long: those of paths."""
    environment = document["environment"]
    ends = [environment[model]["id"][-NAME_CHARACTERS:] for model in ("model", "target_model")]
    source, target = fit_lines(ends, NAME_CHARACTERS, SMALL_SIZE)
    return source, target


def draw_next_token(axes: np.ndarray, document: Json, methods: list[str], metric: str) -> None:
    """One metric of next-token prediction over (ℓ, ℓ*), a table for each method, all on one scale."""
    results = document["results"]
    measured = results["next_token"]["methods"]
    tables = [np.array(measured[method][metric]["mean"]) for method in methods]
    # In both metrics the lighter, the better.
    colormap, high = "viridis", 1.0
    if metric == "surprisal":
        colormap, high = "viridis_r", max(float(table.max()) for table in tables)
    for axis, method, table in zip(axes, methods, tables, strict=True):
        draw_layer_table(axis, table, results["layers"], results["target_layers"], colormap=colormap, high=high)
        title = f"{METHOD_NAMES[method]}: {METRIC_LABELS[metric]}"
        if method == "source_prompt":
            alone = measured["target_model_alone"][metric]["mean"]
            title += f"\n{name_models(document)[1]} alone: {alone:.2f}"
        axis.set_title(title, fontsize=TITLE_SIZE)


def draw_descriptions(axis: Axes, document: Json, metric: str) -> None:
    """The two models' descriptions of the same states over source layers, and the baselines of both."""
    results = document["results"]
    source, target = name_models(document)
    scores = {method: measured[metric] for method, measured in results["entity"]["methods"].items()}
    curves = {
        "same_model": CurveStyle(f"{source} (ℓ* = ℓ)", BLUE),
        "cross_model": CurveStyle(f"{target} (ℓ* at the same relative depth)", ORANGE),
    }
    baselines = {
        "name_in_clear_source_model": CurveStyle(f"{source}, name in clear", BLUE, "--"),
        "name_in_clear_target_model": CurveStyle(f"{target}, name in clear", ORANGE, "--"),
        "unpatched_target_model": CurveStyle(f"{target}, placeholder unpatched", ORANGE, ":"),
    }
    for method, style in curves.items():
        draw_curve(axis, results["layers"], scores[method]["mean"], scores[method]["ci95"], style)
    for method, style in baselines.items():
        draw_baseline(axis, scores[method]["mean"][0], style)
    finish_metric_axis(axis, metric)
    # Room for the legend above the lines.
    axis.set_ylim(top=1.5 * axis.get_ylim()[1])
    axis.set_xlabel("Source layer ℓ")
    n_entities = results["entity"]["n_samples"]
    axis.set_title(f"{n_entities} entities, states of {source}\ndescribed by either model", fontsize=TITLE_SIZE)
    axis.legend(frameon=False, fontsize=SMALL_SIZE, loc="upper right")
