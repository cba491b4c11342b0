"""What layer grids show: controls, hotspots of noise and of signals, consistency, regions, layers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import LayerGridConfig
from patchscopes.experiments.layer_grid_classes import STRONG
from patchscopes.experiments.layer_grid_consistency import compute_rank_correlation, measure_consistency
from patchscopes.experiments.layer_grid_hotspots import compute_p_values, deal_states
from patchscopes.experiments.layer_grid_layers import (
    choose_layers,
    convert_shares,
    find_best_pair,
    find_neighbours,
)
from patchscopes.experiments.layer_grid_measures import average_others, measure_grid, measure_regions
from patchscopes.model.layer_names import thin_out

LAYERS = [0, 6, 12, 17, 23, 29]


def draw_noise(seed: int, n_names: int, n_states: int, rate: float = 0.1) -> np.ndarray:
    """Classes that have nothing to do with whose state it is."""
    generator = np.random.default_rng(seed)
    return np.where(generator.random((1, n_names, n_states, 6, 6)) < rate, STRONG, 0)


def measure(classes: np.ndarray, unpatched: int = 0) -> dict:
    n_templates, n_names = classes.shape[:2]
    return measure_grid(classes, np.full((n_templates, n_names), unpatched), LAYERS, LAYERS, 30, seed=0)


class TestHotspots:
    @pytest.mark.parametrize(("n_names", "n_states"), [(1, 20), (1, 5), (12, 12), (24, 24)])
    def test_of_noise_there_are_none(self, n_names, n_states):
        """But in one grid of twenty, where the level of 0.05 for each of 36 pairs alone would give some in most."""
        with_some = {"pairs": 0, "layers": 0, "target_layers": 0}
        for seed in range(100):
            share = draw_noise(seed, n_names, n_states)[0] / STRONG
            for what, p_values in compute_p_values(share, seed).items():
                with_some[what] += bool((p_values <= LayerGridConfig.ALPHA).any())
        # A rate of 0.05 gives 10 or fewer in 99 % of draws.
        assert max(with_some.values()) <= 10, with_some

    @pytest.mark.parametrize("rate", [0.0, 0.02, 0.5, 1.0])
    def test_of_noise_of_any_strength(self, rate):
        for seed in range(4):
            assert measure(draw_noise(seed, 12, 12, rate))["hotspots"]["pairs"] == []

    @pytest.mark.parametrize(("n_names", "n_states"), [(1, 20), (12, 12)])
    def test_a_pair_that_works_is_found(self, n_names, n_states):
        # One name cannot stand out where another's state says its keywords once in 36 pairs.
        classes = draw_noise(0, n_names, n_states, 0.02 if n_names > 1 else 0.0)
        numbers = np.arange(n_names)
        classes[0, numbers, numbers, 2, 1] = STRONG
        found = measure(classes)["hotspots"]
        assert {(pair["layer"], pair["target_layer"]) for pair in found["pairs"]} == {(12, 6)}
        assert found["pairs"][0]["strong"] == 1
        assert found["pairs"][0]["p"] <= 0.05

    def test_what_any_state_brings_about_is_none(self):
        """A template that says the keywords by itself, or a model that always does."""
        classes = np.full((1, 12, 12, 6, 6), STRONG)
        assert measure(classes)["hotspots"] == {"pairs": [], "layers": [], "target_layers": []}
        alone = np.zeros((1, 12, 12, 6, 6), dtype=int)
        alone[0, np.arange(12), np.arange(12)] = STRONG
        assert measure(alone)["hotspots"]["pairs"] != []
        assert measure(alone, unpatched=STRONG)["hotspots"]["pairs"] == []

    def test_few_states_cannot_show_it(self):
        classes = np.zeros((1, 1, 3, 6, 6), dtype=int)
        classes[0, 0, 0] = STRONG
        assert measure(classes)["hotspots"]["pairs"] == []
        assert measure(classes[:, :, :1])["hotspots"]["pairs"] == []

    def test_one_name_gets_each_state_and_several_get_different_ones(self):
        assert deal_states(1, 5, 0).tolist() == [[0], [1], [2], [3], [4]]
        dealings = deal_states(4, 6, 0)
        assert dealings[0].tolist() == [0, 1, 2, 3]
        assert all(len(set(dealing)) == 4 for dealing in dealings.tolist())

    def test_p_values_of_one_name_are_shares_of_the_states(self):
        share = np.zeros((1, 20, 2, 2))
        share[0, 0, 0, 0] = 1
        p_values = compute_p_values(share, 0)["pairs"]
        assert p_values[0, 0] == pytest.approx(1 / 20)
        assert p_values[1, 1] == 1


class TestMeasures:
    def test_shares_are_means_over_names(self):
        classes = np.random.default_rng(0).integers(0, 3, (2, 5, 5, 6, 6))
        found = measure(classes)
        own = classes[:, np.arange(5), np.arange(5)]
        for number, name in enumerate(("failed", "partial", "strong")):
            assert found["success"][name]["mean"] == pytest.approx((own == number).mean())
        assert np.allclose(found["by_pair"]["strong"]["mean"], (own == STRONG).mean(axis=(0, 1)))
        assert np.allclose(found["by_layer"]["strong"]["mean"], (own == STRONG).mean(axis=(0, 1, 3)))
        assert np.allclose(found["by_target_layer"]["strong"]["mean"], (own == STRONG).mean(axis=(0, 1, 2)))
        assert np.allclose(found["by_layer"]["strong_or_partial"]["mean"], (own > 0).mean(axis=(0, 1, 3)))
        assert np.allclose(found["by_name"], (own == STRONG).mean(axis=(0, 2, 3)))
        others = (classes == STRONG)[:, ~np.eye(5, dtype=bool)].mean()
        assert found["other_state"]["mean"] == pytest.approx(others)
        assert [one["strong"]["mean"] for one in found["by_template"]] == pytest.approx(
            list((own == STRONG).mean(axis=(1, 2, 3)))
        )

    def test_one_name_has_no_interval_but_its_control_has(self):
        found = measure(draw_noise(0, 1, 20))
        assert found["success"]["strong"]["ci95"] is None
        low, high = found["other_state"]["ci95"]
        assert low < found["other_state"]["mean"] < high

    def test_without_others_there_is_no_control(self):
        assert measure(draw_noise(0, 1, 1))["other_state"] is None

    def test_others_are_never_ones_own(self):
        share = np.zeros((3, 5, 1, 1))
        share[np.arange(3), np.arange(3)] = 1
        assert average_others(share).tolist() == [[[0]]] * 5
        assert average_others(share[:1]).shape == (4, 1, 1)

    def test_regions(self):
        own = np.zeros((4, 6, 6))
        own[:, 2:4, 1] = 1
        found = measure_regions(own, LAYERS, LAYERS, 30, 0)
        assert found["extract_middle_inject_early"]["inside"]["mean"] == 1
        assert found["extract_middle_inject_early"]["outside"]["mean"] == 0
        assert found["extract_late"]["difference"]["mean"] < 0
        assert measure_regions(own[:, :1, :1], [0], [0], 30, 0)["extract_late"] is None


class TestConsistency:
    @given(st.lists(st.integers(0, 2), min_size=4, max_size=4), st.lists(st.integers(0, 2), min_size=4, max_size=4))
    def test_rank_correlation(self, first, second):
        found = compute_rank_correlation(np.array(first), np.array(second))
        if len(set(first)) == 1 or len(set(second)) == 1:
            assert found is None
        else:
            assert found == pytest.approx(spearmanr(first, second).statistic)

    def test_grids_that_agree(self):
        grids = np.random.default_rng(0).integers(0, 3, (1, 3, 4)).repeat(4, axis=0)
        found = measure_consistency(grids, list("abcd"), [0, 1, 2], [0, 1, 2, 3])
        assert np.allclose(found["rank_correlation"], 1)
        assert found["mean_rank_correlation"] == pytest.approx(1)
        assert found["at_least"] == 2
        assert found["pairs"] == np.argwhere(grids[0] == STRONG).tolist()
        assert found["strong_for"] == (4 * (grids[0] == STRONG)).tolist()

    def test_grids_of_one_class_say_nothing(self):
        found = measure_consistency(np.zeros((3, 2, 2), dtype=int), list("abc"), [0, 1], [0, 1])
        assert found["mean_rank_correlation"] is None
        assert found["pairs"] == []


class TestLayers:
    def test_shares_of_the_depth(self, llama):
        assert convert_shares(llama, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)) == [0, 1, 2, 3]
        assert convert_shares(llama, (1.0, 0.0)) == [0, 3]
        with pytest.raises(PatchscopesError, match="from 0 .* to 1 .*, got 1.5"):
            convert_shares(llama, (1.5,))

    def test_by_mode_and_as_told(self, llama):
        assert choose_layers(llama, LayerGridConfig(mode="targeted", full_grid=True)) == ([0, 1, 2, 3], [0, 1, 2, 3])
        assert choose_layers(llama, LayerGridConfig(mode="quick")) == ([1, 2], [0, 1])
        assert choose_layers(llama, LayerGridConfig(layers=(3, 1), target_shares=(1.0,))) == ([1, 3], [3])
        with pytest.raises(PatchscopesError, match="layer 4 does not exist"):
            choose_layers(llama, LayerGridConfig(layers=(4,)))

    def test_the_neighbourhood_ends_before_the_layers_beside(self):
        assert find_neighbours(LAYERS, 2) == list(range(7, 17))
        assert find_neighbours(LAYERS, 0) == list(range(0, 6))
        assert find_neighbours(LAYERS, 5) == list(range(24, 30))
        assert find_neighbours([3], 0) == [3]

    def test_the_best_pair_is_among_the_candidates_and_between_equals_in_good_company(self):
        score = np.zeros((4, 4))
        assert find_best_pair(score, []) is None
        score[0, 0] = score[2, 2] = score[2, 3] = 1
        assert find_best_pair(score, []) in ((2, 2), (2, 3))
        assert find_best_pair(score, [(0, 0)]) == (0, 0)
        assert find_best_pair(-score, [(0, 0)]) is None

    @given(st.integers(1, 30), st.integers(1, 8))
    def test_thinned_out(self, n_layers, n_kept):
        kept = thin_out(list(range(n_layers)), n_kept)
        assert len(set(kept)) == len(kept) == min(n_layers, n_kept)
        assert kept[0] == 0
        assert n_kept == 1 or kept[-1] == n_layers - 1
