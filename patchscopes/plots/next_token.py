"""Figure 2 of the paper: next-token prediction from one hidden state."""

from matplotlib.figure import Figure

from patchscopes.plots.style import (
    METHOD_STYLES,
    METRIC_LABELS,
    create_figure,
    describe_positions,
    draw_curve,
    finish_metric_axis,
    label_source_layers,
    name_model,
)
from patchscopes.results import Json


def plot_next_token(document: Json) -> Figure:
    """Precision@1 and Surprisal over source layers, one line per method, with 95 % intervals (paper, Figure 2)."""
    results = document["results"]
    figure = create_figure(
        f"Next-token prediction from one hidden state: {name_model(document)}, "
        f"{describe_positions(document)}, shaded: 95 % intervals",
        width=11.0,
        height=4.4,
    )
    axes = figure.subplots(1, 2)
    for axis, metric, better in zip(axes, ("precision_at_1", "surprisal"), ("higher", "lower"), strict=True):
        for method, metrics in results["methods"].items():
            curve = metrics[metric]
            draw_curve(axis, results["layers"], curve["mean"], curve["ci95"], METHOD_STYLES[method])
        finish_metric_axis(axis, metric)
        axis.set(xlabel=label_source_layers("same"), ylabel=f"{METRIC_LABELS[metric]}, {better} is better")
    axes[0].legend(frameon=False)
    return figure
