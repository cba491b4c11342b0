"""The options of every experiment. Nothing heavy is imported here, so scripts read their options at once."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from patchscopes.prompts import (
    DESCRIPTION_PLACEHOLDER,
    DESCRIPTION_SEPARATOR,
    NO_CHAT,
    PLACEHOLDER,
    ChatForm,
    build_entity_description_prompt,
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
class MultiHopConfig:
    """Options of multi-hop reasoning (`multi_hop`, `multi_hop_grid`).

    Attributes:
        layers: source layers ℓ; None for `N_LAYERS` of them at equal distances.
        target_layers: ℓ*; None for the same as `layers`.
        n_samples: questions to patch, drawn from those whose hops the model answers one by one.
        max_new_tokens: of an answer.
        cot_new_tokens: of a chain of thought with its answer.
        batch_size: rows at a time; None to choose by size.
        chat: in which form the model reads S and T.
    """

    UNPATCHED: ClassVar = ("vanilla", "cot")
    PATCHED: ClassVar = ("patchscope", "control", "placeholder", "back_patch")
    METHODS: ClassVar = (*UNPATCHED, *PATCHED)
    # Layers on each side of the grid unless told: all of them take the square of the time.
    N_LAYERS: ClassVar = 8
    methods: tuple[str, ...] = METHODS
    layers: tuple[int, ...] | None = None
    target_layers: tuple[int, ...] | None = None
    n_samples: int = 100
    max_new_tokens: int = 8
    cot_new_tokens: int = 32
    seed: int = 0
    batch_size: int | None = None
    chat: ChatForm = NO_CHAT


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Options of the benchmark (`benchmark`).

    Attributes:
        n_samples: positions for the next token, each at all layers.
        max_new_tokens: of a description. The answers of the two-hop question have those of `MultiHopConfig`, attributes
            those of `AttributesConfig`.
        methods: the tasks that are timed.
    """

    METHODS: ClassVar = ("next_token", "generation", "grid", "questions", "attributes", "tracing", "jacobian")
    n_samples: int = 16
    max_new_tokens: int = 20
    seed: int = 0
    methods: tuple[str, ...] = METHODS


@dataclass(frozen=True, kw_only=True)
class AttributesConfig:
    """Options of attribute extraction (`attributes`).

    Attributes:
        layers: source layers ℓ; None for `N_LAYERS` of them at equal distances.
        target_layers: ℓ*; None for `N_TARGET_LAYERS` of them.
        n_subjects: of each task, at most; drawn from those that the model knows.
        n_prompts: source prompts of each subject, at most.
        max_new_tokens: after the target prompt (the paper's text says 20, its code 10).
        n_examples: subjects that an LRE is estimated from.
        ranks: of the low-rank inverses of the causal test; those above the model's width are left out.
        batch_size: rows at a time; None to choose by size.
        chat: in which form the model reads S and T.
    """

    METHODS: ClassVar = ("patchscope", "probe", "lre", "lre_patchscope")
    N_LAYERS: ClassVar = 6
    N_TARGET_LAYERS: ClassVar = 4
    # Tokens of a source prompt, and those in which the answer about a subject in clear must stand.
    WINDOW: ClassVar = 20
    KNOWN_NEW_TOKENS: ClassVar = 20
    # Tasks with fewer are dropped, as in the paper.
    FEWEST_SAMPLES: ClassVar = 15
    methods: tuple[str, ...] = METHODS
    layers: tuple[int, ...] | None = None
    target_layers: tuple[int, ...] | None = None
    n_subjects: int = 16
    n_prompts: int = 5
    max_new_tokens: int = 10
    n_examples: int = 8
    ranks: tuple[int, ...] = (4, 16, 64, 256)
    seed: int = 0
    batch_size: int | None = None
    chat: ChatForm = NO_CHAT


# What is restored: states, what MLPs or attention add, or states while the MLPs after them stay corrupted.
TracedSite: TypeAlias = Literal["resid", "mlp_out", "attn_out", "resid_severed"]


@dataclass(frozen=True, kw_only=True)
class CausalTracingConfig:
    """Options of causal tracing (`causal_tracing`).

    Attributes:
        layers: ℓ; None for `N_LAYERS` of them at equal distances.
        n_samples: facts, drawn from those that the model knows.
        n_original: facts that the original form is measured on too, the first of those; its time is that of whole
            forward passes.
        noise: its standard deviation, in those of the embeddings of all subjects.
        n_noise_samples: corrupted runs of each fact.
        window: consecutive blocks whose MLPs, or attention, are restored together.
        batch_size: rows at a time; None to choose by size.
        chat: in which form the model reads S and T.
    """

    METHODS: ClassVar = ("original", "patchscope")
    SITES: ClassVar[tuple[TracedSite, ...]] = ("resid", "mlp_out", "attn_out", "resid_severed")
    # Every second one of 30: they take the time, and facts are worth more of it.
    N_LAYERS: ClassVar = 15
    TOKEN_CLASSES: ClassVar = ("first_subject", "middle_subject", "last_subject", "next", "further", "last")
    methods: tuple[str, ...] = METHODS
    layers: tuple[int, ...] | None = None
    n_samples: int = 40
    n_original: int = 4
    noise: float = 3.0
    n_noise_samples: int = 10
    window: int = 10
    seed: int = 0
    batch_size: int | None = None
    chat: ChatForm = NO_CHAT


@dataclass(frozen=True, kw_only=True)
class AttentionKnockoutConfig:
    """Options of attention knockout (`attention_knockout`).

    Attributes:
        layers: that windows are centred on; None for all blocks.
        window: layers of a window; None for `WINDOW`, or about a third of the layers of a shallow model.
        n_samples: facts, at most; drawn from those that the model knows.
        batch_size: rows at a time; None to choose by size.
        chat: in which form the model reads S and T.
    """

    METHODS: ClassVar = ("original", "patchscope")
    # Whose keys the last position is kept from.
    KEYS: ClassVar = ("subject", "rest", "last")
    WINDOW: ClassVar = 9
    methods: tuple[str, ...] = METHODS
    layers: tuple[int, ...] | None = None
    window: int | None = None
    n_samples: int = 100
    seed: int = 0
    batch_size: int | None = None
    chat: ChatForm = NO_CHAT


@dataclass(frozen=True, kw_only=True)
class EntityResolutionConfig:
    """Options of the one picture of entity resolution (`entity_resolution`).

    Attributes:
        layers: ℓ; None for all blocks.
        n_samples: facts, at most; drawn from those that the model knows.
        n_examples: known facts of each prompt that its LRE is estimated from; they are never measured.
        noise: of causal tracing: its standard deviation, in those of the embeddings of all subjects.
        n_noise_samples: corrupted runs of each fact.
        window: layers of a window in which the last position does not read the subject; None for `WINDOW`, or about a
            third of the layers of a shallow model.
        max_new_tokens: of a description.
        batch_size: rows at a time; None to choose by size.
        chat: in which form the model reads S and T.
    """

    METHODS: ClassVar = ("description", "tracing", "knockout", "lre")
    # Narrower than that of attention knockout alone: a window blurs by its width where the subject is read.
    WINDOW: ClassVar = 5
    methods: tuple[str, ...] = METHODS
    layers: tuple[int, ...] | None = None
    n_samples: int = 36
    n_examples: int = 8
    noise: float = 3.0
    n_noise_samples: int = 10
    window: int | None = None
    max_new_tokens: int = 20
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
