"""Data sets of the Hugging Face hub, row by row as they are downloaded; and folders of data files in the same way."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patchscopes.data.files import ROW_SUFFIXES, expand_home, get_suffix
from patchscopes.errors import PatchscopesError

# Data sets that have a name of their own here: repository and configuration.
STREAMED: dict[str, tuple[str, str | None]] = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "wikitext103": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "pile": ("monology/pile-uncopyrighted", None),
}
# The split that nearly all data sets have.
TRAIN = "train"


def find_repository(name: str) -> tuple[str, str | None] | None:
    """The repository (or folder) and the configuration that a name stands for; None if it is a file or no name.

    A configuration stands behind a colon.
    """
    if name in STREAMED:
        return STREAMED[name]
    # First as a whole, since Windows has colons in paths.
    for repository, _, configuration in ((name, "", ""), name.rpartition(":")):
        if repository and expand_home(repository).is_dir():
            return str(expand_home(repository)), configuration or None
    repository, _, configuration = name.partition(":")
    is_file = Path(name).is_file() or get_suffix(Path(name)) in (".txt", *ROW_SUFFIXES)
    if is_file or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        return None
    return repository, configuration or None


def stream_rows(name: str, split: str = TRAIN) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of a data set, and words for where each stands.

    Raises:
        PatchscopesError: it cannot be fetched, or has no such configuration or split.
    """
    # Imported here: it takes seconds, and files need none of it.
    import datasets

    found = find_repository(name)
    if found is None:
        raise PatchscopesError(f"{name!r} is no data set of the hub; give owner/name or owner/name:configuration")
    repository, configuration = found
    try:
        rows = datasets.load_dataset(repository, configuration, split=split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield row, f"{name}, row {number} of {split}"
    except OSError as error:
        raise PatchscopesError(
            f"the data set {name!r} ({repository}) could not be fetched from the hub ({_first_line(error)}): check its "
            "name and the network connection, or use the embedded texts ('passages') or a file"
        ) from error
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise PatchscopesError(
            f"the data set {name!r} ({repository}) cannot be read ({_first_line(error)}); another configuration is "
            "owner/name:configuration, another split --split"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
