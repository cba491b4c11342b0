"""Reading the files of users: one place that knows how a file can be wrong, and says in which row."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from patchscopes.errors import PatchscopesError

# In a checkout the data files are in `data/`; an installed package carries a copy of them.
_PACKAGE = Path(__file__).parent.parent
DATA_FOLDER = _PACKAGE / "_data" if (_PACKAGE / "_data").is_dir() else _PACKAGE.parent / "data"

# The group of a row that names none.
UNSPECIFIED = "unspecified"

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

    Args:
        suffixes: of the formats that are meant.
        what: the file holds, for the message.

    Raises:
        PatchscopesError: another format, no such file, or one that cannot be read (the message gives the row).
    """
    _check_file(path, suffixes, what)
    for row, place in _READERS[path.suffix](path):
        _check_characters(row, place)
        yield row, place


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
    """Whether a .json file holds one object, and not a list of rows. Args and errors as for `read_object`."""
    _check_file(path, (".json",), what)
    return isinstance(_parse_json(path), dict)


def read_text(path: Path) -> str:
    """A text file as UTF-8.

    Raises:
        PatchscopesError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PatchscopesError(f"cannot read {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise PatchscopesError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def has_half_a_surrogate_pair(row: Any) -> bool:
    """Whether a string of the row holds one: JSON can write it, and no tokenizer can read it."""
    return any("\ud800" <= character <= "\udfff" for character in json.dumps(row, ensure_ascii=False, default=str))


def _check_file(path: Path, suffixes: Sequence[str], what: str) -> None:
    if path.suffix not in suffixes:
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
    rows = _parse_json(path)
    if not isinstance(rows, list):
        raise PatchscopesError(f"{path}: expected a list of objects, got {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        yield row, f"{path}, item {number}"


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


def _read_table(path: Path, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        lines = (cells for cells in reader if cells)
        header = next(lines, [])
        for cells in lines:
            place = f"{path}, line {reader.line_num}"
            if len(cells) != len(header):
                raise PatchscopesError(
                    f"{place}: expected {len(header)} cells, as many as the header has, got {len(cells)}; put cells "
                    f"that hold {delimiter!r} in double quotes"
                )
            yield dict(zip(header, cells, strict=True)), place
    except csv.Error as error:
        format_name = path.suffix[1:].upper()
        raise PatchscopesError(f"{path}, line {reader.line_num}: not {format_name} ({error})") from error


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
