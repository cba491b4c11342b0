"""The options of experiments on facts: attributes, two hops, and where in the model a fact is recalled."""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from patchscopes.prompts import (
    NO_CHAT,
    ChatForm,
)


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
class MultiHopExampleConfig:
    """Options of one two-hop question over layers (`multi_hop_example`).

    Attributes:
        layers: source layers ℓ; None for all blocks.
        target_layers: ℓ*; None for one, at `DEPTH` of the model.
        max_new_tokens: of an answer: in each of them the answer may begin.
        cot_new_tokens: of a chain of thought with its answer.
        batch_size: rows at a time; None to choose by size.
        chat: in which form the model reads S and T.
    """

    METHODS: ClassVar = ("patchscope", "control", "placeholder")
    # Where a state that is written in changes most of the embedded model's answers.
    DEPTH: ClassVar = 0.72
    layers: tuple[int, ...] | None = None
    target_layers: tuple[int, ...] | None = None
    max_new_tokens: int = MultiHopConfig.max_new_tokens
    cot_new_tokens: int = MultiHopConfig.cot_new_tokens
    batch_size: int | None = None
    chat: ChatForm = NO_CHAT


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


@dataclass(frozen=True, kw_only=True)
class AttributeExampleConfig:
    """Options of one subject's attribute over layers (`attribute_example`).

    Attributes:
        source_prompt: S.
        source_position: i, the last token of the subject.
        layers: source layers ℓ; None for all blocks.
        target_layer: ℓ*: `same` (ℓ* = ℓ), `embedding`, `last` or the number of a block.
        answer: the object to look for; None for that of the relation's sample, "" for none.
        max_new_tokens: after the target prompt.
        seed: of the halves that the relation's subjects are dealt into, and so of the subject of the control.
    """

    source_prompt: str
    source_position: int
    layers: tuple[int, ...] | None = None
    target_layer: str = "0"
    answer: str | None = None
    max_new_tokens: int = 8
    seed: int = 0


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
class TracingExampleConfig:
    """Options of causal tracing on one prompt (`tracing_example`).

    Attributes:
        layers: ℓ; None for all blocks.
        noise: its standard deviation, in those of the subject's embeddings.
        n_noise_samples: corrupted runs; few, so that the answer is there at once.
        n_original_layers: of the layers, at equal distances, those that the original form is measured at too; None for
            all. Its time is that of whole forward passes.
        batch_size: rows at a time; None to choose by size.
        chat: in which form the model reads the prompt.
    """

    layers: tuple[int, ...] | None = None
    noise: float = CausalTracingConfig.noise
    n_noise_samples: int = 3
    n_original_layers: int | None = 2
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
