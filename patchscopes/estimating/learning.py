"""What is learned from a small part of the texts, in the place of what a run would learn and keep."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from patchscopes.errors import PatchscopesWarning
from patchscopes.estimating.tally import Estimate, Learned

Loaded = TypeVar("Loaded")


def learn_some(estimate: Estimate, path: Path, learn: Callable[[Path], Loaded]) -> Loaded:
    """What `learn` gives if it sees little (its iterations are `do_some`); the whole of it is counted, nothing is kept.

    Args:
        path: where a run would keep it.
        learn: given where to keep a checkpoint.
    """
    if path not in estimate.learned:
        before = estimate.read()
        # Learning warns of too little to learn from.
        with (
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(action="ignore", category=PatchscopesWarning),
        ):
            stand_in = learn(Path(folder) / "checkpoint")
        estimate.learned[path] = Learned(
            stand_in=stand_in, taken=estimate.read() - before, in_step=estimate.stop_at < float("inf")
        )
    elif estimate.learned[path].in_step:
        estimate.add(estimate.learned[path].taken)
    return cast(Loaded, estimate.learned[path].stand_in)
