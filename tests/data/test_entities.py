"""Entities: their files, and where descriptions end."""

import json
import re
from itertools import permutations, product

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.data.entities import cut_description, load_entities
from patchscopes.data.files import DATA_FOLDER
from patchscopes.errors import PatchscopesError


def are_inflections(word: str, other: str) -> bool:
    """Whether two words begin alike, as "Egypt" and "Egyptian" do, or "car" and "cars"."""
    n_letters = min(4, len(word), len(other))
    return word[:n_letters] == other[:n_letters]


class TestCut:
    @pytest.mark.parametrize(
        ("generation", "description"),
        [
            (": British monarch, Queen Elizabeth: English queen", "British monarch"),
            (
                ": Country in Europe, the Baltic and the north, Oslo: city",
                "Country in Europe, the Baltic and the north",
            ),
            (": American actor\nIt is", "American actor"),
            (" British monarch", "British monarch"),
            (": city", "city"),
            ("", ""),
            ("\n\nIn the context of", ""),
            ("ar: African-American male, Al-Sabah: Al-", "African-American male"),
            (" States: United Kingdom, United States: United", "United Kingdom"),
            ("actor, director: both", "actor"),
            (":", ""),
            (": , x: y", ""),
            (": actor, director", "actor, director"),
            (": at 10:30, in May", "at 10:30, in May"),
            (": one, two: three, four: five", "one"),
            ("：英国君主，伊丽莎白：英国女王", "英国君主"),
            ("： 英国 君主、伊丽莎白: 女王", "英国 君主"),
            ("：日本の俳優、監督", "日本の俳優、監督"),
            (": ممثل أمريكي، سوريا: دولة", "ممثل أمريكي"),
            ("：欧洲的国家。首都是", "欧洲的国家。首都是"),
        ],
    )
    def test_ends_where_the_prompts_format_ends_it(self, generation, description):
        assert cut_description(generation) == description

    def test_another_separator(self):
        assert cut_description(": one, two: three; four: five", "; ") == "one, two: three"
        assert cut_description(": one\ntwo: three", "\n") == "one"
        assert cut_description("：一，二。三：四", "。") == cut_description("：一，二．三：四", ". ") == "一，二"
        assert cut_description("：一；二：三", "; ") == cut_description(": 一; 二: 三", "；") == "一"

    @given(st.text(max_size=60))
    def test_is_a_part_of_one_line(self, generation):
        description = cut_description(generation)
        assert description in generation
        assert "\n" not in description


class TestFiles:
    def test_those_of_the_library(self):
        entities = load_entities(DATA_FOLDER / "entities.json")
        assert len(entities) >= 120
        assert len({one.name for one in entities}) == len(entities)
        kinds, popularity = ([getattr(one, name) for one in entities] for name in ("kind", "popularity"))
        assert set(kinds) == {"person", "place", "organisation", "work", "event", "species", "material"}
        assert min(map(kinds.count, set(kinds))) >= 14
        assert popularity.count("well_known") == popularity.count("little_known")
        for one in entities:
            assert ":" not in one.name
            # The well known ones also have a short description as encyclopedias have it.
            assert len(set(one.references)) == (2 if one.popularity == "well_known" else 1)

    def test_references_of_the_library_say_no_word_of_the_name(self):
        """So repeating the name earns no score."""
        small = {"a", "and", "in", "of", "the"}
        for one in load_entities(DATA_FOLDER / "entities.json"):
            name, *references = (set(re.findall(r"\w+", text.casefold())) for text in (one.name, *one.references))
            assert not any((name - small) & words for words in references), one
            assert all(3 <= len(reference.split()) <= 12 for reference in one.references), one

    def test_keywords_of_the_library_say_what_the_name_does_not(self):
        """No word of a keyword is one of the name or an inflection of one, and no keyword says another one again."""
        for one in load_entities(DATA_FOLDER / "entities.json"):
            assert 3 <= len(one.keywords) <= 6, one
            name, *keywords = (re.findall(r"\w+", text.casefold()) for text in (one.name, *one.keywords))
            for words in keywords:
                assert not any(are_inflections(*pair) for pair in product(words, name)), one
            for words, others in permutations(keywords, 2):
                assert not set(words) <= set(others), one
                assert len(words) > 1 or len(others) > 1 or not are_inflections(*words, *others), one

    def test_csv_and_json_are_the_same(self, tmp_path):
        (tmp_path / "a.csv").write_text(
            'entity,reference,kind,keywords\n"Diana, Princess of Wales",royal,person,British; royal ;\nOslo,city,,\n'
        )
        rows = [
            {
                "entity": "Diana, Princess of Wales",
                "reference": "royal",
                "kind": "person",
                "keywords": ["British", "royal"],
            },
            {"entity": "Oslo", "reference": "city"},
        ]
        (tmp_path / "a.json").write_text(json.dumps(rows))
        diana, oslo = load_entities(tmp_path / "a.json")
        assert load_entities(tmp_path / "a.csv") == (diana, oslo)
        assert diana.keywords == ("British", "royal")
        assert (oslo.popularity, oslo.keywords) == ("unspecified", ())

    def test_several_references(self, tmp_path):
        """In every format, beside or in place of the one reference; each counts once."""
        (tmp_path / "a.csv").write_text(
            "entity;reference;references\nOslo;city;capital of Norway\n"
            'Bergen;;"port in Norway; city"\nTromsø;city;\n;;\n'
        )
        oslo = {"entity": "Oslo", "reference": "city", "references": ["capital of Norway", " city "]}
        bergen = {"entity": "Bergen", "references": ["port in Norway", "city"]}
        rows = [oslo, bergen, {"entity": "Tromsø", "references": "city"}]
        (tmp_path / "a.json").write_text(json.dumps(rows))
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        pyarrow.parquet.write_table(
            pyarrow.table(
                {
                    "entity": ["Oslo", "Bergen", "Tromsø"],
                    "reference": ["city", None, "city"],
                    "references": [["capital of Norway"], ["port in Norway", "city"], None],
                }
            ),
            tmp_path / "a.parquet",
        )
        expected = [("city", "capital of Norway"), ("port in Norway", "city"), ("city",)]
        for suffix in ("csv", "json", "jsonl", "parquet"):
            assert [one.references for one in load_entities(tmp_path / f"a.{suffix}")] == expected

    @pytest.mark.parametrize("references", [[], ["city", 3], ["city", " "], None, 3])
    def test_bad_references_are_named(self, tmp_path, references):
        row = {"entity": "Oslo", "references": references}
        (tmp_path / "a.json").write_text(json.dumps([row]))
        with pytest.raises(PatchscopesError, match="item 1: expected the strings `entity` and `reference` .or a list"):
            load_entities(tmp_path / "a.json")

    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            (["royal", "princess"], "item 1: the keyword 'princess' stands in the name .*; give a fact"),
            (["of Wales"], "item 1: the keyword 'of Wales' stands in the name"),
            (["royal", " Royal "], "item 1: the keyword 'Royal' is given twice; leave one out"),
            (["royal", "--"], "item 1: the keyword '--' has no letter"),
            (["royal", ""], "item 1: the keyword '' has no letter"),
            (["royal", 3], "item 1: expected `keywords` as a list of strings"),
            ("royal; British", "item 1: expected `keywords` as a list of strings, got royal; British"),
            (None, "item 1: expected `keywords` as a list of strings, got None"),
        ],
    )
    def test_a_bad_keyword_is_named(self, tmp_path, keywords, message):
        row = {"entity": "Diana, Princess of Wales", "reference": "royal", "keywords": keywords}
        (tmp_path / "a.json").write_text(json.dumps([row]))
        with pytest.raises(PatchscopesError, match=message):
            load_entities(tmp_path / "a.json")

    def test_a_bad_keyword_of_a_table_is_named(self, tmp_path):
        (tmp_path / "a.csv").write_text("entity,reference,keywords\nOslo,city,Norway;OSLO\n")
        with pytest.raises(PatchscopesError, match=r"a.csv, line 2: the keyword 'OSLO' stands in the name 'Oslo'"):
            load_entities(tmp_path / "a.csv")

    def test_a_word_inside_a_word_of_the_name_is_another_one(self, tmp_path):
        row = {"entity": "Moby-Dick", "reference": "novel", "keywords": ["mob", "Moby whale"]}
        (tmp_path / "a.json").write_text(json.dumps([row]))
        assert load_entities(tmp_path / "a.json")[0].keywords == ("mob", "Moby whale")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            (
                "a.json",
                '[{"entity": "a", "reference": "b"}, {"entity": "c"}]',
                "a.json, item 2: expected the strings",
            ),
            ("a.json", '[{"entity": "a", "reference": 3}]', "item 1"),
            ("a.json", '["a"]', "item 1"),
            ("a.json", '{"entity": "a"}', "expected a list of objects, got dict"),
            ("a.json", "[\n{,}]", "line 2: not JSON"),
            ("a.json", "[]", "has no entities"),
            ("a.csv", "entity,reference\na,b\nc\n", "a.csv, line 3: expected"),
            ("a.csv", "name,reference\na,b\n", "line 2: expected"),
            ("a.txt", "a", "expected a .json or .jsonl or .csv or .tsv or .parquet file of entities"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path, name, content, message):
        (tmp_path / name).write_text(content)
        with pytest.raises(PatchscopesError, match=message):
            load_entities(tmp_path / name)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(PatchscopesError, match="there is no file"):
            load_entities(tmp_path / "a.json")
