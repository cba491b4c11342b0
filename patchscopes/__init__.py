"""Patchscopes (Ghandeharioun et al., ICML 2024): let a language model say what its hidden states hold.

What a notebook starts with is here, and is imported when it is first used: `import patchscopes` alone is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchscopes.baselines import AffineLens, LogitLens, PatchscopeLens, source_patchscope
    from patchscopes.engine.target import TargetPrompt
    from patchscopes.engine.unembedding import logit_lens
    from patchscopes.model.layers import EMBEDDING
    from patchscopes.model.loading import load_model
    from patchscopes.patchscope import Patchscope

__version__ = "0.1.0"

__all__ = [
    "EMBEDDING",
    "AffineLens",
    "LogitLens",
    "Patchscope",
    "PatchscopeLens",
    "TargetPrompt",
    "load_model",
    "logit_lens",
    "source_patchscope",
]

_ROOMS = {
    "EMBEDDING": "model.layers",
    "Patchscope": "patchscope",
    "TargetPrompt": "engine.target",
    "load_model": "model.loading",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"patchscopes.{_ROOMS.get(name, 'baselines')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
