"""The options of experiments that read the next token, or the next ones, from one state."""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from patchscopes.prompts import (
    NO_CHAT,
    PLACEHOLDER,
    ChatForm,
    build_token_identity_prompt,
)

Mode: TypeAlias = Literal["generate", "top_k", "both"]


@dataclass(frozen=True, kw_only=True)
class LayerReadoutConfig:
    """Options of Figure 1 (`layer_readout`).

    Attributes:
        source_prompt: S.
        source_word: its last token is the one whose representation is read.
        target_prompt: T; the vector goes to the last `placeholder` in it.
        layers: source layers ℓ; None for all blocks.
        target_layer: ℓ*: `"same"` (ℓ* = ℓ), `"embedding"`, `"last"` or the number of a block.
        mode: the most likely tokens, a generation, or both.
        k: how many of the most likely tokens.
        batch_size: layers at a time; None to choose by size.
        chat: in which form the model reads S and T.
    """

    source_prompt: str = "Amazon's former CEO attended Oscars"
    source_word: str = "CEO"
    target_prompt: str = build_token_identity_prompt()
    placeholder: str = PLACEHOLDER
    layers: tuple[int, ...] | None = None
    target_layer: str = "same"
    mode: Mode = "both"
    k: int = 5
    max_new_tokens: int = 8
    batch_size: int | None = None
    chat: ChatForm = NO_CHAT


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    """Options of Figure 2 (`next_token`).

    Attributes:
        layers: source layers ℓ; None for all blocks.
        batch_size: texts, and rows, at a time; None to choose by size.
        chat: in which form the model reads S and T.
    """

    METHODS: ClassVar = (
        "logit_lens",
        "tuned_lens",
        "tuned_lens_kl",
        "jacobian_lens",
        "token_identity",
        "simplescope",
        "best_prompt",
    )
    # Training by KL, Jacobians and the choice of prompts take minutes, so these are there only when asked for.
    methods: tuple[str, ...] = ("logit_lens", "tuned_lens", "token_identity", "simplescope")
    n_samples: int = 1000
    layers: tuple[int, ...] | None = None
    seed: int = 0
    batch_size: int | None = None
    chat: ChatForm = NO_CHAT


@dataclass(frozen=True, kw_only=True)
class PromptTableConfig:
    """Options of the table of a prompt (`prompt_table`).

    Attributes:
        lens: one of `LENSES`.
        color: what the colours of the cells stand for, one of `COLORS`.
        layers: ℓ; None for all blocks.
        bos: with a column for the BOS token that is put in front of the prompt.
        batch_size: rows at a time; None to choose by size.
        chat: in which form the model reads S and T.
    """

    LENSES: ClassVar = NextTokenConfig.METHODS
    COLORS: ClassVar = ("probability", "rank", "kl")
    # Of a figure: PNG files end at 65,536 pixels.
    MAX_TOKENS: ClassVar = 120
    prompt: str = "The Eiffel Tower is in Paris, and the Space Needle is in downtown Seattle"
    lens: str = "logit_lens"
    color: str = "probability"
    layers: tuple[int, ...] | None = None
    bos: bool = False
    batch_size: int | None = None
    chat: ChatForm = NO_CHAT


@dataclass(frozen=True, kw_only=True)
class TargetPromptsConfig:
    """Options of the choice of target prompts (`target_prompts`).

    Attributes:
        layers: source layers ℓ; None for `N_LAYERS` of them at equal distances.
        n_bands: parts of the depth, each of which gets a prompt of its own.
        n_train_samples: positions in train texts that each candidate is tried on.
        n_samples: positions in evaluation texts that the chosen prompts are scored on.
        batch_size: texts, and rows, at a time; None to choose by size.
        chat: in which form the model reads S and T.
    """

    # Scored on evaluation texts: the chosen prompts, and what they are compared with.
    METHODS: ClassVar = ("best_prompt", "token_identity", "simplescope")
    N_LAYERS: ClassVar = 12
    layers: tuple[int, ...] | None = None
    n_bands: int = 5
    n_train_samples: int = 200
    n_samples: int = 400
    seed: int = 0
    batch_size: int | None = None
    chat: ChatForm = NO_CHAT


@dataclass(frozen=True, kw_only=True)
class FutureLensConfig:
    """Options of the Future Lens (`future_lens`).

    Attributes:
        layers: source layers ℓ; None for all blocks.
        batch_size: rows at a time; None to choose by size.
        chat: in which form the model reads S and T.
    """

    METHODS: ClassVar = ("linear", "fixed_prompt", "learned_prompt", "token_identity")
    # Precision@k is how often the model's own token is among the k that the lens finds most likely.
    PRECISION_AT: ClassVar = (1, 5, 10)
    METRICS: ClassVar = (*(f"precision_at_{k}" for k in PRECISION_AT), "surprisal")
    methods: tuple[str, ...] = METHODS
    n_samples: int = 200
    layers: tuple[int, ...] | None = None
    seed: int = 0
    batch_size: int | None = None
    chat: ChatForm = NO_CHAT


FutureForm: TypeAlias = Literal["fixed_prompt", "learned_prompt"]


@dataclass(frozen=True, kw_only=True)
class LensesConfig:
    """Options of the lenses side by side (`lenses`).

    Attributes:
        future_lens: which of its prompts stands for the Future Lens.
        n_checked_with_hooks: samples for which twins with T = S are also run as whole forward passes with plain hooks,
            which takes seconds each.
        layers: source layers ℓ; None for all blocks.
        chat: in which form the model reads S and T.
    """

    # Those with a Patchscope twin, whose name ends in `_patchscope`.
    ORIGINALS: ClassVar = ("logit_lens", "tuned_lens", "jacobian_lens", "future_lens")
    METHODS: ClassVar = (
        "logit_lens",
        "logit_lens_patchscope",
        "tuned_lens",
        "tuned_lens_patchscope",
        "jacobian_lens",
        "jacobian_lens_patchscope",
        "future_lens",
        "future_lens_patchscope",
        "token_identity",
    )
    # Jacobians take minutes, so they are computed only when asked for.
    methods: tuple[str, ...] = (*METHODS[:4], *METHODS[6:])
    future_lens: FutureForm = "learned_prompt"
    n_samples: int = 100
    n_checked_with_hooks: int = 4
    layers: tuple[int, ...] | None = None
    seed: int = 0
    chat: ChatForm = NO_CHAT


@dataclass(frozen=True, kw_only=True)
class NextTokenExampleConfig:
    """Options of the next tokens of one prompt (`next_token_example`).

    Attributes:
        source_prompt: S.
        source_position: i, counted from either end.
        methods: None for all that there is what they have to learn for, and that say something of this token.
        ahead: which of the model's next tokens is asked for, 1 to `N_TOKENS`.
        layers: source layers ℓ; None for all blocks.
        k: how many of the most likely tokens.
        chat: in which form the model reads S and T.
    """

    METHODS: ClassVar = (
        "logit_lens",
        "tuned_lens",
        "jacobian_lens",
        "linear",
        "fixed_prompt",
        "learned_prompt",
        "token_identity",
        "simplescope",
    )
    # What of them says something of the tokens after the next one.
    AHEAD: ClassVar = METHODS[3:]
    source_prompt: str = "The Eiffel Tower is in the city of"
    source_position: int = -1
    methods: tuple[str, ...] | None = None
    ahead: int = 1
    layers: tuple[int, ...] | None = None
    k: int = 5
    chat: ChatForm = NO_CHAT
