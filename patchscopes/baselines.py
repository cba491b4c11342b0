"""Lenses: the earlier ones in their original form, and the Patchscope that computes the same.

Every lens takes representations and the layers they are from, one of each per row, and gives the logits of the next
token. A lens is a choice of the Patchscope's parts; section 3.2 of the paper has the table:

=====================  ==========================  ===============================================
lens                   original                    via Patchscope
=====================  ==========================  ===============================================
Logit Lens             `LogitLens`                 T = S, i* = i, ℓ* = last, f = identity
Tuned Lens             `AffineLens` (same token)   the same with f = the layer's map
Jacobian Lens          `AffineLens` (Jacobians)    the same with f = the layer's mean Jacobian J
Future Lens, linear    `AffineLens` (later token)  the same with f = the layer's map
Future Lens, a prompt  `PatchscopeLens` on hooks   T = the prompt, i* = its end, ℓ* = ℓ
=====================  ==========================  ===============================================
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.data.target_prompts import PromptBand
from patchscopes.engine.proof import Engine
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.given import AnyModel, AnyNumber, AnyNumbers, AnyVectors, to_lens_model, to_rows
from patchscopes.learned.mappings import LayerMapping
from patchscopes.model.layers import describe_layers
from patchscopes.patch import patch_logits
from patchscopes.prompts import NO_CHAT, ChatForm
from patchscopes.tokens import Text

# Logits of the next token, from the representation of row r at `layers[r]`.
Lens: TypeAlias = Callable[[Float[Tensor, "row d_model"], Int[Tensor, " row"]], Float[Tensor, "row d_vocab"]]


@dataclass(frozen=True, eq=False)
class LogitLens:
    """The Logit Lens (nostalgebraist 2020) in its original form."""

    model: AnyModel

    def __call__(self, representations: AnyVectors, layers: AnyNumbers) -> Float[Tensor, "row d_vocab"]:
        """Unembed the representations as they are."""
        return logit_lens(self.model, representations)


@dataclass(frozen=True, eq=False)
class AffineLens:
    """An affine map of each layer to the last, then unembedding.

    With maps to the last layer of the same token this is the Tuned Lens (Belrose et al. 2023; by least squares, Din et
    al. 2023); with the mean Jacobians of the last layer, the Jacobian Lens (Gurnee et al. 2026); with maps to that of a
    later token, the linear form of the Future Lens (Pal et al. 2023).
    """

    model: AnyModel
    mapping: LayerMapping

    @torch.no_grad()
    def __call__(self, representations: AnyVectors, layers: AnyNumbers) -> Float[Tensor, "row d_vocab"]:
        """Map each row by its layer's map, and unembed."""
        model = to_lens_model(self.model)
        return logit_lens(model, self.mapping(*to_rows(model, representations, layers)))


@dataclass(frozen=True, eq=False)
class PatchscopeLens:
    """A Patchscope as a lens: f of the representation, written at (i*, ℓ*) of T.

    Attributes:
        target: T and i*.
        target_layer: ℓ*; None for ℓ* = ℓ.
        mapping: f; None for the identity.
        engine: as for `patch_logits`.
    """

    target: TargetPrompt
    target_layer: int | None = None
    mapping: LayerMapping | None = None
    engine: Engine = "auto"

    @torch.no_grad()
    def __call__(self, representations: AnyVectors, layers: AnyNumbers) -> Float[Tensor, "row d_vocab"]:
        """The logits after T, for each row."""
        rows, row_layers = to_rows(self.target.model, representations, layers)
        vectors = rows if self.mapping is None else self.mapping(rows, row_layers)
        target_layers = row_layers if self.target_layer is None else torch.full_like(row_layers, self.target_layer)
        return patch_logits(self.target, vectors, target_layers, engine=self.engine)


def source_patchscope(
    model: AnyModel, source: Text, position: AnyNumber, mapping: LayerMapping | None = None, *, engine: Engine = "auto"
) -> PatchscopeLens:
    """The Patchscope that is the Logit Lens, or with a mapping an affine lens: T = S, i* = i, ℓ* = last.

    Tokens of S after i have no part in the answer, so T ends with token i.
    """
    uncut = TargetPrompt(model, source, position)
    target = TargetPrompt(uncut.model, uncut.tokens[: uncut.position + 1], -1)
    return PatchscopeLens(target, target.model.cfg.n_layers - 1, mapping, engine)


@dataclass(frozen=True, eq=False)
class BestPromptLens:
    """A Patchscope with ℓ* = ℓ and a target prompt that depends on the layer.

    Attributes:
        targets: T and i* of each block; what enters block 0 is read with those of block 0.
    """

    targets: Sequence[TargetPrompt]

    @torch.no_grad()
    def __call__(self, representations: AnyVectors, layers: AnyNumbers) -> Float[Tensor, "row d_vocab"]:
        """The logits after each row's own T; rows that share it are computed together."""
        vectors, numbers = to_rows(self.targets[0].model, representations, layers)
        rows_of: dict[TargetPrompt, list[int]] = {}
        for row, layer in enumerate(numbers.tolist()):
            rows_of.setdefault(self.targets[max(0, layer)], []).append(row)
        logits = [patch_logits(target, vectors[rows], numbers[rows]) for target, rows in rows_of.items()]
        order = torch.tensor([row for rows in rows_of.values() for row in rows], device=vectors.device)
        return torch.cat(logits)[order.argsort()]


def build_best_prompt_lens(model: AnyModel, bands: Sequence[PromptBand], chat: ChatForm = NO_CHAT) -> BestPromptLens:
    """The lens that reads each layer with the prompt of its band.

    Args:
        chat: in which form the model reads the prompts.

    Raises:
        PatchscopesError: the bands are not all blocks of the model one after the other, or a placeholder is not one
            token of its own in this model.
    """
    model = to_lens_model(model)
    blocks = [block for band in bands for block in range(band.first, band.last + 1)]
    if blocks != list(range(model.cfg.n_layers)):
        raise PatchscopesError(
            f"best_prompt needs a prompt for each of the model's layers 0 to {model.cfg.n_layers - 1}, got them for "
            f"{describe_layers(blocks) or 'none'}; choose them on this model with run_target_prompts.py"
        )
    targets = {
        (band.prompt, band.placeholder): placeholder_target(model, chat.of_target(band.prompt), band.placeholder)
        for band in bands
    }
    return BestPromptLens(
        [targets[band.prompt, band.placeholder] for band in bands for _ in range(band.first, band.last + 1)]
    )
