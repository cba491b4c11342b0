"""Two-hop questions: their file, and what counts as an answer."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.questions import contains_answer, find_question, load_questions
from patchscopes.errors import PatchscopesError

QUESTIONS = load_questions(DATA_FOLDER / "multihop_examples.json")
ROW = {
    "id": 7,
    "hop1_prompt": "The country whose capital is Tokyo is",
    "hop1_answer": "Japan",
    "hop2_prompt_prefix": "The official currency of",
    "hop2_answer": "yen",
    "combined_question": "The official currency of the country whose capital is Tokyo is",
}


class TestAnswers:
    @pytest.mark.parametrize(
        ("text", "accepted", "expected"),
        [
            (" the Japanese yen.", ["yen"], True),
            (" the Japanese Yen", ["yen"], True),
            (" called “YEN”, which", ["yen"], True),
            (" a yenta", ["yen"], False),
            (" Doyen of", ["yen"], False),
            (" rupees, of course", ["rupee", "rupees"], True),
            (" rupees", ["rupee"], False),
            (" New\nYork City", ["new york"], True),
            (" New York's", ["New York"], True),
            (" in Sao Paulo", ["São Paulo", "Sao Paulo"], True),
            (" SÃO PAULO", ["São Paulo"], True),
            (" Washington, D.C.", ["Washington DC", "Washington, D.C."], True),
            (" 42", ["4"], False),
            ("", ["yen"], False),
            ("首都是北京。", ["北京"], True),
            ("首都是北京市", ["東京", "北京"], True),
            ("日本の首都は東京です", ["東京"], True),
            ("เมืองหลวงคือกรุงเทพมหานคร", ["กรุงเทพ"], True),
            ("수도는 서울이다", ["서울"], True),
            ("它的货币是ＹＥＮ，", ["yen"], True),
            ("上海。京都", ["海京"], False),
            ("Столица — Москва.", ["москва"], True),
            ("Столица — Москвабад", ["Москва"], False),
            ("भारतीय", ["भारत"], False),
            ("پایتخت تهران است", ["تهران"], True),
            ("curac\u0327ao", ["Curaçao"], True),
            (" anything", [""], False),
            (" anything", [], False),
        ],
    )
    def test_whole_words_without_case_and_punctuation(self, text, accepted, expected):
        assert contains_answer(text, accepted) is expected

    def test_closed(self):
        """At the end of the text the next token may go on with the word."""
        assert not contains_answer(" the yen", ["yen"], closed=True)
        assert contains_answer(" the yen.", ["yen"], closed=True)
        assert contains_answer(" the yen is the yen", ["yen"], closed=True)
        assert contains_answer(" the yen and", ["yen"], closed=True)

    @pytest.mark.parametrize("text", [" the yen\ufffd", " the yen\u0301", " the yen\u00ad", "是北京", "คือไทย"])
    def test_not_closed_in_the_middle_of_a_character(self, text):
        assert not contains_answer(text, ["yen", "北京", "ไทย"], closed=True)

    @given(st.text(max_size=12), st.text(max_size=3), st.text(max_size=5))
    def test_what_is_closed_stays_found(self, text, answer, more):
        if contains_answer(text, [answer], closed=True):
            assert contains_answer(text + more, [answer])

    @given(
        before=st.text(max_size=10), answer=st.from_regex(r"[a-zA-Z]{1,8}", fullmatch=True), after=st.text(max_size=10)
    )
    def test_an_answer_between_spaces_is_found_in_any_text(self, before, answer, after):
        assert contains_answer(f"{before} {answer} {after}", [answer])
        assert contains_answer(f"{before} {answer.upper()} {after}", [answer.lower()])


class TestFile:
    def test_those_of_the_library(self):
        assert len(QUESTIONS) >= 250
        categories = Counter(question.category for question in QUESTIONS)
        assert len(categories) >= 8
        assert min(categories.values()) >= 15
        assert len({question.combined_question for question in QUESTIONS}) == len(QUESTIONS)
        for question in QUESTIONS:
            pi1 = question.combined_question.removeprefix(f"{question.hop2_prompt_prefix} ")
            assert question.hop1_prompt == pi1[0].upper() + pi1[1:]
            assert question.combined_question.endswith(" is")
            assert not contains_answer(question.hop2_prompt, question.accepted), question
            assert not contains_answer(question.hop1_prompt, question.accepted_hop1), question

    def test_ones_own(self, tmp_path):
        path = tmp_path / "own.json"
        path.write_text(json.dumps([ROW | {"aliases": {"hop2_answer": ["yens"]}}]))
        (question,) = load_questions(path)
        assert question.accepted == ("yen", "yens")
        assert question.accepted_hop1 == ("Japan",)
        assert question.hop2_prompt == "The official currency of Japan is"
        assert question.category == "unspecified"

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("no json", "line 1: not JSON"),
            ("{}", "expected a list"),
            ("[]", "has no questions"),
            (json.dumps(["a"]), "item 1: expected a whole number `id`"),
            (json.dumps([ROW, ROW | {"id": "8"}]), "item 2: .*`id` is missing"),
            (json.dumps([ROW, ROW | {"id": -8}]), "item 2: .*`id` is missing"),
            (json.dumps([ROW | {"hop2_answer": "¥"}]), "item 1: the answer '¥' has no letter"),
            (json.dumps([ROW | {"hop2_answer": "\ud800"}]), "item 1: half a surrogate pair"),
            (
                json.dumps([ROW | {"hop1_prompt": "Whose capital is Tokyo?"}]),
                "item 1: write .* so that the answer follows",
            ),
            (json.dumps([ROW | {"hop1_answer": " "}]), "item 1: .*hop1_answer is missing"),
            (json.dumps([ROW | {"hop2_answer": 3}]), "item 1: .*hop2_answer is missing"),
            (json.dumps([ROW | {"category": 3}]), "item 1: .*category is missing"),
            (json.dumps([ROW, ROW]), "item 2: another question has the id 7"),
            (json.dumps([ROW | {"aliases": ["yens"]}]), "item 1: expected `aliases` as"),
            (json.dumps([ROW | {"aliases": {"hop2_answer": [1]}}]), "item 1: expected `aliases` as"),
            (json.dumps([ROW | {"hop2_prompt_prefix": "The money of"}]), "item 1: .*does not begin with"),
            (json.dumps([ROW | {"hop2_answer": "TOKYO"}]), "item 1: an accepted answer, of TOKYO, stands in"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path, content, message):
        path = tmp_path / "bad.json"
        path.write_text(content)
        with pytest.raises(PatchscopesError, match=message):
            load_questions(path)

    def test_no_such_file_and_id(self, tmp_path):
        with pytest.raises(PatchscopesError, match="there is no file"):
            load_questions(tmp_path / "no.json")
        with pytest.raises(PatchscopesError, match=r"expected a \.json file"):
            load_questions(tmp_path / "no.csv")
        assert find_question(QUESTIONS, 3) == QUESTIONS[3]
        with pytest.raises(PatchscopesError, match="no question with the id 9999; there are 0 to"):
            find_question(QUESTIONS, 9999)
