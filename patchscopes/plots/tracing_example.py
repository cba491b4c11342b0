"""Causal tracing of one prompt: how much of the answer each restored token brings back, over layers."""

from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.plots.causal_tracing import CLASS_STYLES
from patchscopes.plots.fonts import fit_lines
from patchscopes.plots.style import (
    BLACK,
    SMALL_SIZE,
    TITLE_SIZE,
    CurveStyle,
    create_figure,
    draw_baseline,
    draw_curve,
    name_model,
    tidy_axis,
)
from patchscopes.results import Json

CONTROL_STYLE = replace(CLASS_STYLES["further"], label="control: another token")
STYLES = {**CLASS_STYLES, "control": CONTROL_STYLE}
CLEAN_STYLE = CurveStyle("clean run", BLACK, "--")
CORRUPTED_STYLE = CurveStyle("corrupted, nothing restored", BLACK, ":")
PROMPT_CHARACTERS, ANSWER_CHARACTERS, TOKEN_CHARACTERS = 70, 24, 16


def plot_tracing_example(document: Json) -> Figure:
    """The answer's probability with the clean state of one token put back, between the corrupted and the clean run."""
    results, config = document["results"], document["config"]
    (prompt,) = fit_lines([results["prompt"]], PROMPT_CHARACTERS, TITLE_SIZE)
    (answer,) = fit_lines([results["answer"].strip()], ANSWER_CHARACTERS, TITLE_SIZE)
    figure = create_figure(
        f"Causal tracing of “{prompt}”, {name_model(document)}\n{config['noise']:g}σ of noise on the subject, "
        f"{config['n_noise_samples']} samples; crosses: the original, at most "
        f"{results['largest_probability_difference']:.0e} apart",
        width=7.5,
        height=4.2,
    )
    axis = figure.subplots()
    draw_restored(axis, results)
    axis.set(xlabel="Layer ℓ whose clean state is put back", ylabel=f"Probability of “{answer}”")
    axis.set_ylim(bottom=0)
    tidy_axis(axis)
    figure.legend(frameon=False, fontsize=SMALL_SIZE, loc="outside lower center", ncols=3)
    return figure


def draw_restored(axis: Axes, results: Json) -> None:
    """A curve for each token that is restored, the original form as crosses on it, and the two runs as limits."""
    patchscope, original = results["methods"]["patchscope"], results["methods"]["original"]
    positions = results["restored_positions"]
    tokens = [results["tokens"][position].strip(" ") for position in positions.values()]
    names = fit_lines(tokens, TOKEN_CHARACTERS, SMALL_SIZE)
    # The curves last: those of all layers name them on the axis.
    for token, restored in original["restored"].items():
        draw_curve(axis, original["layers"], restored, None, CurveStyle("", STYLES[token].colour, "", "x", 7))
    for name, (token, restored) in zip(names, patchscope["restored"].items(), strict=True):
        style = replace(STYLES[token], label=f"{STYLES[token].label} (“{name}”)")
        draw_curve(axis, patchscope["layers"], restored, None, style)
    axis.plot([], [], "x", color=BLACK, markersize=7, label="original form")
    draw_baseline(axis, patchscope["clean"], CLEAN_STYLE)
    draw_baseline(axis, patchscope["corrupted"], CORRUPTED_STYLE)
