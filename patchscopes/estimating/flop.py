"""Counting floating-point operations as they are done."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCounter(TorchDispatchMode):
    """Inside its `with` block the FLOP of all matrix products and attentions are added up, by PyTorch's own formulas.

    `FlopCounterMode` finds as many, and by modules: that takes several times as long as the operations of small models.

    Attributes:
        flop: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do an operation, and count it if it is one of those."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flop += float(count(*args, **kwargs, out_val=out))
        return out
