"""The samples of attribute extraction (paper, section 4.2): subjects that the model knows, in texts that name them.

A subject is *known* if the model says its object after the relation's phrase with the subject in clear. A source prompt
is a window of at most 20 tokens of a text in which the subject stands, and ends anywhere after it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from patchscopes.data.files import UNSPECIFIED
from patchscopes.data.questions import contains_answer
from patchscopes.data.relations import PLACE, Relation, RelationSample, find_subject
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import AttributesConfig
from patchscopes.model.lens_model import LensModel
from patchscopes.positions import find_token_spans
from patchscopes.results import Json
from patchscopes.tokens import decode_each_token, to_token_ids


@dataclass(frozen=True, kw_only=True)
class AttributeSample:
    """A subject of a relation in a source prompt.

    Attributes:
        of: the subject and its object.
        tokens: S.
        position: i, the last token of the subject.
    """

    of: RelationSample
    tokens: tuple[int, ...]
    position: int


def find_known(model: LensModel, relation: Relation, config: AttributesConfig) -> list[Json]:
    """What the model says about each subject in clear, and whether that is its object: the known filter."""
    tokens = generate_after(
        model,
        [relation.fill(sample.subject) for sample in relation.samples],
        max_new_tokens=AttributesConfig.KNOWN_NEW_TOKENS,
        batch_size=config.batch_size,
    )
    texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [
        {"subject": sample.subject, "text": text, "known": int(contains_answer(text, sample.accepted))}
        for sample, text in zip(relation.samples, texts, strict=True)
    ]


def choose_source_texts(
    relation: Relation,
    carriers: Mapping[str, Sequence[str]],
    texts: Sequence[str] | None,
    config: AttributesConfig,
) -> dict[str, list[str]]:
    """For each subject, at most `n_prompts` texts in which it stands, drawn by the seed.

    Those of a sample table are taken as they are. Else they are from `texts`, or where there are none the `carriers` of
    the relation's kind of subject with the subject filled in. A subject that stands in no text has none.
    """
    fitting = carriers.get(relation.subject_kind, carriers[UNSPECIFIED])
    found = None if texts is None else find_subjects(texts, [sample.subject for sample in relation.samples])
    chosen: dict[str, list[str]] = {}
    for number, sample in enumerate(relation.samples):
        if sample.source_prompts:
            chosen[sample.subject] = list(dict.fromkeys(sample.source_prompts))[: config.n_prompts]
            continue
        candidates = (
            [sentence.replace(PLACE, sample.subject) for sentence in fitting]
            if found is None
            else found[sample.subject]
        )
        order = np.random.default_rng([config.seed, number]).permutation(len(candidates))[: config.n_prompts]
        chosen[sample.subject] = [candidates[index] for index in order]
    return chosen


def find_subjects(texts: Sequence[str], subjects: Sequence[str]) -> dict[str, list[str]]:
    """The texts in which each subject stands as whole words."""
    found: dict[str, list[str]] = {subject: [] for subject in subjects}
    # The longer of two subjects that begin alike, as "Guinea-Bissau" and "Guinea", is the one that is meant.
    alternatives = "|".join(re.escape(subject) for subject in sorted(subjects, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)")
    for text in texts:
        for subject in dict.fromkeys(pattern.findall(text)):
            found[subject].append(text)
    return found


def find_subject_tokens(model: LensModel, text: str, subject: str) -> tuple[int, int]:
    """The first and the last token of the subject where it first stands in the text.

    Raises:
        PatchscopesError: it does not stand there.
    """
    found = find_subject(text, subject)
    if found is None:
        raise PatchscopesError(f"the subject {subject!r} does not stand in {text!r}; give a text with it")
    start, end = found
    inside = [place for place, span in enumerate(find_token_spans(model, text)) if span[0] < end and span[1] > start]
    return inside[0], inside[-1]


def cut_source_prompt(
    model: LensModel, text: str, sample: RelationSample, generator: np.random.Generator
) -> AttributeSample:
    """A window of the text of at most 20 tokens (BOS aside) that holds the subject and ends anywhere after it.

    Raises:
        PatchscopesError: the subject does not stand in the text.
    """
    tokens, spans = to_token_ids(model, text).tolist(), find_token_spans(model, text)
    first, last = find_subject_tokens(model, text, sample.subject)
    n_special = next(number for number, (start, end) in enumerate(spans) if end > start)
    size = AttributesConfig.WINDOW
    latest_end = min(len(tokens) - 1, max(last, first + size - 1))
    end = int(generator.integers(last, latest_end + 1))
    start = max(n_special, end + 1 - size)
    return AttributeSample(
        of=sample, tokens=(*tokens[:n_special], *tokens[start : end + 1]), position=n_special + last - start
    )


def draw_samples(
    model: LensModel,
    relation: Relation,
    known: Sequence[Json],
    texts: Mapping[str, Sequence[str]],
    config: AttributesConfig,
) -> list[AttributeSample]:
    """The samples of one task: at most `n_subjects` known subjects that stand in some text, drawn by the seed, each in
    all its texts. Those of one subject follow each other."""
    candidates = [
        sample
        for sample, answer in zip(relation.samples, known, strict=True)
        if answer["known"] and texts[sample.subject]
    ]
    order = np.random.default_rng(config.seed).permutation(len(candidates))[: config.n_subjects]
    generator = np.random.default_rng(config.seed)
    return [
        cut_source_prompt(model, text, candidates[index], generator)
        for index in order
        for text in texts[candidates[index].subject]
    ]


def describe_sample(model: LensModel, sample: AttributeSample) -> Json:
    """The sample as it stands in the result file."""
    return {
        "subject": sample.of.subject,
        "object": sample.of.object,
        "source_prompt": "".join(decode_each_token(model, sample.tokens)),
        "position": sample.position,
    }
