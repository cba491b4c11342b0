"""Figures from result documents. Nothing here knows about models: a plot can be drawn again from its JSON file."""

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchscopes.results import Json, write_atomically

METHOD_STYLES = {
    "logit_lens": ("Logit Lens", "#7f7f7f", "-"),
    "tuned_lens": ("Tuned Lens (least squares)", "#1b9e5a", "-"),
    "tuned_lens_kl": ("Tuned Lens (KL)", "#1b9e5a", "--"),
    "future_lens": ("Future Lens", "#8e44ad", "-"),
    "token_identity": ("Token identity", "#1f6fb4", "-"),
    "simplescope": ("Simplescope", "#d95f02", "--"),
    "linear": ("Future Lens: linear", "#1b9e5a", "-"),
    "fixed_prompt": ("Future Lens: fixed prompt", "#b388c9", "-"),
    "learned_prompt": ("Future Lens: learned prompt", "#8e44ad", "-"),
}
METRIC_LABELS = {
    "precision_at_1": "Precision@1",
    "precision_at_5": "Precision@5",
    "precision_at_10": "Precision@10",
    "surprisal": "Surprisal (nats)",
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
            draw_curve(axis, layers, method, metrics[metric]["mean"], metrics[metric]["ci95"])
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


def draw_curve(axis: Axes, layers: list[int], method: str, mean: list[float], ci95: list[list[float]]) -> None:
    """One method over layers, with its intervals."""
    name, colour, line = METHOD_STYLES[method]
    low, high = np.array(ci95).T
    axis.plot(layers, mean, line, color=colour, label=name, marker="o", markersize=3)
    axis.fill_between(layers, low, high, color=colour, alpha=0.2, linewidth=0)


def plot_future_lens(document: Json) -> Figure:
    """Each metric (rows) for each token ahead (columns) over source layers, one line per method (Pal et al. 2023)."""
    results = document["results"]
    metrics = [metric for metric in METRIC_LABELS if metric in next(iter(results["methods"].values()))]
    figure, axes = plt.subplots(
        len(metrics), len(results["ahead"]), figsize=(11, 2.4 * len(metrics) + 1), sharey="row", layout="constrained"
    )
    for of_metric, metric in zip(axes, metrics, strict=True):
        for slot, (axis, ahead) in enumerate(zip(of_metric, results["ahead"], strict=True)):
            for method, measured in results["methods"].items():
                curve = measured[metric]
                draw_curve(axis, results["layers"], method, curve["mean"][slot], curve["ci95"][slot])
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
            if metric == metrics[0]:
                axis.set_title(f"token t+{ahead}", fontsize=10)
            if metric == metrics[-1]:
                axis.set_xlabel("Source layer ℓ")
        # Only now: limits of one panel are those of its row, and end its autoscaling.
        of_metric[0].set_ylim(0, None if metric == "surprisal" else 1.02)
        of_metric[0].set_ylabel(METRIC_LABELS[metric])
    axes[0][-1].legend(frameon=False, fontsize=8)
    environment = document["environment"]
    figure.suptitle(
        f"The model's next tokens from the hidden state at t: {environment['model']['id']}, {results['n_samples']} "
        f"positions in {results['n_texts']} texts ({environment['dataset']['name']}), shaded: 95 % intervals",
        fontsize=10,
    )
    return figure


def plot_lenses(document: Json) -> Figure:
    """The originals as lines, their Patchscopes as crosses on them, and the largest logit difference of each pair."""
    results = document["results"]
    layers = results["layers"]
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), width_ratios=(5, 5, 2.6), layout="constrained")
    for axis, metric in zip(axes, ("precision_at_1", "surprisal"), strict=False):
        for method, metrics in results["methods"].items():
            curve = metrics[metric]
            if method.endswith("_patchscope"):
                name, colour, _ = METHOD_STYLES[method.removesuffix("_patchscope")]
                axis.plot(layers, curve["mean"], "x", color=colour, label=f"{name} via Patchscope", markersize=7)
            else:
                draw_curve(axis, layers, method, curve["mean"], curve["ci95"])
        axis.set(xlabel="Source layer ℓ", ylabel=METRIC_LABELS[metric], ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(0, 1.02)
    axes[0].legend(frameon=False, fontsize=8)
    bars: list[tuple[str, float, str]] = []
    for original, twin in results["twins"].items():
        name, colour, _ = METHOD_STYLES[original]
        name = name.removesuffix(" (least squares)")
        bars.append((f"{name}\n(fast engine)", twin["largest_difference"], colour))
        if twin["largest_difference_hooks"] is not None:
            bars.append((f"{name}\n(plain hooks)", twin["largest_difference_hooks"], colour))
    # A difference of exactly zero has no place on a logarithmic axis: it gets a bar of no length and its label.
    shown = axes[2].barh([label for label, _, _ in bars], [max(1e-8, value) for _, value, _ in bars])
    for bar, (_, _, colour) in zip(shown, bars, strict=True):
        bar.set_color(colour)
    axes[2].bar_label(shown, [f"{value:.0e}" if value else "0" for _, value, _ in bars], padding=3, fontsize=8)
    axes[2].axvline(1e-4, color="black", linewidth=0.8, linestyle=":")
    right = max(1e-2, *(10 * value for _, value, _ in bars))
    axes[2].set(xscale="log", xlim=(1e-8, right), title="Original and Patchscope:\nlargest difference of any logit")
    axes[2].title.set_fontsize(9)
    axes[2].tick_params(axis="y", labelsize=8, length=0)
    axes[2].invert_yaxis()
    axes[2].spines[["top", "right"]].set_visible(False)
    environment = document["environment"]
    figure.suptitle(
        f"Seven lenses on the same hidden states: {environment['model']['id']} in {environment['dtype']}, "
        f"{results['n_samples']} positions in {results['n_texts']} texts ({environment['dataset']['name']})\n"
        f"Future Lens with the {document['config']['future_lens'].replace('_', ' ')}; shaded: 95 % intervals",
        fontsize=10,
    )
    return figure


def plot_entity(document: Json) -> Figure:
    """ROUGE-L and ROUGE-1 of entity descriptions over layers, by popularity, between their two baselines."""
    results = document["results"]
    groups = dict(results["popularity"].items()) if len(results["popularity"]) > 1 else {}
    groups = {"all entities": results} | groups
    colours = ("#404040", "#1f6fb4", "#d95f02", "#1b9e5a", "#8e44ad")
    panels = (("rougeL_f1_of_description", "ROUGE-L (F1)"), ("rouge1_f1_of_description", "ROUGE-1 (F1)"))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for axis, (metric, label) in zip(axes, panels, strict=True):
        for number, (name, group) in enumerate(groups.items()):
            colour = colours[number % len(colours)]
            methods = group["methods"]
            low, high = np.array(methods["patchscope"][metric]["ci95"]).T
            legend = f"{name.replace('_', ' ')} ({group['n_samples']})"
            axis.plot(
                results["layers"],
                methods["patchscope"][metric]["mean"],
                color=colour,
                label=legend,
                marker="o",
                markersize=3,
            )
            axis.fill_between(results["layers"], low, high, color=colour, alpha=0.15, linewidth=0)
            axis.axhline(methods["name_in_clear"][metric]["mean"][0], color=colour, linestyle="--", linewidth=1)
            axis.axhline(methods["unpatched"][metric]["mean"][0], color=colour, linestyle=":", linewidth=1)
        axis.set(xlabel=f"Source layer ℓ (ℓ*: {document['config']['target_layer']})", ylabel=label, ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].plot([], [], "k--", linewidth=1, label="name in clear")
    axes[0].plot([], [], "k:", linewidth=1, label="placeholder, unpatched")
    axes[1].legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="upper right")
    figure.suptitle(
        f"What the model says a name stands for, against references: {document['environment']['model']['id']}, "
        "shaded: 95 % intervals over entities",
        fontsize=10,
    )
    return figure


def plot_cross_model(document: Json) -> Figure:
    """Precision@1 and Surprisal over (ℓ, ℓ*) for each method, and ROUGE-L of descriptions (paper, section 4.4)."""
    results = document["results"]
    environment = document["environment"]
    source, target = environment["model"]["id"], environment["target_model"]["id"]
    methods = [method for method in results["next_token"]["methods"] if method != "target_model_alone"]
    names = {"token_identity": "Token-identity prompt", "source_prompt": "T = S (no extra prompt)"}
    alone = results["next_token"]["methods"]["target_model_alone"]
    n_columns = len(methods) + ("entity" in results)
    figure, axes = plt.subplots(2, n_columns, figsize=(4.6 * n_columns + 0.6, 8), squeeze=False, layout="constrained")
    for row, (metric, colours) in zip(axes, (("precision_at_1", "viridis"), ("surprisal", "viridis_r")), strict=True):
        tables = [np.array(results["next_token"]["methods"][method][metric]["mean"]) for method in methods]
        low, high = (0.0, 1.0) if metric == "precision_at_1" else (0.0, max(float(table.max()) for table in tables))
        for axis, method, table in zip(row, methods, tables, strict=False):
            draw_layer_table(axis, table, results["layers"], results["target_layers"], colours, low, high)
            aside = f"{target} alone: {alone[metric]['mean']:.2f}" if method == "source_prompt" else ""
            axis.set_title("\n".join(filter(None, (f"{names[method]}: {METRIC_LABELS[metric]}", aside))), fontsize=10)
    if "entity" in results:
        for axis, (metric, label) in zip(
            axes[:, -1],
            (("rougeL_f1_of_description", "ROUGE-L (F1)"), ("rouge1_f1_of_description", "ROUGE-1 (F1)")),
            strict=True,
        ):
            draw_descriptions(axis, document, metric, label)
    tokens = results["next_token"]
    figure.suptitle(
        f"{target} reads the hidden states of {source} (f: {document['config']['mapping']}). Next token: "
        f"{tokens['n_samples']} positions in {tokens['n_texts']} texts ({environment['dataset']['name']}), against "
        f"{source}'s own prediction",
        fontsize=10,
    )
    return figure


def draw_layer_table(
    axis: Axes,
    table: Float[np.ndarray, "layer target_layer"],
    layers: list[int],
    target_layers: list[int],
    colours: str,
    low: float,
    high: float,
) -> None:
    """A heat map over source layers (rows, the first at the bottom) and target layers, with its values."""
    axis.imshow(table, cmap=colours, vmin=low, vmax=high, aspect="auto", origin="lower")
    shade = plt.get_cmap(colours)
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            red, green, blue, _ = shade((value - low) / max(high - low, 1e-9))
            ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
            label = f"{value:.2f}" if high <= 1 else f"{value:.1f}"
            axis.text(column, row, label, ha="center", va="center", fontsize=7, color=ink)
    axis.set_xticks(range(len(target_layers)), [str(layer) for layer in target_layers])
    axis.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    axis.set(xlabel="Target layer ℓ*", ylabel="Source layer ℓ")


def draw_descriptions(axis: Axes, document: Json, metric: str, label: str) -> None:
    """The two models' descriptions of the same states over source layers, and the baselines of both."""
    results = document["results"]
    methods = results["entity"]["methods"]
    environment = document["environment"]
    source, target = environment["model"]["id"], environment["target_model"]["id"]
    lines = (("same_model", f"{source} (ℓ* = ℓ)", "#1f6fb4"), ("cross_model", f"{target} (ℓ* as deep)", "#d95f02"))
    for method, name, colour in lines:
        scores = methods[method][metric]
        low, high = np.array(scores["ci95"]).T
        axis.plot(results["layers"], scores["mean"], color=colour, label=name, marker="o", markersize=3)
        axis.fill_between(results["layers"], low, high, color=colour, alpha=0.15, linewidth=0)
    for method, colour, line, name in (
        ("name_in_clear_source_model", "#1f6fb4", "--", "name in clear"),
        ("name_in_clear_target_model", "#d95f02", "--", "name in clear"),
        ("unpatched_target_model", "#d95f02", ":", "placeholder, unpatched"),
    ):
        axis.axhline(methods[method][metric]["mean"][0], color=colour, linestyle=line, linewidth=1, label=name)
    # Room for the legend above the lines.
    axis.set(xlabel="Source layer ℓ", ylabel=label, ylim=(0, 1.5 * axis.get_ylim()[1]))
    axis.set_title(f"Descriptions of {results['entity']['n_samples']} entities", fontsize=10)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, title=f"States of {source}, described by", title_fontsize=8)


def plot_entity_layers(document: Json) -> Figure:
    """A table of what each layer says about a name, coloured by which ending of the name that is most like."""
    results = document["results"]
    of = results["methods"]["patchscope"]
    endings = [one["ending"] for one in results["endings"]]
    shades = dict(zip(endings, plt.get_cmap("Blues")(np.linspace(0.12, 0.5, len(endings))), strict=True))
    n_rows = len(results["layers"])
    figure, axis = plt.subplots(figsize=(10, 0.28 * n_rows + 0.2 * len(endings) + 1.4), layout="constrained")
    # The last layer on top, as the residual stream flows upwards.
    for slot, layer in enumerate(results["layers"]):
        row = n_rows - 1 - slot
        resolved = of["resolved"][slot]
        axis.axhspan(row - 0.5, row + 0.5, color=shades.get(resolved, "white"), linewidth=0)
        axis.text(0.01, row, shorten(show_whitespace(of["description"][slot]), 90), ha="left", va="center", fontsize=8)
        axis.text(0.74, row, shorten(show_whitespace(resolved), 34), ha="left", va="center", fontsize=8)
        axis.text(-0.01, row, str(layer), ha="right", va="center", fontsize=8)
    axis.text(-0.01, -1, "ℓ", ha="right", va="center", fontsize=9)
    axis.text(0.01, -1, "what the model says", ha="left", va="center", fontsize=9)
    axis.text(0.74, -1, "words of the name that it is about", ha="left", va="center", fontsize=9)
    in_clear = "\n".join(
        f"{one['ending']}: {shorten(show_whitespace(one['description']), 70)}" for one in results["endings"]
    )
    axis.text(0.01, n_rows - 0.2, f"In clear:\n{in_clear}", ha="left", va="top", fontsize=8, color="#505050")
    axis.set(xlim=(-0.05, 1), ylim=(n_rows + 0.7 * (len(endings) + 1), -1.6))
    axis.axis("off")
    where = document["config"]["target_layer"]
    axis.set_title(
        f"“{show_whitespace(results['name'])}” at each source layer ℓ (ℓ*: {where}), {document['environment']['model']['id']}",
        fontsize=10,
    )
    return figure


def plot_multi_hop(document: Json) -> Figure:
    """Solved questions by method and measure, and by pair (ℓ, ℓ*) of the Patchscope (paper, section 5)."""
    results = document["results"]
    methods = results["methods"]
    figure, axes = plt.subplots(1, 2, figsize=(13, 5), width_ratios=(1.15, 1), layout="constrained")
    names = {
        "vanilla": "vanilla",
        "cot": f"chain of thought\n({document['config']['cot_new_tokens']} tokens)",
        "patchscope": "Patchscope",
        "control": "control: state of an\nunrelated query",
        "placeholder": "hop 1 into “… x is”",
        "back_patch": "back-patching\n(ℓ > ℓ*)",
    }
    styles = (
        ("accuracy", "unpatched", "#7f7f7f"),
        ("held_out", "one (ℓ, ℓ*), chosen on the other half", "#1f6fb4"),
        ("any", "any (ℓ, ℓ*)", "#d95f02"),
        ("any_upwards", "any (ℓ, ℓ*) with ℓ < ℓ*", "#f5b58a"),
    )
    row = 0.0
    ticks: list[tuple[float, str]] = []
    for method, measures in methods.items():
        first = row
        for measure, _, colour in styles:
            of = measures.get(measure)
            if of is None or not isinstance(of["mean"], float):
                continue
            low, high = of["ci95"]
            spread = [[max(0.0, of["mean"] - low)], [max(0.0, high - of["mean"])]]
            axes[0].barh(row, of["mean"], height=0.9, color=colour, xerr=spread, ecolor="#303030", capsize=2)
            axes[0].text(high + 0.01, row, f"{of['mean']:.2f}", va="center", fontsize=8)
            row += 1
        ticks.append(((first + row - 1) / 2, names[method]))
        row += 0.7
    axes[0].set_yticks([place for place, _ in ticks], [label for _, label in ticks], fontsize=9)
    axes[0].invert_yaxis()
    axes[0].set(xlim=(0, 1.08), xlabel="Share of questions solved")
    axes[0].spines[["top", "right"]].set_visible(False)
    axes[0].grid(alpha=0.3, axis="x")
    for _, label, colour in styles:
        axes[0].barh([0], [0], color=colour, label=label)
    axes[0].legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    if "patchscope" in methods:
        table = np.array(methods["patchscope"]["accuracy"]["mean"])
        high = max(0.01, float(table.max()))
        draw_layer_table(axes[1], table, results["layers"], results["target_layers"], "viridis", 0.0, high)
        vanilla = methods.get("vanilla", {}).get("accuracy", {}).get("mean")
        aside = "" if vanilla is None else f" (vanilla: {vanilla:.2f})"
        axes[1].set_title(f"Patchscope: share solved by each (ℓ, ℓ*){aside}", fontsize=10)
    else:
        axes[1].axis("off")
    figure.suptitle(
        f"Two-hop questions whose hops {document['environment']['model']['id']} answers one by one: "
        f"{results['n_samples']} of {results['n_passed']} (of {results['n_questions']} asked); lines: 95 % intervals",
        fontsize=10,
    )
    return figure


def plot_multi_hop_grid(document: Json) -> Figure:
    """What the model says to one two-hop question at each (ℓ, ℓ*), the answers marked, and what it says unpatched."""
    results = document["results"]
    layers, target_layers = results["layers"], results["target_layers"]
    of = results["methods"]["patchscope"]
    figure, axis = plt.subplots(
        figsize=(max(7.0, 1.5 * len(target_layers) + 1), 0.28 * len(layers) + 2.2), layout="constrained"
    )
    axis.imshow(np.array(of["solved"]), cmap="Blues", vmin=0, vmax=2, aspect="auto", origin="lower")
    for row, texts in enumerate(of["texts"]):
        for column, text in enumerate(texts):
            axis.text(column, row, shorten(show_whitespace(text.strip()), 20), ha="center", va="center", fontsize=6)
    axis.set_xticks(range(len(target_layers)), [str(layer) for layer in target_layers])
    axis.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    axis.set(xlabel="Target layer ℓ* (last token of the second hop's words)", ylabel="Source layer ℓ")
    question = document["config"]["question"]
    unpatched = "\n".join(
        f"{name}: {shorten(show_whitespace(results['methods'][method]['text'].strip()), 110)}"
        for method, name in (("vanilla", "Unpatched"), ("cot", "Chain of thought"))
    )
    axis.set_title(
        f"“{show_whitespace(question['combined_question'])}” ({document['environment']['model']['id']})\n{unpatched}\n"
        f"Patched (blue: {show_whitespace(question['hop2_answer']) or 'no answer given'}):",
        fontsize=9,
        loc="left",
    )
    return figure


def plot_layer_readout(document: Json) -> Figure:
    """Layer × rank table of the most likely tokens, coloured by probability, and what each layer generates."""
    results = document["results"]
    readout = results["methods"]["token_identity"]
    layers = results["layers"]
    # The last layer on top, as the residual stream flows upwards.
    rows = [len(layers) - 1 - slot for slot in range(len(layers))]
    ranks = len(readout["top_k"][0]) if "top_k" in readout else 0
    width_of_texts = 2.4 if "generations" in readout else 0.0
    size = (1.2 * (ranks + width_of_texts) + 2, 0.28 * len(layers) + 1.4)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    headings: dict[float, str] = {}

    if ranks:
        probabilities = np.array([[entry["probability"] for entry in row] for row in readout["top_k"]])[::-1]
        extent = (0, ranks, len(layers) - 0.5, -0.5)
        image = axis.imshow(probabilities, cmap="Blues", vmin=0, vmax=1, aspect="auto", extent=extent)
        figure.colorbar(image, ax=axis, label="Probability", shrink=0.5, pad=0.0)
        headings |= {rank + 0.5: f"rank {rank + 1}" for rank in range(ranks)}
        for row, entries in zip(rows, readout["top_k"], strict=True):
            for rank, entry in enumerate(entries):
                colour = "white" if entry["probability"] > 0.55 else "black"
                label = shorten(show_whitespace(entry["token"]), 14)
                axis.text(rank + 0.5, row, label, ha="center", va="center", fontsize=8, color=colour)

    if width_of_texts:
        headings[ranks + 0.5] = "generation"
        for row, text in zip(rows, readout["generations"], strict=True):
            label = shorten(show_whitespace(text), 36)
            axis.text(ranks + 0.1, row, label, ha="left", va="center", fontsize=8)

    axis.set_xlim(0, ranks + width_of_texts)
    axis.set_ylim(len(layers) - 0.5, -0.5)
    axis.set_yticks(rows, [str(layer) for layer in layers], fontsize=8)
    axis.set_xticks(list(headings), list(headings.values()), fontsize=8)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    where = document["config"]["target_layer"]
    axis.set_ylabel("Source layer ℓ (target layer ℓ* = ℓ)" if where == "same" else f"Source layer ℓ (ℓ*: {where})")
    word = results["source_tokens"][results["source_position"]].strip()
    axis.set_title(
        f"What “{show_whitespace(word)}” in “{show_whitespace(document['config']['source_prompt'])}” says at each layer\n"
        f"(token-identity Patchscope, {document['environment']['model']['id']})",
        fontsize=10,
    )
    return figure


def plot_benchmark(document: Json) -> Figure:
    """Time per row of each way to compute the same thing, on a logarithmic axis."""
    results = document["results"]
    # A bar is as high in every task.
    heights = [len(task["ways"]) + 1.5 for task in results["tasks"]]
    figure, axes = plt.subplots(
        len(heights),
        1,
        figsize=(8, 0.5 + 0.36 * sum(heights)),
        height_ratios=heights,
        sharex=True,
        layout="constrained",
    )
    for axis, task in zip(np.atleast_1d(axes), results["tasks"], strict=True):
        ways = task["ways"]
        milliseconds = [way["ms_per_row"] for way in ways]
        fastest = next(way["ms_per_row"] for way in ways if way["name"] == "fast engine")
        colours = ["#1f6fb4" if way["name"] == "fast engine" else "#b0b0b0" for way in ways]
        bars = axis.barh([way["name"] for way in ways], milliseconds, color=colours)
        labels = [f"{format_significant(ms)} ms ({format_significant(ms / fastest)}×)" for ms in milliseconds]
        axis.bar_label(bars, labels, padding=4, fontsize=8)
        axis.set_title(task["title"], fontsize=9, loc="left")
        axis.set_ylim(len(ways) - 0.4, -0.6)
        axis.spines[["top", "right"]].set_visible(False)
    # Bars on a logarithmic axis have no natural foot: a decade below the shortest, so that it is visible.
    everything = [way["ms_per_row"] for task in results["tasks"] for way in task["ways"]]
    axis.set(xscale="log", xlabel="Milliseconds per row (logarithmic)")
    axis.set_xlim(min(everything) / 10, max(everything) * 40)
    environment = document["environment"]
    figure.suptitle(
        "{model[id]}, {dtype}, {device}, {threads} threads".format_map(environment),
        fontsize=10,
    )
    return figure


def show_whitespace(text: str) -> str:
    """The text in one line: spaces at its ends, newlines and tabs as symbols, dollars kept from making formulas."""
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    marked = "␣" * before + inner + "␣" * (len(text) - before - len(inner))
    return marked.replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$")


def format_significant(number: float) -> str:
    """The number with about three significant digits, never in scientific notation."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def shorten(text: str, length: int) -> str:
    """At most `length` characters of the text."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
