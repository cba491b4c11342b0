"""What counts as a keyword in a text."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.data.entities import Entity
from patchscopes.experiments.layer_grid_classes import (
    CLASSES,
    classify,
    find_keywords,
    select_keywords,
)
from patchscopes.words import normalise_words


class TestFind:
    @pytest.mark.parametrize(
        ("text", "keywords"),
        [
            ("a German physicist.", ["German", "physicist"]),
            ("GERMAN\n\tPhysicist", ["german", "physicist"]),
            ("the physicist's theory", ["physicist"]),
            ("Nobel-winning", ["Nobel"]),
            ("born in New\nYork", ["New York"]),
            ("born in New-York", ["New York"]),
            ("E=mc²!", ["E = mc²"]),
            ("STRASSE", ["Straße"]),
            (unicodedata.normalize("NFD", "Curaçao, São Tomé"), ["Curaçao", "são tomé"]),
            ("phy\u00adsicist", ["physicist"]),
            ("немецкий физик", ["ФИЗИК"]),
            ("ο Αϊνστάιν ήταν φυσικός", ["φυσικός"]),
            ("日本の首都は東京です", ["東京", "首都"]),
            ("ドイツの物理学者", ["ドイツ", "物理学者"]),
            ("は NASAの計画", ["NASA"]),
            ("นักฟิสิกส์ชาวเยอรมัน", ["เยอรมัน"]),
            ("독일의 물리학자였다", ["독일", "물리학자"]),
            ("عالم فيزياء", ["فيزياء"]),
            ("भारत की राजधानी", ["भारत"]),
            ("1879–1955", ["1879"]),
        ],
    )
    def test_whole_words_in_any_script(self, text, keywords):
        assert find_keywords(text, keywords) == keywords

    @pytest.mark.parametrize(
        ("text", "keyword"),
        [
            ("germane to it", "German"),
            ("metaphysicist", "physicist"),
            ("physicists", "physicist"),
            ("in 18790", "1879"),
            ("New and York", "New York"),
            ("физика", "физик"),
            ("भारतीय", "भारत"),
            ("cafe\u0301", "cafe"),
            ("", "German"),
            ("anything", ""),
            ("anything", "!"),
        ],
    )
    def test_not_within_a_word(self, text, keyword):
        assert find_keywords(text, [keyword]) == []

    def test_one_phrase_is_one_fact(self):
        keywords = ["physics", "nuclear physics", "nuclear"]
        assert find_keywords("nuclear physics", keywords) == ["nuclear physics"]
        assert find_keywords("nuclear physics, then physics", keywords) == ["physics", "nuclear physics"]
        assert find_keywords("Physics", ["physics", "PHYSICS", "physics"]) == ["physics"]

    @given(st.text(max_size=40), st.text(max_size=8))
    def test_what_stands_alone_is_found_and_nothing_raises(self, text, keyword):
        found = find_keywords(f"{text} ; {keyword} ; {text}", [keyword])
        assert found == ([keyword] if normalise_words(keyword) else [])


class TestClasses:
    KEYWORDS = ("German", "physicist", "relativity")

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("", "failed"),
            ("Albert Einstein, Albert Einstein", "failed"),
            ("a physicist, physicist, PHYSICIST", "partial"),
            ("German physicist", "strong"),
            ("German physicist of relativity", "strong"),
        ],
    )
    def test_by_how_many_keywords(self, text, name):
        assert CLASSES[classify(text, self.KEYWORDS)] == name


class TestKeywordsOfAName:
    def test_an_echo_of_the_name_is_no_knowledge(self):
        entity = Entity(
            name="Diana, Princess of Wales",
            keywords=("princess", "WALES", "Princess Diana", "Prince of Wales", "royal", "royal", "of"),
        )
        kept = select_keywords(entity)
        assert kept == ("Prince of Wales", "royal")
        assert CLASSES[classify(entity.name, kept)] == "failed"

    def test_nor_is_a_part_of_it_where_no_spaces_stand(self):
        entity = Entity(name="東京タワー", keywords=("東京", "電波塔", "赤"))
        assert select_keywords(entity) == ("電波塔", "赤")

    def test_an_echo_with_a_word_more_is_failed_still(self):
        entity = Entity(name="Amazon River", keywords=("river", "Brazil", "rainforest"))
        assert CLASSES[classify("Amazon River, the river Amazon", select_keywords(entity))] == "failed"
