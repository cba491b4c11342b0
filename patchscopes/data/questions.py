"""Two-hop questions, and whether a text answers one (paper, section 5)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchscopes.data.files import UNSPECIFIED, read_rows
from patchscopes.errors import PatchscopesError
from patchscopes.words import find_whole, may_go_on, normalise_words

# The word that a question ends in so that the model goes on with the answer. The paper's query, [π2][π1], is what
# stands before it.
CUE = " is"


@dataclass(frozen=True, kw_only=True)
class TwoHopQuestion:
    """A question whose answer takes two facts, each of which can be asked alone.

    Attributes:
        hop1_prompt: π1 as a question of its own, "The country whose capital is Tokyo is".
        hop1_answer: "Japan".
        hop2_prompt_prefix: π2, "The official currency of".
        hop2_answer: what `hop2_prompt` and the combined question ask for, "yen".
        combined_question: [π2][π1], "The official currency of the country whose capital is Tokyo is".
        hop1_aliases, hop2_aliases: other words for the answers.
    """

    id: int
    hop1_prompt: str
    hop1_answer: str
    hop2_prompt_prefix: str
    hop2_answer: str
    combined_question: str
    category: str = UNSPECIFIED
    hop1_aliases: tuple[str, ...] = ()
    hop2_aliases: tuple[str, ...] = ()

    @property
    def hop2_prompt(self) -> str:
        """The second hop asked alone: "The official currency of Japan is"."""
        return f"{self.hop2_prompt_prefix} {self.hop1_answer}{self.cue}"

    @property
    def cue(self) -> str:
        """`CUE` if the combined question ends in it, else nothing."""
        return CUE if self.combined_question.endswith(CUE) else ""

    @property
    def accepted_hop1(self) -> tuple[str, ...]:
        """The answer of the first hop and its aliases."""
        return (self.hop1_answer, *self.hop1_aliases)

    @property
    def accepted(self) -> tuple[str, ...]:
        """The answer of the second hop, and so of the combined question, and its aliases."""
        return (self.hop2_answer, *self.hop2_aliases)


def load_questions(path: Path) -> tuple[TwoHopQuestion, ...]:
    """The questions of a JSON file: a list of objects with the fields of `TwoHopQuestion`.

    The aliases stand in a field `aliases`, {"hop1_answer": [...], "hop2_answer": [...]}; it and `category` may be
    left out.

    Raises:
        PatchscopesError: no such file, or a bad row (the message names it).
    """
    rows = read_rows(path, (".json",), "two-hop questions")
    questions = tuple(_parse_question(row, place) for row, place in rows)
    if not questions:
        raise PatchscopesError(f"{path} has no questions")
    seen: set[int] = set()
    for number, question in enumerate(questions, start=1):
        if question.id in seen:
            raise PatchscopesError(f"{path}, item {number}: another question has the id {question.id} already")
        seen.add(question.id)
    return questions


TEXT_FIELDS = ("hop1_prompt", "hop1_answer", "hop2_prompt_prefix", "hop2_answer", "combined_question")


def _parse_question(row: Any, place: str) -> TwoHopQuestion:
    fields = dict(row) if isinstance(row, dict) else {}
    texts = {name: fields.get(name) for name in TEXT_FIELDS} | {"category": fields.get("category", UNSPECIFIED)}
    wrong = [name for name, text in texts.items() if not isinstance(text, str) or not text.strip()]
    if wrong or type(fields.get("id")) is not int or fields["id"] < 0:
        raise PatchscopesError(
            f"{place}: expected a whole number `id` from 0 on and the strings {', '.join(TEXT_FIELDS)}; "
            f"{'`id`' if not wrong else wrong[0]} is missing or no such thing in {str(row)[:120]}"
        )
    stripped = {name: str(text).strip() for name, text in texts.items()}
    aliases = fields.get("aliases", {})
    question = TwoHopQuestion(
        id=fields["id"],
        **stripped,
        hop1_aliases=_parse_aliases(aliases, "hop1_answer", place),
        hop2_aliases=_parse_aliases(aliases, "hop2_answer", place),
    )
    return check_question(question, place)


def _parse_aliases(aliases: Any, hop: str, place: str) -> tuple[str, ...]:
    names = aliases.get(hop, []) if isinstance(aliases, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise PatchscopesError(
            f'{place}: expected `aliases` as {{"hop1_answer": [...], "hop2_answer": [...]}} with strings, got '
            f"{str(aliases)[:120]}"
        )
    return tuple(names)


def check_question(question: TwoHopQuestion, place: str) -> TwoHopQuestion:
    """The question, if its parts fit together.

    Raises:
        PatchscopesError: the combined question does not begin with π2, ends in a question mark, or gives its answer
            away; or an answer has no letter or digit.
    """
    for prompt in (question.combined_question, question.hop1_prompt):
        if prompt.endswith("?"):
            raise PatchscopesError(
                f"{place}: write {prompt!r} so that the answer follows, ending in {CUE!r} for instance"
            )
    for answer in (*question.accepted_hop1, *question.accepted):
        if answer and not normalise_words(answer):
            raise PatchscopesError(f"{place}: the answer {answer!r} has no letter or digit to find it by")
    if not question.combined_question.startswith(f"{question.hop2_prompt_prefix} "):
        raise PatchscopesError(
            f"{place}: the combined question {question.combined_question!r} does not begin with its "
            f"hop2_prompt_prefix {question.hop2_prompt_prefix!r}"
        )
    if contains_answer(question.combined_question, question.accepted):
        raise PatchscopesError(
            f"{place}: an accepted answer, of {', '.join(question.accepted)}, stands in the question "
            f"{question.combined_question!r} itself; choose another one"
        )
    return question


def contains_answer(text: str, accepted: Iterable[str], *, closed: bool = False) -> bool:
    """Whether one of the accepted answers stands in `text`, as whole words; case and punctuation do not count.

    Args:
        closed: not at the very end of the text, where the next token may make it another word.
    """
    words = normalise_words(text)
    end = len(words) if closed and may_go_on(text) else len(words) + 1
    return any(
        start + len(answer) < end for answer in map(normalise_words, accepted) for start in find_whole(words, answer)
    )


def find_question(questions: Sequence[TwoHopQuestion], question_id: int) -> TwoHopQuestion:
    """The question with this id.

    Raises:
        PatchscopesError: there is none.
    """
    for question in questions:
        if question.id == question_id:
            return question
    ids = [question.id for question in questions]
    raise PatchscopesError(f"there is no question with the id {question_id}; there are {min(ids)} to {max(ids)}")
