"""One two-hop question at each (ℓ, ℓ*)."""

from matplotlib.figure import Figure

from patchscopes.plots.style import name_model
from patchscopes.plots.tables import plot_said_by_pair
from patchscopes.plots.text import shorten, show_whitespace
from patchscopes.results import Json


def plot_multi_hop_grid(document: Json) -> Figure:
    """What the model says to one two-hop question at each (ℓ, ℓ*), the answers marked, and what it says unpatched."""
    results = document["results"]
    readout = results["methods"]["patchscope"]
    question = document["config"]["question"]
    unpatched = [
        f"{name}: {shorten(show_whitespace(results['methods'][method]['text'].strip()), 110)}"
        for method, name in (("vanilla", "Unpatched"), ("cot", "Chain of thought"))
    ]
    answer = shorten(show_whitespace(question["hop2_answer"]), 80)
    title = [
        f"“{shorten(show_whitespace(question['combined_question']), 400)}” ({name_model(document)})",
        *unpatched,
        f"Patched (blue: the answer, {answer}):" if answer else "Patched (no answer given):",
    ]
    figure, axis = plot_said_by_pair(
        title, readout["texts"], readout["solved"], results["layers"], results["target_layers"]
    )
    axis.set_xlabel("Target layer ℓ* (last token of the second hop's words)")
    return figure
