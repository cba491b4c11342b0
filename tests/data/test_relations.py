"""Relations: this library's files, those of Hernandez et al., sample tables in the paper's columns, and carriers."""

import csv
import io
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.data.entities import load_entities
from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.questions import contains_answer
from patchscopes.data.relations import (
    Relation,
    RelationSample,
    find_relation_files,
    find_subject,
    load_carriers,
    load_relations,
)
from patchscopes.errors import PatchscopesError

PAPER_TASKS = {
    "fruit_inside_color",
    "fruit_outside_color",
    "superclass",
    "phase",
    "tool",
    "ceo",
    "currency",
    "food_origin",
    "sports_position",
    "sport",
    "product_maker",
    "constellation",
}
OTHER_TASKS = {
    "capital",
    "language",
    "largest_city",
    "continent",
    "nationality",
}

OWN = {
    "name": "currency",
    "kind": "factual",
    "subject_kind": "country",
    "prompt": "The official currency of {}",
    "samples": [
        {"subject": "Japan", "object": "yen", "aliases": ["Japanese yen"]},
        {"subject": "India", "object": "rupee"},
    ],
}
HERNANDEZ = {
    "name": "tool of a task",
    "prompt_templates": ["The tool for {} is a", "For {} one needs a"],
    "prompt_templates_zs": ["What is used for {}?"],
    "properties": {"relation_type": "commonsense", "symmetric": False},
    "samples": [
        {"subject": "hitting nails", "object": "hammer"},
        {"subject": "playing golf", "object": "golf club"},
        {"subject": "playing tennis", "object": "tennis"},
        {"subject": "washing", "object": "sponge"},
        {"subject": "washing", "object": "soap"},
        {"subject": "washing", "object": "sponge"},
    ],
}
HEADER = ["", "sample_id", "prompt_target", "position_target", "object", "subject", "prompt_source", "position_source"]
TARGET = "The currency of x"


def write_json(folder, content, name="relation.json"):
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def write_table(path, rows, header=HEADER):
    """A table as the csv module writes it; rows are dictionaries, and cells that they lack are empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, header, delimiter="\t" if path.suffix == ".tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), newline="")
    return path


def row(subject, answer, source, target=TARGET):
    return {"subject": subject, "object": answer, "prompt_source": source, "prompt_target": target}


@pytest.fixture(scope="module")
def relations():
    return load_relations(find_relation_files())


class TestLibrary:
    def test_the_tasks_of_the_paper_and_more(self, relations):
        assert len(relations) >= 16
        assert {relation.name for relation in relations} >= PAPER_TASKS | OTHER_TASKS
        assert [relation.name for relation in relations] == [path.stem for path in find_relation_files()]
        assert {relation.kind for relation in relations} == {"commonsense", "factual"}

    def test_30_to_120_subjects_each(self, relations):
        for relation in relations:
            assert 30 <= len(relation.samples) <= 120, relation.name
            assert relation.n_left_out == 0
            # Each subject stands there once: nothing was merged.
            path = DATA_FOLDER / "relations" / f"{relation.name}.json"
            assert len(json.loads(path.read_text())["samples"]) == len(relation.samples), relation.name

    def test_prompts_end_with_the_subject(self, relations):
        for relation in relations:
            assert relation.prompt.endswith(" {}"), relation.name
            for sample in relation.samples:
                assert not contains_answer(relation.fill(sample.subject), sample.accepted), (relation.name, sample)

    def test_no_object_is_nearly_all_of_a_task(self, relations):
        for relation in relations:
            most = max(Counter(sample.object for sample in relation.samples).values())
            assert most < 0.7 * len(relation.samples), relation.name

    def test_carriers_for_every_kind_of_subject(self, relations):
        carriers = load_carriers()
        assert set(carriers) >= {relation.subject_kind for relation in relations} | {"unspecified"}
        for kind, sentences in carriers.items():
            assert len(set(sentences)) == len(sentences) >= 12, kind

    def test_carriers_do_not_say_the_answer(self, relations):
        carriers = load_carriers()
        for relation in relations:
            sentences = " … ".join(carriers[relation.subject_kind])
            for sample in relation.samples:
                assert not contains_answer(sentences, sample.accepted), (relation.name, sample)


class TestOwn:
    def test_fields(self, tmp_path):
        (relation,) = load_relations([write_json(tmp_path, OWN)])
        assert relation == Relation(
            name="currency",
            prompt="The official currency of {}",
            samples=(
                RelationSample(subject="Japan", object="yen", aliases=("Japanese yen",)),
                RelationSample(subject="India", object="rupee"),
            ),
            kind="factual",
            subject_kind="country",
        )
        assert relation.samples[0].accepted == ("yen", "Japanese yen")
        assert relation.fill("x") == "The official currency of x"
        assert relation.cue == " is"

    def test_kinds_may_be_left_out(self, tmp_path):
        fields = {name: OWN[name] for name in ("name", "prompt", "samples")}
        (relation,) = load_relations([write_json(tmp_path, fields)])
        assert (relation.kind, relation.subject_kind) == ("unspecified", "unspecified")

    def test_no_cue_within_a_prompt(self, tmp_path):
        prompt = "For {}, {the} currency"
        (relation,) = load_relations([write_json(tmp_path, OWN | {"prompt": prompt})])
        assert relation.cue == ""
        assert relation.fill("{x}") == "For {x}, {the} currency"

    def test_a_subject_given_again_has_aliases(self, tmp_path):
        again = [
            {"subject": " Japan ", "object": "JPY", "aliases": ["yen", "en"]},
            {"subject": "Japan", "object": "円"},
        ]
        (relation,) = load_relations([write_json(tmp_path, OWN | {"samples": OWN["samples"] + again})])
        assert [sample.subject for sample in relation.samples] == ["Japan", "India"]
        assert relation.samples[0].accepted == ("yen", "Japanese yen", "JPY", "en", "円")
        assert relation.n_left_out == 0

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "line 1: not JSON"),
            ("{,}", "line 1: not JSON"),
            ("[]", "expected one object with a relation, got list"),
            ("{}", "expected a string `name`, got None"),
            (json.dumps(OWN | {"name": " "}), "expected a string `name`"),
            (json.dumps(OWN | {"kind": 3}), "expected a string `kind`, got 3"),
            (json.dumps(OWN | {"subject_kind": None}), "expected a string `subject_kind`"),
            (json.dumps(OWN | {"prompt": None}), "the prompt: expected a string with {} once, got None"),
            (json.dumps(OWN | {"prompt": "The currency"}), "the prompt: expected a string with {} once"),
            (json.dumps(OWN | {"prompt": "{} and {}"}), "the prompt: expected a string with {} once"),
            (json.dumps(OWN | {"samples": {}}), "expected `samples` as a list"),
            (json.dumps(OWN | {"samples": []}), "has no samples"),
            (json.dumps(OWN | {"name": "half \ud83d"}), "`name`, item 1: half a surrogate pair"),
        ],
    )
    def test_a_bad_file_is_named(self, tmp_path, content, message):
        path = tmp_path / "bad.json"
        path.write_text(content)
        with pytest.raises(PatchscopesError, match=message) as error:
            load_relations([path])
        assert "bad.json" in str(error.value)

    @pytest.mark.parametrize(
        ("sample", "message"),
        [
            ("Peru", "expected the strings `subject` and `object`"),
            ({"subject": "Peru"}, "expected the strings"),
            ({"object": "sol"}, "expected the strings"),
            ({"subject": "Peru", "object": ""}, "expected the strings"),
            ({"subject": " ", "object": "sol"}, "expected the strings"),
            ({"subject": "Peru", "object": 3}, "expected the strings"),
            ({"subject": "Peru", "object": ["sol"]}, "expected the strings"),
            ({"subject": "Peru", "object": "sol", "aliases": "sols"}, "expected `aliases` as a list"),
            ({"subject": "Peru", "object": "sol", "aliases": [1]}, "expected `aliases` as a list"),
            ({"subject": "Peru", "object": "sol", "aliases": [" "]}, "expected `aliases` as a list"),
            ({"subject": "Peru", "object": "sol", "aliases": None}, "expected `aliases` as a list"),
            ({"subject": "Peru", "object": "$"}, "the answer '\\$' has no letter"),
            ({"subject": "Peru", "object": "sol", "aliases": ["_"]}, "the answer '_' has no letter"),
            ({"subject": "Peru", "object": "peru"}, "an accepted answer, of peru, stands in the prompt"),
            ({"subject": "Peru", "object": "sol", "aliases": ["Official"]}, "stands in the prompt 'The official"),
            ({"subject": "half \ud83d", "object": "sol"}, "half a surrogate pair"),
        ],
    )
    def test_a_bad_sample_is_named(self, tmp_path, sample, message):
        path = write_json(tmp_path, OWN | {"samples": [*OWN["samples"], sample]}, "bad.json")
        with pytest.raises(PatchscopesError, match=rf"bad\.json, (sample|`samples`, item) 3: .*{message}"):
            load_relations([path])


class TestHernandez:
    def test_fields(self, tmp_path):
        path = write_json(tmp_path, HERNANDEZ)
        (relation,) = load_relations([path])
        assert relation == Relation(
            name="tool of a task",
            prompt="The tool for {} is a",
            samples=(
                RelationSample(subject="hitting nails", object="hammer"),
                RelationSample(subject="playing golf", object="golf club"),
                RelationSample(subject="washing", object="sponge", aliases=("soap",)),
            ),
            kind="commonsense",
            left_out=(f"{path}, sample 3: the subject 'playing tennis' says the answer itself",),
        )
        assert relation.cue == ""

    @pytest.mark.parametrize("properties", [None, [], {}, {"relation_type": 3}])
    def test_without_a_kind(self, tmp_path, properties):
        (relation,) = load_relations([write_json(tmp_path, HERNANDEZ | {"properties": properties})])
        assert relation.kind == "unspecified"

    def test_a_prompt_may_list_the_objects(self, tmp_path):
        """As the published superclass task does."""
        fields = HERNANDEZ | {
            "prompt_templates": ["Is {} a fish or a bird? It is a"],
            "samples": [{"subject": subject, "object": "fish"} for subject in ("salmon", "fish")],
        }
        (relation,) = load_relations([write_json(tmp_path, fields)])
        assert [sample.subject for sample in relation.samples] == ["salmon"]
        assert relation.n_left_out == 1

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"prompt_templates": []}, "the prompt: expected a string with {} once"),
            ({"prompt_templates": [3]}, "the prompt: expected a string with {} once, got 3"),
            ({"prompt_templates": None}, "the prompt: expected a string"),
            ({"samples": [{"subject": "a"}]}, "sample 1: expected the strings"),
            ({"samples": None}, "expected `samples`"),
            ({"samples": [{"subject": "a", "object": "a"}]}, "has no samples that can be used"),
            ({"name": None}, "expected a string `name`"),
        ],
    )
    def test_a_bad_file_is_named(self, tmp_path, fields, message):
        with pytest.raises(PatchscopesError, match=rf"relation\.json.*{message}"):
            load_relations([write_json(tmp_path, HERNANDEZ | fields)])


class TestTables:
    @pytest.mark.parametrize("suffix", [".tsv", ".csv"])
    def test_rows_of_a_subject_are_one_sample(self, tmp_path, suffix):
        rows = [
            row("Japan", "Yen", ' war with\tJapan, "prompted" a\n'),
            row("Japan", "Yen", " only in the Japanese language"),
            row("Japan", "en", " to JAPAN"),
            row("India", "Rupee", " of India"),
        ]
        (relation,) = load_relations([write_table(tmp_path / f"currency{suffix}", rows)])
        assert relation == Relation(
            name="currency",
            prompt="The currency of {}",
            samples=(
                RelationSample(
                    subject="Japan",
                    object="Yen",
                    aliases=("en",),
                    source_prompts=(
                        ' war with\tJapan, "prompted" a\n',
                        " only in the Japanese language",
                        " to JAPAN",
                    ),
                ),
                RelationSample(subject="India", object="Rupee", source_prompts=(" of India",)),
            ),
        )

    def test_positions_and_other_columns_are_not_needed(self, tmp_path):
        header = ["prompt_target", "prompt_source", "object", "subject"]
        path = write_table(tmp_path / "a.tsv", [row("Japan", "Yen", " in Japan")], header)
        assert load_relations([path])[0].samples[0].source_prompts == (" in Japan",)

    def test_a_column_of_aliases_is_not_read(self, tmp_path):
        path = write_table(tmp_path / "a.csv", [row("Japan", "Yen", "Japan") | {"aliases": "en"}], [*HEADER, "aliases"])
        assert load_relations([path])[0].samples[0].accepted == ("Yen",)

    def test_one_relation_for_each_target_prompt(self, tmp_path):
        rows = [
            row("Japan", "Yen", "Japan"),
            row("Japan", "Tokyo", "Japan", "x: the x"),
            row("India", "Rupee", "India"),
        ]
        relations = load_relations([write_table(tmp_path / "a.tsv", rows)])
        assert [(relation.name, relation.prompt) for relation in relations] == [
            ("a", "The currency of {}"),
            ("a (2)", "x: the {}"),
        ]
        assert [len(relation.samples) for relation in relations] == [2, 1]

    @pytest.mark.parametrize(
        ("target", "prompt"),
        [
            ("Next to xylophones x", "Next to xylophones {}"),
            ("x, x and axe", "x, {} and axe"),
            (" On the inside, the color of x ", "On the inside, the color of {}"),
            ("x's color", "{}'s color"),
        ],
    )
    def test_the_last_word_x_is_the_place(self, tmp_path, target, prompt):
        (relation,) = load_relations([write_table(tmp_path / "a.tsv", [row("Japan", "Yen", "Japan", target)])])
        assert relation.prompt == prompt

    def test_what_cannot_be_used_is_left_out_and_counted(self, tmp_path):
        """As it is in the published tables: empty source prompts, cut ones, and a neutral word called neutral."""
        target = "Among positive and neutral, the sentiment of x"
        rows = [
            row("neutral", "neutral", " was neutral in", target),
            row("party", "positive", "", target),
            row("party", "positive", " a party", target),
            row("dining chair", "neutral", " chair ===", target),
        ]
        path = write_table(tmp_path / "a.tsv", rows)
        (relation,) = load_relations([path])
        assert relation.samples == (RelationSample(subject="party", object="positive", source_prompts=(" a party",)),)
        assert relation.left_out == (
            f"{path}, line 2: the subject 'neutral' says the answer itself",
            f"{path}, line 3: the subject 'party' is not in its source prompt ''",
            f"{path}, line 5: the subject 'dining chair' is not in its source prompt ' chair ==='",
        )
        assert relation.n_left_out == 3

    def test_a_target_prompt_of_which_nothing_can_be_used_leaves_the_others(self, tmp_path):
        rows = [row("Peru", "sol", "", "x's money"), row("Japan", "yen", " Japan", "The currency of x")]
        path = write_table(tmp_path / "a.tsv", rows)
        (relation,) = load_relations([path])
        assert (relation.name, relation.prompt) == ("a", "The currency of {}")
        assert relation.left_out == (f"{path}, line 2: the subject 'Peru' is not in its source prompt ''",)

    def test_a_table_of_which_nothing_can_be_used(self, tmp_path):
        path = write_table(tmp_path / "a.tsv", [row("Peru", "sol", " in Japan"), row("Peru", "sol", "")])
        with pytest.raises(
            PatchscopesError, match=r"no samples that can be used; .*a\.tsv, line 2: the subject 'Peru'"
        ):
            load_relations([path])

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (row("Peru", "sol", " in Peru", "The currency"), "expected a `prompt_target` with the placeholder x"),
            (row("Peru", "sol", " in Peru", ""), "expected a `prompt_target`"),
            (row("Peru", "sol", " in Peru", "{} of x"), "expected a string with {} once"),
            (row("", "sol", " in Peru"), "expected the strings"),
            (row("Peru", " ", " in Peru"), "expected the strings"),
            (row("Peru", "$", " in Peru"), "no letter or digit"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path, bad, message):
        path = write_table(tmp_path / "bad.tsv", [row("Japan", "yen", "Japan"), bad])
        with pytest.raises(PatchscopesError, match=rf"bad\.tsv, line 3.*: .*{message}"):
            load_relations([path])

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("bad.tsv", "", "has no samples"),
            ("bad.tsv", "subject\tobject\tprompt_source\tprompt_target\n", "has no samples"),
            ("bad.tsv", "subject\tobject\tprompt_target\na\tb\tof x\n", "line 2: expected a column `prompt_source`"),
            ("bad.tsv", "subject\tprompt_source\tprompt_target\na\ta\tof x\n", "line 2: expected the strings"),
            ("bad.tsv", "subject\tobject\na\tb\n", "line 2: expected a `prompt_target`"),
            ("bad.tsv", "subject\tobject\na\n", "line 2: expected 2 cells, as many as the header has, got 1"),
            ("bad.csv", "subject,object\n\na,b,c\n", "line 3: expected 2 cells, as many as the header has, got 3"),
            ("bad.tsv", "subject\n" + "x" * 140_000, "line 2: expected a `prompt_target`"),
            (
                "bad.tsv",
                f"subject\tobject\tprompt_source\tprompt_target\na\ta\ta\t{TARGET}\n",
                "no samples that can be",
            ),
        ],
    )
    def test_a_bad_table_is_named(self, tmp_path, name, content, message):
        (tmp_path / name).write_text(content)
        with pytest.raises(PatchscopesError, match=message) as error:
            load_relations([tmp_path / name])
        assert name in str(error.value)

    def test_ragged_rows_of_other_tables_too(self, tmp_path):
        """A comma within a name, for instance."""
        (tmp_path / "a.csv").write_text("entity,reference\nDiana, Princess of Wales,royal\n")
        with pytest.raises(PatchscopesError, match=r"a\.csv, line 2: expected 2 cells"):
            load_entities(tmp_path / "a.csv")


class TestPaths:
    def test_formats_mixed_in_the_given_order(self, tmp_path):
        paths = [
            write_table(tmp_path / "table.tsv", [row("Japan", "Yen", "Japan")]),
            write_json(tmp_path, OWN),
            write_json(tmp_path, HERNANDEZ, "tools.json"),
        ]
        assert [one.name for one in load_relations(paths)] == ["table", "currency", "tool of a task"]
        assert load_relations([]) == ()

    def test_one_name_twice(self, tmp_path):
        path = write_json(tmp_path, OWN)
        table = write_table(tmp_path / "currency.tsv", [row("Japan", "Yen", "Japan")])
        for other in (path, table):
            with pytest.raises(PatchscopesError, match=r"another relation is called 'currency' already, in .*relation"):
                load_relations([path, other])

    def test_no_relation_file(self, tmp_path):
        (tmp_path / "folder.json").mkdir()
        for name in ("no.json", "no.tsv", "no.csv", "folder.json"):
            with pytest.raises(PatchscopesError, match="there is no file"):
                load_relations([tmp_path / name])
        for path in (tmp_path, tmp_path / "a.txt", tmp_path / "a.jsonl"):
            with pytest.raises(PatchscopesError, match=r"expected a \.json or \.tsv or \.csv file of relations"):
                load_relations([path])


class TestFindSubject:
    @pytest.mark.parametrize(
        ("text", "subject", "found"),
        [
            ("in Japan, the Japan", "Japan", (3, 8)),
            ("Japanese in Japan", "Japan", (12, 17)),
            ("japan or Japan", "Japan", (9, 14)),
            ("Japanese in JAPAN", "Japan", (12, 17)),
            ("a Japanese", "Japan", (2, 7)),
            ("a japanese", "Japan", None),
            ("the U.S. (now)", "U.S.", (4, 8)),
            ("C++ code", "C++", (0, 3)),
            ("日本の首都", "日本", (0, 2)),
            ("भारतीय भारत", "भारत", (7, 11)),
            ("snake_case", "case", (6, 10)),
            ("xa a a", "a a", (3, 6)),
            ("", "Japan", None),
        ],
    )
    def test_whole_words_first(self, text, subject, found):
        assert find_subject(text, subject) == found


class TestCarriers:
    def test_by_kind(self, tmp_path):
        path = write_json(tmp_path, {"fruit": ["A bowl of {} ", "{} for all"], "unspecified": ["About {}"]})
        assert load_carriers(path) == {"fruit": ("A bowl of {}", "{} for all"), "unspecified": ("About {}",)}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([], "expected one object with carrier sentences"),
            ({}, "has no carrier sentences"),
            ({"fruit": []}, "`fruit`: expected a list of sentences"),
            ({"fruit": "A {}"}, "`fruit`: expected a list of sentences, got A"),
            ({"fruit": ["A {}", "A bowl"]}, "`fruit`, sentence 2: expected a string with {} once"),
            ({"fruit": ["A {} or {}"]}, "`fruit`, sentence 1: expected a string with {} once"),
            ({"fruit": [3]}, "`fruit`, sentence 1: expected a string"),
            ({"fruit": ["A {}", "half \ud83d {}"]}, "`fruit`, item 2: half a surrogate pair"),
        ],
    )
    def test_a_bad_sentence_is_named(self, tmp_path, content, message):
        with pytest.raises(PatchscopesError, match=rf"carriers\.json.*{message}"):
            load_carriers(write_json(tmp_path, content, "carriers.json"))


# Words of subjects and prompts share no letter with those of objects, so that none gives its answer away.
WORDS, OBJECTS = (st.from_regex(f"[{letters}]{{1,8}}", fullmatch=True) for letters in ("a-l", "m-wyz"))
# Files are read with one kind of line end.
SURROUNDINGS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=12)
ACCEPTED = st.lists(OBJECTS, min_size=1, max_size=3, unique=True)
SAMPLES = st.dictionaries(
    WORDS, st.tuples(ACCEPTED, st.lists(st.tuples(SURROUNDINGS, SURROUNDINGS), min_size=3)), min_size=1
)


class TestRoundTrip:
    """Random relations, written in each format and read again."""

    @given(word=WORDS, samples=SAMPLES)
    def test_as_a_table(self, tmp_path_factory, word, samples):
        relation = Relation(
            name="made up",
            prompt=f"{word} {{}}",
            samples=tuple(
                RelationSample(
                    subject=subject,
                    object=accepted[0],
                    aliases=tuple(accepted[1:]),
                    source_prompts=tuple(f"{before} {subject} {after}" for before, after in around),
                )
                for subject, (accepted, around) in samples.items()
            ),
        )
        rows = [
            row(sample.subject, sample.accepted[number % len(sample.accepted)], source, relation.fill("x"))
            for sample in relation.samples
            for number, source in enumerate(sample.source_prompts)
        ]
        path = write_table(tmp_path_factory.getbasetemp() / f"{relation.name}.tsv", rows)
        assert load_relations([path]) == (relation,)

    @given(word=WORDS, samples=SAMPLES)
    def test_as_a_file(self, tmp_path_factory, word, samples):
        rows = [
            {"subject": subject, "object": accepted[0], "aliases": accepted[1:]}
            for subject, (accepted, _) in samples.items()
        ]
        fields = {"name": "made up", "prompt": f"{word} {{}}", "samples": rows}
        (relation,) = load_relations([write_json(tmp_path_factory.getbasetemp(), fields)])
        assert {one.subject: list(one.accepted) for one in relation.samples} == {
            subject: accepted for subject, (accepted, _) in samples.items()
        }
