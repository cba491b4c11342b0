"""The model's next tokens from one hidden state, as Future Lens predicts them."""

from matplotlib.figure import Figure

from patchscopes.plots.style import (
    METHOD_STYLES,
    METRIC_LABELS,
    SMALL_SIZE,
    TITLE_SIZE,
    create_figure,
    describe_positions,
    draw_curve,
    finish_metric_axis,
    name_model,
)
from patchscopes.results import Json


def plot_future_lens(document: Json) -> Figure:
    """Each metric (rows) for each token ahead (columns) over source layers, one line per method (Pal et al. 2023)."""
    results = document["results"]
    metrics = [metric for metric in METRIC_LABELS if metric in next(iter(results["methods"].values()))]
    figure = create_figure(
        f"The model's next tokens from the hidden state at t: {name_model(document)}, "
        f"{describe_positions(document)}, shaded: 95 % intervals",
        width=11.0,
        height=2.4 * len(metrics) + 1.2,
    )
    axes = figure.subplots(len(metrics), len(results["ahead"]), sharey="row", squeeze=False)
    for row, metric in zip(axes, metrics, strict=True):
        for slot, axis in enumerate(row):
            for method, measured in results["methods"].items():
                curve = measured[metric]
                draw_curve(axis, results["layers"], curve["mean"][slot], curve["ci95"][slot], METHOD_STYLES[method])
        # Only now: limits of one panel are those of its row, and end its autoscaling.
        for axis in row:
            finish_metric_axis(axis, metric)
            axis.label_outer()
    for axis, ahead in zip(axes[0], results["ahead"], strict=True):
        axis.set_title(f"token t+{ahead}", fontsize=TITLE_SIZE)
    for axis in axes[-1]:
        axis.set_xlabel("Source layer ℓ")
    axes[0][-1].legend(frameon=False, fontsize=SMALL_SIZE)
    return figure
