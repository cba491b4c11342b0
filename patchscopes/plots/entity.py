"""What the model takes names for, over layers, against references."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.plots.fonts import fit_lines
from patchscopes.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SMALL_SIZE,
    CurveStyle,
    create_figure,
    draw_baseline,
    draw_curve,
    finish_metric_axis,
    label_source_layers,
    name_model,
)
from patchscopes.results import Json

GROUP_COLOURS = (BLACK, BLUE, ORANGE, GREEN, PURPLE)
NAME_CHARACTERS, LEGEND_COLUMNS = 24, 5


def plot_entity(document: Json) -> Figure:
    """ROUGE-L and ROUGE-1 of entity descriptions over layers, by popularity, between their two baselines."""
    results = document["results"]
    figure = create_figure(
        "What the model says a name stands for, against references: "
        f"{name_model(document)}, shaded: 95 % intervals over entities",
        width=11.0,
        height=4.6,
    )
    axes = figure.subplots(1, 2, sharey=True)
    metrics = ("rougeL_f1_of_description", "rouge1_f1_of_description")
    for axis, metric in zip(axes, metrics, strict=True):
        draw_groups(axis, results, metric)
    # Only now: the panels share their limits, and setting them ends autoscaling.
    for axis, metric in zip(axes, metrics, strict=True):
        finish_metric_axis(axis, metric)
        axis.set_xlabel(label_source_layers(document["config"]["target_layer"]))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=SMALL_SIZE, loc="outside lower center", ncols=LEGEND_COLUMNS)
    return figure


def draw_groups(axis: Axes, results: Json, metric: str) -> None:
    """One metric of all entities, and of those of each popularity where there are several, with their baselines."""
    groups = {"all entities": results}
    if len(results["popularity"]) > 1:
        groups |= results["popularity"]
    names = fit_lines([name.replace("_", " ") for name in groups], NAME_CHARACTERS, SMALL_SIZE)
    for number, (name, group) in enumerate(zip(names, groups.values(), strict=True)):
        colour = GROUP_COLOURS[number % len(GROUP_COLOURS)]
        scores = {method: measured[metric] for method, measured in group["methods"].items()}
        style = CurveStyle(f"{name} ({group['n_samples']})", colour)
        draw_curve(axis, results["layers"], scores["patchscope"]["mean"], scores["patchscope"]["ci95"], style)
        draw_baseline(axis, scores["name_in_clear"]["mean"][0], CurveStyle("", colour, "--"))
        draw_baseline(axis, scores["unpatched"]["mean"][0], CurveStyle("", colour, ":"))
    # The legend explains the baselines once, for all colours.
    axis.plot([], [], "--", color=BLACK, linewidth=1, label="name in clear")
    axis.plot([], [], ":", color=BLACK, linewidth=1, label="placeholder, unpatched")
