"""Texts, splits and drawn positions."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.data.cutting import cut_at_sentence_ends
from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.texts import (
    Sample,
    TextCounts,
    assign_split,
    draw_samples,
    is_short_enough,
    load_texts,
)
from patchscopes.errors import PatchscopesError

TEXTS = [f"text number {number} of a made-up file" for number in range(20)]


def write(folder, suffix: str):
    path = folder / f"texts{suffix}"
    if suffix == ".txt":
        path.write_text("\n".join(TEXTS))
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"text": text, "id": 1}) for text in TEXTS) + "\n\n")
    elif suffix == ".csv":
        path.write_text("id,text\n" + "\n".join(f'1,"{text}"' for text in TEXTS))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), path)
    return path


class TestPassages:
    def rows(self):
        return [json.loads(line) for line in (DATA_FOLDER / "passages.jsonl").read_text().splitlines()]

    def test_at_least_300_of_60_to_150_words(self):
        rows = self.rows()
        assert len(rows) >= 300
        assert all(60 <= len(row["text"].split()) <= 150 for row in rows)
        assert len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == len(rows)

    def test_all_registers_in_both_splits(self):
        registers = {"encyclopedic", "news", "narrative", "how-to", "dialogue", "technical"}
        for split in ("train", "evaluation"):
            assert {row["register"] for row in self.rows() if assign_split(row["text"]) == split} == registers

    def test_train_and_evaluation_share_nothing(self):
        train, evaluation = (set(load_texts(split=split).texts) for split in ("train", "evaluation"))
        assert not train & evaluation
        assert len(train) + len(evaluation) == len(self.rows())
        assert min(len(train), len(evaluation)) > 150


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet"])
def test_files(tmp_path, suffix):
    path = write(tmp_path, suffix)
    found = [load_texts(str(path), split).texts for split in ("train", "evaluation")]
    assert sorted(sum(found, ())) == sorted(TEXTS)
    assert all(assign_split(text) == "train" for text in found[0])


def test_order_and_hash_do_not_depend_on_the_format(tmp_path):
    sets = [load_texts(str(write(tmp_path, suffix))) for suffix in (".txt", ".jsonl", ".csv", ".parquet")]
    assert len({texts.sha256 for texts in sets}) == 1


def test_long_and_empty_texts_are_left_out(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(["word " * 251, "x" * 2001, "", "   ", *TEXTS]))
    assert load_texts(str(path)).texts == load_texts(str(write(tmp_path, ".jsonl"))).texts


def test_files_are_read_whole(tmp_path):
    path = str(write(tmp_path, ".txt"))
    assert load_texts(path, limit=1) == load_texts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"text": ', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "fine"}\n\n{"txt": "no"}', "line 3: expected a field `text`"),
        ("a.jsonl", b"[1]", "line 1: expected a field `text`"),
        ("a.csv", b"id,txt\n1,hello", "line 2: expected a field `text`"),
        ("a.parquet", b"nonsense", "not a parquet file"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.txt", b"\n", "no evaluation text"),
        ("a.jsonl", b'{"text": "half \\ud83d pair"}', "line 1: half a surrogate pair"),
        ("a.csv", b"text\n" + b"x" * 140_000, "no evaluation text of at most 250 words"),
        ("a.csv", b"id,txt\n1,hello", "the fields id, txt; --text-column names another"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": ["no"]}', "line 2: expected a field `text` with a string, got .'no'"),
        ("a.pdf", b"", "no data set is called"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PatchscopesError, match=message) as error:
        load_texts(str(path))
    assert name in str(error.value)


def test_unicode_line_separators_and_byte_order_marks(tmp_path):
    text = "one\u2028two\x0bthree is an evaluation text number"
    text += next(str(number) for number in range(99) if assign_split(text + str(number)) == "evaluation")
    for suffix, content in ((".jsonl", json.dumps({"text": text}, ensure_ascii=False)), (".csv", f"text\n{text}")):
        path = tmp_path / f"texts{suffix}"
        path.write_text("\ufeff" + content, encoding="utf-8")
        assert load_texts(str(path)).texts == (text,)


def test_missing_file_and_unknown_name():
    with pytest.raises(PatchscopesError, match="there is no file"):
        load_texts("nowhere/texts.jsonl")
    with pytest.raises(PatchscopesError, match="passages, wikitext2, wikitext103, pile, owner/name"):
        load_texts("wikitext")
    with pytest.raises(PatchscopesError, match="has a split 'test', and 'passages' is none"):
        load_texts(hub_split="test")


class TestPassagesStayAsTheyAre:
    def test_texts_are_those_of_the_file(self):
        """None is cut: what the figures were measured on is what a plain reading of the file gives."""
        rows = (ROOT / "data" / "passages.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(row)["text"] for row in rows]
        for split in ("train", "evaluation"):
            found = load_texts(split=split)
            assert found.texts == tuple(text for text in texts if assign_split(text) == split)
            assert found.counts == TextCounts(texts=len(texts))

    def test_a_folder_of_that_name_is_not_taken_for_them(self, tmp_path, monkeypatch):
        (tmp_path / "passages").mkdir()
        expected = load_texts()
        monkeypatch.chdir(tmp_path)
        assert load_texts() == expected

    def test_their_hash_is_that_of_the_figures(self):
        for name in ("fig2", "lenses", "cross_model"):
            document = json.loads((ROOT / "figures" / f"{name}.json").read_text())
            assert document["environment"]["dataset"]["sha256"] == load_texts().sha256


class TestLongTexts:
    SENTENCES = tuple(
        f"Sentence number {number} has a few words, and Dr. J. K. Smith said so!" for number in range(200)
    )

    def test_are_cut_at_sentence_ends(self, tmp_path):
        path = tmp_path / "long.jsonl"
        long = [" ".join(self.SENTENCES), "\n\n".join(self.SENTENCES[:90])]
        path.write_text("\n".join(json.dumps({"text": text}) for text in [*long, *TEXTS, "", None]))
        found = [load_texts(str(path), split) for split in ("train", "evaluation")]
        texts = [text for one in found for text in one.texts]
        assert all(map(is_short_enough, texts))
        assert all(assign_split(text) == one.split for one in found for text in one.texts)
        pieces = [text for text in texts if text not in TEXTS]
        assert all(piece.startswith("Sentence") and piece.endswith("so!") for piece in pieces)
        # Nothing is lost, and nothing is there twice.
        assert sorted(" ".join(pieces).split()) == sorted(" ".join(long).split())
        assert found[0].counts == found[1].counts == TextCounts(texts=22, empty=2, cut=2, pieces=len(pieces))

    @pytest.mark.parametrize(
        ("text", "pieces"),
        [
            ("One two. Three four. Five.", ["One two. Three four.", "Five."]),
            ("He said “Stop!” Then he went on.", ["He said “Stop!”", "Then he went on."]),
            ("So it is, he said... and went. Home.", ["So it is, he said... and went.", "Home."]),
            ("J. K. Rowling wrote. She wrote it.", ["J. K. Rowling wrote.", "She wrote it."]),
            ("Dr. Smith said so. He left now.", ["Dr. Smith said so.", "He left now."]),
            (
                "东京是日本的首都。巴黎是法国的首都！伦敦呢？是的。",
                ["东京是日本的首都。巴黎是法国的首都！伦敦呢？", "是的。"],
            ),
            ("यह पहला वाक्य है। यह दूसरा वाक्य।", ["यह पहला वाक्य है।", "यह दूसरा वाक्य।"]),
            ("No end here\nand none there\nat all of it", ["No end here", "and none there", "at all of it"]),
            ("First paragraph\n\nSecond paragraph here", ["First paragraph", "Second paragraph here"]),
            ("one two three four five six seven", ["one two three four five six seven"]),
            (
                "A sentence that is far too long to be kept. Short.",
                ["A sentence that is far too long to be kept.", "Short."],
            ),
        ],
    )
    def test_where_they_are_cut(self, text, pieces):
        def is_short(part: str) -> bool:
            return len(part.split()) <= 4 and len(part) <= 23 + 10 * part.isascii()

        assert cut_at_sentence_ends(text, is_short) == pieces

    @given(st.text("ab.! \n。", max_size=300))
    def test_nothing_is_lost_and_no_cut_is_needless(self, text):
        def is_short(part: str) -> bool:
            return len(part) <= 20

        pieces = cut_at_sentence_ends(text, is_short)
        assert "".join("".join(pieces).split()) == "".join(text.split())
        assert all(piece == piece.strip() != "" for piece in pieces)
        if is_short(text.strip()):
            assert pieces == [text.strip()][: len(text.strip())]

    def test_lines_that_cannot_be_cut_are_left_out_and_counted(self, tmp_path):
        path = tmp_path / "long.txt"
        path.write_text("\n".join(["word " * 251 + "ends. Short one.", "x" * 2001, *TEXTS]))
        counts = load_texts(str(path)).counts
        assert counts == TextCounts(texts=22, empty=0, cut=1, pieces=1, too_long=2)


class TestTables:
    @pytest.mark.parametrize("name", ["a.csv", "A.CSV", "a.tsv", "a.json", "a.jsonl", "A.PARQUET"])
    def test_columns_of_other_names_with_empty_and_null_texts(self, tmp_path, name):
        body = [*TEXTS, "", "  "]
        path = tmp_path / name
        if name.lower().endswith("parquet"):
            pyarrow.parquet.write_table(pyarrow.table({"body": [*body, None]}), path)
        elif "json" in name:
            rows = [{"id": 1, "body": text} for text in [*body, None, float("nan")]]
            path.write_text("\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows))
        else:
            path.write_text("id;body\n" + "\n".join(f'1;"{text}"' for text in body) + "\n;\n")
        found = [load_texts(str(path), split, column="body") for split in ("train", "evaluation")]
        assert sorted(found[0].texts + found[1].texts) == sorted(TEXTS)
        assert (found[0].counts.texts, found[0].counts.empty) == (20, 4 if "json" in name else 3)
        assert found[0].name == f"{path}, column body"
        with pytest.raises(PatchscopesError, match="expected a field `text` with a string, got the fields"):
            load_texts(str(path))


class TestHub:
    @pytest.fixture
    def folder(self, tmp_path):
        """A data set as one lies on the hub, with two configurations and splits of its own."""
        for language in ("en", "de"):
            (tmp_path / "set" / language).mkdir(parents=True)
            for split in ("train", "validation"):
                rows = [{"content": f"{language} {split} {text}"} for text in TEXTS] + [{"content": None}]
                path = tmp_path / "set" / language / f"{split}.jsonl"
                path.write_text("\n".join(map(json.dumps, rows)))
        files = "".join(
            f"- config_name: {language}\n  data_files:\n"
            + "".join(f"  - split: {split}\n    path: {language}/{split}.jsonl\n" for split in ("train", "validation"))
            for language in ("en", "de")
        )
        (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{files}---\n")
        return tmp_path / "set"

    def test_a_folder_goes_the_same_way(self, folder):
        texts = load_texts(f"{folder}:de", column="content", hub_split="validation", limit=3)
        assert len(texts.texts) == 3
        assert all(text.startswith("de validation text number") for text in texts.texts)
        assert texts.name == f"{folder}:de, split validation, column content"
        whole = [load_texts(f"{folder}:en", split, column="content") for split in ("train", "evaluation")]
        assert sum(len(one.texts) for one in whole) == len(TEXTS)
        assert whole[0].counts == TextCounts(texts=20, empty=1)

    @pytest.mark.parametrize(
        ("configuration", "options", "message"),
        [
            (":en", {}, "expected a field `text` with a string, got the fields content; --text-column names another"),
            (":fr", {}, r"cannot be read .*fr.*; another configuration is owner/name:configuration"),
            ("", {}, "cannot be read .Config name is missing"),
            (":en", {"hub_split": "test"}, "cannot be read .Bad split: test.*another split --split"),
        ],
    )
    def test_mistakes_are_one_sentence(self, folder, configuration, options, message):
        with pytest.raises(PatchscopesError, match=message) as error:
            load_texts(f"{folder}{configuration}", **options)
        assert "\n" not in str(error.value)

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(PatchscopesError, match="could not be fetched"):
            load_texts(str(tmp_path))

    @pytest.mark.parametrize(
        ("name", "asked"),
        [
            ("owner/name", ("owner/name", None)),
            ("owner/name:some-config.v1", ("owner/name", "some-config.v1")),
            ("Own-er_1/data.set-2:a/b", ("Own-er_1/data.set-2", "a/b")),
            ("wikitext103", ("Salesforce/wikitext", "wikitext-103-raw-v1")),
        ],
    )
    def test_any_name_of_the_hub(self, monkeypatch, name, asked):
        calls = []

        def load_dataset(*arguments, **options):
            calls.append((arguments, options))
            return iter({"text": text} for text in TEXTS)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert load_texts(name, hub_split="test").texts == tuple(t for t in TEXTS if assign_split(t) == "evaluation")
        assert calls == [(asked, {"split": "test", "streaming": True})]


class TestStreamed:
    def test_rows_are_streamed_until_there_are_enough(self, monkeypatch):
        asked = []
        read = []

        def load_dataset(*arguments, **options):
            asked.append((arguments, options))
            for text in ["", *TEXTS * 50]:
                read.append(text)
                yield {"text": text}

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        texts = load_texts("wikitext2", limit=4)
        assert asked == [(("Salesforce/wikitext", "wikitext-2-raw-v1"), {"split": "train", "streaming": True})]
        assert len(texts.texts) == 4
        assert len(read) < 25
        load_texts("pile", limit=1)
        assert asked[1][0] == ("monology/pile-uncopyrighted", None)

    def test_an_unreachable_hub_is_one_sentence(self):
        with pytest.raises(PatchscopesError, match="could not be fetched from the hub"):
            load_texts("pile", limit=1)


class TestDraws:
    @given(
        st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(lambda lengths: max(lengths) > 1),
        st.integers(0, 100),
        st.data(),
    )
    def test_distinct_positions_after_the_first_token(self, lengths, seed, data):
        texts = [f"text {number}" for number in range(len(lengths))]
        available = sum(max(0, length - 1) for length in lengths)
        n_samples = data.draw(st.integers(1, available))
        samples = draw_samples(lengths, texts, n_samples, seed)
        assert len(set(samples)) == n_samples
        assert all(1 <= sample.position < lengths[sample.text] for sample in samples)
        # More samples continue the same draw, and all texts are used before any is used again.
        assert draw_samples(lengths, texts, available, seed)[:n_samples] == samples
        uses = [sum(sample.text == text for sample in samples) for text in range(len(lengths))]
        assert all(uses[text] >= min(max(uses) - 1, max(0, lengths[text] - 1)) for text in range(len(lengths)))

    def test_only_the_seed_matters(self):
        lengths = [20] * 5
        assert draw_samples(lengths, TEXTS[:5], 10, seed=1) == draw_samples(lengths, TEXTS[:5], 10, seed=1)
        assert draw_samples(lengths, TEXTS[:5], 10, seed=1) != draw_samples(lengths, TEXTS[:5], 10, seed=2)

    def test_positions_are_spread_over_the_text(self):
        texts = [f"text {number}" for number in range(500)]
        positions = [sample.position for sample in draw_samples([101] * 500, texts, 500, seed=0)]
        assert sum(positions) / 500 == pytest.approx(50.5, abs=4)

    def test_too_many_samples(self):
        with pytest.raises(PatchscopesError, match="10 samples asked for, but the 2 texts have only 4"):
            draw_samples([3, 3], TEXTS[:2], 10, seed=0)

    def test_sample_is_a_text_and_a_position(self):
        assert draw_samples([2], ["a"], 1, seed=0) == [Sample(text=0, position=1)]
