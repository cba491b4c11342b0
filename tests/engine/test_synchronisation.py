"""Walks that a GPU is not waited for in.

No GPU is needed: the model is on torch's device `meta`, where nothing has values, so whatever would wait for one (a
number, a size that depends on values, a copy to the CPU) fails there; and copies the other way, which wait too, are
seen as operations on tensors of two devices.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import make_hf_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from patchscopes.engine import row_blocks, row_walk
from patchscopes.engine.building import get_twin
from patchscopes.engine.clean_run import record_clean_run
from patchscopes.engine.decoding import decode_step, empty_generation, join_caches
from patchscopes.engine.fast import staggered_forward, unembed_in_parts
from patchscopes.engine.generation import find_most_likely
from patchscopes.engine.overflow import check_later
from patchscopes.engine.row_walk import join_targets, sort_rows, walk_rows
from patchscopes.engine.rows import Cut, Row, Write
from patchscopes.engine.target import TargetPrompt
from patchscopes.engine.twin import Twin, block_forwards
from patchscopes.model.wrapping import wrap

# Those whose own blocks wait for nothing: experts are chosen on the CPU.
FAMILIES = ("llama", "gpt2", "gemma3", "bloom", "gptj", "cohere")
LAYERS = torch.tensor([2, -1, 0, 3, 1, 0])


class Transfers(TorchDispatchMode):
    """Counts operations on tensors both of the CPU and of the device, inside the walk over the blocks and outside."""

    def __init__(self) -> None:
        super().__init__()
        self.walks = False
        self.inside: list[str] = []
        self.outside = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor) and leaf.ndim]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.outside += not self.walks
            self.inside += [str(func)] * self.walks
        return out


@contextmanager
def watched(twin: Twin) -> Iterator[Transfers]:
    """Count transfers, and which of them fall between the beginning of the first block and the end of the last."""
    transfers = Transfers()
    first, *between, last = (block.forward for block in twin.blocks)

    def begin(*args, **kwargs):
        transfers.walks = True
        return first(*args, **kwargs)

    def end(*args, **kwargs):
        output = last(*args, **kwargs)
        transfers.walks = False
        return output

    with block_forwards(twin, [begin, *between, end]), transfers:
        yield transfers


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tokenizer):
    model = wrap(make_hf_model(request.param), tokenizer, request.param)
    model.original_model.to("meta")
    model.cfg.device = "meta"
    return model


@pytest.fixture(scope="module")
def twin(model):
    return get_twin(model)


@pytest.fixture(scope="module")
def clean(twin):
    return record_clean_run(twin, torch.zeros(6, dtype=torch.long, device="meta"), position=3)


def test_a_value_is_not_to_be_had():
    """What the other tests rest on."""
    for wait in (torch.Tensor.item, torch.Tensor.nonzero, torch.Tensor.cpu, torch.Tensor.tolist, bool):
        with pytest.raises((NotImplementedError, RuntimeError)):
            wait(torch.ones(1, device="meta"))


def test_rows_that_join(twin, clean):
    vectors = torch.empty(len(LAYERS), 32, device="meta")
    with watched(twin) as transfers:
        residual, _, _ = staggered_forward(twin, clean, vectors, LAYERS)
    assert residual.shape == (len(LAYERS), 32)
    assert transfers.inside == []


def test_a_generated_token(twin, clean):
    layers = LAYERS.sort().values
    _, cache, _ = staggered_forward(twin, clean, torch.empty(len(layers), 32, device="meta"), layers)
    cache, generated = join_caches(twin, clean, [cache]), empty_generation(layers)
    for kept, tokens in (((0, 1, 2, 4, 5), (7, 7, 8, 7, 9)), ((0, 2, 3), (1, 2, 2))):
        with watched(twin) as transfers:
            residual, generated = decode_step(twin, cache, generated, torch.tensor(kept), torch.tensor(tokens))
        assert residual.shape == (len(kept), 32)
        assert transfers.inside == []
        # However many blocks there are.
        assert transfers.outside <= 4


def test_tokens_are_waited_for_once(twin):
    """However many parts their logits come in, each of which is checked."""
    with check_later() as checks:
        chosen = [find_most_likely(logits) for logits in unembed_in_parts(twin, torch.empty(600, 32, device="meta"))]
    assert len(chosen) == len(checks.finite) == 3
    with pytest.raises(NotImplementedError):
        checks.fetch(torch.cat(chosen))


def test_rows_that_say_more(model, twin, monkeypatch):
    # Before the walk a GPU is waited for, to see what stands in masks, and whether a query is left with keys.
    monkeypatch.setattr(row_blocks, "find_masked_values", lambda twin: [-torch.inf] * len(twin.blocks))
    monkeypatch.setattr(row_blocks, "check_keys_left", lambda *args: None)
    # And to see which prompts begin alike.
    monkeypatch.setattr(row_walk, "run_cleanly_together", lambda twin, targets: None)
    targets = [TargetPrompt(model, text, 3) for text in ("abcdef", "xyzabc")]
    vector = torch.empty(32, device="meta")
    rows = [
        Row(
            target=targets[number % 2],
            writes=[Write(position=3, layer=number % 4, vector=vector, site=site)],
            cuts=[Cut(query=4, keys=[1, 2], layers=[number % 3])],
        )
        for number, site in enumerate(("resid", "attn_out", "mlp_out", "resid", "attn_out"))
    ]
    if type(model.original_model).__name__ in ("BloomForCausalLM", "GPTJForCausalLM", "CohereForCausalLM"):
        # What their sublayers add has no module of its own, or their masks are made inside of a block.
        rows = [
            Row(target=row.target, writes=[Write(position=3, layer=row.first_block % 4, vector=vector)]) for row in rows
        ]
    sorted_rows, _ = sort_rows(rows)
    clean, target_of_row, start = join_targets(twin, sorted_rows)
    with watched(twin) as transfers:
        residual, _ = walk_rows(model, twin, clean, sorted_rows, target_of_row, start)
    assert residual.shape == (len(rows), 32)
    assert transfers.inside == []
