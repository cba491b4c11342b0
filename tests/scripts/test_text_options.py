"""Which texts a script reads, and what it says about them."""

import pytest
from options import build_common_parser
from run_multi_hop import print_table
from texts import load_chosen_texts

from patchscopes.errors import PatchscopesError


def parse(*arguments: object, **settings):
    parser = build_common_parser("made up", "made_up", methods=("one",), **settings)
    return parser.parse_args(list(map(str, arguments)))


def test_how_many_texts_and_pieces_there_are(tmp_path, capsys):
    path = tmp_path / "TEXTS.CSV"
    long = " ".join(f"This is the sentence number {number}." for number in range(100))
    rows = [long, *(f"short text {number}" for number in range(20)), "", "word " * 300]
    path.write_text("id;body\n" + "".join(f"1;{row}\n" for row in rows))
    texts = load_chosen_texts(parse("--dataset", path, "--text-column", "body"))
    assert capsys.readouterr().out == (
        f"{path}, column body: {len(texts.texts)} of the evaluation half, from 22 texts; 1 of more than 250 words or "
        "2000 characters cut into 3 pieces; 1 lines without a sentence end, longer than that, left out; 1 empty ones "
        "skipped\n"
    )
    train = load_chosen_texts(parse("--dataset", path, "--text-column", "body"), "train")
    assert len(texts.texts) + len(train.texts) == 23


def test_nothing_is_said_of_the_embedded_texts(capsys):
    assert len(load_chosen_texts(parse()).texts) == 196
    assert capsys.readouterr().out == ""


def test_a_split_is_of_a_data_set_of_the_hub(tmp_path):
    with pytest.raises(PatchscopesError, match="a data set of the hub has a split 'test', and 'passages' is none"):
        load_chosen_texts(parse("--split", "test"))


def test_only_scripts_that_read_texts_ask_for_a_column(capsys):
    assert parse("--text-column", "body").text_column == "body"
    with pytest.raises(SystemExit):
        parse("--text-column", "body", unused=("dataset",))
    assert "unrecognized arguments: --text-column body" in capsys.readouterr().err


def test_questions_that_are_left_out_are_told_with_the_reason(capsys):
    unpatchable = [{"id": "example_004", "reason": "one token"}, {"id": 5, "reason": "another"}]
    results = {"unpatchable": unpatchable, "n_unpatchable": 2, "n_passed": 3, "n_questions": 9, "n_samples": 3}
    print_table({"results": results | {"methods": {}, "questions": []}})
    assert "left out: 2 questions that cannot be patched; example_004: one token\n" in capsys.readouterr().out
