"""What callers may give in place of the library's own types where its meaning is clear: one place for all faces."""

import operator
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from patchscopes.errors import PatchscopesError, PatchscopesWarning
from patchscopes.model.lens_model import LensModel

if TYPE_CHECKING:
    # To a type checker things are what they become.
    AnyModel: TypeAlias = LensModel
    AnyVectors: TypeAlias = Float[Tensor, "row d_model"]
    AnyVector: TypeAlias = Float[Tensor, " d_model"]
    AnyNumbers: TypeAlias = Sequence[int] | Int[Tensor, " number"] | int
    AnyNumber: TypeAlias = int
    # Of fields that become tuples.
    Numbers: TypeAlias = Sequence[int]
else:
    # A TransformerLens model, or one of Hugging Face, which is wrapped in place.
    AnyModel = LensModel | nn.Module
    # Of torch or NumPy, or in lists.
    AnyVectors = Num[Tensor, "row d_model"] | Num[np.ndarray, "row d_model"] | Sequence[Any]
    AnyVector = Num[Tensor, " d_model"] | Num[np.ndarray, " d_model"] | Sequence[Any]
    # One whole number or several, such as positions and layers: of Python, NumPy or torch, or a range.
    AnyNumber = int | np.integer | Tensor
    AnyNumbers = AnyNumber | Sequence[AnyNumber] | np.ndarray
    Numbers = AnyNumbers

# Where a model of Hugging Face keeps its bridge. (A dictionary with weak keys would keep both for ever: a bridge holds
# its model.)
BRIDGE = "_patchscopes_bridge"


def to_lens_model(model: Any) -> LensModel:
    """The model, if it is one of TransformerLens; one of Hugging Face wrapped, once, as `load_model` does.

    Raises:
        PatchscopesError: it is neither, or no tokenizer is found under its name.
    """
    if hasattr(model, "run_with_hooks"):
        return model
    if isinstance(model, str):
        raise PatchscopesError(f"{model!r} is the name of a model: load it once, and give load_model({model!r})")
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise PatchscopesError(
            f"a model must be what load_model gives, or one of Hugging Face, got a {type(model).__name__}"
        )
    if BRIDGE not in vars(model):
        from patchscopes.model.loading import load_model

        vars(model)[BRIDGE] = load_model(hf_model=model)
        warnings.warn(
            f"a bare {type(model).__name__} was given: it is wrapped in place, in eval mode and without gradients, as "
            "load_model(hf_model=..., tokenizer=...) does",
            PatchscopesWarning,
            stacklevel=3,
        )
    bridge: LensModel = vars(model)[BRIDGE]
    return bridge


def to_rows(
    model: LensModel, vectors: AnyVectors, layers: AnyNumbers
) -> tuple[Float[Tensor, "row width"], Int[Tensor, " row"]]:
    """Vectors, and a layer for each, as tensors on the model's device.

    Raises:
        PatchscopesError: they are not rows of numbers, or not as many whole numbers.
    """
    rows = to_tensor(vectors, model.cfg.dtype).to(model.cfg.device)
    if rows.ndim != 2:
        raise PatchscopesError(
            f"vectors must be [row, d_model], got shape {tuple(rows.shape)}; give one vector as a list of one"
        )
    if isinstance(layers, Tensor) and layers.ndim == 1 and not layers.is_floating_point():
        numbers = layers.to(rows.device).long()
    else:
        numbers = torch.tensor(to_numbers(layers, "layers"), dtype=torch.long, device=rows.device)
    if len(numbers) != len(rows):
        raise PatchscopesError(f"{len(rows)} vectors need as many layers, got {len(numbers)}")
    return rows, numbers


def to_tensor(given: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of any shape as floating-point ones; those that are no tensor of such in the given type.

    Raises:
        PatchscopesError: they are no real numbers, or rows differ in length.
    """
    try:
        if isinstance(given, Sequence) and len(given) > 0 and all(isinstance(row, Tensor) for row in given):
            given = torch.stack(list(given))
        if isinstance(given, Tensor) and given.is_floating_point():
            return given
        if not isinstance(given, Tensor):
            given = torch.tensor(np.asarray(given))
    except (RuntimeError, TypeError, ValueError) as error:
        raise PatchscopesError(
            f"vectors must be numbers in rows of one length, got a {type(given).__name__} that is not ({error})"
        ) from error
    if given.is_complex() or given.dtype == torch.bool:
        raise PatchscopesError(f"vectors must be real numbers, got {given.dtype}")
    return given.to(dtype)


def to_number(given: Any, what: str) -> int:
    """One whole number, of Python, NumPy or torch.

    Args:
        what: it is, for the message.

    Raises:
        PatchscopesError: it is none.
    """
    try:
        return operator.index(given)
    except TypeError as error:
        raise PatchscopesError(f"{what} must be one whole number, got {given!r}") from error


def is_number(given: Any) -> bool:
    """Whether it is one whole number."""
    try:
        operator.index(given)
    except TypeError:
        return False
    return True


def to_numbers(given: Any, what: str) -> list[int]:
    """Whole numbers, several or one.

    Raises:
        PatchscopesError: some are none.
    """
    if is_number(given):
        return [operator.index(given)]
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise PatchscopesError(f"{what} must be whole numbers, got {given!r}")
    return [to_number(number, what) for number in given]
