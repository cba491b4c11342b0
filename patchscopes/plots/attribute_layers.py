"""What each (ℓ, ℓ*) says about an attribute of one subject."""

from matplotlib.figure import Figure

from patchscopes.data.relations import PLACE
from patchscopes.plots.style import name_model
from patchscopes.plots.tables import plot_said_by_pair
from patchscopes.plots.text import shorten, show_whitespace
from patchscopes.results import Json


def plot_attribute_layers(document: Json) -> Figure:
    """What the model says of a subject's attribute at each (ℓ, ℓ*), the answers marked, and without any patch."""
    results = document["results"]
    methods = results["methods"]
    readout = methods["patchscope"]
    without_patch = [
        f"{name}: {shorten(show_whitespace(methods[method]['text'].strip()), 110)}"
        for method, name in (("in_clear", "Subject in clear"), ("unpatched", "x unpatched"))
        if method in methods
    ]
    subject, answer = (shorten(show_whitespace(results[name]), 80) for name in ("subject", "object"))
    title = [
        f"“{shorten(show_whitespace(results['prompt'].replace(PLACE, 'x')), 200)}”, x: last token of {subject} in "
        f"“{shorten(show_whitespace(results['source_prompt']), 200)}” ({name_model(document)})",
        *without_patch,
        f"x patched (blue: the answer, {answer}):" if answer else "x patched (no answer given):",
    ]
    figure, axis = plot_said_by_pair(
        title, readout["texts"], readout["solved"], results["layers"], results["target_layers"]
    )
    axis.set_xlabel("Target layer ℓ* (the x of the target prompt)")
    return figure
