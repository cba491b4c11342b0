"""Which models of the registry fit into the memory of a device, with a batch to compute."""

from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig

from patchscopes.engine.batching import RowSize
from patchscopes.model.devices import measure_free_memory_of
from patchscopes.model.registry import load_configurations
from patchscopes.model.sizes import FORMS, measure_size

# A batch as texts are read in: so many rows, and tokens of each.
ROWS, TOKENS = 32, 32


def judge_registry(device: str) -> dict[str, list[str]]:
    """For each alias of the registry the forms (of `FORMS`) in which weights and a batch fit into the free memory."""
    free = measure_free_memory_of(device)
    judged = {}
    for alias, numbers in load_configurations().items():
        config = AutoConfig.for_model(**numbers)
        size = measure_size(config)
        judged[alias] = [
            form
            for form, (dtype, quantization) in FORMS.items()
            if size.count_bytes(dtype, quantization) + count_batch_bytes(config, dtype) <= free
        ]
    return judged


def count_batch_bytes(config: Any, dtype: torch.dtype) -> int:
    """About how many bytes a batch takes on the model of a configuration."""
    config = config.get_text_config()
    n_heads = config.num_attention_heads
    cfg = SimpleNamespace(
        dtype=dtype,
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        d_vocab=config.vocab_size,
        n_heads=n_heads,
        n_key_value_heads=getattr(config, "num_key_value_heads", None),
        d_head=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        d_mlp=getattr(config, "intermediate_size", None),
    )
    row = RowSize(run=TOKENS, cached=TOKENS, seen=TOKENS)
    return ROWS * row.count_bytes_with(cfg)
