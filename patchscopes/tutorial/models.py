"""The models of the tutorial: named when it is started, loaded in the background, once for all readers."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from patchscopes.errors import PatchscopesError
from patchscopes.model.embedded import find_parts
from patchscopes.model.registry import EMBEDDED_MODEL, SECOND_MODEL

if TYPE_CHECKING:
    from patchscopes.model.lens_model import LensModel


@dataclass(frozen=True, kw_only=True)
class ServedModels:
    """Which models readers may choose from, and how they are loaded. A page cannot name another one.

    Attributes:
        names: as for `load_model`; the first one is chosen at the start.
        device, dtype, quantization, trust_remote_code: as for `load_model`.
    """

    names: tuple[str, ...]
    device: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    trust_remote_code: bool = False


@cache
def list_installed() -> tuple[str, ...]:
    """The models that are there without the hub: the embedded one, and Gemma 3 270M where it is installed."""
    try:
        find_parts(SECOND_MODEL)
    except PatchscopesError:
        return (EMBEDDED_MODEL,)
    return (EMBEDDED_MODEL, SECOND_MODEL)


class _Shelf:
    """The models that are loaded or loading, one after the other."""

    def __init__(self, served: ServedModels | None = None) -> None:
        self.served = served or ServedModels(names=list_installed())
        self.lock = threading.Lock()
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self.loading: dict[str, Future[LensModel]] = {}


_shelf: _Shelf | None = None


def serve(served: ServedModels) -> None:
    """Say which models there are; what was loaded before is let go."""
    global _shelf
    _shelf = _Shelf(served)


def _get_shelf() -> _Shelf:
    global _shelf
    if _shelf is None:
        _shelf = _Shelf()
    return _shelf


def list_names() -> tuple[str, ...]:
    """The models that readers may choose from."""
    return _get_shelf().served.names


def get(name: str) -> "LensModel | None":
    """The model, or None while it loads: the first call begins with that.

    Raises:
        PatchscopesError: the tutorial was started without this model, or it cannot be loaded.
    """
    shelf = _get_shelf()
    if name not in shelf.served.names:
        raise PatchscopesError(
            f"this tutorial was started with {', '.join(shelf.served.names)}, not with {name!r}: start it with "
            f"--model {name}"
        )
    with shelf.lock:
        if name not in shelf.loading:
            shelf.loading[name] = shelf.pool.submit(_load, name, shelf.served)
        loading = shelf.loading[name]
    return loading.result() if loading.done() else None


def _load(name: str, served: ServedModels) -> "LensModel":
    from patchscopes.engine.memory import keep_freed_memory
    from patchscopes.model.loading import load_model

    keep_freed_memory()
    try:
        return load_model(
            name,
            device=served.device,
            dtype=served.dtype,
            quantization=served.quantization,
            trust_remote_code=served.trust_remote_code,
        )
    except (MemoryError, RuntimeError) as error:
        raise PatchscopesError(
            f"{name} cannot be loaded ({error}); start the tutorial with a smaller model, --dtype bfloat16 or another "
            "--device"
        ) from error
