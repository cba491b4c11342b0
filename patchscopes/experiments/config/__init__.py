"""The options of every experiment. Nothing heavy is imported here, so scripts read their options at once."""

from patchscopes.experiments.config.benchmark import BenchmarkConfig
from patchscopes.experiments.config.describing import CrossModelConfig, EntityConfig, LayerGridConfig
from patchscopes.experiments.config.facts import (
    AttentionKnockoutConfig,
    AttributeExampleConfig,
    AttributesConfig,
    CausalTracingConfig,
    EntityResolutionConfig,
    MultiHopConfig,
    MultiHopExampleConfig,
    TracedSite,
    TracingExampleConfig,
)
from patchscopes.experiments.config.peers import PeersConfig
from patchscopes.experiments.config.reading import (
    FutureForm,
    FutureLensConfig,
    LayerReadoutConfig,
    LensesConfig,
    Mode,
    NextTokenConfig,
    NextTokenExampleConfig,
    PromptTableConfig,
    TargetPromptsConfig,
)

__all__ = [
    "AttentionKnockoutConfig",
    "AttributeExampleConfig",
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
    "MultiHopExampleConfig",
    "NextTokenConfig",
    "NextTokenExampleConfig",
    "PeersConfig",
    "PromptTableConfig",
    "TargetPromptsConfig",
    "TracedSite",
    "TracingExampleConfig",
]
