"""Two-hop questions, and whether a text answers one (paper, section 5)."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchscopes.data.files import PLACE, ROW_SUFFIXES, UNSPECIFIED, read_fields
from patchscopes.errors import PatchscopesError
from patchscopes.words import find_whole, is_whole, may_go_on, normalise_words

# The word that a question ends in so that the model goes on with the answer. The paper's query, [π2][π1], is what
# stands before it.
CUE = " is"


@dataclass(frozen=True, kw_only=True)
class TwoHopQuestion:
    """A question whose answer takes two facts, each of which can be asked alone.

    Attributes:
        id: a whole number or a name.
        pi1: π1, "the country whose capital is Tokyo".
        pi2: π2 with `PLACE` where π1 stands, "The official currency of {}"; "{}的货币" where π1 comes first.
        cue: ends every prompt, so that the model goes on with the answer: `CUE`, "是", or nothing.
        hop1_prompt: π1 asked alone, "The country whose capital is Tokyo is".
        hop1_answer: "Japan".
        hop2_answer: what `hop2_prompt` and the combined question ask for, "yen".
        combined_question: both hops in one: the query, or the same in other words.
        hop1_aliases, hop2_aliases: other words for the answers.
    """

    id: int | str
    pi1: str
    pi2: str
    cue: str = CUE
    hop1_prompt: str
    hop1_answer: str
    hop2_answer: str
    combined_question: str
    category: str = UNSPECIFIED
    hop1_aliases: tuple[str, ...] = ()
    hop2_aliases: tuple[str, ...] = ()

    @property
    def hop2_prompt(self) -> str:
        """The second hop asked alone: "The official currency of Japan is"."""
        return self.ask_hop2(self.hop1_answer)

    @property
    def query(self) -> str:
        """[π2][π1], or [π1][π2], and the cue: what is patched."""
        return self.ask_hop2(self.pi1)

    @property
    def pi1_end(self) -> int:
        """Where π1 ends in the query: the number of characters up to there."""
        return self.pi2.index(PLACE) + len(self.pi1)

    @property
    def pi2_end(self) -> int:
        """Where π2 ends in the query."""
        before, _, after = self.pi2.partition(PLACE)
        return self.pi1_end + len(after) if after.strip() else len(before.rstrip())

    def ask_hop2(self, subject: str) -> str:
        """The second hop with any subject."""
        return self.pi2.replace(PLACE, subject, 1) + self.cue

    @property
    def accepted_hop1(self) -> tuple[str, ...]:
        """The answer of the first hop and its aliases."""
        return (self.hop1_answer, *self.hop1_aliases)

    @property
    def accepted(self) -> tuple[str, ...]:
        """The answer of the second hop, and so of the combined question, and its aliases."""
        return (self.hop2_answer, *self.hop2_aliases)

    @property
    def number(self) -> int:
        """The id as a number, to seed random draws with."""
        if isinstance(self.id, int):
            return self.id
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:8])


TEXT_FIELDS = ("hop1_prompt", "hop1_answer", "hop2_answer", "combined_question")
ALIASES = {"hop1_answer": "hop1_aliases", "hop2_answer": "hop2_aliases"}


def load_questions(path: Path) -> tuple[TwoHopQuestion, ...]:
    """The questions of a file of any of `ROW_SUFFIXES`.

    A row has the strings `TEXT_FIELDS` and π2, which is the `hop2_prompt_prefix` that π1 follows, or a `hop2_prompt`
    with `PLACE` where it stands. It may have an `id` (else its number, from 0 on), a `category`, the `cue` where that
    is not `CUE`, and `aliases`, {"hop1_answer": [...], "hop2_answer": [...]}, or lists under the names in `ALIASES`.
    Prompts that do not end in the cue get it. Tables that the paper's code writes are read as they are.

    Raises:
        PatchscopesError: no such file, or a bad row (the message names it).
    """
    questions: dict[int | str, TwoHopQuestion] = {}
    rows = read_fields(path, ROW_SUFFIXES, "two-hop questions", lists=tuple(ALIASES.values()))
    for number, (row, place) in enumerate(rows):
        question = _parse_question(row, place, number)
        if question.id in questions:
            raise PatchscopesError(f"{place}: another question has the id {question.id} already")
        questions[question.id] = question
    if not questions:
        raise PatchscopesError(f"{path} has no questions")
    return tuple(questions.values())


def _parse_question(row: Any, place: str, number: int) -> TwoHopQuestion:
    fields = _convert_published(row, place) if isinstance(row, dict) else {}
    texts = {name: fields.get(name) for name in TEXT_FIELDS} | {"category": fields.get("category", UNSPECIFIED)}
    question_id, cue = fields.get("id", number), fields.get("cue")
    if isinstance(question_id, str):
        # Numbers are text in a table.
        is_number = re.fullmatch("0|[1-9][0-9]{0,9}", question_id.strip())
        question_id = int(question_id) if is_number else question_id.strip()
    is_id = bool(question_id) if isinstance(question_id, str) else type(question_id) is int and question_id >= 0
    wrong = [name for name, text in texts.items() if not isinstance(text, str) or not text.strip()]
    wrong += [] if is_id else ["id"]
    wrong += [] if cue is None or isinstance(cue, str) else ["cue"]
    if wrong:
        raise PatchscopesError(
            f"{place}: expected the strings {', '.join(TEXT_FIELDS)} and perhaps an `id`, a string or a whole number "
            f"from 0 on, a `category` and a `cue`; `{wrong[0]}` is missing or no such thing in {str(row)[:120]}"
        )
    parsed: dict[str, Any] = {name: str(text).strip() for name, text in texts.items()}
    parsed |= {name: _parse_aliases(fields, hop, name, place) for hop, name in ALIASES.items()}
    return build_question(place, id=question_id, hop2_prompt=_parse_hop2(fields, place), cue=cue, **parsed)


def _convert_published(row: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """The fields of a row as this library names them, if it is of a table that the paper's code writes.

    There the combined question is `baseline_multihop3`, the hops asked alone are `baseline_hop2` and `baseline_hop3`,
    and their answers `hop2` and `hop3`. They ask "Who is …" and are answered without a cue.
    """
    if "baseline_multihop3" not in row:
        return row
    bridge, hop2_prompt = str(row.get("hop2", "")), str(row.get("baseline_hop3", ""))
    if not bridge or bridge not in hop2_prompt:
        raise PatchscopesError(f"{place}: expected `hop2` in `baseline_hop3`, got {bridge!r} and {hop2_prompt!r}")
    before, _, after = hop2_prompt.rpartition(bridge)
    converted = {
        "hop1_prompt": row.get("baseline_hop2"),
        "hop1_answer": bridge,
        "hop2_prompt": before + PLACE + after,
        "hop2_answer": row.get("hop3"),
        "combined_question": row["baseline_multihop3"],
        "cue": "",
    }
    return converted | ({"id": row["sample_id"]} if "sample_id" in row else {})


def _parse_hop2(fields: Mapping[str, Any], place: str) -> str:
    """The second hop asked alone, with `PLACE` for its subject."""
    prefix, prompt = fields.get("hop2_prompt_prefix"), fields.get("hop2_prompt")
    if isinstance(prefix, str) and prefix.strip() and prompt is None:
        return f"{prefix.strip()} {PLACE}"
    if not isinstance(prompt, str):
        raise PatchscopesError(
            f"{place}: expected the string `hop2_prompt_prefix`, which the first hop follows, or `hop2_prompt` with "
            f"{PLACE} where the first hop stands; got {str(fields)[:120]}"
        )
    return prompt.strip()


def _parse_aliases(fields: Mapping[str, Any], hop: str, name: str, place: str) -> tuple[str, ...]:
    aliases = fields.get("aliases", {})
    names = fields[name] if name in fields else aliases.get(hop, []) if isinstance(aliases, dict) else None
    if not isinstance(names, list) or not all(isinstance(one, str) and one.strip() for one in names):
        raise PatchscopesError(
            f'{place}: expected `aliases` as {{"hop1_answer": [...], "hop2_answer": [...]}} with strings, got '
            f"{str(fields.get(name, aliases))[:120]}"
        )
    return tuple(one.strip() for one in names)


def build_question(
    place: str,
    *,
    hop1_prompt: str,
    hop2_prompt: str,
    cue: str | None = None,
    combined_question: str | None = None,
    **fields: Any,
) -> TwoHopQuestion:
    """A question from its prompts, each with or without the cue.

    Args:
        place: words for where it stands.
        hop2_prompt: with `PLACE` where the first hop stands.
        cue: `CUE` unless given, which only fits where the first hop ends the second one, or `CUE` does.
        combined_question: the two hops together unless given.
        fields: the others of `TwoHopQuestion`.

    Raises:
        PatchscopesError: the second hop has no place for the first, a prompt ends in a question mark, the question
            gives its answer away, or an answer has no letter or digit.
    """
    if cue is None:
        cue = CUE
        if not hop2_prompt.endswith((PLACE, CUE)):
            raise PatchscopesError(
                f"{place}: {hop2_prompt!r} does not end in {CUE!r}; give the words at its end that ask for the answer "
                "as the cue"
            )
    cue = complete_cue(cue)
    pi2 = hop2_prompt.removesuffix(cue).rstrip()
    phrase = hop1_prompt.removesuffix(cue).rstrip()
    if not phrase or PLACE in phrase:
        lacks = "has no words but the cue" if not phrase else f"has a place for a subject ({PLACE})"
        raise PatchscopesError(f"{place}: the first hop {hop1_prompt!r} {lacks}; write it out")
    if pi2.count(PLACE) != 1 or not pi2.replace(PLACE, "").strip():
        raise PatchscopesError(
            f"{place}: expected words of the second hop and {PLACE} once, where the first hop stands, got {pi2!r}"
        )
    combined = pi2.replace(PLACE, phrase) if combined_question is None else combined_question.removesuffix(cue).rstrip()
    for prompt in (combined, phrase):
        if prompt.endswith(("?", "？", "؟")):
            raise PatchscopesError(
                f"{place}: write {prompt!r} so that the answer follows, ending in {CUE!r} for instance"
            )
    question = TwoHopQuestion(
        pi1=_find_pi1(pi2, phrase, combined),
        pi2=pi2,
        cue=cue,
        hop1_prompt=phrase + cue,
        combined_question=combined + cue,
        **fields,
    )
    for answer in (*question.accepted_hop1, *question.accepted):
        if answer and not normalise_words(answer):
            raise PatchscopesError(f"{place}: the answer {answer!r} has no letter or digit to find it by")
    for prompt in (question.combined_question, question.query):
        if contains_answer(prompt, question.accepted):
            raise PatchscopesError(
                f"{place}: an accepted answer, of {', '.join(question.accepted)}, stands in the question {prompt!r} "
                "itself; choose another one"
            )
    return question


def complete_cue(cue: str) -> str:
    """The cue with a space in front where it would become a part of the word before it, as “is” would of “Tokyo”."""
    return cue if not cue or is_whole(f"a{cue}", 1, len(cue) + 1) else f" {cue}"


def _find_pi1(pi2: str, phrase: str, combined: str) -> str:
    """π1 as it stands within a sentence: what the combined question has in the place of π2, or else the first hop."""
    before, _, after = pi2.partition(PLACE)
    if combined.startswith(before) and combined.endswith(after) and len(combined) > len(before) + len(after):
        return combined[len(before) : len(combined) - len(after)]
    # In other words: a small letter where the combined question has one.
    small = phrase[:1].lower() + phrase[1:]
    return small if phrase not in combined and small in combined else phrase


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


def find_question(questions: Sequence[TwoHopQuestion], name: int | str) -> TwoHopQuestion:
    """The question with this id; if there is none and it is a number, the one at this index, from 0 on.

    Raises:
        PatchscopesError: there is none.
    """
    for question in questions:
        if str(question.id) == str(name).strip():
            return question
    if str(name).strip().isdecimal() and int(name) < len(questions):
        return questions[int(name)]
    raise PatchscopesError(
        f"there is no question with the id {name}; there are {questions[0].id} to {questions[-1].id}, or by number 0 "
        f"to {len(questions) - 1}"
    )
