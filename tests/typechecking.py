"""What checks types and shapes while the tests run: beartype, spared what it would do again and again."""

from collections.abc import Callable
from typing import Any, Protocol

from beartype import beartype

CHECKED: dict[tuple, Callable] = {}
KNOWN: dict[tuple[type, type], bool] = {}


def check_types(function: Callable) -> Callable:
    """Check a function's arguments, or what it returns.

    jaxtyping makes `function` of a signature alone. So one check serves whenever a function within another one is made
    anew.
    """
    if "<locals>" not in function.__qualname__:
        return beartype(function)
    key = function.__module__, function.__qualname__, function.__code__.co_varnames, str(function.__annotations__)
    if key not in CHECKED:
        CHECKED[key] = beartype(function)
    return CHECKED[key]


class CheckedOnce(type(Protocol)):
    """The class of a protocol that looks at one instance of each type: to look at a model builds its `hook_dict`."""

    def __instancecheck__(cls, instance: Any) -> bool:
        key = cls, type(instance)
        if key not in KNOWN:
            KNOWN[key] = super().__instancecheck__(instance)
        return KNOWN[key]
