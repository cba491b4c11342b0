"""The zero-shot Patchscope of attribute extraction (paper, section 4.2), and what would be found without its state.

T is the relation's phrase and an x, "The official currency of x", i* that x. The representation of the subject's last
token at each ℓ is written over it at each ℓ*, and the model goes on. Three controls say what that is worth: the same
continuations searched for *another* subject's object, the x with nothing patched, and the x with the state of an
unrelated word.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchscopes.data.questions import contains_answer
from patchscopes.data.relations import PLACE, Relation, RelationSample
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.generation import Stop
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.engine.unpatched import generate_after
from patchscopes.experiments.attribute_samples import AttributeSample
from patchscopes.experiments.config import AttributesConfig
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import patch_generate
from patchscopes.positions import find_end
from patchscopes.prompts import ATTRIBUTE_PLACEHOLDER, NO_CHAT, ChatForm
from patchscopes.results import Json

# Words without a place in any of the relations, and a text around them.
UNRELATED_WORDS = ("because", "yesterday", "seven", "quickly")
UNRELATED_TEXT = "After a while somebody in the back row said the word {}"


def build_attribute_target(
    model: LensModel, relation: Relation, chat: ChatForm = NO_CHAT, cue: str = ""
) -> TargetPrompt:
    """T and i*: the relation's phrase with an x in the subject's place, in the form that is asked for.

    Args:
        cue: what follows the phrase.

    Raises:
        PatchscopesError: the x is no token of its own in this phrase.
    """
    # The phrase may hold the letter too: "x is an example of".
    before = relation.prompt.partition(PLACE)[0].count(ATTRIBUTE_PLACEHOLDER)
    prompt = chat.of_target(relation.fill(ATTRIBUTE_PLACEHOLDER) + cue)
    return placeholder_target(model, prompt, ATTRIBUTE_PLACEHOLDER, occurrence=before)


def generate_patched(
    target: TargetPrompt,
    states: Float[Tensor, "sample layer d_model"],
    target_layers: Sequence[int],
    config: AttributesConfig,
    stop: Stop | None = None,
) -> list[list[list[str]]]:
    """What the model says for each sample and pair (ℓ, ℓ*), as [sample][ℓ][ℓ*]: all of them are rows of one call.

    Args:
        stop: as for `patch_generate`; the rows are in the order of the result.
    """
    n_samples, n_layers, _ = states.shape
    n_target_layers = len(target_layers)
    tokens = patch_generate(
        target,
        states.flatten(0, 1).repeat_interleave(n_target_layers, dim=0),
        [*target_layers] * (n_samples * n_layers),
        max_new_tokens=config.max_new_tokens,
        stop=stop,
        batch_size=config.batch_size,
    )
    texts = target.model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    rows = [texts[start : start + n_target_layers] for start in range(0, len(texts), n_target_layers)]
    return [rows[start : start + n_layers] for start in range(0, len(rows), n_layers)]


def stop_at_answers(
    model: LensModel, samples: Sequence[RelationSample], going_on: Sequence[bool], n_pairs: int
) -> Stop:
    """A row stops once it has said the object of its own sample.

    Args:
        going_on: samples whose rows do not: they will be searched for something else too.
        n_pairs: rows of each sample.
    """

    @cache
    def has_answered(text: str, number: int) -> bool:
        return not going_on[number] and contains_answer(text, samples[number].accepted, closed=True)

    def stop(tokens: Int[Tensor, "row new_token"], rows: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
        # On the CPU, and each continuation once: rows say few different things.
        different, which = tokens.cpu().unique(dim=0, return_inverse=True)
        texts = model.tokenizer.batch_decode(different, skip_special_tokens=True)
        answered = [
            has_answered(texts[text], row // n_pairs) for text, row in zip(which.tolist(), rows.tolist(), strict=True)
        ]
        return torch.tensor(answered, dtype=torch.bool, device=tokens.device)

    return stop


def patch_samples(
    target: TargetPrompt,
    samples: Sequence[AttributeSample],
    others: Sequence[RelationSample | None],
    states: Float[Tensor, "sample layer d_model"],
    layers: Sequence[int],
    target_layers: Sequence[int],
    config: AttributesConfig,
) -> list[Json]:
    """What the Patchscope finds of each sample over all pairs (ℓ, ℓ*): every continuation that counts, and its pairs.

    Args:
        others: another sample of the relation, whose object the control searches for in the same continuations (so they
            do not stop at the answer); None for samples that are no control.
        states: of the samples at each of `layers`.
    """
    going_on = [other is not None for other in others]
    n_pairs = len(layers) * len(target_layers)
    stop = stop_at_answers(target.model, [sample.fact for sample in samples], going_on, n_pairs)
    texts = generate_patched(target, states, target_layers, config, stop)
    found: list[Json] = []
    for sample, other, of_sample in zip(samples, others, texts, strict=True):
        entry: Json = {"texts": find_answers(of_sample, sample.fact.accepted, layers, target_layers)}
        if other is not None:
            wrong = find_answers(of_sample, other.accepted, layers, target_layers)
            entry |= {"other_object": other.object, "other_texts": wrong}
        found.append(entry)
    return found


def find_answers(
    texts: Sequence[Sequence[str]], accepted: Sequence[str], layers: Sequence[int], target_layers: Sequence[int]
) -> dict[str, list[list[int]]]:
    """The texts that hold an accepted answer, and the pairs (ℓ, ℓ*) that said them."""
    found: dict[str, list[list[int]]] = {}
    for layer, of_layer in zip(layers, texts, strict=True):
        for target_layer, text in zip(target_layers, of_layer, strict=True):
            if text in found or contains_answer(text, accepted):
                found.setdefault(text, []).append([layer, target_layer])
    return found


def flatten_pairs(found: dict[str, list[list[int]]]) -> list[list[int]]:
    """All pairs (ℓ, ℓ*) of `find_answers`."""
    return sorted(pair for pairs in found.values() for pair in pairs)


def draw_others(samples: Sequence[AttributeSample], seed: int) -> list[RelationSample | None]:
    """For the first source prompt of each subject, a sample of the task with another object; else None.

    None too where all subjects share an object.
    """
    generator = np.random.default_rng(seed)
    subjects: dict[str, RelationSample] = {sample.fact.subject: sample.fact for sample in samples}
    others: list[RelationSample | None] = []
    seen: set[str] = set()
    for sample in samples:
        own = sample.fact
        unlike = [one for one in subjects.values() if have_different_objects(one, own)]
        is_control = own.subject not in seen and len(unlike) > 0
        seen.add(own.subject)
        others.append(unlike[int(generator.integers(len(unlike)))] if is_control else None)
    return others


def have_different_objects(one: RelationSample, other: RelationSample) -> bool:
    """Whether no accepted answer of either sample holds one of the other's."""
    return not contains_answer("; ".join(one.accepted), other.accepted) and not contains_answer(
        "; ".join(other.accepted), one.accepted
    )


def measure_controls(
    target: TargetPrompt,
    samples: Sequence[AttributeSample],
    layers: Sequence[int],
    target_layers: Sequence[int],
    config: AttributesConfig,
) -> Json:
    """The controls in which the subject has no part: which samples are answered by the unpatched x, and which by the
    state of an unrelated word (one for each sample, in turn), with every continuation that counts and its pairs."""
    model = target.model
    tokens = generate_after(model, [target.tokens], max_new_tokens=config.max_new_tokens)
    (unpatched,) = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    prompts = [config.chat.of_source(UNRELATED_TEXT.format(word)) for word in UNRELATED_WORDS]
    states = extract_representations(model, prompts, [find_end(model, prompt) for prompt in prompts], layers)
    texts = generate_patched(target, states, target_layers, config)
    unrelated = [
        find_answers(texts[number % len(texts)], sample.fact.accepted, layers, target_layers)
        for number, sample in enumerate(samples)
    ]
    return {
        "unpatched_text": unpatched,
        "unpatched": [int(contains_answer(unpatched, sample.fact.accepted)) for sample in samples],
        "unrelated_texts": unrelated,
    }
