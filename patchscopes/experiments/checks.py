"""What experiments refuse before they measure."""

from collections.abc import Sequence

from patchscopes.errors import PatchscopesError


def check_methods(methods: Sequence[str], known: Sequence[str]) -> None:
    """Refuse methods that the experiment does not know.

    Raises:
        PatchscopesError: one of `methods` is not `known`.
    """
    for method in methods:
        if method not in known:
            raise PatchscopesError(f"no method is called {method!r}; choose from {', '.join(known)}")
