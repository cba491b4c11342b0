"""Metrics and their intervals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchscopes.metrics import mean_with_interval, precision_at_1, rank, surprisal

FINAL_LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])


def test_precision_at_1_compares_argmaxes():
    predicted = torch.tensor([[0, 1, 2], [1, 1, 0]])
    assert precision_at_1(predicted, FINAL_LOGITS).tolist() == [[True, False, False], [True, True, False]]
    assert precision_at_1(predicted[:, 0], FINAL_LOGITS).tolist() == [True, True]


def test_surprisal_is_in_nats():
    predicted = torch.tensor([[2, 0], [0, 1]])
    probabilities = FINAL_LOGITS.exp() / FINAL_LOGITS.exp().sum(dim=-1, keepdim=True)
    expected = -torch.stack([probabilities[0, [2, 0]], probabilities[1, [0, 1]]]).log()
    torch.testing.assert_close(surprisal(predicted, FINAL_LOGITS), expected)


def test_the_models_own_token_has_the_lowest_surprisal():
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    own = surprisal(logits.argmax(dim=-1), logits)
    for token in range(20):
        assert (own <= surprisal(torch.full((50,), token), logits)).all()


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.integers(0, 5))
def test_the_interval_encloses_the_mean_within_the_data(values, seed):
    values = np.array(values)
    found = mean_with_interval(values, seed=seed, n_resamples=200)
    assert found.mean == pytest.approx(values.mean())
    assert values.min() - 1e-9 <= found.low <= found.high <= values.max() + 1e-9


def test_the_interval_has_the_width_of_the_standard_error():
    values = np.random.default_rng(0).normal(size=(1000, 2))
    found = mean_with_interval(values)
    np.testing.assert_allclose(found.high - found.low, 2 * 1.96 * values.std(axis=0) / np.sqrt(1000), rtol=0.1)


def test_samples_of_one_group_count_as_one():
    alone = np.random.default_rng(0).normal(size=100)
    groups = np.repeat(np.arange(100), 10)
    repeated = mean_with_interval(np.repeat(alone, 10), groups=groups)
    ungrouped = mean_with_interval(np.repeat(alone, 10))
    expected = mean_with_interval(alone)
    assert repeated.high - repeated.low == pytest.approx(expected.high - expected.low, rel=0.15)
    assert ungrouped.high - ungrouped.low < 0.5 * (repeated.high - repeated.low)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).normal(size=30)
    first, again, other = (mean_with_interval(values, seed=seed).as_json() for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_perfect_precision_is_exactly_one():
    assert mean_with_interval(np.ones((7, 2))).as_json() == {"mean": [1.0, 1.0], "ci95": [[1.0, 1.0], [1.0, 1.0]]}


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 12))
def test_the_rank_is_the_place_among_the_sorted(seed, n_rows, n_tokens):
    torch.manual_seed(seed)
    logits, tokens = torch.randn(n_rows, n_tokens), torch.randint(n_tokens, (n_rows,))
    places = (logits.argsort(dim=-1, descending=True) == tokens[:, None]).nonzero()[:, 1]
    assert torch.equal(rank(logits, tokens), places)


def test_the_rank_of_ties_is_that_of_argmax_and_nan_is_last():
    logits = torch.tensor([[1.0, 2.0, 2.0], [1.0, 2.0, 2.0], [float("nan")] * 3])
    assert logits[0].argmax() == 1
    assert rank(logits, torch.tensor([1, 2, 0])).tolist() == [0, 1, 3]
