"""Metrics and their intervals."""

import json
from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchscopes.errors import PatchscopesError
from patchscopes.metrics import mean_with_interval, paired_t_test, precision_at_1, rank, rouge, surprisal

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


class TestRougeOfSeveralReferences:
    @settings(max_examples=25)
    @given(st.lists(st.text("abc ", max_size=12), min_size=1, max_size=4), st.text("abc ", max_size=12))
    def test_each_type_has_the_scores_of_its_best_one(self, references, text):
        alone = [rouge(text, reference) for reference in references]
        for kind, scores in rouge(text, *references).items():
            assert scores == max((one[kind] for one in alone), key=lambda of: of["f1"])

    def test_by_hand(self):
        scores = rouge("president of Ghana", "leader of Ghana from 2009", "president of the state")
        assert scores["rouge1"]["f1"] == pytest.approx(2 * 2 / 3 * 2 / 4 / (2 / 3 + 2 / 4))
        with pytest.raises(PatchscopesError, match="give at least one"):
            rouge("president of Ghana")


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


def test_the_t_test_is_the_mean_over_its_standard_error():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.3, size=12), rng.normal(size=12)
    found = paired_t_test(first, second, n_comparisons=1)
    differences = first - second
    assert found.n == 12
    assert found.mean_difference == pytest.approx(differences.mean())
    assert found.t == pytest.approx(differences.mean() / (differences.std(ddof=1) / sqrt(12)))
    swapped = paired_t_test(second, first, n_comparisons=1)
    assert (swapped.t, swapped.p) == (pytest.approx(-found.t), pytest.approx(found.p))


def test_without_a_difference_p_is_uniform():
    rng = np.random.default_rng(0)
    tests = [paired_t_test(rng.normal(size=10), rng.normal(size=10), n_comparisons=1) for _ in range(400)]
    for level in (0.05, 0.5):
        assert np.mean([test.p < level for test in tests]) == pytest.approx(level, abs=4 * sqrt(level / 400))


def test_bonferroni_multiplies_p_up_to_one():
    first, second = np.array([0.5, 0.6, 0.8, 0.4]), np.array([0.1, 0.4, 0.3, 0.2])
    one, three, many = (paired_t_test(first, second, n_comparisons=count) for count in (1, 3, 1000))
    assert one.p == one.p_bonferroni == three.p == many.p
    assert three.p_bonferroni == pytest.approx(3 * one.p)
    assert many.p_bonferroni == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.1, 0.0), (-0.2, 0.0)])
def test_differences_without_spread_have_no_t_and_no_nan_in_the_json(dtype, shift, p):
    first = np.linspace(0, 1, 7, dtype=dtype)
    found = paired_t_test(first + dtype(shift), first, n_comparisons=12)
    assert (found.t, found.p, found.p_bonferroni) == (None, p, p)
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["n"] == 7


@pytest.mark.parametrize(
    ("first", "second", "n_comparisons"),
    [([1.0], [2.0], 1), ([1.0, 2.0], [2.0, 2.0], 0), ([1.0, np.nan], [1.0, 2.0], 1)],
)
def test_what_a_t_test_cannot_take_is_named(first, second, n_comparisons):
    with pytest.raises(PatchscopesError, match="a paired t-test takes"):
        paired_t_test(np.array(first), np.array(second), n_comparisons)
