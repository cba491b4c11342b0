"""The one reader of files: tables as they are in the wild."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.data.files import ROW_SUFFIXES, read_fields, read_rows
from patchscopes.errors import PatchscopesError

ROWS = [{"entity": "Oslo", "reference": "city; port"}, {"entity": "Bergen, Norway", "reference": 'the "second" city'}]


def read(path) -> list:
    return [row for row, _ in read_rows(path, ROW_SUFFIXES, "rows")]


def write_table(path, delimiter: str, *, encoding: str = "utf-8", head: str = "", line_end: str = "\n"):
    with path.open("w", newline="", encoding=encoding) as file:
        file.write(head)
        table = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter, lineterminator=line_end)
        table.writeheader()
        table.writerows(ROWS)
    return path


class TestTables:
    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    @pytest.mark.parametrize("name", ["a.csv", "a.tsv", "A.CSV", "A.Tsv"])
    def test_the_header_says_what_separates_cells(self, tmp_path, name, delimiter):
        assert read(write_table(tmp_path / name, delimiter)) == ROWS

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    @pytest.mark.parametrize("line_end", ["\n", "\r\n"])
    @pytest.mark.parametrize("head", ["", "sep=;\r\n"])
    def test_as_spreadsheets_save_them(self, tmp_path, encoding, line_end, head):
        path = write_table(tmp_path / "a.csv", ";", encoding=encoding, head=head, line_end=line_end)
        assert read(path) == ROWS

    @given(
        st.sampled_from(",;\t|"),
        st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), max_size=9)] * 3), max_size=4),
    )
    def test_what_the_csv_module_writes_is_read_as_it_was(self, tmp_path_factory, delimiter, rows):
        path = tmp_path_factory.mktemp("table") / "a.csv"
        written = io.StringIO(newline="")
        csv.writer(written, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([("a", "b", "c"), *rows])
        path.write_bytes(written.getvalue().encode())
        # Universal newlines: a lone carriage return, too, is a line end.
        expected = [[cell.replace("\r\n", "\n").replace("\r", "\n") for cell in row] for row in rows]
        assert [list(row.values()) for row in read(path)] == expected

    def test_one_column_is_the_whole_line(self, tmp_path):
        (tmp_path / "a.csv").write_text("text\nno comma; but this\n")
        assert read(tmp_path / "a.csv") == [{"text": "no comma; but this"}]

    def test_a_cell_of_200000_characters(self, tmp_path):
        before = csv.field_size_limit()
        (tmp_path / "a.csv").write_text(f"id,text\n1,{'long ' * 40_000}\n")
        assert len(read(tmp_path / "a.csv")[0]["text"]) == 200_000
        # Nothing is changed for others.
        assert csv.field_size_limit() == before

    def test_spaces_around_names_of_columns(self, tmp_path):
        (tmp_path / "a.csv").write_text("entity , reference\nOslo,city\n")
        assert read(tmp_path / "a.csv") == [{"entity": "Oslo", "reference": "city"}]

    def test_a_quote_that_swallows_the_rest_is_told(self, tmp_path):
        (tmp_path / "a.tsv").write_text('id\ttext\n1\tfine\n2\t"Oh, he said\n3\tmore\n4\tand more\n')
        with pytest.raises(
            PatchscopesError, match=r"a.tsv, after line 2: a cell begins with a double quote that nothing"
        ):
            read(tmp_path / "a.tsv")
        # An inch within a cell closes nothing and is none.
        (tmp_path / "a.tsv").write_text('id\ttext\n1\tthe 5" disk\n')
        assert read(tmp_path / "a.tsv") == [{"id": "1", "text": 'the 5" disk'}]


class TestJson:
    def test_forms_of_a_list(self, tmp_path):
        (tmp_path / "a.json").write_text(json.dumps(ROWS))
        (tmp_path / "object.json").write_text(json.dumps({"data": ROWS}))
        (tmp_path / "LINES.JSON").write_text("\n".join(map(json.dumps, ROWS)) + "\n")
        (tmp_path / "a.jsonl").write_text("\ufeff" + "\r\n\r\n".join(map(json.dumps, ROWS)))
        for name in ("a.json", "object.json", "LINES.JSON", "a.jsonl"):
            assert read(tmp_path / name) == ROWS
        (tmp_path / "ids.json").write_text(json.dumps({"first": ROWS[0], "second": {"id": 2} | ROWS[1]}))
        assert read(tmp_path / "ids.json") == [{"id": "first"} | ROWS[0], {"id": 2} | ROWS[1]]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"entity": "a"}', "expected a list of objects, got dict"),
            ("{}", "expected a list of objects, got dict"),
            ('{"name": "a", "samples": []}', "expected a list of objects, got dict"),
            ('{"a": 1}\n{"a": }', "line 2: not JSON"),
            ("[1,\n2,,]", "line 2: not JSON"),
        ],
    )
    def test_other_things_are_named(self, tmp_path, content, message):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(PatchscopesError, match=message):
            read(tmp_path / "a.json")


def test_fields_are_the_same_in_every_format(tmp_path):
    (tmp_path / "a.csv").write_text("name;tags;note\na;x;\n;;\nb;;kept\n".replace(";x;", ';"x; y";'))
    (tmp_path / "a.json").write_text(json.dumps([{"name": "a", "tags": ["x", " y"]}, {"name": "b", "note": "kept"}]))
    found = [
        [row for row, _ in read_fields(tmp_path / name, ROW_SUFFIXES, "rows", lists=("tags",))]
        for name in ("a.csv", "a.json")
    ]
    assert found[0] == found[1]
