"""What the name of a model stands for: an embedded model, one of the hub, or what a folder or a file holds.

Nothing heavy is imported, so that scripts tell a mistake at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from patchscopes.data.files import expand_home
from patchscopes.errors import PatchscopesError
from patchscopes.model.embedded import EMBEDDED
from patchscopes.model.registry import MODELS, resolve_hub_id

Kind: TypeAlias = Literal["embedded", "hub", "folder", "adapter", "gguf"]

CONFIG_FILE, ADAPTER_FILE, GGUF_SUFFIX = "config.json", "adapter_config.json", ".gguf"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model comes from.

    Attributes:
        kind: an embedded model, a repository of the hub (of a model or an adapter), a folder that holds a model, one
            that holds an adapter of another model, or a GGUF file.
        place: the alias of an embedded model, a hub id, or a path.
    """

    kind: Kind
    place: str


def find_source(name: str) -> Source:
    """What the name stands for. An alias stands for its model, whatever folders there are (see `find_namesake`).

    Raises:
        PatchscopesError: it is no alias, no hub id (`owner/name`), and no folder or `.gguf` file that holds a model.
    """
    alias = name.lower()
    if alias in EMBEDDED:
        return Source(kind="embedded", place=alias)
    if alias in MODELS:
        return Source(kind="hub", place=resolve_hub_id(alias))
    path = expand_home(name)
    if path.is_dir():
        found = _look_into_folder(path)
        if found is not None:
            return found
        if not _is_hub_id(name):
            raise PatchscopesError(
                f"the folder {name} does not hold a complete model: it has no {CONFIG_FILE}, no {ADAPTER_FILE} and no "
                f"{GGUF_SUFFIX} file; give the folder that was written with save_pretrained"
            )
    elif path.suffix.lower() == GGUF_SUFFIX:
        if not path.is_file():
            raise PatchscopesError(f"there is no file {name}; give the path of a {GGUF_SUFFIX} file that exists")
        return Source(kind="gguf", place=str(path))
    elif path.is_file():
        raise PatchscopesError(
            f"{name} is not a model but one file; give the folder that it is in, or a {GGUF_SUFFIX} file"
        )
    return Source(kind="hub", place=resolve_hub_id(name))


def find_base_source(name: str) -> Source:
    """What the model of an adapter stands for: as `find_source`, or any other name that the hub may know."""
    try:
        return find_source(name)
    except PatchscopesError:
        return Source(kind="hub", place=name)


def find_namesake(name: str) -> Path | None:
    """The folder here that holds a model and is called as an alias is, if that is the name given."""
    holds_model = any((Path(name) / file).is_file() for file in (CONFIG_FILE, ADAPTER_FILE))
    return Path(name) if name.lower() in MODELS and holds_model else None


def _look_into_folder(folder: Path) -> Source | None:
    """What a folder holds, or None if that is no model.

    Raises:
        PatchscopesError: it holds several GGUF files and nothing that says which.
    """
    if (folder / ADAPTER_FILE).is_file():
        return Source(kind="adapter", place=str(folder))
    if (folder / CONFIG_FILE).is_file():
        return Source(kind="folder", place=str(folder))
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == GGUF_SUFFIX)
    if len(files) > 1:
        raise PatchscopesError(
            f"the folder {folder} holds {len(files)} {GGUF_SUFFIX} files; give the path of one, such as {files[0]}"
        )
    return Source(kind="gguf", place=str(files[0])) if files else None


def _is_hub_id(name: str) -> bool:
    try:
        resolve_hub_id(name)
    except PatchscopesError:
        return False
    return True
