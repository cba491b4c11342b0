"""Two-hop questions: their file, and what counts as an answer."""

import csv
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.questions import build_question, contains_answer, find_question, load_questions
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
            assert question.hop1_prompt == f"{question.pi1[0].upper()}{question.pi1[1:]} is"
            assert question.pi2.endswith(" {}")
            assert question.combined_question == question.query == f"{question.pi2[:-2]}{question.pi1} is"
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
            (json.dumps(["a"]), "item 1: expected the strings hop1_prompt, "),
            (json.dumps([ROW, ROW | {"id": " "}]), "item 2: .*`id` is missing"),
            (json.dumps([ROW, ROW | {"id": [8]}]), "item 2: .*`id` is missing"),
            (json.dumps([ROW, ROW | {"id": True}]), "item 2: .*`id` is missing"),
            (json.dumps([ROW, ROW | {"id": "7"}]), "item 2: another question has the id 7"),
            (json.dumps([ROW | {"cue": 3}]), "item 1: .*`cue` is missing"),
            (json.dumps([ROW | {"hop2_prompt_prefix": 3}]), "item 1: expected the string `hop2_prompt_prefix`"),
            (json.dumps([ROW | {"hop2_prompt": "The money is"}]), "item 1: .*{} once.*got 'The money'"),
            (json.dumps([ROW | {"hop2_prompt": "{} is"}]), "item 1: expected words of the second hop"),
            (json.dumps([ROW | {"hop2_prompt": "{}的货币是"}]), "item 1: '{}的货币是' does not end in ' is'; give"),
            (json.dumps([ROW, ROW | {"id": -8}]), "item 2: .*`id` is missing"),
            (json.dumps([ROW | {"hop2_answer": "¥"}]), "item 1: the answer '¥' has no letter"),
            (json.dumps([ROW | {"hop2_answer": "\ud800"}]), "item 1: half a surrogate pair"),
            (
                json.dumps([ROW | {"hop1_prompt": "Whose capital is Tokyo?"}]),
                "item 1: write .* so that the answer follows",
            ),
            (json.dumps([ROW | {"hop1_answer": " "}]), "item 1: .*`hop1_answer` is missing"),
            (json.dumps([ROW | {"hop2_answer": 3}]), "item 1: .*`hop2_answer` is missing"),
            (json.dumps([ROW | {"category": 3}]), "item 1: .*`category` is missing"),
            (json.dumps([ROW, ROW]), "item 2: another question has the id 7"),
            (json.dumps([ROW | {"aliases": ["yens"]}]), "item 1: expected `aliases` as"),
            (json.dumps([ROW | {"aliases": {"hop2_answer": [1]}}]), "item 1: expected `aliases` as"),
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
        with pytest.raises(PatchscopesError, match=r"expected a \.json or .* file of two-hop questions"):
            load_questions(tmp_path / "no.txt")
        assert find_question(QUESTIONS, 3) == QUESTIONS[3]
        with pytest.raises(PatchscopesError, match="no question with the id 9999; there are 0 to"):
            find_question(QUESTIONS, 9999)


# As an earlier reproduction has them: names for ids, no cue, and questions in other words than prefix and first hop.
REPRODUCTION = [
    {
        "id": "example_001",
        "hop1_prompt": "the maker of the Game Boy",
        "hop1_answer": "Nintendo",
        "hop2_prompt_prefix": "The home country of",
        "hop2_answer": "Japan",
        "combined_question": "The home country of the maker of the Game Boy",
        "category": "company_location",
    },
    {
        "id": "example_002",
        "hop1_prompt": "the author of Dracula",
        "hop1_answer": "Bram Stoker",
        "hop2_prompt_prefix": "The birth country of",
        "hop2_answer": "Ireland",
        "combined_question": "The country where the author of Dracula was born",
        "category": "person_location",
    },
]
CHINESE = {
    "hop1_prompt": "首都是东京的国家是",
    "hop1_answer": "日本",
    "hop2_prompt": "{}的货币是",
    "hop2_answer": "日元",
    "combined_question": "首都是东京的国家的货币是",
    "cue": "是",
}


class TestFormsOfOthers:
    def load(self, tmp_path, rows, name: str = "theirs.json"):
        (tmp_path / name).write_text(rows if isinstance(rows, str) else json.dumps(rows))
        return load_questions(tmp_path / name)

    def test_a_file_of_an_earlier_reproduction(self, tmp_path):
        whole, other_words = self.load(tmp_path, REPRODUCTION)
        # What is asked stays what it was; the cue is added to each prompt.
        assert whole.combined_question == whole.query == "The home country of the maker of the Game Boy is"
        assert whole.hop1_prompt == "the maker of the Game Boy is"
        assert whole.hop2_prompt == "The home country of Nintendo is"
        assert other_words.combined_question == "The country where the author of Dracula was born is"
        assert other_words.query == "The birth country of the author of Dracula is"
        assert other_words.query[: other_words.pi2_end] == "The birth country of"
        assert other_words.query[: other_words.pi1_end] == "The birth country of the author of Dracula"

    @pytest.mark.parametrize("wrap", [lambda rows: {"examples": rows}, lambda rows: {row["id"]: row for row in rows}])
    def test_in_an_object(self, tmp_path, wrap):
        assert self.load(tmp_path, wrap(REPRODUCTION)) == self.load(tmp_path, REPRODUCTION)

    def test_in_lines_and_in_a_table(self, tmp_path):
        expected = self.load(tmp_path, REPRODUCTION)
        lines = "\n".join(map(json.dumps, REPRODUCTION))
        assert self.load(tmp_path, lines, "a.jsonl") == self.load(tmp_path, lines) == expected
        for name, delimiter in (("a.csv", ","), ("b.CSV", ";"), ("c.tsv", "\t")):
            with (tmp_path / name).open("w", newline="") as file:
                table = csv.DictWriter(file, [*REPRODUCTION[0], "hop2_aliases"], delimiter=delimiter)
                table.writeheader()
                table.writerows(row | {"hop2_aliases": "Nippon; Éire"} for row in REPRODUCTION)
            found = load_questions(tmp_path / name)
            assert [one.id for one in found] == ["example_001", "example_002"]
            assert found[1].accepted == ("Ireland", "Nippon", "Éire")

    def test_an_id_or_a_number(self, tmp_path):
        named = self.load(tmp_path, REPRODUCTION)
        assert find_question(named, "example_002") == find_question(named, "1") == find_question(named, 1) == named[1]
        with pytest.raises(
            PatchscopesError, match="no question with the id 2; there are example_001 to example_002, or"
        ):
            find_question(named, "2")
        # An id comes before a number.
        numbered = self.load(tmp_path, [row | {"id": 2 - number} for number, row in enumerate(REPRODUCTION)])
        assert find_question(numbered, "1") == numbered[1]
        assert find_question(numbered, "0") == numbered[0]
        without = self.load(tmp_path, [{key: row[key] for key in row if key != "id"} for row in REPRODUCTION])
        assert [one.id for one in without] == [0, 1]

    def test_the_first_hop_first(self, tmp_path):
        """In Chinese π1 comes before π2, and nothing stands between them."""
        (question,) = self.load(tmp_path, [CHINESE])
        assert question.query == question.combined_question == "首都是东京的国家的货币是"
        assert question.query[: question.pi1_end] == "首都是东京的国家"
        assert question.query[question.pi1_end : question.pi2_end] == "的货币"
        assert question.hop2_prompt == "日本的货币是"
        # The same without the cue, which is added.
        bare = {name: text.removesuffix("是") for name, text in CHINESE.items() if name != "cue"} | {"cue": "是"}
        assert self.load(tmp_path, [bare]) == (question,)

    @pytest.mark.parametrize(
        ("cue", "completed"), [("is", " is"), ("heißt", " heißt"), (":", ":"), ("は", "は"), ("", "")]
    )
    def test_a_cue_is_no_part_of_the_word_before_it(self, cue, completed):
        question = build_question(
            "here",
            id=0,
            hop1_prompt="the city of Paris",
            hop1_answer="",
            hop2_prompt="Fame of {}",
            hop2_answer="",
            cue=cue,
        )
        assert question.cue == completed
        assert question.hop1_prompt == f"the city of Paris{completed}"

    def test_a_first_hop_with_a_place_for_a_subject(self):
        asked = {"hop1_prompt": "the capital of {}", "hop1_answer": "", "hop2_prompt": "Fame of {}", "hop2_answer": ""}
        with pytest.raises(PatchscopesError, match="has a place for a subject .*; write it out"):
            build_question("row 3", id=0, **asked)

    def test_a_first_hop_of_nothing_but_the_cue(self):
        with pytest.raises(PatchscopesError, match="the first hop '是' has no words but the cue"):
            build_question(
                "here", id=0, hop1_prompt="是", hop1_answer="", hop2_prompt="{}的货币是", hop2_answer="", cue="是"
            )

    @pytest.mark.parametrize(
        ("hop2", "hop1", "cue", "pi2"),
        [
            ("{}の通貨は", "東京が首都の国は", "は", "の通貨"),
            ("{}'s currency is", "the country whose capital is Tokyo is", None, "'s currency"),
            ("{} की मुद्रा है", "टोक्यो जिसकी राजधानी है वह देश है", " है", " की मुद्रा"),
            ("Başkenti {} para birimi", "Tokyo olan ülkenin", "", " para birimi"),
            ("Die Währung von {} heißt", "dem Land mit der Hauptstadt Tokio heißt", " heißt", "Die Währung von"),
        ],
    )
    def test_of_other_languages(self, hop2, hop1, cue, pi2):
        question = build_question(
            "here", id=0, hop1_prompt=hop1, hop1_answer="", hop2_prompt=hop2, hop2_answer="", cue=cue
        )
        assert question.query[: question.pi2_end].endswith(pi2)
        assert question.query[: question.pi1_end].endswith(question.pi1)
        assert question.query[max(question.pi1_end, question.pi2_end) :] == question.cue
        assert question.combined_question == question.query

    def test_tables_of_the_papers_code(self, tmp_path):
        row = {
            "sample_id": 3,
            "prompt_source": "Who is the current CEO of ",
            "position_source": -1,
            "prompt_target": "the company that created Zune",
            "position_target": -1,
            "baseline_hop2": "the company that created Zune",
            "baseline_hop3": "Who is the current CEO of Microsoft",
            "baseline_multihop3": "Who is the current CEO of the company that created Zune",
            "hop1": "Zune",
            "hop2": "Microsoft",
            "hop3": "Satya Nadella",
        }
        # With the row numbers that data frames are saved with.
        table = "\t".join(["", *row]) + "\n" + "\t".join(["0", *map(str, row.values())]) + "\n"
        (question,) = self.load(tmp_path, table, "multihop_product_company_ceo.tsv")
        assert (question.id, question.hop1_answer, question.hop2_answer) == (3, "Microsoft", "Satya Nadella")
        assert question.query == question.combined_question == row["baseline_multihop3"]
        assert question.query[: question.pi2_end] == "Who is the current CEO of"
        assert question.pi1 == question.hop1_prompt == "the company that created Zune"
        assert question.hop2_prompt == row["baseline_hop3"]
        assert self.load(tmp_path, [row]) == (question,)
        with pytest.raises(PatchscopesError, match="item 1: expected `hop2` in `baseline_hop3`, got 'Apple'"):
            self.load(tmp_path, [row | {"hop2": "Apple"}])
