"""Affine maps: least squares from sums, one pass over texts, files and their provenance."""

from dataclasses import replace

import pytest
import torch
from conftest import make_hf_model
from hypothesis import given, settings
from hypothesis import strategies as st

from patchscopes.data.texts import TextSet
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.learned import fitting, mappings
from patchscopes.learned.cached_fits import fit_or_load_affine_maps
from patchscopes.learned.files import get_cached_path
from patchscopes.learned.fitting import fit_affine_maps
from patchscopes.learned.least_squares import Moments
from patchscopes.learned.mappings import AffineMap, LayerMapping, MapKey
from patchscopes.learned.provenance import Provenance
from patchscopes.model.fingerprint import weights_sha256
from patchscopes.model.loading import load_model
from patchscopes.tokens import to_token_ids

TEXTS = TextSet("made up", "train", tuple(f"text {n}: {n * 7919 % 1000} dogs and {n**3 % 101} cats" for n in range(12)))
MADE = Provenance(
    estimator="least_squares",
    source_model={"id": "tiny", "weights_sha256": "0"},
    target_model={"id": "tiny", "weights_sha256": "0"},
    dataset={"name": "made up", "sha256": "1"},
    n_positions=10,
    options={},
    versions={},
)


def random_map(d_in: int, d_out: int, source_layer: int = 0) -> AffineMap:
    key = MapKey(source_layer, 3)
    return AffineMap(weight=torch.randn(d_out, d_in), bias=torch.randn(d_out), key=key, provenance=MADE)


def moments_of(x, y) -> Moments:
    moments = Moments.zero(x.shape[1], x.shape[2], y.shape[1], y.shape[2])
    moments.add(x, y)
    return moments


class TestMoments:
    def test_without_ridge_it_is_least_squares(self):
        x, y = torch.randn(50, 2, 5) * 3 + 1, torch.randn(50, 3, 4) - 2
        weights, biases = moments_of(x, y).solve(ridge=0.0)
        for source in range(2):
            with_ones = torch.cat([x[:, source], torch.ones(50, 1)], dim=1)
            for target in range(3):
                expected = torch.linalg.lstsq(with_ones.double(), y[:, target].double()).solution.float()
                torch.testing.assert_close(weights[source, target].T, expected[:-1])
                torch.testing.assert_close(biases[source, target], expected[-1])

    def test_the_ridge_is_the_penalty_on_inputs_of_unit_variance(self):
        x, y = torch.randn(40, 1, 6) * torch.tensor([1.0, 5, 0.1, 1, 20, 3]), torch.randn(40, 1, 2)
        weights, biases = moments_of(x, y).solve(ridge=0.3)
        mean, scale = x[:, 0].mean(dim=0), x[:, 0].std(dim=0, correction=0)
        standard = torch.cat([(x[:, 0] - mean) / scale, (0.3 * 40) ** 0.5 * torch.eye(6)])
        centred = torch.cat([y[:, 0] - y[:, 0].mean(dim=0), torch.zeros(6, 2)])
        expected = torch.linalg.lstsq(standard, centred).solution / scale[:, None]
        torch.testing.assert_close(weights[0, 0].T, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(weights[0, 0] @ mean + biases[0, 0], y[:, 0].mean(dim=0))

    def test_shrinks_to_the_mean(self):
        x, y = torch.randn(40, 1, 6), torch.randn(40, 1, 2)
        weights, biases = moments_of(x, y).solve(ridge=1e9)
        torch.testing.assert_close(weights, torch.zeros_like(weights), atol=1e-6, rtol=0)
        torch.testing.assert_close(biases[0, 0], y[:, 0].mean(dim=0))

    @settings(max_examples=25)
    @given(parts=st.lists(st.integers(0, 12), min_size=1, max_size=6), seed=st.integers(0, 99))
    def test_streaming_is_one_shot(self, parts, seed):
        torch.manual_seed(seed)
        n = sum(parts) + 8
        x, y = torch.randn(n, 2, 3), torch.randn(n, 1, 5)
        streamed = Moments.zero(2, 3, 1, 5)
        for some_x, some_y in zip(x.split([*parts, 8]), y.split([*parts, 8]), strict=True):
            streamed.add(some_x, some_y)
        assert streamed.n == n
        for ours, whole in zip(streamed.solve(1e-3), moments_of(x, y).solve(1e-3), strict=True):
            torch.testing.assert_close(ours, whole)

    def test_too_few_positions(self):
        with pytest.raises(PatchscopesError, match="3 positions do not determine a map from 6 dimensions"):
            moments_of(torch.randn(3, 1, 6), torch.randn(3, 1, 6)).solve(ridge=0.0)

    def test_a_dimension_that_never_changes_has_no_weight(self):
        x = torch.randn(30, 1, 3)
        x[:, 0, 1] = 7.0
        weights, _ = moments_of(x, torch.randn(30, 1, 2)).solve(ridge=1e-3)
        torch.testing.assert_close(weights[0, 0, :, 1], torch.zeros(2), atol=1e-5, rtol=0)


class TestFit:
    def test_is_least_squares_on_the_states_of_the_texts(self, llama):
        maps = fit_affine_maps(llama, TEXTS, [0, 2], [3, 1], ahead=(0, 2), ridge=0.0)
        assert set(maps) == {MapKey(s, t, a) for s in (0, 2) for t in (3, 1) for a in (0, 2)}
        tokens = [to_token_ids(llama, text) for text in TEXTS.texts]
        places = [(ids, position) for ids in tokens for position in range(1, len(ids) - 2)]

        def states(layer, later):
            positions = [position + later for _, position in places]
            return extract_representations(llama, [ids for ids, _ in places], positions, [layer])[:, 0].double()

        for key, affine in maps.items():
            x = torch.cat([states(key.source_layer, 0), torch.ones(len(places), 1).double()], dim=1)
            expected = torch.linalg.lstsq(x, states(key.target_layer, key.ahead)).solution.float()
            torch.testing.assert_close(affine.weight.T, expected[:-1], atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(affine.bias, expected[-1], atol=1e-3, rtol=1e-3)
            assert affine.provenance.n_positions == len(places)

    def test_the_last_layer_maps_to_itself(self, llama):
        affine = fit_affine_maps(llama, TEXTS, [3], ridge=0.0)[MapKey(3, 3)]
        torch.testing.assert_close(affine.weight, torch.eye(32), atol=1e-4, rtol=0)

    def test_memory_is_that_of_some_texts(self, llama, monkeypatch):
        read = []
        add = Moments.add
        monkeypatch.setattr(Moments, "add", lambda self, x, y: (read.append(len(x)), add(self, x, y))[1])
        monkeypatch.setattr(fitting, "TEXTS_AT_A_TIME", 3)
        maps = fit_affine_maps(llama, TEXTS, [0])
        assert len(read) == 4
        assert sum(read) == maps[MapKey(0, 3)].provenance.n_positions

    def test_positions_are_bounded_and_reproducible(self, llama):
        one, same, other = (fit_affine_maps(llama, TEXTS, [1], n_positions=100, seed=seed) for seed in (0, 0, 1))
        assert one[MapKey(1, 3)].provenance.n_positions == 100
        assert torch.equal(one[MapKey(1, 3)].weight, same[MapKey(1, 3)].weight)
        assert not torch.equal(one[MapKey(1, 3)].weight, other[MapKey(1, 3)].weight)

    def test_few_positions_are_worth_a_warning(self, llama):
        with pytest.warns(UserWarning, match="width 32 are fitted on only 20 positions"):
            fit_affine_maps(llama, TEXTS, [0], n_positions=20)

    def test_mistakes(self, llama):
        with pytest.raises(PatchscopesError, match="train split, got 'evaluation'"):
            fit_affine_maps(llama, replace(TEXTS, split="evaluation"))
        with pytest.raises(PatchscopesError, match="no position to fit on"):
            fit_affine_maps(llama, replace(TEXTS, texts=("ab",)), ahead=(5,))
        with pytest.raises(PatchscopesError, match="layer 9 does not exist"):
            fit_affine_maps(llama, TEXTS, [9])
        for wrong in ({"ahead": ()}, {"ahead": (-1,)}, {"n_positions": 0}):
            with pytest.raises(PatchscopesError, match="n_positions must be at least 1, and ahead"):
                fit_affine_maps(llama, TEXTS, **wrong)


class TestAffineMap:
    @settings(max_examples=25)
    @given(batch=st.lists(st.integers(0, 4), max_size=3), d_in=st.integers(1, 9), d_out=st.integers(1, 9))
    def test_maps_the_last_dimension(self, batch, d_in, d_out):
        affine = random_map(d_in, d_out)
        representations = torch.randn(*batch, d_in)
        mapped = affine(representations)
        assert mapped.shape == (*batch, d_out)
        torch.testing.assert_close(mapped, representations @ affine.weight.T + affine.bias)

    def test_keeps_the_type_of_what_it_maps(self):
        assert random_map(4, 4)(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16

    def test_refuses_the_wrong_width(self):
        with pytest.raises(PatchscopesError, match="width 4 .*got width 5"):
            random_map(4, 4)(torch.randn(5))

    def test_round_trip(self, tmp_path):
        affine = random_map(4, 6)
        affine.save(tmp_path / "map.safetensors")
        loaded = AffineMap.load(tmp_path / "map.safetensors")
        assert torch.equal(loaded.weight, affine.weight)
        assert torch.equal(loaded.bias, affine.bias)
        assert (loaded.key, loaded.provenance) == (affine.key, affine.provenance)

    def test_round_trip_of_a_fit(self, llama, tmp_path):
        path = tmp_path / "maps.safetensors"
        maps = fit_affine_maps(llama, TEXTS, [0, 2])
        mappings.save_maps(path, maps)
        loaded = mappings.load_maps(path)
        assert set(loaded) == set(maps)
        assert all(torch.equal(loaded[key].weight, maps[key].weight) for key in maps)
        assert loaded[MapKey(0, 3)].provenance == maps[MapKey(0, 3)].provenance
        with pytest.raises(PatchscopesError, match="holds 2 maps, expected one"):
            AffineMap.load(path)
        assert loaded[MapKey(0, 3)].provenance.options["source_layers"] == [0, 2]

    def test_maps_of_several_fits_are_not_one_file(self, llama, tmp_path):
        one, other = (fit_affine_maps(llama, TEXTS, [layer]) for layer in (0, 1))
        with pytest.raises(PatchscopesError, match="learned together"):
            mappings.save_maps(tmp_path / "maps.safetensors", one | other)
        with pytest.raises(PatchscopesError, match="learned together"):
            mappings.save_maps(tmp_path / "maps.safetensors", {})

    def test_no_such_file(self, tmp_path):
        with pytest.raises(PatchscopesError, match="there is no file"):
            AffineMap.load(tmp_path / "map.safetensors")
        (tmp_path / "map.safetensors").write_text("not one")
        with pytest.raises(PatchscopesError, match="not a learned lens"):
            AffineMap.load(tmp_path / "map.safetensors")


class TestLayerMapping:
    def test_each_row_goes_through_its_own_map(self):
        maps = {layer: random_map(3, 5, layer) for layer in (0, 2)}
        rows = torch.randn(4, 3)
        mapped = LayerMapping(maps)(rows, torch.tensor([2, 0, 0, 2]))
        for row, layer in enumerate((2, 0, 0, 2)):
            torch.testing.assert_close(mapped[row], maps[layer](rows[row]))

    def test_a_layer_without_a_map(self):
        with pytest.raises(PatchscopesError, match="no map from layer 1"):
            LayerMapping({0: random_map(3, 3)})(torch.randn(2, 3), torch.tensor([0, 1]))

    def test_picks_target_layer_and_token(self, llama):
        maps = {MapKey(0, 3, later): replace(random_map(3, 3), key=MapKey(0, 3, later)) for later in (0, 1)}
        matching = {"id": "tiny", "weights_sha256": weights_sha256(llama)}
        made = replace(MADE, source_model=matching, target_model=matching)
        maps = {key: replace(affine, provenance=made) for key, affine in maps.items()}
        assert LayerMapping.to_last(llama, maps, 1).maps == {0: maps[MapKey(0, 3, 1)]}


def test_the_cache_is_reused(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))
    fits = []

    def counting(groups):
        fits.append(len(groups))
        return groups

    first = fit_or_load_affine_maps(llama, TEXTS, progress=counting)
    again = fit_or_load_affine_maps(llama, TEXTS, progress=counting)
    assert len(fits) == 1
    assert all(torch.equal(first[key].weight, again[key].weight) for key in first)
    fit_or_load_affine_maps(llama, TEXTS, progress=counting, ridge=0.1)
    fit_or_load_affine_maps(llama, replace(TEXTS, texts=TEXTS.texts[1:]), progress=counting)
    fit_or_load_affine_maps(llama, TEXTS, progress=counting, fresh=True)
    assert len(fits) == 4
    files = list((tmp_path / "lenses").glob("affine-*.safetensors"))
    assert len(files) == 3
    # A file that cannot be read any more is made again.
    for file in files:
        file.write_text("damaged")
    fit_or_load_affine_maps(llama, TEXTS, progress=counting)
    fit_or_load_affine_maps(llama, TEXTS, progress=counting)
    assert len(fits) == 5


def test_what_changes_the_tokens_or_the_model_is_not_taken_from_the_cache(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))
    model = load_model(hf_model=make_hf_model("llama"), tokenizer=tokenizer)
    with_bos = get_cached_path("any", [model], TEXTS, {}, [])
    model.cfg.default_prepend_bos = False
    assert get_cached_path("any", [model], TEXTS, {}, []) != with_bos
    model.cfg.default_prepend_bos = True
    assert get_cached_path("any", [model], TEXTS, {}, []) == with_bos
    model.add_hook("blocks.0.hook_resid_post", lambda residual, hook: 0 * residual)
    with pytest.raises(PatchscopesError, match="take the hooks off"):
        fit_or_load_affine_maps(model, TEXTS)


class TestHowStronglyIsWritten:
    def test_scaling_is_linear_and_keeps_the_type(self):
        rows = torch.randn(3, 5).to(torch.bfloat16)
        assert torch.equal(mappings.scaled(1.0)(rows), rows)
        assert mappings.scaled(0.5)(rows).dtype == rows.dtype
        both = mappings.scaled(2.0)(mappings.scaled(3.0)(rows.float()))
        torch.testing.assert_close(both, mappings.scaled(6.0)(rows.float()))
        with pytest.raises(PatchscopesError, match="alpha must be a finite number, got inf"):
            mappings.scaled(float("inf"))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_matching_norms(self, llama, dtype):
        target = TargetPrompt(llama, TEXTS.texts[0], 4)
        layers = [3, -1, 0, 3]
        replaced = extract_representations(llama, [TEXTS.texts[0]], [4], layers)[0]
        rows = torch.randn(4, 32).to(dtype)
        rows[2] = 0
        matched = mappings.norm_matched(target, layers)(rows)
        assert matched.dtype == dtype
        expected = replaced.norm(dim=-1)
        expected[2] = 0
        torch.testing.assert_close(matched.float().norm(dim=-1), expected, rtol=1e-2, atol=0)
        torch.testing.assert_close(mappings.norm_matched(target, torch.tensor(layers))(replaced), replaced)
        with pytest.raises(PatchscopesError, match="what 2 vectors replace do not fit 4 vectors"):
            mappings.norm_matched(target, [0, 1])(rows)
        with pytest.raises(PatchscopesError, match="layer 4 does not exist"):
            mappings.norm_matched(target, [4])

    @pytest.mark.parametrize("position", [0, 3, -1])
    def test_what_stands_in_a_soft_prompt(self, llama, position):
        tokens = to_token_ids(llama, TEXTS.texts[0])
        soft = 3 * torch.randn(len(tokens), 32)
        target = TargetPrompt(llama, tokens, position, soft_prompt=soft)
        hooks = [("blocks.0.hook_resid_pre", lambda residual, hook: soft[None].to(residual))]
        seen = {}
        for layer in range(4):
            hooks.append((f"blocks.{layer}.hook_resid_post", lambda h, hook, layer=layer: seen.update({layer: h[0]})))
        llama.run_with_hooks(tokens[None], fwd_hooks=hooks)
        norms = mappings.norm_matched(target, [-1, 0, 3]).norms
        expected = torch.stack([soft[position], seen[0][position], seen[3][position]]).norm(dim=-1)
        torch.testing.assert_close(norms, expected)
