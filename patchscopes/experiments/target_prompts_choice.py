"""Which target prompt is the best in each part of the depth, and how sure the choice is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from patchscopes.data.target_prompts import Candidate, PromptBand
from patchscopes.errors import PatchscopesError
from patchscopes.metrics import resample_means
from patchscopes.results import Json


@dataclass(frozen=True, kw_only=True)
class LayerBand:
    """Consecutive layers that get one prompt.

    Attributes:
        first, last: of these layers, both included.
        slots: which of the layers that are read lie among them.
    """

    first: int
    last: int
    slots: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The prompt that is chosen for a band.

    Attributes:
        number: of the candidate.
        chosen_in: the share of bootstrap samples of the train texts in which the same candidate has the highest
            Precision@1 (the first of several): how sure the choice is.
    """

    band: LayerBand
    number: int
    candidate: Candidate
    chosen_in: float

    @property
    def prompt_band(self) -> PromptBand:
        """The form that the lens takes."""
        return PromptBand(
            first=self.band.first,
            last=self.band.last,
            prompt=self.candidate.prompt,
            placeholder=self.candidate.placeholder,
        )

    def as_json(self, layers: Sequence[int]) -> Json:
        """The form of the result file. `layers` are all that are read."""
        return {
            "first": self.band.first,
            "last": self.band.last,
            "layers": [layers[slot] for slot in self.band.slots],
            "candidate": self.number,
            "prompt": self.candidate.prompt,
            "placeholder": self.candidate.placeholder,
            "family": self.candidate.family,
            "chosen_in": self.chosen_in,
        }


def split_into_bands(layers: Sequence[int], n_layers: int, n_bands: int) -> list[LayerBand]:
    """Equal parts of the model's depth, from the first block to the last.

    A part in which no layer is read joins the one before it (at the start, the one behind it).

    Raises:
        PatchscopesError: there is to be no band.
    """
    if n_bands < 1:
        raise PatchscopesError(f"the depth must be at least 1 band, got {n_bands}")
    slots: dict[int, list[int]] = {}
    for slot, layer in enumerate(layers):
        slots.setdefault(max(0, layer) * n_bands // n_layers, []).append(slot)
    parts = sorted(slots)
    # The first block b of part p is the first with b * n_bands // n_layers >= p.
    firsts = [0, *(-(-part * n_layers // n_bands) for part in parts[1:])]
    lasts = [*(first - 1 for first in firsts[1:]), n_layers - 1]
    return [
        LayerBand(first=first, last=last, slots=tuple(slots[part]))
        for first, last, part in zip(firsts, lasts, parts, strict=True)
    ]


def average_in_bands(
    tables: Mapping[str, Float[np.ndarray, "sample method layer"]], bands: Sequence[LayerBand]
) -> dict[str, Float[np.ndarray, "sample method band"]]:
    """The mean of each metric over the layers of each band that are read."""
    return {
        metric: np.stack([table[..., list(band.slots)].mean(axis=-1) for band in bands], axis=-1)
        for metric, table in tables.items()
    }


def choose_prompts(
    tables: Mapping[str, Float[np.ndarray, "sample candidate layer"]],
    bands: Sequence[LayerBand],
    candidates: Sequence[Candidate],
    groups: Int[np.ndarray, " sample"],
    seed: int,
) -> list[Choice]:
    """The candidate with the highest Precision@1 in each band; of several that with the lowest Surprisal, or the first.

    Args:
        groups: the text of each sample; a text is resampled as a whole.
    """
    by_band = average_in_bands(tables, bands)
    chosen = []
    for number, band in enumerate(bands):
        precision, surprisal = (by_band[metric][..., number] for metric in ("precision_at_1", "surprisal"))
        # Counts of hits, which are whole: means of them may differ in their last bit.
        hits = (precision * len(band.slots)).round().sum(axis=0)
        best = min(range(len(candidates)), key=lambda one: (-hits[one], surprisal[:, one].mean(), one))
        # Equal candidates may differ in their last bit here, and the first of them counts.
        resampled = resample_means(precision, groups=groups, seed=seed).round(9)
        chosen.append(
            Choice(
                band=band,
                number=best,
                candidate=candidates[best],
                chosen_in=float((resampled.argmax(axis=1) == best).mean()),
            )
        )
    return chosen
