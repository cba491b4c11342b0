"""Attribute extraction: accuracy by task and method, and over layers (paper, section 4.2)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.plots.attribute_bars import UNIT, draw_bars, measure_height, sort_tasks
from patchscopes.plots.style import (
    BLACK,
    GREY,
    METHOD_STYLES,
    SMALL_SIZE,
    TITLE_SIZE,
    CurveStyle,
    create_figure,
    draw_curve,
    name_model,
    tidy_axis,
)
from patchscopes.plots.tables import draw_layer_table
from patchscopes.results import Json

# Method, measure and look of the curves over ℓ.
CURVES = (
    ("patchscope", "any_by_layer", replace(METHOD_STYLES["patchscope"], label="Patchscope, any ℓ*")),
    ("patchscope", "control_any_by_layer", CurveStyle("control: another subject's object", BLACK, "--")),
    ("patchscope", "control_unrelated_any_by_layer", CurveStyle("control: an unrelated word's state", GREY, ":")),
    ("probe", "accuracy", replace(METHOD_STYLES["probe"], label="Probe, folds by subject")),
    ("probe_by_sample", "accuracy", METHOD_STYLES["probe_by_sample"]),
    ("lre", "faithfulness", replace(METHOD_STYLES["lre"], label="LRE (faithfulness)")),
    ("lre_patchscope", "faithfulness", METHOD_STYLES["lre_patchscope"]),
)
PANEL_HEIGHT = 3.7
SHADED = " (shaded: 95 % intervals over subjects)"


@dataclass(frozen=True, kw_only=True)
class Average:
    """A measure over (ℓ …) as a simple mean over the tasks that have it, and its interval if only one does."""

    mean: list
    ci95: list | None
    n_tasks: int


def plot_attributes(document: Json) -> Figure:
    """Accuracy by task and method with controls; below it means over tasks: accuracy over ℓ, the Patchscope over
    (ℓ, ℓ*), faithfulness of the LRE over ℓ, and its causal test."""
    results = document["results"]
    tasks = sort_tasks(results["tasks"])
    panels = select_panels(list(tasks.values()))
    columns = split_tasks(tasks)
    bars_height = UNIT * max(map(measure_height, columns)) + 1.5
    n_rows, n_columns = -(-len(panels) // 2), min(2, len(panels))
    panels_height = PANEL_HEIGHT * n_rows
    figure = create_figure(name_figure(document), width=11.0, height=bars_height + panels_height + 0.6)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(bars_height, panels_height))[:, 0]
    draw_bars(above, columns)
    axes = list(below.subplots(n_rows, n_columns, squeeze=False).flat)
    for axis, draw in zip(axes, panels, strict=False):
        draw(axis, results, list(tasks.values()))
    for axis in axes[len(panels) :]:
        axis.remove()
    return figure


def name_figure(document: Json) -> str:
    """The title: the model, how many samples of how many tasks, what the lines are."""
    results = document["results"]
    n_samples = sum(task["n_samples"] for task in results["tasks"].values())
    dropped = f" ({count_tasks(len(results['dropped']))} left out: too few samples)" if results["dropped"] else ""
    return (
        f"Attributes read out of one hidden state: {name_model(document)}, {n_samples:,} samples "
        f"of {count_tasks(len(results['tasks']))}{dropped}\nlines on bars: 95 % intervals over subjects"
    )


def count_tasks(number: int) -> str:
    """The number in words."""
    return "1 task" if number == 1 else f"{number} tasks"


def split_tasks(tasks: Mapping[str, Json]) -> list[dict[str, Json]]:
    """The tasks in the columns that their bars stand in: two, unless there are few."""
    names = list(tasks)
    half = len(names) if len(names) <= 3 else -(-len(names) // 2)
    return [{name: tasks[name] for name in part} for part in (names[:half], names[half:]) if part]


def select_panels(tasks: Sequence[Json]) -> list[Callable[[Axes, Json, Sequence[Json]], None]]:
    """What can be drawn below the bars with the methods that these tasks have."""
    methods = {name: method for task in tasks for name, method in task["methods"].items()}
    panels: list[Callable[[Axes, Json, Sequence[Json]], None]] = [draw_accuracy]
    if "patchscope" in methods:
        panels.append(draw_pairs)
    if "lre" in methods or "lre_patchscope" in methods:
        panels.append(draw_faithfulness)
        if find_causal_tests(tasks):
            panels.append(draw_causal_test)
    return panels


def average_tasks(tasks: Sequence[Json], method: str, measure: str) -> Average | None:
    """The mean of a measure over tasks; None if no task has it."""
    measured = [task["methods"].get(method, {}).get(measure) for task in tasks]
    present = [one for one in measured if one is not None]
    if not present:
        return None
    return Average(
        mean=np.mean([one["mean"] for one in present], axis=0).tolist(),
        ci95=present[0]["ci95"] if len(present) == 1 else None,
        n_tasks=len(present),
    )


def describe_mean(tasks: Sequence[Json], alone: str = "") -> str:
    """The end of a panel's title: how many tasks its values are means over, or something else with one task alone."""
    return alone if len(tasks) == 1 else f" (simple mean over {len(tasks)} tasks)"


def draw_accuracy(axis: Axes, results: Json, tasks: Sequence[Json]) -> None:
    """All methods over ℓ."""
    for method, measure, style in CURVES:
        average = average_tasks(tasks, method, measure)
        if average is None:
            continue
        # Means over different tasks are not quite comparable: the legend says which are.
        aside = f" ({count_tasks(average.n_tasks)})" if average.n_tasks < len(tasks) else ""
        draw_curve(axis, results["layers"], average.mean, average.ci95, replace(style, label=style.label + aside))
    axis.set_title(f"All methods over ℓ{describe_mean(tasks, SHADED)}", fontsize=TITLE_SIZE)
    finish_share_axis(axis, "Share answered rightly", legend_columns=2)


def draw_pairs(axis: Axes, results: Json, tasks: Sequence[Json]) -> None:
    """The share that the Patchscope answers at each (ℓ, ℓ*)."""
    average = average_tasks(tasks, "patchscope", "accuracy")
    assert average is not None
    table = np.array(average.mean)
    draw_layer_table(
        axis, table, results["layers"], results["target_layers"], colormap="viridis", high=float(table.max())
    )
    axis.set_title(f"Patchscope at each (ℓ, ℓ*){describe_mean(tasks)}", fontsize=TITLE_SIZE)


def draw_faithfulness(axis: Axes, results: Json, tasks: Sequence[Json]) -> None:
    """Faithfulness of the LRE over ℓ: each task, and their mean on the samples and after solved examples."""
    # Both forms of the LRE read the same; the original's has the second curve.
    form = "lre" if any("lre" in task["methods"] for task in tasks) else "lre_patchscope"
    with_lre = [task for task in tasks if form in task["methods"]]
    style = METHOD_STYLES[form]
    if len(with_lre) > 1:
        for task in with_lre:
            curve = task["methods"][form]["faithfulness"]["mean"]
            axis.plot(results["layers"], curve, color=style.colour, linewidth=0.7, alpha=0.35)
        axis.plot([], [], color=style.colour, linewidth=0.7, alpha=0.5, label="each task, in the source prompts")
    of_what = "mean" if len(with_lre) > 1 else "task"
    for measure, line, place in (
        ("faithfulness", "-", "in the source prompts"),
        ("faithfulness_in_context", "--", "after solved examples"),
    ):
        average = average_tasks(with_lre, form, measure)
        if average is not None:
            shown = replace(style, label=f"{of_what}, {place}", line=line)
            draw_curve(axis, results["layers"], average.mean, average.ci95, shown)
    axis.set_title(f"LRE over ℓ{describe_mean(with_lre, SHADED)}", fontsize=TITLE_SIZE)
    finish_share_axis(axis, "Faithfulness", legend_columns=2)


def draw_causal_test(axis: Axes, results: Json, tasks: Sequence[Json]) -> None:
    """How often a state moved along the LRE's low-rank inverse gives another subject's attribute, by rank, over ℓ."""
    style = METHOD_STYLES["lre"]
    tests = find_causal_tests(tasks)
    layers, ranks = tests[0]["layers"], tests[0]["ranks"]
    answers, efficacy = (np.mean([test[name]["mean"] for test in tests], axis=0) for name in ("answers", "efficacy"))
    shades = matplotlib.colormaps["Purples"](np.linspace(0.4, 1.0, len(ranks)))
    for slot, rank in enumerate(ranks):
        colour = matplotlib.colors.to_hex(shades[slot])
        draw_curve(axis, layers, answers[:, slot].tolist(), None, CurveStyle(f"rank {rank}", colour))
        axis.plot(layers, efficacy[:, slot], color=colour, linestyle=":", linewidth=1)
    axis.plot([], [], color=style.colour, linestyle=":", linewidth=1, label="more likely than its own (efficacy)")
    axis.set_title(f"Causal test of the LRE{describe_mean(tests)}", fontsize=TITLE_SIZE)
    finish_share_axis(axis, "Answers with the other's object", legend_columns=3)


def find_causal_tests(tasks: Sequence[Json]) -> list[Json]:
    """Those of the tasks that have one."""
    tests = [task["methods"].get("lre", {}).get("causal_test") for task in tasks]
    return [test for test in tests if test is not None]


def finish_share_axis(axis: Axes, label: str, legend_columns: int) -> None:
    """Labels, limits and legend of an axis of shares over ℓ, once its curves are drawn."""
    axis.set(xlabel="Source layer ℓ", ylabel=label, ylim=(0, 1.02))
    tidy_axis(axis)
    # Below the axis: inside, some curve is always in its way.
    if axis.lines:
        axis.legend(
            frameon=False, fontsize=SMALL_SIZE, ncols=legend_columns, loc="upper center", bbox_to_anchor=(0.5, -0.16)
        )
