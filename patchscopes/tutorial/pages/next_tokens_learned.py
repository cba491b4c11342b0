"""Lenses that have to be learned: loaded where the user's cache folder has them, else learned when a reader asks.

They are the ones that the scripts learn by default, from the same texts, so one that `make fig2` or
`make future-lens` has learned is there at once.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from patchscopes.experiments.chunks import Progress
from patchscopes.learned.config import N_TOKENS
from patchscopes.tutorial import work

if TYPE_CHECKING:
    from patchscopes.model.lens_model import LensModel


@dataclass(frozen=True, kw_only=True)
class Learnable:
    """A lens that is learned.

    Attributes:
        request: what a reader asks for.
        takes: how long, with the embedded model.
    """

    request: str
    takes: str


# By method of `next_token_example`.
LEARNABLE = {
    "tuned_lens": Learnable(request="Fit the Tuned Lens", takes="about a minute on two cores; kept for next time"),
    "linear": Learnable(
        request="Fit the linear Future Lens", takes="about two minutes on two cores; kept for next time"
    ),
    "learned_prompt": Learnable(
        request="Train the Future Lens's prompt", takes="about three minutes on two cores; kept for next time"
    ),
    "jacobian_lens": Learnable(
        request="Fit the Jacobian Lens", takes="about nine minutes on two cores; kept for next time"
    ),
}


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in the cache folder: maps by `MapKey`, a `SoftPrompt`, or None."""

    lens: Any


def get_learned(name: str, model: "LensModel", method: str) -> Any:
    """What a method has to learn; None, beside a button that begins it, while it is not there.

    Args:
        name: of the model.
    """
    learnable = LEARNABLE[method]

    def look(progress: Progress) -> Found:
        from patchscopes.learned.cached_fits import load_if_learned

        return Found(load_if_learned(lambda progress: learn(model, method, progress)))

    found = work.run(f"Looking for what it takes to: {learnable.request}", (name, method), look)
    if found is None or found.lens is not None:
        return found and found.lens
    return work.run_on_request(
        learnable.request,
        (name, method),
        lambda progress: learn(model, method, progress),
        takes=learnable.takes,
    )


def learn(model: "LensModel", method: str, progress: Progress) -> Any:
    """What the method has to learn, from the cache folder if it is there.

    Raises:
        PatchscopesError: the cache folder cannot be written to, or the model cannot learn it.
    """
    from patchscopes.data.texts import load_texts
    from patchscopes.learned.cached_fits import fit_or_load_affine_maps
    from patchscopes.learned.future_lens import train_soft_prompt
    from patchscopes.learned.jacobian_lens import fit_jacobian_lens

    texts = load_texts(split="train")
    if method == "learned_prompt":
        return train_soft_prompt(model, texts, progress=progress)
    if method == "jacobian_lens":
        return fit_jacobian_lens(model, texts, progress=progress)
    ahead = tuple(range(N_TOKENS)) if method == "linear" else (0,)
    return fit_or_load_affine_maps(model, texts, ahead=ahead, progress=progress)
