"""What the methods that read next tokens show, in words: committed numbers, and those of the reader's own example."""

from collections.abc import Callable

from patchscopes.plots.text import format_significant
from patchscopes.results import Json
from patchscopes.tutorial import committed
from patchscopes.tutorial.signs import escape

PAPER_ON_FIGURE_2 = (
    "Section 4.1, Figure 2 (models of 6 to 13 billion parameters): from about the tenth layer on the token identity "
    "Patchscope, which learns nothing, reads the next token best; before that the learned affine map is ahead. The "
    "Logit Lens comes last."
)
NO_FIGURES = "The committed numbers come with the repository, not with the installed package."
# Of the embedded model: an early, a middle and a late layer that numbers are quoted of.
QUOTED_LAYERS = (0, 15, 24)


def quote(name: str, say: Callable[[Json], str]) -> str:
    """What a committed result file shows, in words."""
    document = committed.load(name)
    return NO_FIGURES if document is None else f"{say(document['results'])} (figures/{name}.json)"


def describe_precision(results: Json, method: str) -> str:
    """How often a method names the next token, at three layers."""
    precision = results["methods"][method]["precision_at_1"]["mean"]
    shares = ", ".join(f"{precision[layer]:.0%} at layer {layer}" for layer in QUOTED_LAYERS)
    return f"At {results['n_samples']:,} random positions it names the model's next token in {shares}."


def describe_overtaking(results: Json, method: str) -> str:
    """The same, and from which layer on the method is ahead of the Tuned Lens up to the last one."""
    ours, theirs = (results["methods"][name]["precision_at_1"]["mean"] for name in (method, "tuned_lens"))
    behind = [layer for layer in results["layers"] if ours[layer] < theirs[layer]]
    since = max(behind, default=-1) + 1
    return (
        f"{describe_precision(results, method)} From layer {since} of {len(results['layers'])} on it is ahead of the "
        "Tuned Lens."
    )


def describe_figure_2() -> str:
    """What the embedded model shows, where it differs from the paper's too."""
    return quote(
        "fig2",
        lambda of: (
            f"Token identity: {describe_overtaking(of, 'token_identity')} That is later than in the paper's "
            f"models, relative to depth. Simplescope: {describe_overtaking(of, 'simplescope')}"
        ),
    )


def describe_later_tokens(results: Json, *names: str) -> str:
    """How often methods name the second and third token at their best layer."""
    sentences = []
    for method in names:
        precision = results["methods"][method]["precision_at_1"]["mean"]
        parts = []
        for ahead in (2, 3):
            best = max(precision[ahead - 1])
            layer = results["layers"][precision[ahead - 1].index(best)]
            parts.append(f"i+{ahead} in {best:.0%} of cases at layer {layer}")
        sentences.append(f"{method.replace('_', ' ').capitalize()}, at its best layers: {' and '.join(parts)}.")
    return " ".join(sentences)


def describe_difference(method: str, results: Json | None) -> str:
    """How far the logits of original and Patchscope are apart: in the reader's example, and in the committed run."""
    parts = []
    if results is not None and method in results["twins"]:
        twin = results["twins"][method]
        parts.append(
            f"In your example no logit differs by more than {write_small(twin['largest_difference'])} between original "
            f"and Patchscope (the largest is {format_significant(twin['largest_logit'])}), and both name the same "
            f"token in {twin['same_token']:.0%} of the layers."
        )
    document = committed.load("lenses")
    name = "future_lens" if method == "fixed_prompt" else method
    if document is not None and name in document["results"]["twins"]:
        twin = document["results"]["twins"][name]
        form = " (learned prompt)" if method == "fixed_prompt" else ""
        parts.append(
            f"At {document['results']['n_samples']} random positions and all layers{form}: at most "
            f"{write_small(twin['largest_difference'])}, the same token in {twin['same_token']:.0%} "
            "(figures/lenses.json)."
        )
    return " ".join(parts) or "Choose the method above, and both forms are computed and compared for your example."


def write_small(difference: float) -> str:
    """A difference of logits."""
    return f"{difference:.1e}" if difference else "0"


def describe_control(method: str, results: Json | None) -> str:
    """Why there is no original, and what the target prompt says by itself."""
    only = "It is a Patchscope from the start: there is no earlier form to compare with."
    if results is None or method not in results["controls"]:
        return only
    said = results["controls"][method]["top_k"][0]
    return (
        f"{only} Its control, the target prompt with nothing patched, says “{escape(said['token'])}” "
        f"({said['probability']:.0%}): what it says otherwise comes from the state."
    )
