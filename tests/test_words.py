"""What a word is, in any script."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from patchscopes.data.files import DATA_FOLDER
from patchscopes.words import find_whole, fold_signs, is_whole, may_go_on, normalise_words, split_words


class TestSplit:
    @given(st.text(st.characters(max_codepoint=127), max_size=200))
    def test_ascii_as_the_package_of_rouge_splits_it(self, text):
        assert split_words(text) == DefaultTokenizer().tokenize(text)

    def test_the_librarys_texts_as_the_package_of_rouge_splits_them(self):
        lines = (DATA_FOLDER / "passages.jsonl").read_text(encoding="utf-8").splitlines()
        ascii_lines = [line for line in lines if line.isascii()][:40]
        assert len(ascii_lines) == 40
        for line in ascii_lines:
            assert split_words(line) == DefaultTokenizer().tokenize(line)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("Столица России", ["столица", "россии"]),
            ("São Tomé", ["são", "tomé"]),
            ("η πρωτεύουσα", ["η", "πρωτεύουσα"]),
            ("भारत की राजधानी", ["भारत", "की", "राजधानी"]),
            ("عاصمة فرنسا", ["عاصمة", "فرنسا"]),
            ("首都是北京。", ["首", "都", "是", "北", "京"]),
            ("二〇〇〇年、人々", ["二", "〇", "〇", "〇", "年", "人", "々"]),
            ("ﾄﾞｲﾂ", ["ド", "イ", "ツ"]),
            ("กรุงเทพ", ["ก", "รุ", "ง", "เ", "ท", "พ"]),
            ("서울은", ["서", "울", "은"]),
            ("NASAの計画", ["nasa", "の", "計", "画"]),
            ("snake_case", ["snake", "case"]),
            ("Nintendo™ 🎮 mc²", ["nintendo", "mc2"]),
            ("a\u200bb c\u00add", ["a", "b", "cd"]),
            ("\x1b\x00\t", []),
        ],
    )
    def test_of_any_script(self, text, words):
        assert split_words(text) == words

    @given(st.text())
    def test_nothing_is_lost_and_nothing_is_split_twice(self, text):
        words = split_words(text)
        assert "".join(words) == normalise_words(text).replace(" ", "")
        assert [split_words(word) for word in words] == [[word] for word in words]

    @given(st.text())
    def test_the_encoding_of_accents_does_not_count(self, text):
        composed, apart = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
        assert split_words(composed) == split_words(apart)


class TestWhole:
    def test_places(self):
        assert find_whole("yen, yenta, a yen", "yen") == [0, 14]
        assert find_whole("東京東京", "東京") == [0, 2]
        assert find_whole("any", "") == []

    @given(st.text(max_size=30), st.text(max_size=3))
    def test_each_place_is_whole(self, text, words):
        for start in find_whole(text, words):
            assert text.startswith(words, start)
            assert is_whole(text, start, start + len(words))

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", False),
            ("yen", True),
            ("yen.", False),
            ("cafe\u0301", True),
            ("yen\ufffd", True),
            ("yen\u00ad", True),
            ("yen\ufffd\ufffd", False),
        ],
    )
    def test_what_may_go_on(self, text, expected):
        assert may_go_on(text) is expected


class TestSigns:
    @given(st.text())
    def test_each_stays_in_its_place(self, text):
        assert len(fold_signs(text)) == len(text)

    @given(st.text(st.characters(max_codepoint=127)))
    def test_those_of_ascii_are_what_they_are(self, text):
        assert fold_signs(text) == text

    def test_of_other_scripts_and_widths(self):
        assert fold_signs("：，、；．。،؛।") == ":,,;..,;."
