"""The files of what the library learns from a model (affine maps, soft prompts), and their cache."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from patchscopes.data.texts import TextSet
from patchscopes.errors import PatchscopesError
from patchscopes.estimating.learning import learn_some
from patchscopes.estimating.tally import ESTIMATE
from patchscopes.learned.provenance import Provenance
from patchscopes.model.embedded import CACHE_ADVICE, get_cache_folder
from patchscopes.model.fingerprint import weights_sha256
from patchscopes.model.lens_model import LensModel, has_hooks
from patchscopes.results import check_writable, code_sha256, explain_writing, hold_lock, write_atomically
from patchscopes.tokens import to_token_ids

Loaded = TypeVar("Loaded")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], made: Provenance) -> None:
    """Write learned tensors with their provenance as safetensors, atomically."""
    metadata = {"provenance": json.dumps(asdict(made))}
    write_atomically(path, safetensors.torch.save({k: v.cpu() for k, v in tensors.items()}, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Provenance]:
    """Read what `save_tensors` wrote, onto the CPU.

    Raises:
        PatchscopesError: no such file, or not such a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            made = Provenance(**json.loads(file.metadata()["provenance"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except FileNotFoundError as error:
        raise PatchscopesError(f"there is no file {path}; write one with scripts/train_lens.py") from error
    except (KeyError, OSError, SafetensorError, TypeError, ValueError) as error:
        raise PatchscopesError(f"{path} is not a learned lens of patchscopes; write one with train_lens.py") from error
    return tensors, made


def load_cached(path: Path, load: Callable[[Path], Loaded]) -> Loaded | None:
    """What `load` reads from a cached file, or None if there is none, or none that can be read any more."""
    if not path.is_file():
        return None
    try:
        return load(path)
    except PatchscopesError:
        return None


def get_cached_path(
    kind: str, models: Sequence[LensModel], texts: TextSet, options: dict[str, Any], modules: Sequence[str]
) -> Path:
    """Where the user's cache folder keeps something learned: the name holds a hash of all that it depends on.

    Args:
        models: all that it is learned from.
        modules: those of the package whose code decides what is learned, beside those that read texts.

    Raises:
        PatchscopesError: a model has hooks on it, which may change what is learned and have no hash; or the folder does
            not hold it and cannot be written to.
    """
    if any(map(has_hooks, models)):
        raise PatchscopesError("what is learned is kept for the model as it is: take the hooks off it first")
    tokens = [[to_token_ids(model, text, truncate=True).tolist() for text in texts.texts] for model in models]
    described = {
        "models": [weights_sha256(model) for model in models],
        "dataset": texts.sha256,
        "tokens": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
        "options": options,
        "code": code_sha256(
            ["learned/files", "tokens", "data/texts", "data/files", "engine/extract", "engine/packing", *modules]
        ),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    names = "-to-".join(str(model.cfg.model_name)[-40:] for model in models)
    slug = "".join(character if character.isalnum() else "-" for character in names)
    path = get_cache_folder() / "lenses" / f"{kind}-{slug}-{key}.safetensors"
    if not path.is_file():
        check_writable(path, CACHE_ADVICE)
    return path


class NotLearnedError(Exception):
    """Something is only looked for, and not there."""


# Whether what is not in the cache folder is to be left alone: see `load_if_learned`.
ONLY_LOOK: ContextVar[bool] = ContextVar("ONLY_LOOK", default=False)


def learn_once(
    path: Path,
    load: Callable[[Path], Loaded],
    learn: Callable[[Path], Loaded],
    save: Callable[[Path, Loaded], None],
    *,
    fresh: bool = False,
) -> Loaded:
    """What `load` reads from a cached file; if there is none, what `learn` gives, which `save` then writes there.

    Of processes that ask for the same at the same time one learns it, and the others wait. While an estimate is made,
    it is learned from little, and not kept.

    Args:
        learn: given where to keep a checkpoint, which is removed in the end.
        fresh: learn it, whatever is there.
    """
    cached = None if fresh else load_cached(path, load)
    if cached is not None:
        return cached
    if ONLY_LOOK.get():
        raise NotLearnedError
    if (estimate := ESTIMATE.get()) is not None:
        return learn_some(estimate, path, learn)
    checkpoint = path.with_suffix(".checkpoint")
    with hold_lock(path, CACHE_ADVICE):
        if fresh:
            _remove(path, checkpoint)
        cached = load_cached(path, load)
        if cached is None:
            cached = learn(checkpoint)
            save(path, cached)
            _remove(checkpoint)
    return cached


def _remove(*paths: Path) -> None:
    for path in paths:
        with explain_writing(path, CACHE_ADVICE):
            path.unlink(missing_ok=True)
