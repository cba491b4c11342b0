"""Facts: of relations, and from files in the form in which causal tracing publishes them."""

import json

import pytest

from patchscopes.data.facts import Fact, convert_relations, load_facts
from patchscopes.data.relations import Relation, RelationSample, find_relation_files, load_relations
from patchscopes.errors import PatchscopesError

PUBLISHED = {
    "known_id": 0,
    "subject": "Vinson Massif",
    "attribute": "Antarctica",
    "template": "{} is located in the continent of",
    "prediction": " of Antarctica. It is the",
    "prompt": "Vinson Massif is located in the continent of",
    "relation_id": "P30",
}


def write(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


class TestFiles:
    def test_published_facts(self, tmp_path):
        (fact,) = load_facts(write(tmp_path / "known.json", [PUBLISHED]))
        assert (fact.prompt, fact.subject, fact.accepted) == (PUBLISHED["prompt"], "Vinson Massif", ("Antarctica",))

    def test_a_prompt_with_a_place_for_the_subject(self, tmp_path):
        row = {"prompt": "A man of A: {} lives in", "subject": "A", "attribute": "B"}
        (fact,) = load_facts(write(tmp_path / "facts.json", [row]))
        assert fact.prompt == "A man of A: A lives in"
        # The place is meant, not the same word before it.
        assert (fact.subject, fact.span) == ("A", (12, 13))

    def test_a_table(self, tmp_path):
        path = tmp_path / "facts.csv"
        path.write_text('subject,prompt,attribute\nRome,"Rome, the capital of ",Italy\nBern,In {} one speaks,German\n')
        first, second = load_facts(path)
        assert (first.prompt, first.span) == ("Rome, the capital of", (0, 4))
        assert (second.prompt, second.subject, second.attribute) == ("In Bern one speaks", "Bern", "German")

    def test_the_same_prompt_again_accepts_both_attributes(self, tmp_path):
        rows = [{"prompt": "{} is", "subject": "Ice", "attribute": word} for word in ("cold", "solid", "cold")]
        (fact,) = load_facts(write(tmp_path / "facts.json", rows))
        assert (fact.attribute, fact.aliases) == ("cold", ("solid",))

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"prompt": "x is", "subject": "x"}, "item 2: expected the strings `prompt`, `subject` and `attribute`"),
            ({"prompt": "x is", "subject": " ", "attribute": "y"}, "item 2: expected the strings"),
            ({"prompt": 3, "subject": "x", "attribute": "y"}, "item 2: expected the strings"),
            ("x is y", "item 2: expected the strings"),
            (
                {"prompt": "{} or {}", "subject": "x", "attribute": "y"},
                "item 2: expected a prompt with {} at most once",
            ),
            (
                {"prompt": "z is", "subject": "x", "attribute": "y"},
                "item 2: the subject 'x' is not in the prompt 'z is'",
            ),
        ],
    )
    def test_bad_rows_are_named(self, tmp_path, row, message):
        path = write(tmp_path / "facts.json", [PUBLISHED, row])
        with pytest.raises(PatchscopesError) as caught:
            load_facts(path)
        assert f"{path}, {message}" in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("facts.json", "[]", "has no facts; give rows with a `prompt`"),
            ("facts.csv", "prompt,subject,attribute\n", "has no facts"),
            ("facts.csv", "prompt,subject\na is,a\n", "line 2: expected the strings"),
            ("facts.json", "{}", "expected a string `name`"),
            ("facts.json", "3", "expected a list of objects"),
            ("facts.json", "[{]", "line 1: not JSON"),
            ("facts.txt", "a", " or .csv or .tsv or .parquet file of facts"),
        ],
    )
    def test_bad_files_are_named(self, tmp_path, name, text, message):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(PatchscopesError, match=message):
            load_facts(path)

    def test_no_file(self, tmp_path):
        with pytest.raises(PatchscopesError, match="there is no file"):
            load_facts(tmp_path / "facts.json")


class TestRelations:
    def test_the_cue_follows_a_subject_at_the_end(self):
        samples = (RelationSample(subject="Japan", object="yen", aliases=("Japanese yen",)),)
        relations = [
            Relation(name=name, prompt=prompt, samples=samples)
            for name, prompt in (("first", "The currency of {}"), ("second", "{} pays in the currency"))
        ]
        assert convert_relations(relations) == (
            Fact(
                prompt="The currency of Japan is",
                span=(16, 21),
                attribute="yen",
                aliases=("Japanese yen",),
                relation="first",
            ),
            Fact(
                prompt="Japan pays in the currency",
                span=(0, 5),
                attribute="yen",
                aliases=("Japanese yen",),
                relation="second",
            ),
        )

    def test_a_file_of_one(self):
        path = find_relation_files()[0]
        assert load_facts(path) == convert_relations(load_relations([path]))

    def test_all_that_come_along(self):
        relations = load_relations(find_relation_files())
        facts = convert_relations(relations)
        assert len(facts) == sum(len(relation.samples) for relation in relations)
        subjects = [sample.subject for relation in relations for sample in relation.samples]
        assert [fact.subject for fact in facts] == subjects
        assert all(fact.prompt.endswith(" is") for fact in facts)
