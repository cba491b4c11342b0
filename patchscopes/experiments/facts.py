"""The facts that a model knows, in its tokens: what causal tracing and attention knockout are measured on.

A fact is *known* if the token that the model finds most likely after the prompt begins the attribute.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from patchscopes.data.facts import Fact
from patchscopes.data.relations import find_subject
from patchscopes.engine.batching import run_in_batches
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.chunks import StopWatch, measure_chunks, split_into_chunks
from patchscopes.model.lens_model import LensModel
from patchscopes.positions import find_first_tokens, find_token_spans, find_word
from patchscopes.prompts import NO_CHAT, ChatForm
from patchscopes.results import ChunkStore, Json
from patchscopes.tokens import Text, decode_each_token, resolve_position, to_token_ids
from patchscopes.words import find_whole

# Facts that are asked, and finished, together.
CHUNK_FACTS = 128
# A word that belongs to the same name as what follows: no sign ends a phrase between them.
WORD_BEFORE = re.compile(r"(?:\S*[^\s.,;:!?] |\S+-)$")


@dataclass(frozen=True, kw_only=True)
class KnownFact:
    """A fact that the model knows.

    Attributes:
        tokens: of the prompt.
        subject: the positions of the subject's tokens, which follow each other.
        answer: the token that the model finds most likely next, the first of the attribute.
    """

    fact: Fact
    tokens: tuple[int, ...]
    subject: tuple[int, ...]
    answer: int


def find_known(model: LensModel, facts: Sequence[Fact], batch_size: int | None, chat: ChatForm = NO_CHAT) -> list[Json]:
    """The token that the model finds most likely after each prompt, and whether it begins the attribute."""
    prompts = [chat.of_target(fact.prompt) for fact in facts]
    answers = find_answers(model, prompts, batch_size)
    return [
        {"answer": answer, "known": int(answer in find_first_tokens(model, fact.accepted, after=prompt).tolist())}
        for fact, prompt, answer in zip(facts, prompts, answers, strict=True)
    ]


def ask_facts(
    model: LensModel, facts: Sequence[Fact], store: ChunkStore, batch_size: int | None, chat: ChatForm = NO_CHAT
) -> tuple[list[Json], list[Json]]:
    """Which of the facts the model knows, as `find_known` tells; and the finished chunks, kept in `store`."""

    def ask(some: Sequence[Fact]) -> Json:
        watch = StopWatch()
        with watch.time("known"):
            found = find_known(model, some, batch_size, chat)
        return {"found": found, "seconds": watch.seconds}

    asked = measure_chunks(split_into_chunks(facts, CHUNK_FACTS), store.at("known"), ask, iter, decides=True)
    return [answer for some in asked for answer in some["found"]], asked


def find_answers(model: LensModel, prompts: Sequence[Text], batch_size: int | None) -> list[int]:
    """The token that the model finds most likely after each prompt."""
    # Generating would go on after short prompts until the longest one is read.
    last = model.cfg.n_layers - 1
    states = extract_representations(model, prompts, [-1] * len(prompts), [last])[:, 0]

    def answer(rows: slice) -> list[int]:
        return logit_lens(model, states[rows]).argmax(dim=-1).tolist()

    return [
        token for _, tokens in run_in_batches(model, len(states), answer, batch_size=batch_size) for token in tokens
    ]


def draw_known_facts(
    model: LensModel,
    facts: Sequence[Fact],
    found: Sequence[Json],
    n_facts: int,
    seed: int,
    chat: ChatForm = NO_CHAT,
) -> list[KnownFact]:
    """At most `n_facts` of the facts that the model knows (by what `find_known` found), drawn by the seed, in order.

    Args:
        chat: in which form the model reads the prompts.

    Raises:
        PatchscopesError: it knows none.
    """
    known = [number for number, answer in enumerate(found) if answer["known"]]
    if not known:
        raise PatchscopesError(
            f"{model.cfg.model_name!r} begins the attribute after none of the {len(facts)} prompts, such as "
            f"{facts[0].prompt!r}: nothing can be said about how it knows them; give easier facts or a larger model"
        )
    drawn = sorted(np.random.default_rng(seed).permutation(known)[:n_facts].tolist())
    return [tokenize_fact(model, facts[number], found[number]["answer"], chat) for number in drawn]


def find_name(model: LensModel, text: str, position: int) -> tuple[int, int]:
    """The characters of the name that a token of the text stands in: its word, and the words right before it as far as
    all begin with capital letters.

    Raises:
        PatchscopesError: there is no such token, or it stands for no sign of the text.
    """
    start, end = find_word(model, text, position)
    while text[start].isupper() and (before := WORD_BEFORE.search(text[:start])) and before[0][0].isupper():
        start = before.start()
    return start, end


def locate_subject(model: LensModel, prompt: str, subject: str, position: int | None = None) -> tuple[int, int]:
    """The characters of the prompt in which the subject stands.

    Args:
        position: of a token; of several places, that which this token is of counts, or else the first.

    Raises:
        PatchscopesError: the subject does not stand in the prompt, or there is no such token.
    """
    first = find_subject(prompt, subject.strip()) if subject.strip() else None
    if first is None:
        raise PatchscopesError(f"the subject {subject!r} is not in the prompt {prompt!r}; give words of the prompt")
    if position is None:
        return first
    spans = find_token_spans(model, prompt)
    begin, end = spans[resolve_position(len(spans), position)]
    length = first[1] - first[0]
    places = [(start, start + length) for start in find_whole(prompt, prompt[slice(*first)])]
    return next((place for place in places if place[0] < end and place[1] > begin), first)


def take_answer(model: LensModel, prompt: str, subject: tuple[int, int], chat: ChatForm = NO_CHAT) -> KnownFact:
    """The fact that a prompt is about, whatever it is: the answer is the token that the model finds most likely.

    Args:
        subject: the characters [start, end) of the prompt in which it stands.
    """
    (answer,) = find_answers(model, [chat.of_target(prompt)], None)
    attribute = decode_each_token(model, [answer])[0].strip()
    return tokenize_fact(model, Fact(prompt=prompt, span=subject, attribute=attribute), answer, chat)


def describe_fact(model: LensModel, fact: KnownFact) -> Json:
    """The fact as it stands in a result file."""
    return {
        "prompt": fact.fact.prompt,
        "subject": fact.fact.subject,
        "attribute": fact.fact.attribute,
        "relation": fact.fact.relation,
        "answer": decode_each_token(model, [fact.answer])[0],
    }


def tokenize_fact(model: LensModel, fact: Fact, answer: int, chat: ChatForm = NO_CHAT) -> KnownFact:
    """The fact in the model's tokens."""
    start, end = fact.span
    prompt = chat.of_target(fact.prompt)
    spans = find_token_spans(model, prompt)
    return KnownFact(
        fact=fact,
        tokens=tuple(to_token_ids(model, prompt).tolist()),
        subject=tuple(position for position, span in enumerate(spans) if span[0] < end and span[1] > start),
        answer=answer,
    )
