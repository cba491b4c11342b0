"""What the library asks of a model."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class LensModel(Protocol):
    """A TransformerLens model: a `TransformerBridge`, or the `HookedTransformer` of TransformerLens 3.

    A HookedTransformer runs on plain hooks, without a warning: the fast engine takes the model in a bridge apart.
    """

    cfg: Any
    tokenizer: Any

    @property
    def hook_dict(self) -> dict[str, Any]:
        """The model's hook points by name."""

    def to_tokens(self, *args: Any, **kwargs: Any) -> Tensor:
        """Token ids of a text."""

    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """A forward pass with temporary hooks."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights by name."""


def is_bridge(model: LensModel) -> bool:
    """Whether the model is a bridge, with a Hugging Face model in it, and no HookedTransformer."""
    return getattr(model, "original_model", None) is not None


def has_hooks(model: LensModel) -> bool:
    """Whether the user has put hooks on the model."""
    return any(point.has_hooks(including_permanent=True) for point in model.hook_dict.values())


def is_16_bit(dtype: torch.dtype) -> bool:
    """Whether numbers of this type take 16 bits or fewer: other kernels, and so few digits that rounding matters."""
    return torch.finfo(dtype).bits < 32
