"""What the library learns from a model (affine maps, soft prompts): its provenance, its files, and their cache."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from patchscopes.data import TextSet
from patchscopes.embedded import cache_folder
from patchscopes.errors import PatchscopesError
from patchscopes.lens_model import LensModel, has_hooks
from patchscopes.model import weights_sha256
from patchscopes.results import code_sha256, write_atomically
from patchscopes.tokens import to_token_ids

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a learned lens was made from.

    Attributes:
        estimator: `least_squares` or `kl`.
        source_model, target_model: name and `weights_sha256` of the models whose representations go in and come out.
        dataset: name and SHA-256 of the texts.
        n_positions: representations that were fitted, or drawn (with repetition) in training.
        options: everything else that was chosen: layers, ridge, seed, settings of the training.
        versions: of the packages that computed it.
    """

    estimator: str
    source_model: dict[str, str]
    target_model: dict[str, str]
    dataset: dict[str, str]
    n_positions: int
    options: dict[str, Any]
    versions: dict[str, str]


def provenance(
    estimator: str,
    model: LensModel,
    texts: TextSet,
    n_positions: int,
    options: dict[str, Any],
    *,
    target_model: LensModel | None = None,
) -> Provenance:
    """The provenance of something learned from the representations of one model, or of two."""

    def described(one: LensModel) -> dict[str, str]:
        return {"id": one.cfg.model_name, "weights_sha256": weights_sha256(one)}

    return Provenance(
        estimator=estimator,
        source_model=described(model),
        target_model=described(target_model or model),
        dataset={"name": texts.name, "sha256": texts.sha256},
        n_positions=n_positions,
        # As it will be read from a file: lists for tuples.
        options=json.loads(json.dumps(options)),
        versions={package: version(package) for package in ("patchscopes", "torch", "transformers")},
    )


def check_model(made_of: dict[str, str], model: LensModel) -> None:
    """Refuse what was learned from one model on another.

    Args:
        made_of: `source_model` or `target_model` of a provenance.

    Raises:
        PatchscopesError: the weights of `model` are others.
    """
    if weights_sha256(model) != made_of.get("weights_sha256"):
        raise PatchscopesError(
            f"this lens was learned from {made_of.get('id')!r}, and the weights (or their type) of "
            f"{model.cfg.model_name!r} ({model.cfg.dtype}) are others; learn one for this model with "
            "scripts/train_lens.py, or between two models with patchscopes.mappings.fit_cross_model_maps"
        )


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


def from_cache(path: Path, load: Callable[[Path], Loaded]) -> Loaded | None:
    """What `load` reads from a cached file, or None if there is none, or none that can be read any more."""
    if not path.is_file():
        return None
    try:
        return load(path)
    except PatchscopesError:
        return None


def cached_path(
    kind: str, models: Sequence[LensModel], texts: TextSet, options: dict[str, Any], modules: Sequence[str]
) -> Path:
    """Where the user's cache folder keeps something learned: the name holds a hash of all that it depends on.

    Args:
        models: all that it is learned from.
        modules: those of the package whose code decides what is learned, beside those that read texts.

    Raises:
        PatchscopesError: a model has hooks on it, which may change what is learned and have no hash.
    """
    if any(map(has_hooks, models)):
        raise PatchscopesError("what is learned is kept for the model as it is: take the hooks off it first")
    tokens = [[to_token_ids(model, text, truncate=True).tolist() for text in texts.texts] for model in models]
    described = {
        "models": [weights_sha256(model) for model in models],
        "dataset": texts.sha256,
        "tokens": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
        "options": options,
        "code": code_sha256(["learned", "tokens", "data", "extract", *modules]),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    names = "-to-".join(str(model.cfg.model_name)[-40:] for model in models)
    slug = "".join(character if character.isalnum() else "-" for character in names)
    return cache_folder() / "lenses" / f"{kind}-{slug}-{key}.safetensors"


def forget(*paths: Path) -> None:
    """Remove cached files, if they are there."""
    for path in paths:
        path.unlink(missing_ok=True)
