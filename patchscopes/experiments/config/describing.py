"""The options of experiments that let a model say what it knows of a name."""

from dataclasses import dataclass, field
from typing import ClassVar

from patchscopes.prompts import (
    DESCRIPTION_PLACEHOLDER,
    DESCRIPTION_SEPARATOR,
    NO_CHAT,
    ChatForm,
    build_entity_description_prompt,
)


@dataclass(frozen=True, kw_only=True)
class EntityConfig:
    """Options of the entity descriptions (`entity`, `entity_layers`).

    Attributes:
        target_prompt: T; the vector goes to the last `placeholder` in it.
        separator: what stands between the entries of T.
        layers: source layers ℓ; None for all blocks.
        target_layer: ℓ*: `same` (ℓ* = ℓ), `embedding`, `last` or the number of a block.
        batch_size: rows at a time; None to choose by size.
        seed: of the bootstrap; generation is greedy.
        chat: in which form the model reads S and T.
    """

    target_prompt: str = build_entity_description_prompt()
    placeholder: str = DESCRIPTION_PLACEHOLDER
    separator: str = DESCRIPTION_SEPARATOR
    layers: tuple[int, ...] | None = None
    target_layer: str = "same"
    max_new_tokens: int = 20
    batch_size: int | None = None
    seed: int = 0
    chat: ChatForm = NO_CHAT


@dataclass(frozen=True, kw_only=True)
class CrossModelConfig:
    """Options of the cross-model experiment (`cross_model`).

    Attributes:
        layers: source layers ℓ; None for `N_SOURCE_LAYERS` of them at equal distances.
        target_layers: ℓ*; None for `N_TARGET_LAYERS` of them.
        mapping: f, one of `MAPPINGS`.
        n_samples: positions for the next token.
        entity: of the descriptions. Each ℓ is described at the chosen ℓ* that is nearest at the same relative depth.
        batch_size: rows at a time; None to choose by size.
        chat: in which form the model reads S and T.
    """

    METHODS: ClassVar = ("token_identity", "source_prompt")
    # Reported beside them: what M* predicts with nothing patched.
    TARGET_MODEL_ALONE: ClassVar = "target_model_alone"
    MAPPINGS: ClassVar = ("affine", "identity")
    # A map between widths of 4,096 and 5,120 takes 84 MB, and its sums twice that: not every layer unless asked for.
    N_SOURCE_LAYERS: ClassVar = 10
    N_TARGET_LAYERS: ClassVar = 9
    methods: tuple[str, ...] = METHODS
    n_samples: int = 200
    layers: tuple[int, ...] | None = None
    target_layers: tuple[int, ...] | None = None
    mapping: str = "affine"
    entity: EntityConfig = field(default_factory=EntityConfig)
    seed: int = 0
    batch_size: int | None = None
    chat: ChatForm = NO_CHAT


@dataclass(frozen=True, kw_only=True)
class LayerGridConfig:
    """Options of the layer-grid study (`layer_grid`).

    Attributes:
        mode: one of `MODES`.
        source_prompt: S, a name or a sentence with a name in it; None for the first name of the file. Of no use to
            `multi`.
        name: how the name stands in S, where the file does not know it.
        keywords: what counts as known of the name; none for those of the file.
        template: the target prompt of modes that take one.
        template_type: the family of `patchscope`.
        layers, target_layers: ℓ and ℓ*, by number; None to go by shares.
        shares, target_shares: the same as shares of the depth, from 0 (the first block) to 1 (the last); none for those
            of the mode.
        full_grid: all layers, in all parts of a study.
        n_names: of `multi`, at most; drawn from those with two keywords.
        n_others: other names whose states are the control of one name. With fewer than 19, a single name cannot stand
            out at the level of `ALPHA`.
        seed: of which names are drawn, of permutations and of the bootstrap; generation is greedy.
        batch_size: rows at a time; None to choose by size.
        chat: in which form the model reads S and T.
    """

    MODES: ClassVar = ("quick", "targeted", "templates", "patchscope", "multi", "comprehensive")
    # ℓ and ℓ* of each kind of grid.
    QUICK_SHARES: ClassVar = ((0.2, 0.5), (0.1, 0.3))
    SHARES: ClassVar = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    # All templates multiply the rows, so they get fewer pairs.
    TEMPLATE_SHARES: ClassVar = (0.1, 0.3, 0.5, 0.7)
    # How often hotspots are found, of pairs, of ℓ or of ℓ*, where there are none.
    ALPHA: ClassVar = 0.05
    mode: str = "quick"
    source_prompt: str | None = None
    name: str | None = None
    keywords: tuple[str, ...] = ()
    template: str = "entity_description"
    template_type: str | None = None
    layers: tuple[int, ...] | None = None
    target_layers: tuple[int, ...] | None = None
    shares: tuple[float, ...] = ()
    target_shares: tuple[float, ...] = ()
    full_grid: bool = False
    n_names: int = 24
    n_others: int = 19
    max_new_tokens: int = 20
    seed: int = 0
    batch_size: int | None = None
    chat: ChatForm = NO_CHAT
