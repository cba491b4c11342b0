"""Causal tracing: average indirect effects by token class over layers, and one fact in full."""

from dataclasses import replace

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure, SubFigure

from patchscopes.model.layer_names import name_layer
from patchscopes.plots.fonts import fit_lines
from patchscopes.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT_BLUE,
    LIGHT_GREY,
    ORANGE,
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

CLASS_STYLES = {
    "first_subject": CurveStyle("first subject token", LIGHT_BLUE),
    "middle_subject": CurveStyle("middle subject tokens", GREY),
    "last_subject": CurveStyle("last subject token", BLUE),
    "next": CurveStyle("next token", GREEN),
    "further": CurveStyle("further tokens", LIGHT_GREY, "--"),
    "last": CurveStyle("last token", ORANGE),
}
TOTAL_STYLE = CurveStyle("total effect", BLACK, ":")
TOKEN_CHARACTERS = 14
# A scale needs some length, also where there is no effect.
SMALLEST_EFFECT = 1e-6


def plot_causal_tracing(document: Json) -> Figure:
    """A column of two panels for each site: the average indirect effect over layers, and one fact, token by layer."""
    results, config = document["results"], document["config"]
    example = results["facts"][results["example"]]
    upper_height, lower_height = 3.3, 1.6 + 0.24 * len(example["tokens"])
    figure = create_figure(name_figure(document), width=14.0, height=upper_height + lower_height + 1.0)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(upper_height, lower_height))[:, 0]
    method = "patchscope" if "patchscope" in results["methods"] else "original"
    measures = results["methods"][method]
    sites = list(measures["indirect_effect"])
    axes = list(above.subplots(1, len(sites), sharey=True))
    for axis, site in zip(axes, sites, strict=True):
        draw_classes(axis, results["layers"], measures, site)
        axis.set_title(title_site(site, config["window"]), fontsize=TITLE_SIZE)
    draw_original(axes, results, method)
    axes[0].set_ylabel("Average indirect effect")
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    above.legend(
        entries.values(), entries.keys(), frameon=False, fontsize=SMALL_SIZE, loc="outside lower center", ncols=8
    )
    draw_example(below, example, results["layers"], sites)
    return figure


def name_figure(document: Json) -> str:
    """The title: the model, of how many facts, how they were corrupted, and how far the two forms are apart."""
    results, config = document["results"], document["config"]
    lines = [
        f"Causal tracing: {name_model(document)}, {results['n_samples']} facts that it knows; noise "
        f"{config['noise']:g}σ on the subject, {config['n_noise_samples']} samples; shaded: 95 % intervals over facts"
    ]
    difference = results["largest_probability_difference"]
    if difference is not None:
        n_original = results["methods"]["original"]["n_samples"]
        lines.append(
            f"as a Patchscope; in the original form, on {n_original} of the facts, no probability differs by more than "
            f"{difference:.1e}"
        )
    return "\n".join(lines)


def title_site(site: str, window: int) -> str:
    """What a panel restores."""
    return {
        "resid": "State after block ℓ",
        "mlp_out": f"Window of {window} MLPs around ℓ",
        "attn_out": f"Window of {window} attentions around ℓ",
        "resid_severed": "State after block ℓ, MLPs severed",
    }[site]


def draw_classes(axis: Axes, layers: list[int], measures: Json, site: str) -> None:
    """The curves of all token classes at one site, and the total effect as their limit."""
    for token_class, effect in measures["indirect_effect"][site].items():
        style = CLASS_STYLES[token_class]
        n_facts = effect["n_facts"]
        aside = f" ({n_facts} facts)" if n_facts < measures["n_samples"] else ""
        draw_curve(axis, layers, effect["mean"], effect["ci95"], replace(style, label=style.label + aside))
    draw_baseline(axis, measures["total_effect"]["mean"], TOTAL_STYLE)
    axis.set_xlabel("Layer ℓ")
    tidy_axis(axis)


def draw_original(axes: list[Axes], results: Json, drawn: str) -> None:
    """The original form as crosses on the curves, where it was measured on the same facts."""
    original = results["methods"].get("original")
    if drawn == "original" or original is None or original["n_samples"] < results["n_samples"]:
        return
    for axis, classes in zip(axes, original["indirect_effect"].values(), strict=True):
        for token_class, effect in classes.items():
            style = CurveStyle("", CLASS_STYLES[token_class].colour, "", "x", 6)
            draw_curve(axis, results["layers"], effect["mean"], None, style)
        axis.plot([], [], "x", color=BLACK, markersize=6, label="original form")


def draw_example(part: SubFigure, example: Json, layers: list[int], sites: list[str]) -> None:
    """The indirect effects on one fact at each token (down) and layer (right), all sites on one scale."""
    tables = np.array([example["indirect_effect"][site] for site in sites])
    axes = list(part.subplots(1, len(sites), sharey=True))
    shade = ScalarMappable(cmap=matplotlib.colormaps["Purples"])
    shade.set_clim(0, max(example["total_effect"], float(tables.max()), SMALLEST_EFFECT))
    shown = [*range(0, len(layers), max(1, len(layers) // 6))]
    for axis, table in zip(axes, tables, strict=True):
        axis.pcolormesh(shade.to_rgba(table))
        axis.set_xticks([slot + 0.5 for slot in shown], [name_layer(layers[slot]) for slot in shown])
        axis.tick_params(length=0, labelsize=SMALL_SIZE)
        axis.spines[:].set_visible(False)
        axis.set_xlabel("Layer ℓ")
    # A star for each token that the noise is added to, as in Meng et al.
    names = [
        token + ("*" if token_class.endswith("subject") else "")
        for token, token_class in zip(
            fit_lines(example["tokens"], TOKEN_CHARACTERS, SMALL_SIZE), example["token_classes"], strict=True
        )
    ]
    axes[0].set_yticks(np.arange(len(names)) + 0.5, names)
    axes[0].set_ylabel("Token restored (*: noise)")
    axes[0].invert_yaxis()
    part.colorbar(shade, ax=axes, label="Indirect effect", pad=0.01)
    prompt, answer = fit_lines([example["prompt"], example["answer"]], 100, TITLE_SIZE)
    part.suptitle(
        f"“{prompt}” → “{answer}”: p {example['clean']:.2f}, corrupted {example['corrupted']:.2f}\n"
        f"({describe_choice(example)}the one on which the noise has the largest effect)",
        fontsize=TITLE_SIZE,
    )


def describe_choice(example: Json) -> str:
    """Which facts the example was chosen among: those of a subject of several tokens, if there are any."""
    has_several = "first_subject" in example["token_classes"]
    return "of the facts with a subject of several tokens, " if has_several else ""
