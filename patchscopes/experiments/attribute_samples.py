"""The samples of attribute extraction (paper, section 4.2): subjects that the model knows, in texts that name them.

A subject is *known* if the model says its object after the relation's phrase with the subject in clear. A source prompt
is a window of at most 20 tokens of a text in which the subject stands, and ends anywhere after it; or as a table of
samples gives it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from patchscopes.data.files import UNSPECIFIED
from patchscopes.data.questions import contains_answer
from patchscopes.data.relations import PLACE, Relation, RelationSample, find_subject, find_whole_subjects
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.estimating.tally import keeping_all_rows
from patchscopes.experiments.config import AttributesConfig
from patchscopes.model.lens_model import LensModel
from patchscopes.positions import find_characters, find_end, find_token_spans
from patchscopes.prompts import Chat
from patchscopes.results import Json
from patchscopes.tokens import decode_each_token, resolve_position, to_token_ids
from patchscopes.words import find_whole


@dataclass(frozen=True, kw_only=True)
class AttributeSample:
    """A subject of a relation in a source prompt.

    Attributes:
        fact: the subject and its object.
        tokens: S.
        position: i, the last token of the subject.
    """

    fact: RelationSample
    tokens: tuple[int, ...]
    position: int


def find_known(model: LensModel, relation: Relation, config: AttributesConfig) -> list[Json]:
    """What the model says about each subject in clear, and whether that is its object: the known filter."""
    with keeping_all_rows():
        tokens = generate_after(
            model,
            [config.chat.of_target(relation.fill(sample.subject)) for sample in relation.samples],
            max_new_tokens=AttributesConfig.KNOWN_NEW_TOKENS,
            batch_size=config.batch_size,
        )
    texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [
        {"subject": sample.subject, "text": text, "known": int(contains_answer(text, sample.accepted))}
        for sample, text in zip(relation.samples, texts, strict=True)
    ]


def select_known(relation: Relation, found: Sequence[Json]) -> list[RelationSample]:
    """The subjects of a relation that the model knows, by what `find_known` found."""
    return [sample for sample, answer in zip(relation.samples, found, strict=True) if answer["known"]]


def draw_examples(known: Sequence[RelationSample], config: AttributesConfig) -> list[RelationSample]:
    """The `n_examples` subjects that an LRE is estimated from, drawn by the seed."""
    order = np.random.default_rng(config.seed).permutation(len(known))[: config.n_examples]
    return [known[index] for index in order]


def choose_source_texts(
    relation: Relation,
    carriers: Mapping[str, Sequence[str]],
    texts: Sequence[str] | None,
    config: AttributesConfig,
) -> dict[str, list[str]]:
    """For each subject, at most `n_prompts` texts in which it stands, drawn by the seed.

    They are those of a sample table; else from `texts`, or where there are none the `carriers` of the relation's kind
    of subject with the subject filled in. A subject that stands in no text has none.
    """
    fitting = carriers.get(relation.subject_kind, carriers[UNSPECIFIED])
    found = None if texts is None else find_subjects(texts, [sample.subject for sample in relation.samples])
    chosen: dict[str, list[str]] = {}
    for number, sample in enumerate(relation.samples):
        if sample.source_prompts:
            candidates = list(dict.fromkeys(sample.source_prompts))
        elif found is None:
            candidates = [sentence.replace(PLACE, sample.subject) for sentence in fitting]
        else:
            candidates = found[sample.subject]
        order = np.random.default_rng([config.seed, number]).permutation(len(candidates))[: config.n_prompts]
        chosen[sample.subject] = [candidates[index] for index in order]
    return chosen


def find_subjects(texts: Sequence[str], subjects: Sequence[str]) -> dict[str, list[str]]:
    """The texts in which each subject stands as whole words, and where `find_subject` finds it there."""
    found: dict[str, list[str]] = {subject: [] for subject in subjects}
    # The longer of two subjects is the one that is meant: neither "Guinea-Bissau" nor "South Sudan" is a text about
    # "Guinea" or "Sudan", and where the longer name comes first `find_subject` would find the shorter one inside it.
    longest_first = sorted(found, key=len, reverse=True)
    for text in texts:
        left = text
        for subject in longest_first:
            places = find_whole(left, subject)
            if places and find_subject(text, subject) == (places[0], places[0] + len(subject)):
                found[subject].append(text)
            for start in places:
                left = left[:start] + "\0" * len(subject) + left[start + len(subject) :]
    return found


def find_subject_tokens(model: LensModel, text: str | Chat, subject: str) -> tuple[int, int]:
    """The first and the last token of the subject where it first stands in the text.

    Raises:
        PatchscopesError: it does not stand there.
    """
    characters, spans = find_characters(model, text)
    found = find_subject(characters, subject)
    if found is None:
        raise PatchscopesError(f"the subject {subject!r} does not stand in {characters!r}; give a text with it")
    inside = _find_inside(spans, *found)
    return inside[0], inside[-1]


def find_subject_at(model: LensModel, relation: Relation, text: str, position: int) -> tuple[str, tuple[int, int]]:
    """The subject of a relation, or else the word, whose last token is token `position` of the text, and the characters
    [start, end) that it stands in there.

    Of several subjects it is the longest: "South Sudan", and not "Sudan". A word that is no subject is taken whole, at
    whichever of its tokens the position is.

    Raises:
        PatchscopesError: the text has no such token, or the token is of no word.
    """
    position = resolve_position(len(to_token_ids(model, text)), position)
    spans = find_token_spans(model, text)
    for subject in sorted((sample.subject for sample in relation.samples), key=len, reverse=True):
        for place in find_whole_subjects(text, subject):
            if _find_inside(spans, *place)[-1] == position:
                return subject, place
    words = [found.span() for found in re.finditer(r"\w+", text)]
    of_token = [word for word in words if position in _find_inside(spans, *word)]
    if not of_token:
        token = decode_each_token(model, to_token_ids(model, text))[position]
        raise PatchscopesError(
            f"token {position} of {text!r} is {token!r}, of no word; give the position of a word's last token"
        )
    start, end = of_token[-1]
    return text[start:end], of_token[-1]


def find_last_token(model: LensModel, text: str, place: tuple[int, int]) -> int:
    """The last token of the characters [start, end) of a text."""
    return _find_inside(find_token_spans(model, text), *place)[-1]


def _find_inside(spans: Sequence[tuple[int, int]], start: int, end: int) -> list[int]:
    """The tokens that stand for any of the characters [start, end)."""
    return [place for place, span in enumerate(spans) if span[0] < end and span[1] > start]


def take_source_prompt(model: LensModel, text: str | Chat, sample: RelationSample) -> AttributeSample:
    """The whole text as a source prompt.

    Raises:
        PatchscopesError: the subject does not stand in the text.
    """
    _, last = find_subject_tokens(model, text, sample.subject)
    return AttributeSample(fact=sample, tokens=tuple(to_token_ids(model, text).tolist()), position=last)


def cut_source_prompt(
    model: LensModel, text: str | Chat, sample: RelationSample, generator: np.random.Generator
) -> AttributeSample:
    """A window of the text of at most 20 tokens (BOS aside, or what a chat has in front) that holds the subject and
    ends anywhere after it.

    Raises:
        PatchscopesError: the subject does not stand in the text.
    """
    tokens, spans = to_token_ids(model, text).tolist(), find_token_spans(model, text)
    first, last = find_subject_tokens(model, text, sample.subject)
    n_special = next(number for number, (start, end) in enumerate(spans) if end > start)
    size = AttributesConfig.WINDOW
    latest_end = min(find_end(model, text) % len(tokens), max(last, first + size - 1))
    end = int(generator.integers(last, latest_end + 1))
    start = max(n_special, end + 1 - size)
    return AttributeSample(
        fact=sample, tokens=(*tokens[:n_special], *tokens[start : end + 1]), position=n_special + last - start
    )


def draw_samples(
    model: LensModel,
    known: Sequence[RelationSample],
    texts: Mapping[str, Sequence[str]],
    config: AttributesConfig,
) -> list[AttributeSample]:
    """The samples of one task: at most `n_subjects` known subjects that stand in some text, drawn by the seed, each in
    all its texts, of which those of a sample table stay whole. Those of one subject follow each other."""
    candidates = [sample for sample in known if texts[sample.subject]]
    order = np.random.default_rng(config.seed).permutation(len(candidates))[: config.n_subjects]
    generator = np.random.default_rng(config.seed)
    return [
        take_source_prompt(model, config.chat.of_source(text), sample)
        if sample.source_prompts
        else cut_source_prompt(model, config.chat.of_source(text), sample, generator)
        for sample in (candidates[index] for index in order)
        for text in texts[sample.subject]
    ]


def describe_sample(model: LensModel, sample: AttributeSample) -> Json:
    """The sample as it stands in the result file."""
    return {
        "subject": sample.fact.subject,
        "object": sample.fact.object,
        "source_prompt": "".join(decode_each_token(model, sample.tokens)),
        "position": sample.position,
    }
