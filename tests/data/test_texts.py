"""Texts, splits and drawn positions."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.texts import Sample, assign_split, draw_samples, load_texts
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
        ("a.csv", b"text\n" + b"x" * 140_000, "line 2: not CSV"),
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
    with pytest.raises(PatchscopesError, match="passages, wikitext2, wikitext103, pile"):
        load_texts("wikitext")


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
