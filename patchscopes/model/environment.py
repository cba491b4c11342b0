"""What a result depends on beside its configuration: versions, device, model, data, code."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import patchscopes
from patchscopes.data.texts import TextSet
from patchscopes.model.fingerprint import weights_sha256
from patchscopes.model.lens_model import LensModel
from patchscopes.results import Json, code_sha256


def describe_environment(model: LensModel, texts: TextSet | None = None) -> Json:
    """What a result depends on beside its configuration: versions, device, model and data with their hashes."""
    packages = ("patchscopes", "torch", "transformers", "transformer-lens", "datasets", "numpy")
    return {
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        "device": str(model.cfg.device),
        "dtype": str(model.cfg.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "model": describe_model(model),
        "dataset": None if texts is None else describe_texts(texts),
        "code_sha256": code_sha256(),
        "git_commit": git_commit(),
    }


def describe_model(model: LensModel) -> Json:
    """Which model it is: its name and weights, the commit if it comes from the hub, and how its weights are quantised
    if they are."""
    described = {"id": model.cfg.model_name, "weights_sha256": weights_sha256(model)}
    commit = getattr(model.cfg, "hub_commit", None)
    if commit is not None:
        described["hub_commit"] = commit
    config = getattr(getattr(model, "original_model", None), "config", None)
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        settings = quantised if isinstance(quantised, dict) else quantised.to_dict()
        described["quantization"] = {
            name: value for name, value in settings.items() if isinstance(value, bool | int | float | str)
        }
    return described


def describe_texts(texts: TextSet) -> Json:
    """Which texts they are."""
    return {"name": texts.name, "split": texts.split, "sha256": texts.sha256}


def git_commit() -> str | None:
    """The commit of the checkout that the package is run from, or None if it is run from none."""
    checkout = Path(patchscopes.__file__).parent.parent
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None
