"""What the methods that read next tokens show, in words: committed numbers, and those of the reader's own example."""

from patchscopes.plots.text import format_significant
from patchscopes.results import Json
from patchscopes.tutorial import committed
from patchscopes.tutorial.signs import escape

PAPER_ON_FIGURE_2 = (
    "Section 4.1, Figure 2 (LLaMA2 13B, Vicuna 13B, GPT-J 6B, Pythia 12B): from layer 10 on the token identity "
    "Patchscope, which learns nothing, is ahead of both lenses, by up to 98% in layers 18 to 22. In the first ten "
    "layers all are poor: token identity is on a par with the Logit Lens, and the Tuned Lens slightly better."
)
# Of the embedded model: an early, a middle and a late layer that numbers are quoted of.
QUOTED_LAYERS = (0, 15, 24)


def describe_precision(results: Json, method: str) -> str:
    """How often a method names the next token, at three layers."""
    precision = results["methods"][method]["precision_at_1"]["mean"]
    shares = ", ".join(f"{precision[layer]:.0%} at layer {layer}" for layer in QUOTED_LAYERS)
    return f"Of {results['n_samples']:,} random positions it names the model's next token in {shares}."


def find_lead(results: Json, method: str) -> int | None:
    """The layer from which on a method is ahead of the Tuned Lens, or level; None if it is behind at the last one."""
    ours, theirs = (results["methods"][name]["precision_at_1"]["mean"] for name in (method, "tuned_lens"))
    behind = [slot for slot, layer in enumerate(results["layers"]) if ours[slot] < theirs[slot]]
    first = max(behind, default=-1) + 1
    return results["layers"][first] if first < len(ours) else None


def list_behind(results: Json, method: str) -> str:
    """The layers at which a method is behind the Tuned Lens."""
    ours, theirs = (results["methods"][name]["precision_at_1"]["mean"] for name in (method, "tuned_lens"))
    compared = zip(results["layers"], ours, theirs, strict=True)
    return ", ".join(str(layer) for layer, our, their in compared if our < their)


def describe_overtaking(results: Json, method: str) -> str:
    """How often a method names the next token, and since when it is ahead of the Tuned Lens."""
    lead = find_lead(results, method)
    if lead is None:
        return f"{describe_precision(results, method)} At the last layer it is behind the Tuned Lens."
    return (
        f"{describe_precision(results, method)} From layer {lead} of "
        f"{len(results['layers'])} on it is ahead of the Tuned Lens, and level with it at the last."
    )


def describe_figure_2() -> str:
    """What the embedded model shows, and where it differs from the paper's."""
    return committed.quote("fig2", _describe_figure_2)


def _describe_figure_2(results: Json) -> str:
    methods = results["methods"]
    first = {name: methods[name]["precision_at_1"]["mean"][0] for name in ("tuned_lens", "token_identity")}
    ours, theirs = (methods[name]["surprisal"]["mean"] for name in ("token_identity", "logit_lens"))
    worse = next(slot for slot, (our, their) in enumerate(zip(ours, theirs, strict=True)) if our <= their)
    return (
        f"As in the paper token identity is ahead in later layers, but only from layer "
        f"{find_lead(results, 'token_identity')} of {len(results['layers'])} on. In early layers the Tuned Lens is not "
        f"slightly better but by far ({first['tuned_lens']:.0%} against {first['token_identity']:.0%} at layer "
        f"{results['layers'][0]}), and before layer {results['layers'][worse]} token identity has a worse Surprisal "
        "than the Logit Lens: there it repeats the token that it is given. Simplescope is behind the Tuned Lens only "
        f"at layers {list_behind(results, 'simplescope')}."
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
        parts.append(f"In your example, {_describe_twin(results['twins'][method])}")
    document = committed.load("lenses")
    name = "future_lens" if method == "fixed_prompt" else method
    if document is not None and name in document["results"]["twins"]:
        form = ", with the learned prompt" if method == "fixed_prompt" else ""
        parts.append(
            f"At {document['results']['n_samples']} random positions and all layers{form}, "
            f"{_describe_twin(document['results']['twins'][name])} (figures/lenses.json)"
        )
    return " ".join(parts) or "Choose the method above, and both forms are computed and compared for your example."


def _describe_twin(twin: Json) -> str:
    difference = f"{twin['largest_difference']:.1e}" if twin["largest_difference"] else "0"
    return (
        f"the largest difference of any logit between original and Patchscope is {difference} (the largest logit is "
        f"{format_significant(twin['largest_logit'])}), and both name the same token in {twin['same_token']:.0%}."
    )


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
