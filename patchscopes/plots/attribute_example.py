"""How likely each method finds one subject's attribute in its state at each layer, with controls."""

from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.data.relations import PLACE
from patchscopes.plots.style import (
    BLACK,
    GREY,
    LIGHT_ORANGE,
    METHOD_STYLES,
    SMALL_SIZE,
    CurveStyle,
    create_figure,
    draw_baseline,
    draw_curve,
    name_model,
    tidy_axis,
)
from patchscopes.plots.text import shorten, show_whitespace
from patchscopes.results import Json

METHODS = ("patchscope", "probe", "lre", "lre_patchscope")
# Points squared of the dots of layers at which the object is named.
NAMED_SIZE = 42


def plot_attribute_example(document: Json) -> Figure:
    """The probability of the object over ℓ by each method; without an object, that of its most likely answer.

    Large dots: the method names the object. Dashed: the same with another subject's state.
    """
    results = document["results"]
    layers, methods = results["layers"], results["methods"]
    prompt, source_prompt = (shorten(show_whitespace(results[name]), 200) for name in ("prompt", "source_prompt"))
    subject, answer = (shorten(show_whitespace(results[name]), 60) for name in ("subject", "object"))
    sought = f"{subject} → {answer}" if answer else f"{subject}, no answer given"
    figure = create_figure(
        f"“{prompt.replace(PLACE, 'x')}”: {sought}\nx: “{subject}” in “{source_prompt}” ({name_model(document)})",
        width=7.5,
        height=5.2,
    )
    axis = figure.subplots()
    for method in METHODS:
        if method in methods:
            style = METHOD_STYLES[method]
            if method == "probe" and answer and methods[method]["share"] == 0:
                style = replace(style, label="Probe (no other subject has this object)")
            draw_method(axis, layers, methods[method], style, with_object=bool(answer))
    if answer:
        draw_controls(axis, results)
    of_what = "the object" if answer else "its most likely answer"
    axis.set(xlabel="Source layer ℓ", ylabel=f"Probability of {of_what}", ylim=(0, 1.02))
    tidy_axis(axis)
    figure.legend(frameon=False, fontsize=SMALL_SIZE, loc="outside lower center", ncols=2)
    return figure


def draw_method(axis: Axes, layers: list[int], read: Json, style: CurveStyle, with_object: bool) -> None:
    """The curve of a method, larger dots where it names the object, and dashed the same of another subject's state."""
    curve = read["probability" if with_object else "top_probability"]
    draw_curve(axis, layers, curve, None, style)
    # Both forms of the LRE read the same: the original's has the dots and the control.
    if not with_object or style.line != "-":
        return
    sizes = [NAMED_SIZE * solved for solved in read["solved"]]
    axis.scatter(layers, curve, s=sizes, color=style.colour, zorder=3, clip_on=False)
    if read["of_other"] is not None:
        axis.plot(layers, read["of_other"], color=style.colour, linestyle="--", linewidth=1)


def draw_controls(axis: Axes, results: Json) -> None:
    """What is known without the subject's state, or in clear, as lines across; and what dots and dashes are."""
    methods = results["methods"]
    draw_baseline(axis, methods["in_clear"]["probability"], CurveStyle("the subject in clear", BLACK, "-."))
    draw_baseline(axis, methods["unpatched"]["probability"], CurveStyle("control: x with nothing patched", GREY, ":"))
    if "probe" in methods:
        share = CurveStyle("control: the object's share among the probe's samples", LIGHT_ORANGE, ":")
        draw_baseline(axis, methods["probe"]["share"], share)
    axis.scatter([], [], s=NAMED_SIZE, color=GREY, label="large: the object is named")
    if results["other_subject"] is not None:
        other = shorten(show_whitespace(results["other_subject"]), 40)
        axis.plot([], [], color=GREY, linestyle="--", linewidth=1, label=f"control, dashed: the state of {other}")
