"""Causal tracing and attention knockout: their choices, what their papers found, and what is found here."""

import numpy as np

from patchscopes.results import Json
from patchscopes.tutorial.committed import quote
from patchscopes.tutorial.methods import Fields, Method
from patchscopes.tutorial.pages.entities_subject import PATCHSCOPES, Subject, find_largest, tell_live


def build_tracing(subject: Subject, document: Json | None) -> Method:
    """Causal tracing (Meng et al. 2022), and as the paper writes it."""
    choice = subject.choice

    def describe(results: Json) -> str:
        measured = results["methods"]["patchscope"]
        effects = measured["indirect_effect"]["resid"]
        subject_best, subject_at = find_largest(effects["last_subject"]["mean"], results["layers"])
        last_best, last_at = find_largest(effects["last"]["mean"], results["layers"])
        first = effects["last_subject"]["mean"][0]
        return (
            f"On {results['n_samples']} facts the noise takes the answer from {measured['clean']['mean']:.2f} to "
            f"{measured['corrupted']['mean']:.2f}. The subject's last token brings back {subject_best:.2f} at best "
            f"(ℓ = {subject_at}), the last token {last_best:.2f} (ℓ = {last_at}), more "
            "than was taken away, as what later blocks read of the subject speaks against the answer there. The same "
            f"two places as in GPT-2 XL, but the first from the first layers on: {first:.2f} at ℓ = "
            f"{results['layers'][0]}."
        )

    def compare(results: Json) -> str:
        n_facts = results["methods"]["original"]["n_samples"]
        return (
            f"One computation in two notations: on {n_facts} facts no probability differs by more than "
            f"{results['largest_probability_difference']:.0e}, which is rounding."
        )

    noisy = "S, with noise ε on the subject"
    return Method(
        key="causal_tracing",
        name="Causal tracing",
        idea="Noise on the subject's embeddings takes the answer away. The clean state of one token at one layer is "
        "put back: as much of the answer as returns was carried by that state.",
        original=Fields(
            source_prompt=choice.source_prompt,
            source_position="last of the subject; last of S; a control",
            model=choice.model,
            source_layers="each",
            target_prompt=f"corrupted run: {noisy}",
            target_position="the same token",
        ),
        patchscope=Fields(
            source_prompt=choice.source_prompt,
            source_position="last of the subject; last of S; a control",
            model=choice.model,
            source_layers="each",
            target_prompt=noisy,
            target_position="i",
            mapping="identity",
            target_model="M",
            target_layers="ℓ",
        ),
        differs=quote("causal_tracing", compare) + tell_live(document, _compare_tracing),
        code=f"""
import torch

from patchscopes import EMBEDDING, TargetPrompt, load_model
from patchscopes.patch import Row, Write, extract_representations, patch_rows
from patchscopes.tokens import to_token_ids
{_import_positions(document)}
model = load_model({choice.model!r})
prompt = {choice.source_prompt!r}
tokens = to_token_ids(model, prompt)
{_find_subject(subject, document)}
layers = {subject.layers}
clean = extract_representations(model, [tokens] * len(tokens), range(len(tokens)), [EMBEDDING])[:, 0]
noise = torch.zeros_like(clean)
noise[subject] = 3 * clean[subject].std() * torch.randn_like(clean[subject])
target = TargetPrompt(model, tokens, subject[0], soft_prompt=clean + noise)
states = extract_representations(model, [tokens], [subject[-1]], layers)[0]
restored = [
    Row(target=target, writes=[Write(position=subject[-1], layer=layer, vector=state)])
    for layer, state in zip(layers, states)
]
unpatched = [Row(target=TargetPrompt(model, tokens)), Row(target=target)]
before, corrupted, *after = patch_rows([*unpatched, *restored]).softmax(-1)
answer = before.argmax()
print("clean", before[answer].item(), "corrupted", corrupted[answer].item())
for layer, likely in zip(layers, after):
    print(layer, likely[answer].item())
""",
        paper="In GPT-2 XL two places carry a fact: the subject's last token in the middle layers (8.7 % of 18.6 % at "
        "layer 15), and the last token in the last ones (Meng et al., section 2.2, figure 2). The Patchscopes paper "
        "writes it as a choice of T, appendix A, table 4.",
        here=quote("causal_tracing", describe),
        source=f"Meng et al., NeurIPS 2022, arXiv:2202.05262; as a Patchscope: {PATCHSCOPES}",
    )


def build_knockout(subject: Subject, document: Json | None) -> Method:
    """Attention knockout (Geva et al. 2023), and the paper's form of it."""
    choice = subject.choice
    window = document["results"]["window"] if document else 5

    def describe(results: Json) -> str:
        changes = results["methods"]["original"]["relative_change"]
        lost, _ = find_largest([-mean for mean in changes["subject"]["mean"]], results["layers"])
        where = [layer for layer, mean in zip(results["layers"], changes["subject"]["mean"], strict=True) if mean < -50]
        is_run = where == list(range(where[0], where[-1] + 1)) if where else False
        around = f"{where[0]} to {where[-1]}" if is_run else ", ".join(map(str, where))
        rest, rest_at = find_largest([-mean for mean in changes["rest"]["mean"]], results["layers"])
        return (
            f"On {results['n_samples']} facts, in windows of {results['window']}: without the subject the answer loses "
            f"more than half of its probability at ℓ = {around}, at most {lost:.0f} %: windows that "
            "reach the few blocks in which the subject is read. Without the rest it loses up to "
            f"{rest:.0f} % (ℓ = {rest_at}). In the paper of Geva et al. it is up to 60 % without the subject."
        )

    def compare(results: Json) -> str:
        changes = {form: of["relative_change"]["subject"]["mean"] for form, of in results["methods"].items()}
        apart = np.abs(np.subtract(changes["original"], changes["patchscope"]))
        return (
            "**A looser match, as the paper says.** A cut takes away one reader in a few blocks; zeros over the "
            "subject's states also take them from all later blocks and from every other token. On "
            f"{results['n_samples']} facts the two are up to {apart.max():.0f} points apart "
            f"(ℓ = {results['layers'][int(apart.argmax())]})."
        )

    return Method(
        key="attention_knockout",
        name="Attention knockout",
        idea="The last token may not look at the subject, in a window of layers. Where that costs the answer, it is "
        "read.",
        original=Fields(
            source_prompt=choice.source_prompt,
            source_position="last token (it reads)",
            model=choice.model,
            source_layers=f"windows of {window}",
            target_position="subject (it is not read)",
            mapping="edges cut before the softmax",
        ),
        patchscope=Fields(
            source_prompt=choice.source_prompt,
            source_position="any",
            model=choice.model,
            source_layers="any",
            target_prompt="S",
            target_position="each token of the subject",
            mapping="f(h) = 0",
            target_model="M",
            target_layers=f"all of a window of {window}",
        ),
        differs=quote("attention_knockout", compare) + tell_live(document, _compare_knockout),
        code=f"""
import torch

from patchscopes import TargetPrompt, load_model
from patchscopes.model.layers import find_window
from patchscopes.patch import Cut, Row, Write, patch_rows
from patchscopes.tokens import to_token_ids
{_import_positions(document)}
model = load_model({choice.model!r})
prompt = {choice.source_prompt!r}
tokens = to_token_ids(model, prompt)
{_find_subject(subject, document)}
layers = {subject.layers}
zero, last = torch.zeros(model.cfg.d_model), len(tokens) - 1
whole, target = TargetPrompt(model, tokens), TargetPrompt(model, tokens, subject[0])
windows = [find_window(layer, {window}, model.cfg.n_layers) for layer in layers]
cut = [Row(target=whole, cuts=[Cut(query=last, keys=subject, layers=window)]) for window in windows]
zeros = [
    Row(target=target, writes=[Write(position=key, layer=layer, vector=zero) for layer in window for key in subject])
    for window in windows
]
before, *after = patch_rows([Row(target=whole), *cut, *zeros]).softmax(-1)
answer = before.argmax()
for number, layer in enumerate(layers):
    changes = [after[row][answer] / before[answer] - 1 for row in (number, len(layers) + number)]
    print(layer, "edges cut {{:+.0%}}, zeros {{:+.0%}}".format(*changes))
""",
        paper="In GPT-2 XL and GPT-J the last token reads the subject in the middle and upper layers: without that the "
        "answer loses up to 60 % (Geva et al., section 5, figure 2). The Patchscopes paper has it as a looser match, "
        "appendix A, table 4.",
        here=quote("attention_knockout", describe),
        source=f"Geva et al., EMNLP 2023, arXiv:2304.14767; as a Patchscope: {PATCHSCOPES}",
    )


def _compare_tracing(results: Json) -> str:
    return (
        f"no probability differs by more than {results['largest_probability_difference']:.0e} (the original was "
        f"measured at {len(results['methods']['original']['layers'])} of the layers)."
    )


def _compare_knockout(results: Json) -> str:
    apart = results["largest_difference"]
    return f"without the subject up to {apart['subject']:.0f} points apart, without the rest up to {apart['rest']:.0f}."


def _import_positions(document: Json | None) -> str:
    return "" if document else "from patchscopes.positions import find_substring_token_position\n"


def _find_subject(subject: Subject, document: Json | None) -> str:
    """A line of code with the subject's tokens: those of the reader's result, or found anew."""
    if document:
        return f"subject = {document['results']['subject_positions']}  # {document['results']['subject']!r}"
    return (
        f"ends = [find_substring_token_position(model, prompt, {subject.name!r}, last=is_last)\n"
        "        for is_last in (False, True)]\n"
        "subject = list(range(ends[0], ends[1] + 1))"
    )
