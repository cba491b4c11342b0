"""Figures from result documents. Nothing here knows about models: a plot can be drawn again from its JSON file."""

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from patchscopes.results import Json, write_atomically

METHOD_STYLES = {
    "logit_lens": ("Logit Lens", "#7f7f7f", "-"),
    "token_identity": ("Token identity", "#1f6fb4", "-"),
    "simplescope": ("Simplescope", "#d95f02", "--"),
}


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure atomically and free it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())


def plot_next_token(document: Json) -> Figure:
    """Precision@1 and Surprisal over source layers, one line per method, with 95 % intervals (paper, Figure 2)."""
    results = document["results"]
    layers = results["layers"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    panels = (("precision_at_1", "Precision@1 (higher is better)"), ("surprisal", "Surprisal (nats, lower is better)"))
    for axis, (metric, label) in zip(axes, panels, strict=True):
        for method, metrics in results["methods"].items():
            name, colour, line = METHOD_STYLES[method]
            low, high = np.array(metrics[metric]["ci95"]).T
            axis.plot(layers, metrics[metric]["mean"], line, color=colour, label=name, marker="o", markersize=3)
            axis.fill_between(layers, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel="Source layer ℓ (target layer ℓ* = ℓ)", ylabel=label, ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(0, 1.02)
    axes[0].legend(frameon=False)
    environment = document["environment"]
    figure.suptitle(
        f"Next-token prediction from one hidden state: {environment['model']['id']}, "
        f"{results['n_samples']} positions in {results['n_texts']} texts ({environment['dataset']['name']}), "
        "shaded: 95 % intervals",
        fontsize=10,
    )
    return figure


def plot_layer_readout(document: Json) -> Figure:
    """Layer × rank table of the most likely tokens, coloured by probability, and what each layer generates."""
    results = document["results"]
    readout = results["methods"]["token_identity"]
    layers, n_layers = results["layers"], len(results["layers"])
    top_k = readout.get("top_k", [[] for _ in layers])
    k = len(top_k[0])
    texts = readout.get("generations")
    figure, axis = plt.subplots(
        figsize=(1.6 * k + (5 if texts else 0) + 1.5, 0.3 * n_layers + 1.4), layout="constrained"
    )
    # The last layer on top, as the residual stream flows upwards.
    rows = {layer: n_layers - 1 - row for row, layer in enumerate(layers)}
    if k:
        probabilities = np.array([[entry["probability"] for entry in row] for row in top_k])[::-1]
        image = axis.imshow(
            probabilities, cmap="Blues", vmin=0, vmax=1, aspect="auto", extent=(0, k, n_layers - 0.5, -0.5)
        )
        figure.colorbar(image, ax=axis, label="Probability", shrink=0.6, pad=0.01)
        for layer, row in zip(layers, top_k, strict=True):
            for rank, entry in enumerate(row):
                colour = "white" if entry["probability"] > 0.55 else "black"
                axis.text(
                    rank + 0.5, rows[layer], visible(entry["token"]), ha="center", va="center", fontsize=8, color=colour
                )
    if texts:
        for layer, text in zip(layers, texts, strict=True):
            axis.text(k + 0.15, rows[layer], shortened(visible(text), 46), ha="left", va="center", fontsize=8)
    axis.set_xlim(0, k + (5 if texts else 0))
    axis.set_ylim(n_layers - 0.5, -0.5)
    axis.set_yticks(list(rows.values()), [str(layer) if layer >= 0 else "emb." for layer in rows], fontsize=8)
    headings = [(rank + 0.5, f"rank {rank + 1}") for rank in range(k)] + ([(k + 2.5, "generation")] if texts else [])
    axis.set_xticks([place for place, _ in headings], [heading for _, heading in headings], fontsize=8)
    axis.tick_params(length=0, top=False)
    axis.spines[:].set_visible(False)
    axis.set_ylabel(f"Source layer ℓ (target layer ℓ*: {document['config']['target_layer']})")
    word = results["source_tokens"][results["source_position"]].strip()
    axis.set_title(
        f"What the representation of “{word}” in “{document['config']['source_prompt']}” says\n"
        f"({document['environment']['model']['id']}, token-identity Patchscope)",
        fontsize=10,
    )
    return figure


def plot_benchmark(document: Json) -> Figure:
    """Time per row of each way to compute the same thing, on a logarithmic axis."""
    results = document["results"]
    figure, axes = plt.subplots(
        1, len(results["tasks"]), figsize=(5.5 * len(results["tasks"]), 3.2), layout="constrained"
    )
    for axis, task in zip(np.atleast_1d(axes), results["tasks"], strict=True):
        ways = task["ways"]
        milliseconds = [way["ms_per_row"] for way in ways]
        fastest = next(way["ms_per_row"] for way in ways if way["name"] == "fast engine")
        colours = ["#1f6fb4" if way["name"] == "fast engine" else "#b0b0b0" for way in ways]
        bars = axis.barh([way["name"] for way in ways], milliseconds, color=colours)
        axis.bar_label(bars, [f"{ms:.3g} ms ({ms / fastest:.2g}×)" for ms in milliseconds], padding=4, fontsize=8)
        axis.set(xscale="log", xlabel="Milliseconds per row (logarithmic)", title=task["title"])
        axis.title.set_fontsize(9)
        axis.set_xlim(right=max(milliseconds) * 12)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    environment = document["environment"]
    figure.suptitle(
        "{model[id]}, {dtype}, {device}, {threads} threads".format_map(environment),
        fontsize=10,
    )
    return figure


def visible(text: str) -> str:
    """The text in one line: newlines and tabs as symbols, and dollar signs kept from matplotlib's formulas."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$")


def shortened(text: str, length: int) -> str:
    """At most `length` characters of the text."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
