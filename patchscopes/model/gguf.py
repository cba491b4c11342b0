"""GGUF files: those of the user, through the loading that the embedded models use."""

import hashlib
import shutil
from pathlib import Path

from patchscopes.model.embedded import dequantise_once, get_cache_folder


def unpack_gguf(file: Path) -> Path:
    """The folder with the dequantised model of a GGUF file, made on first use in the user's cache folder.

    It is named after the content of the file, and takes four bytes a parameter.

    Raises:
        PatchscopesError: the file holds no complete model that can be read.
    """
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    folder = get_cache_folder() / f"{file.stem}-{sha256[:12]}"

    def link(copy: Path) -> None:
        try:
            copy.symlink_to(file.resolve())
        except OSError:
            # Where links are not allowed.
            shutil.copyfile(file, copy)

    return dequantise_once(folder, link)
