"""Two-hop questions repaired by patching (paper, section 5)."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.plots.style import (
    BLUE,
    GREY,
    LIGHT_ORANGE,
    ORANGE,
    SMALL_SIZE,
    TITLE_SIZE,
    create_figure,
    name_model,
    tidy_axis,
)
from patchscopes.plots.tables import draw_layer_table
from patchscopes.results import Json

MEASURES = {
    "accuracy": ("unpatched", GREY),
    "held_out": ("one (ℓ, ℓ*), chosen on the other half", BLUE),
    "any": ("any (ℓ, ℓ*)", ORANGE),
    "any_upwards": ("any (ℓ, ℓ*) with ℓ < ℓ*", LIGHT_ORANGE),
}


def plot_multi_hop(document: Json) -> Figure:
    """Solved questions by method and measure, and by pair (ℓ, ℓ*) of the Patchscope."""
    results = document["results"]
    figure = create_figure(
        f"Two-hop questions whose hops {name_model(document)} answers one by one: "
        f"{results['n_samples']} of {results['n_passed']} (of {results['n_questions']} asked); lines: 95 % intervals",
        width=13.0,
        height=5.2,
    )
    bars, table = figure.subplots(1, 2, width_ratios=(1.15, 1))
    draw_solved_shares(bars, document)
    if "patchscope" in results["methods"]:
        draw_solved_by_pair(table, results)
    else:
        table.axis("off")
    return figure


def draw_solved_shares(axis: Axes, document: Json) -> None:
    """A bar with its interval for each method and measure."""
    names = {
        "vanilla": "vanilla",
        "cot": f"chain of thought\n({document['config']['cot_new_tokens']} tokens)",
        "patchscope": "Patchscope",
        "control": "control: state of an\nunrelated query",
        "placeholder": "hop 1 into “… x is”",
        "back_patch": "back-patching\n(ℓ > ℓ*)",
    }
    row = 0.0
    ticks: list[tuple[float, str]] = []
    for method, measured in document["results"]["methods"].items():
        first = row
        for measure, (_, colour) in MEASURES.items():
            share = measured.get(measure)
            # A Patchscope's accuracy is a table over (ℓ, ℓ*), not one number.
            if share is None or not isinstance(share["mean"], float):
                continue
            low, high = share["ci95"]
            spread = [[max(0.0, share["mean"] - low)], [max(0.0, high - share["mean"])]]
            axis.barh(row, share["mean"], height=0.9, color=colour, xerr=spread, ecolor="#303030", capsize=2)
            axis.text(high + 0.01, row, f"{share['mean']:.2f}", va="center", fontsize=SMALL_SIZE)
            row += 1
        ticks.append(((first + row - 1) / 2, names[method]))
        row += 0.7
    axis.set_yticks([place for place, _ in ticks], [label for _, label in ticks], fontsize=9)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.08), xlabel="Share of questions solved")
    tidy_axis(axis, grid="x")
    for label, colour in MEASURES.values():
        axis.barh([0], [0], color=colour, label=label)
    axis.legend(frameon=False, fontsize=SMALL_SIZE, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


def draw_solved_by_pair(axis: Axes, results: Json) -> None:
    """The share that the Patchscope solves at each (ℓ, ℓ*)."""
    methods = results["methods"]
    table = np.array(methods["patchscope"]["accuracy"]["mean"])
    draw_layer_table(
        axis, table, results["layers"], results["target_layers"], colormap="viridis", high=float(table.max())
    )
    aside = f" (vanilla: {methods['vanilla']['accuracy']['mean']:.2f})" if "vanilla" in methods else ""
    axis.set_title(f"Patchscope: share solved by each (ℓ, ℓ*){aside}", fontsize=TITLE_SIZE)
