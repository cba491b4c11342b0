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


def read_rows(path: Path, suffixes: Sequence[str], what: str) -> Iterator[Row]:
    """The rows of a file: items of a .json list, lines of .txt and .jsonl, rows of .csv and .parquet.

    Args:
        suffixes: of the formats that are meant.
        what: the file holds, for the message.

    Raises:
        PatchscopesError: another format, no such file, or one that cannot be read (the message gives the row).
    """
    if path.suffix not in suffixes:
        raise PatchscopesError(f"expected a {' or '.join(suffixes)} file of {what}, got {path}")
    if not path.is_file():
        raise PatchscopesError(f"there is no file {path}; check the path")
    for row, place in _READERS[path.suffix](path):
        if has_half_a_surrogate_pair(row):
            raise PatchscopesError(f"{place}: half a surrogate pair, which is no character, in {str(row)[:80]!r}")
        yield row, place


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


def _read_json(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise PatchscopesError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
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
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        for row in reader:
            yield row, f"{path}, line {reader.line_num}"
    except csv.Error as error:
        raise PatchscopesError(f"{path}, line {reader.line_num + 1}: not CSV ({error})") from error


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
    ".parquet": _read_parquet,
}
