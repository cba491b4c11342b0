"""Attention of rows that share a prefix: the same as plain attention over prefix and own keys."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from patchscopes.engine.prefix import (
    FEWEST_KEYS,
    PrefixCache,
    cache_in_use,
    shared_prefix_attention,
    softmax_over_keys,
)


def plain_attention(query, key, value, mask, softcap):
    """Every query of every head over all keys, as the formula has it; keys and values `[row, head, key, d]`."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    return (torch.softmax(scores + mask, dim=-1) @ value).transpose(1, 2)


@given(
    n_rows=st.integers(1, 4),
    n_kv_heads=st.integers(1, 2),
    n_group=st.integers(1, 4),
    n_queries=st.integers(1, 6),
    n_earlier=st.integers(0, 20),
    n_prefix=st.integers(0, 20),
    softcap=st.sampled_from([None, 3.0]),
)
# A prefix that is copied to every row, and one that is not.
@example(n_rows=3, n_kv_heads=2, n_group=3, n_queries=6, n_earlier=0, n_prefix=4, softcap=None)
@example(n_rows=3, n_kv_heads=2, n_group=3, n_queries=1, n_earlier=7, n_prefix=20, softcap=None)
def test_attention_is_the_plain_one(n_rows, n_kv_heads, n_group, n_queries, n_earlier, n_prefix, softcap):
    generator = torch.Generator().manual_seed(0)

    def random(n_rows, n_heads, n_tokens, d_head=8):
        return torch.randn(n_rows, n_heads, n_tokens, d_head, generator=generator)

    n_own = n_earlier + n_queries
    query = random(n_rows, n_kv_heads * n_group, n_queries)
    own = random(n_rows, n_kv_heads, n_own), random(n_rows, n_kv_heads, n_own)
    prefix = (random(1, n_kv_heads, n_prefix), random(1, n_kv_heads, n_prefix)) if n_prefix > 0 else None
    n_keys = n_prefix + n_own
    is_later = torch.arange(n_keys)[None, :] > n_keys - n_queries + torch.arange(n_queries)[:, None]
    mask = torch.zeros(1, 1, n_queries, n_keys).masked_fill(is_later, -1e9)

    with cache_in_use(PrefixCache([prefix], shared=True)):
        ours, _ = shared_prefix_attention(SimpleNamespace(layer_idx=0), query, *own, mask, softcap=softcap)

    key, value = (
        torch.cat([part.expand(n_rows, -1, -1, -1) for part in parts], dim=-2).repeat_interleave(n_group, dim=1)
        for parts in (zip(prefix, own, strict=True) if prefix is not None else zip(own))
    )
    torch.testing.assert_close(ours, plain_attention(query, key, value, mask, softcap), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_keys", [1, 3, FEWEST_KEYS - 1, FEWEST_KEYS, 50])
def test_the_softmax_of_few_keys_is_that_of_many(n_keys, dtype):
    scores = torch.randn(4, 3, n_keys, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores[0, 0, 0] = -torch.inf if n_keys > 1 else 0
    weights = softmax_over_keys(scores)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.softmax(scores.double(), dim=-1).float())
