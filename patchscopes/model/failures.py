"""Why a model could not be loaded, and what to do: one sentence for each way in which it fails."""

from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from patchscopes.errors import PatchscopesError
from patchscopes.model.registry import EMBEDDED_MODEL
from patchscopes.model.sources import Source, find_namesake


def explain_failure(name: str, source: Source, error: Exception, revision: str | None = None) -> str:
    """One sentence on why a model could not be loaded, and what to do."""
    shown = repr(name) if revision is None else f"{name!r} (revision {revision!r})"
    if isinstance(error, PatchscopesError):
        return str(error)
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":")
    page = f"https://huggingface.co/{source.place}"
    if "trust_remote_code" in str(error):
        where = page if source.kind == "hub" else source.place
        return (
            f"{name!r} comes with code of its own, which is run only if you trust it: read it at {where}, then give "
            "trust_remote_code=True (--trust-remote-code)"
        )
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"{name!r} is gated: accept its licence at {page}, then log in with `hf auth login`"
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return f"{name!r} has no revision {revision!r}: those that it has are at {page}/tree/main"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"the hub has no model {source.place!r} that you may see: check the name, or log in with `hf auth login`"
    if "Could not determine supported architecture" in str(error):
        return f"TransformerLens does not know the architecture of {name!r}; choose another model"
    if isinstance(error, ImportError):
        return f"{name!r} needs a package that is not installed: {reason}"
    if source.kind == "embedded":
        return (
            f"the embedded model {name!r} could not be loaded ({reason}); PATCHSCOPES_CACHE names another cache folder"
        )
    if source.kind == "gguf" and isinstance(error, OSError):
        return (
            f"the GGUF file {source.place} could not be unpacked ({reason}); make room, or name another cache "
            "folder in PATCHSCOPES_CACHE"
        )
    if source.kind == "folder":
        return f"the folder {source.place} does not hold a complete model with its tokenizer: {reason}"
    if source.kind == "adapter":
        return f"the adapter {source.place} and the model that it was made for could not be loaded: {reason}"
    if isinstance(error, OSError):
        folder = find_namesake(name)
        return (
            f"{shown} could not be fetched from the hub and is not in its local cache: check the network connection, "
            f"give the path of a folder that holds the model{f' (./{folder} is one)' if folder else ''}, or use the "
            f"embedded model {EMBEDDED_MODEL!r} ({reason})"
        )
    return f"{name!r} cannot be loaded: {reason}"
