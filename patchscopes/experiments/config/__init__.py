"""The options of every experiment. Nothing heavy is imported here, so scripts read their options at once."""

from patchscopes.experiments.config.benchmark import BenchmarkConfig
from patchscopes.experiments.config.describing import CrossModelConfig, EntityConfig, LayerGridConfig
from patchscopes.experiments.config.facts import (
    AttentionKnockoutConfig,
    AttributesConfig,
    CausalTracingConfig,
    EntityResolutionConfig,
    MultiHopConfig,
    TracedSite,
    TracingExampleConfig,
)
from patchscopes.experiments.config.reading import (
    FutureForm,
    FutureLensConfig,
    LayerReadoutConfig,
    LensesConfig,
    Mode,
    NextTokenConfig,
    PromptTableConfig,
    TargetPromptsConfig,
)

__all__ = [
    "AttentionKnockoutConfig",
    "AttributesConfig",
    "BenchmarkConfig",
    "CausalTracingConfig",
    "CrossModelConfig",
    "EntityConfig",
    "EntityResolutionConfig",
    "FutureForm",
    "FutureLensConfig",
    "LayerGridConfig",
    "LayerReadoutConfig",
    "LensesConfig",
    "Mode",
    "MultiHopConfig",
    "NextTokenConfig",
    "PromptTableConfig",
    "TargetPromptsConfig",
    "TracedSite",
    "TracingExampleConfig",
]
