"""Reading the files of users: one place that knows how a file can be wrong, and says in which row."""

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from patchscopes.errors import PatchscopesError

# In a checkout the data files are in `data/`; an installed package carries a copy of them.
_PACKAGE = Path(__file__).parent.parent
DATA_FOLDER = _PACKAGE / "_data" if (_PACKAGE / "_data").is_dir() else _PACKAGE.parent / "data"

# The group of a row that names none.
UNSPECIFIED = "unspecified"
# Where something else is put into a prompt: a subject, or the first hop of a question.
PLACE = "{}"

# Formats of rows with named fields; in tables every field is text, in one cell.
TABLES = (".csv", ".tsv")
ROW_SUFFIXES = (".json", ".jsonl", *TABLES, ".parquet")
# Between cells, as the header of a table has it; and between the parts of a cell that holds a list.
DELIMITERS = ",;\t|"
LIST_SEPARATOR = ";"
# Excel writes the delimiter into a line of its own.
EXCEL_HEAD = "sep="
# The most characters of a cell that the csv module can be set to on every system.
MAX_CELL = 2**31 - 1

# What stands in a row, and words for where it stands.
Row: TypeAlias = tuple[Any, str]


def expand_home(name: str) -> Path:
    """A path with the user's home folder for `~`; as it is where there is no such folder."""
    path = Path(name)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def read_rows(path: Path, suffixes: Sequence[str], what: str) -> Iterator[Row]:
    """The rows of a file: items of a .json list, lines of .txt and .jsonl, rows of .csv, .tsv and .parquet.

    The cells of a table may be separated by any of `DELIMITERS`: its header says which. A .json file may also hold the
    list as the one thing in an object, the rows in an object by their ids (which become a field `id`), or a row a line.

    Args:
        suffixes: of the formats that are meant, in lower case; those of files may be in capitals.
        what: the file holds, for the message.

    Raises:
        PatchscopesError: another format, no such file, or one that cannot be read (the message gives the row).
    """
    _check_file(path, suffixes, what)
    for row, place in _READERS[get_suffix(path)](path):
        _check_characters(row, place)
        yield row, place


def read_fields(path: Path, suffixes: Sequence[str], what: str, *, lists: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a file in one form, whatever its format: an empty cell of a table is a field that is not there, and a
    row of nothing but those is none.

    Args:
        lists: fields that are lists of strings; in one cell with `LIST_SEPARATOR` between them.
        suffixes, what, and errors: as for `read_rows`.
    """
    for row, place in read_rows(path, suffixes, what):
        if get_suffix(path) in (*TABLES, ".parquet"):
            row = {name: cell for name, cell in row.items() if cell not in ("", None)}
            for name in lists:
                if isinstance(row.get(name), str):
                    row[name] = [part for part in row[name].split(LIST_SEPARATOR) if part.strip()]
            if not row:
                continue
        yield row, place


def get_suffix(path: Path) -> str:
    """The suffix of a file's name in lower case: that of TEXTS.CSV is .csv."""
    return path.suffix.lower()


def read_object(path: Path, what: str) -> dict[str, Any]:
    """A .json file that holds one object.

    Args:
        what: the file holds, for the message.

    Raises:
        PatchscopesError: another format, no such file, one that cannot be read, or something else than an object.
    """
    _check_file(path, (".json",), what)
    content = _parse_json(path)
    if not isinstance(content, dict):
        raise PatchscopesError(f"{path}: expected one object with {what}, got {type(content).__name__}")
    for name, value in content.items():
        for number, item in enumerate(value if isinstance(value, list) else [value], start=1):
            _check_characters({name: item}, f"{path}, `{name}`, item {number}")
    return content


def holds_object(path: Path, what: str) -> bool:
    """Whether a .json file holds one object, and no rows in any form. Args and errors as for `read_object`."""
    _check_file(path, (".json",), what)
    return not _holds_lines(path) and isinstance(_unwrap(_parse_json(path)), dict)


def read_text(path: Path) -> str:
    """A text file as UTF-8, or as UTF-16 if it begins with the byte-order mark of that.

    Raises:
        PatchscopesError: it cannot be read, or is neither.
    """
    try:
        with path.open("rb") as file:
            is_utf_16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        return path.read_text(encoding="utf-16" if is_utf_16 else "utf-8-sig")
    except OSError as error:
        raise PatchscopesError(f"cannot read {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise PatchscopesError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def has_half_a_surrogate_pair(row: Any) -> bool:
    """Whether a string of the row holds one: JSON can write it, and no tokenizer can read it."""
    return any("\ud800" <= character <= "\udfff" for character in json.dumps(row, ensure_ascii=False, default=str))


def _check_file(path: Path, suffixes: Sequence[str], what: str) -> None:
    if get_suffix(path) not in suffixes:
        raise PatchscopesError(f"expected a {' or '.join(suffixes)} file of {what}, got {path}")
    if not path.is_file():
        raise PatchscopesError(f"there is no file {path}; check the path")


def _check_characters(row: Any, place: str) -> None:
    if has_half_a_surrogate_pair(row):
        raise PatchscopesError(f"{place}: half a surrogate pair, which is no character, in {str(row)[:80]!r}")


def _parse_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise PatchscopesError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error


def _read_json(path: Path) -> Iterator[Row]:
    if _holds_lines(path):
        yield from _read_jsonl(path)
        return
    rows = _unwrap(_parse_json(path))
    if not isinstance(rows, list):
        raise PatchscopesError(f"{path}: expected a list of objects, got {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        yield row, f"{path}, item {number}"


def _holds_lines(path: Path) -> bool:
    """Whether a file has a row on each line: the first is an object by itself, and more follow."""
    first_line, _, others = read_text(path).lstrip().partition("\n")
    try:
        return bool(others.strip()) and isinstance(json.loads(first_line), dict)
    except json.JSONDecodeError:
        return False


def _unwrap(content: Any) -> Any:
    """The list of rows where a file has it in an object, or the rows in one by their ids; else the content as it is."""
    if not isinstance(content, dict) or not content:
        return content
    values = list(content.values())
    if len(values) == 1 and isinstance(values[0], list):
        return values[0]
    if all(isinstance(value, dict) for value in values):
        return [{"id": name} | row for name, row in content.items()]
    return content


def _read_txt(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        yield {"text": line}, f"{path}, line {number}"


def _read_jsonl(path: Path) -> Iterator[Row]:
    # Not splitlines(): JSON strings may hold other line separators of Unicode.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise PatchscopesError(f"{path}, line {number}: not JSON ({error.msg})") from error
        yield row, f"{path}, line {number}"


def _read_csv(path: Path) -> Iterator[Row]:
    return _read_table(path, ",")


def _read_tsv(path: Path) -> Iterator[Row]:
    return _read_table(path, "\t")


def _read_table(path: Path, usual: str) -> Iterator[Row]:
    text = read_text(path)
    delimiter, n_head_lines = _find_delimiter(text, usual)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    lines = []
    try:
        with _cells_of_any_length():
            lines = [(cells, reader.line_num) for cells in reader if cells][n_head_lines:]
    except csv.Error as error:
        format_name = path.suffix[1:].upper()
        raise PatchscopesError(f"{path}, line {reader.line_num}: not {format_name} ({error})") from error
    if not lines:
        return
    if text.count('"') % 2 and any("\n" in cell for cell in lines[-1][0]):
        where = f"{path}, after line {lines[-2][1]}" if len(lines) > 1 else str(path)
        raise PatchscopesError(f"{where}: a cell begins with a double quote that nothing closes; close it or double it")
    header = [name.strip() for name in lines[0][0]]
    for cells, line in lines[1:]:
        place = f"{path}, line {line}"
        if len(cells) != len(header):
            raise PatchscopesError(
                f"{place}: expected {len(header)} cells, as many as the header has, got {len(cells)}; put cells that "
                f"hold {delimiter!r} in double quotes"
            )
        yield dict(zip(header, cells, strict=True)), place


def _find_delimiter(text: str, usual: str) -> tuple[str, int]:
    """What separates the cells, and the lines before the header that do nothing but say so (0 or 1).

    Args:
        usual: in files of this format: what it is where the header has several in equal numbers, or one cell.
    """
    header = text.lstrip("\r\n").partition("\n")[0].rstrip("\r")
    named = header.removeprefix(EXCEL_HEAD)
    if header != named and len(named) == 1:
        return named, 1
    candidates = [usual, *DELIMITERS]
    n_cells = [len(next(csv.reader([header], delimiter=delimiter), [])) for delimiter in candidates]
    return candidates[n_cells.index(max(n_cells))], 0


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """The csv module refuses cells of more than 131,072 characters unless it is told otherwise."""
    before = csv.field_size_limit(MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_parquet(path: Path) -> Iterator[Row]:
    # Imported here: it takes a while, and few files are of this format.
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise PatchscopesError(f"{path} is not a parquet file ({error})") from error
    for number, row in enumerate(rows, start=1):
        yield row, f"{path}, row {number}"


_READERS = {
    ".json": _read_json,
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
