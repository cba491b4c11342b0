"""Where something learned comes from: the models, the texts, and every setting."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from patchscopes.data.texts import TextSet
from patchscopes.errors import PatchscopesError
from patchscopes.model.fingerprint import weights_sha256
from patchscopes.model.lens_model import LensModel


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a learned lens was made from.

    Attributes:
        estimator: `least_squares`, `kl`, `jacobian_lens` or `lre`.
        source_model, target_model: name and `weights_sha256` of the models whose representations go in and come out.
        dataset: name and SHA-256 of the texts; the name alone if they are not at hand.
        n_positions: representations that were fitted, or drawn (with repetition) in training; 0 if not known.
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


def describe_provenance(
    estimator: str,
    model: LensModel,
    texts: TextSet | str,
    n_positions: int,
    options: dict[str, Any],
    *,
    target_model: LensModel | None = None,
) -> Provenance:
    """The provenance of something learned from the representations of one model, or of two.

    Args:
        texts: what it was learned from, or the name of texts that are not at hand.
    """

    def described(one: LensModel) -> dict[str, str]:
        return {"id": one.cfg.model_name, "weights_sha256": weights_sha256(one)}

    return Provenance(
        estimator=estimator,
        source_model=described(model),
        target_model=described(target_model or model),
        dataset={"name": texts} if isinstance(texts, str) else {"name": texts.name, "sha256": texts.sha256},
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
            "scripts/train_lens.py, an LRE with patchscopes.learned.lre.fit_lre, or between two models with "
            "patchscopes.learned.fitting.fit_cross_model_maps"
        )
