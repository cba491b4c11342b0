"""The facts that a model knows, in its tokens: what causal tracing and attention knockout are measured on.

A fact is *known* if the token that the model finds most likely after the prompt begins the attribute.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from patchscopes.data.facts import Fact
from patchscopes.engine.batching import rows_per_batch
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.chunks import StopWatch, measure_chunks
from patchscopes.model.lens_model import LensModel
from patchscopes.positions import find_first_tokens, find_token_spans
from patchscopes.results import ChunkStore, Json
from patchscopes.tokens import decode_each_token, to_token_ids


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


def find_known(model: LensModel, facts: Sequence[Fact], batch_size: int | None) -> list[Json]:
    """The token that the model finds most likely after each prompt, and whether it begins the attribute."""
    answers = find_answers(model, [fact.prompt for fact in facts], batch_size)
    return [
        {"answer": answer, "known": int(answer in find_first_tokens(model, fact.accepted).tolist())}
        for fact, answer in zip(facts, answers, strict=True)
    ]


def ask_facts(model: LensModel, facts: Sequence[Fact], store: ChunkStore, batch_size: int | None) -> Json:
    """Which of the facts the model knows, `found`, and the seconds that it took to ask; kept in `store`."""

    def ask(some: Sequence[Fact]) -> Json:
        watch = StopWatch()
        with watch.time("known"):
            found = find_known(model, some, batch_size)
        return {"found": found, "seconds": watch.seconds}

    (known,) = measure_chunks([facts], ChunkStore(store.folder / "known"), ask, iter)
    return known


def find_answers(model: LensModel, prompts: Sequence[str], batch_size: int | None) -> list[int]:
    """The token that the model finds most likely after each prompt."""
    # Generating would go on after short prompts until the longest one is read.
    last = model.cfg.n_layers - 1
    states = extract_representations(model, prompts, [-1] * len(prompts), [last])[:, 0]
    parts = states.split(batch_size or rows_per_batch(model))
    return [answer for part in parts for answer in logit_lens(model, part).argmax(dim=-1).tolist()]


def draw_known_facts(
    model: LensModel, facts: Sequence[Fact], found: Sequence[Json], n_facts: int, seed: int
) -> list[KnownFact]:
    """At most `n_facts` of the facts that the model knows (by what `find_known` found), drawn by the seed, in order.

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
    return [tokenize_fact(model, facts[number], found[number]["answer"]) for number in drawn]


def describe_fact(model: LensModel, fact: KnownFact) -> Json:
    """The fact as it stands in a result file."""
    return {
        "prompt": fact.fact.prompt,
        "subject": fact.fact.subject,
        "attribute": fact.fact.attribute,
        "relation": fact.fact.relation,
        "answer": decode_each_token(model, [fact.answer])[0],
    }


def tokenize_fact(model: LensModel, fact: Fact, answer: int) -> KnownFact:
    """The fact in the model's tokens."""
    start, end = fact.span
    spans = find_token_spans(model, fact.prompt)
    return KnownFact(
        fact=fact,
        tokens=tuple(to_token_ids(model, fact.prompt).tolist()),
        subject=tuple(position for position, span in enumerate(spans) if span[0] < end and span[1] > start),
        answer=answer,
    )
