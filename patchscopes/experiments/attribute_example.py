"""One subject's attribute read out of its state at each layer, by each method of attribute extraction, with controls.

Every method says how likely the object is: the Patchscope and both forms of the LRE by the first token of the object,
the probe by the class. The Patchscope is asked for it where the model goes on with the object, after "The capital city
of x is"; what it says is generated after "The capital city of x", as in the paper (section 4.2). Controls: the state of
another subject in the same sentence, the x with nothing patched, and the share of the object among the probe's samples.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.data.questions import contains_answer
from patchscopes.data.relations import Relation, RelationSample
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.generation import follow
from patchscopes.engine.unembedding import logit_lens
from patchscopes.engine.unpatched import generate_after
from patchscopes.experiments.attribute_learning import Taught, find_other_subject
from patchscopes.experiments.attribute_lre import compute_lre_logits
from patchscopes.experiments.attribute_patching import build_attribute_target, stop_at_answers
from patchscopes.experiments.attribute_samples import find_last_token, find_subject_at
from patchscopes.experiments.chunks import Progress
from patchscopes.experiments.config import AttributeExampleConfig
from patchscopes.model.layers import resolve_layers, resolve_target_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import patch_generate, patch_logits
from patchscopes.positions import find_first_tokens
from patchscopes.prompts import ATTRIBUTE_PLACEHOLDER
from patchscopes.results import Json
from patchscopes.tokens import decode_each_token, resolve_position, to_token_ids


@torch.no_grad()
def run(
    model: LensModel,
    relation: Relation,
    config: AttributeExampleConfig,
    taught: Taught | None = None,
    without_patch: Json | None = None,
    progress: Progress = iter,
) -> Json:
    """The `results` of the result file. Of each method, per layer: the answer that is most likely (`top`,
    `top_probability`), whether the object is named (`solved`), its probability, and that with another subject's state
    (`of_other`). Without an object the last three are None.

    Args:
        taught: what the LRE and the probes have learned, from `learn_from_others`; without it they are left out.
        without_patch: from `read_without_patch` of the same subject, whose answers do not depend on layers.
        progress: wraps the iteration over new tokens.

    Raises:
        PatchscopesError: a layer or token does not exist, the token is of no word, or the relation's phrase leaves no
            token of its own to the x.
    """
    layers = resolve_layers(model, config.layers)
    target_layers = resolve_target_layers(model, layers, config.target_layer)
    tokens = to_token_ids(model, config.source_prompt)
    position = resolve_position(len(tokens), config.source_position)
    subject, (start, end) = find_subject_at(model, relation, config.source_prompt, position)
    sample = find_sample(relation, subject, config.answer)
    other = find_other_subject(relation, sample, config.seed) if sample.object else None
    prompts, positions = [config.source_prompt], [position]
    if other is not None:
        prompts.append(config.source_prompt[:start] + other + config.source_prompt[end:])
        positions.append(find_last_token(model, prompts[1], (start, start + len(other))))
    states = extract_representations(model, prompts, positions, layers)
    if without_patch is None:
        without_patch = read_without_patch(model, relation, sample, config.max_new_tokens)
    methods = dict(without_patch)
    methods["patchscope"] = read_by_patchscope(model, relation, sample, states, target_layers, config, progress)
    if taught is not None:
        methods |= read_by_lre(model, taught, sample, tokens.tolist(), position, states, layers)
        methods["probe"] = read_by_probe(taught, sample, states, layers)
    return {
        "layers": layers,
        "target_layers": target_layers,
        "relation": relation.name,
        "prompt": relation.prompt,
        "cue": relation.cue,
        "subject": subject,
        "object": sample.object,
        "other_subject": other,
        "source_prompt": config.source_prompt,
        "source_tokens": decode_each_token(model, tokens),
        "source_position": position,
        "lre_examples": None if taught is None else list(taught.examples),
        "methods": methods,
    }


def find_sample(relation: Relation, subject: str, answer: str | None = None) -> RelationSample:
    """The subject with its object: the given one, else that of the relation's sample, or "" where there is none."""
    found = next((sample for sample in relation.samples if sample.subject == subject), None)
    if answer is not None and (found is None or answer not in found.accepted):
        return RelationSample(subject=subject, object=answer)
    return found or RelationSample(subject=subject, object="")


@torch.no_grad()
def read_without_patch(model: LensModel, relation: Relation, sample: RelationSample, max_new_tokens: int) -> Json:
    """What the model says with the subject in clear, and after the x with nothing patched; for each one answer."""
    phrases = [relation.fill(name) for name in (sample.subject, ATTRIBUTE_PLACEHOLDER)]
    said = generate_after(model, phrases, max_new_tokens=max_new_tokens)
    texts = model.tokenizer.batch_decode(said, skip_special_tokens=True)
    last = extract_representations(
        model, [phrase + relation.cue for phrase in phrases], [-1, -1], [-1 + model.cfg.n_layers]
    )
    likely = describe_tokens(model, sample, logit_lens(model, last[:, 0]))
    return {
        method: {name: None if of_each is None else of_each[row] for name, of_each in likely.items()}
        | {"text": texts[row], "solved": find_said(texts, sample)[row]}
        for row, method in enumerate(("in_clear", "unpatched"))
    }


def read_by_patchscope(
    model: LensModel,
    relation: Relation,
    sample: RelationSample,
    states: Float[Tensor, "subject layer d_model"],
    target_layers: Sequence[int],
    config: AttributeExampleConfig,
    progress: Progress = iter,
) -> Json:
    """The zero-shot Patchscope: what it says (`texts`), and how likely the object is.

    Args:
        states: of the subject, and of the other one.
    """
    stop = stop_at_answers(model, [sample], [False], len(target_layers))
    tokens = patch_generate(
        build_attribute_target(model, relation),
        states[0],
        target_layers,
        max_new_tokens=config.max_new_tokens,
        stop=follow(progress, config.max_new_tokens, stop),
    )
    texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    asked = build_attribute_target(model, relation, cue=relation.cue)
    logits = patch_logits(asked, states.flatten(0, 1), [*target_layers] * len(states))
    read = describe_tokens(model, sample, *logits.chunk(len(states)))
    return read | {"texts": texts, "solved": find_said(texts, sample)}


def read_by_lre(
    model: LensModel,
    taught: Taught,
    sample: RelationSample,
    tokens: Sequence[int],
    position: int,
    states: Float[Tensor, "subject layer d_model"],
    layers: Sequence[int],
) -> dict[str, Json]:
    """Both forms of the LRE, and how far their logits differ at most.

    Args:
        tokens: S, and i.
        states: of the subject, and of the other one.
    """
    # Nothing before i has a part in it: the other subject's states can be written into S as well.
    mapping = taught.lre.mapping(model)
    numbers = [*layers] * len(states)
    logits = compute_lre_logits(
        model, mapping, tokens, position, states.flatten(0, 1), layers=numbers, methods=("lre", "lre_patchscope")
    )
    read: dict[str, Json] = {
        method: describe_tokens(model, sample, *of_method.chunk(len(states))) for method, of_method in logits.items()
    }
    read["lre"]["betas"] = [taught.lre.betas[taught.layers.index(layer)].item() for layer in layers]
    difference = (logits["lre"] - logits["lre_patchscope"]).abs().max().item()
    read["lre_patchscope"]["largest_difference"] = difference
    return read


def read_by_probe(
    taught: Taught, sample: RelationSample, states: Float[Tensor, "subject layer d_model"], layers: Sequence[int]
) -> Json:
    """The probe's answers, and the share of its samples that have the object (`share`), which needs no state.

    An object that none of the samples has is not among the classes, and its probability is 0.

    Args:
        states: of the subject, and of the other one.
    """
    probes = taught.probes
    slots = [taught.layers.index(layer) for layer in layers]
    shares = [probes(of_subject.float().cpu().numpy(), slots) for of_subject in states]
    best = shares[0].argmax(axis=1)
    read: Json = {
        "top": [probes.objects[number] for number in best],
        "top_probability": shares[0].max(axis=1).tolist(),
        "n_subjects": len(set(taught.subjects)),
        "n_objects": len(probes.objects),
    }
    if not sample.object:
        return read | dict.fromkeys(("solved", "probability", "of_other", "share"))
    right = find_said(probes.objects, sample)
    of_object = [of_subject[:, [bool(one) for one in right]].sum(axis=1).tolist() for of_subject in shares]
    return read | {
        "solved": [right[number] for number in best],
        "probability": of_object[0],
        "of_other": of_object[1] if len(of_object) > 1 else None,
        "share": sum(find_said(taught.objects, sample)) / len(taught.objects),
    }


def describe_tokens(
    model: LensModel,
    sample: RelationSample,
    logits: Float[Tensor, "row d_vocab"],
    of_other: Float[Tensor, "row d_vocab"] | None = None,
) -> dict[str, list | None]:
    """Of each row the most likely token, whether it begins the object, and the probability of the tokens that do."""
    probabilities = torch.softmax(logits.float(), dim=-1)
    likely = probabilities.max(dim=-1)
    read: dict[str, list | None] = {
        "top": decode_each_token(model, likely.indices),
        "top_probability": likely.values.tolist(),
    }
    if not sample.object:
        return read | dict.fromkeys(("solved", "probability", "of_other"))
    first = find_first_tokens(model, sample.accepted).to(logits.device)
    other = None if of_other is None else torch.softmax(of_other.float(), dim=-1)[:, first].sum(dim=-1).tolist()
    return read | {
        "solved": torch.isin(likely.indices, first).int().tolist(),
        "probability": probabilities[:, first].sum(dim=-1).tolist(),
        "of_other": other,
    }


def find_said(texts: Sequence[str], sample: RelationSample) -> list[int]:
    """Which of the texts hold the object; none where there is none."""
    return [int(contains_answer(text, sample.accepted)) for text in texts]
