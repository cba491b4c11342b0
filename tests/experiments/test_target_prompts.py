"""The choice of target prompts: bands, what is chosen and on which texts, and the method of Figure 2."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.baselines import build_best_prompt_lens
from patchscopes.data.target_prompts import Candidate, PromptBand
from patchscopes.data.texts import TextSet
from patchscopes.engine.target import placeholder_target
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import next_token, target_prompts
from patchscopes.experiments.config import NextTokenConfig, TargetPromptsConfig
from patchscopes.experiments.target_prompts_choice import LayerBand, choose_prompts, split_into_bands
from patchscopes.metrics import mean_with_interval
from patchscopes.model.layers import EMBEDDING
from patchscopes.patch import patch_logits
from patchscopes.prompts import SIMPLESCOPE_PROMPT, build_token_identity_prompt
from patchscopes.results import ChunkStore

TRAIN = TextSet("made up", "train", tuple(f"{n} dogs are {n * n} cats" for n in range(20)))
PHRASES = [f"{one} {two} in the {three}" for one in "abc" for two in ("dog", "cat") for three in ("sun", "rain", "fog")]
TEXTS = TextSet("made up", "evaluation", tuple(PHRASES))
CANDIDATES = (
    Candidate(prompt=build_token_identity_prompt(), family="identity"),
    Candidate(prompt="?", family="nothing"),
    Candidate(prompt="The end. ?", family="words"),
    Candidate(prompt="dogs are ?", family="words"),
    Candidate(prompt="x", placeholder="x", family="placeholders"),
    Candidate(prompt="a ? ->", family="placeholders"),
    Candidate(prompt="a x ->", placeholder="x", family="placeholders"),
)
CONFIG = TargetPromptsConfig(n_bands=2, n_train_samples=70, n_samples=80)


def run(model, folder, *, candidates=CANDIDATES, train=TRAIN, texts=TEXTS, config=CONFIG, progress=iter):
    return target_prompts.run(model, candidates, train, texts, config, ChunkStore(folder), progress=progress)


@pytest.fixture(scope="module")
def results(llama, tmp_path_factory):
    return run(llama, tmp_path_factory.mktemp("whole"))[0]


class TestBands:
    def test_equal_parts_of_the_depth(self):
        assert split_into_bands([0, 3, 5, 8, 11, 13, 16, 18, 21, 24, 26, 29], 30, 5) == [
            LayerBand(first=0, last=5, slots=(0, 1, 2)),
            LayerBand(first=6, last=11, slots=(3, 4)),
            LayerBand(first=12, last=17, slots=(5, 6)),
            LayerBand(first=18, last=23, slots=(7, 8)),
            LayerBand(first=24, last=29, slots=(9, 10, 11)),
        ]

    def test_a_part_without_layers_joins_another(self):
        assert split_into_bands([7], 12, 3) == [LayerBand(first=0, last=11, slots=(0,))]
        assert split_into_bands([EMBEDDING, 11], 12, 3) == [
            LayerBand(first=0, last=7, slots=(0,)),
            LayerBand(first=8, last=11, slots=(1,)),
        ]

    @given(st.data(), st.integers(1, 40), st.integers(1, 50))
    def test_cover_every_block_once_and_hold_every_layer(self, data, n_layers, n_bands):
        layers = data.draw(st.lists(st.integers(EMBEDDING, n_layers - 1), min_size=1, unique=True))
        bands = split_into_bands(layers, n_layers, n_bands)
        assert [block for band in bands for block in range(band.first, band.last + 1)] == list(range(n_layers))
        assert sorted(slot for band in bands for slot in band.slots) == list(range(len(layers)))
        for band in bands:
            assert band.slots
            assert all(band.first <= max(0, layers[slot]) <= band.last for slot in band.slots)

    def test_none(self):
        with pytest.raises(PatchscopesError, match="at least 1 band, got 0"):
            split_into_bands([0], 4, 0)


class TestChoice:
    BANDS = (LayerBand(first=0, last=1, slots=(0, 1)), LayerBand(first=2, last=2, slots=(2,)))

    def choose(self, precision, surprisal):
        tables = {"precision_at_1": np.array(precision, dtype=float), "surprisal": np.array(surprisal, dtype=float)}
        chosen = choose_prompts(tables, self.BANDS, CANDIDATES[:2], np.arange(len(precision)), seed=0)
        return [choice.number for choice in chosen], [choice.chosen_in for choice in chosen]

    def test_the_most_hits_in_the_band(self):
        # Samples by candidates by layers.
        precision = [[[1, 0, 0], [1, 1, 0]], [[0, 1, 1], [1, 1, 0]], [[0, 0, 1], [1, 0, 0]], [[1, 0, 1], [1, 1, 0]]]
        numbers, shares = self.choose(precision, np.ones((4, 2, 3)))
        assert numbers == [1, 0]
        assert shares[0] == 1
        # Unless the first sample alone was drawn, the first candidate wins in the second band; if it was, it is first.
        assert shares[1] == 1

    def test_of_equals_the_lowest_surprisal_then_the_first(self):
        precision = np.ones((5, 2, 3))
        assert self.choose(precision, np.ones((5, 2, 3)))[0] == [0, 0]
        surprisal = np.ones((5, 2, 3))
        surprisal[:, 1, 2] = 0.5
        assert self.choose(precision, surprisal)[0] == [0, 1]

    def test_an_unsure_choice_is_said_to_be(self):
        generator = np.random.default_rng(0)
        precision = generator.integers(0, 2, (200, 1, 3)).repeat(2, axis=1)
        precision[:, 1] = 1 - precision[:, 1]
        _, shares = self.choose(precision, np.ones(precision.shape))
        assert all(0.3 < share < 1 for share in shares)


class TestExperiment:
    def test_shape_of_the_results(self, results):
        assert (results["layers"], results["n_samples"], results["n_texts"]) == ([0, 1, 2, 3], 80, len(PHRASES))
        assert list(results["methods"]) == ["best_prompt", "token_identity", "simplescope"]
        assert list(results["differences"]) == ["token_identity", "simplescope"]
        assert [(band["first"], band["last"], band["layers"]) for band in results["bands"]] == [
            (0, 1, [0, 1]),
            (2, 3, [2, 3]),
        ]
        for part, n_places in ((results, 4), (results["by_band"], 2)):
            for measures in (*part["methods"].values(), *part["differences"].values()):
                assert np.shape(measures["precision_at_1"]["mean"]) == (n_places,)
                assert np.shape(measures["surprisal"]["ci95"]) == (n_places, 2)
        assert (results["train"]["n_samples"], results["train"]["n_texts"]) == (70, len(TRAIN.texts))
        assert [one["prompt"] for one in results["train"]["candidates"]] == [one.prompt for one in CANDIDATES]
        assert results["left_out"] == []

    def test_the_best_on_train_texts_is_chosen(self, results):
        for band in results["bands"]:
            means = [
                sum(one["precision_at_1"]["mean"][layer] for layer in band["layers"])
                for one in results["train"]["candidates"]
            ]
            assert means[band["candidate"]] == pytest.approx(max(means))
            chosen = CANDIDATES[band["candidate"]]
            assert (band["prompt"], band["placeholder"], band["family"]) == (
                chosen.prompt,
                chosen.placeholder,
                chosen.family,
            )
            assert 0 <= band["chosen_in"] <= 1

    def test_the_choice_uses_train_texts_only(self, llama, results, tmp_path):
        others = TextSet("others", "evaluation", tuple(f"{text} and {text}" for text in TEXTS.texts))
        elsewhere, _ = run(llama, tmp_path, texts=others)
        assert (elsewhere["bands"], elsewhere["train"]) == (results["bands"], results["train"])
        assert elsewhere["methods"] != results["methods"]
        with pytest.raises(PatchscopesError, match="of the train split, got 'evaluation'"):
            run(llama, tmp_path, train=TEXTS)

    def test_what_is_scored_is_figure_2(self, llama, results, tmp_path):
        prompts = [PromptBand(**{name: band[name] for name in PromptBand.__annotations__}) for band in results["bands"]]
        config = NextTokenConfig(n_samples=80, methods=TargetPromptsConfig.METHODS)
        figure_2, _ = next_token.run(llama, TEXTS, config, ChunkStore(tmp_path), prompts=prompts)
        assert figure_2["methods"] == results["methods"]

    def test_differences_are_those_of_the_same_positions(self, llama, results, tmp_path):
        run(llama, tmp_path)
        chunks = [ChunkStore(tmp_path / "evaluation").load(f"{number:05d}")["measured"] for number in range(3)]
        best, other = (
            np.concatenate([np.array(chunk[method]["surprisal"]) for chunk in chunks])
            for method in ("best_prompt", "simplescope")
        )
        difference = results["differences"]["simplescope"]["surprisal"]
        np.testing.assert_allclose(difference["mean"], (best - other).mean(axis=0), atol=1e-9)
        # The intervals are of differences, and over texts.
        every_sample = mean_with_interval(best - other).as_json()
        assert difference["ci95"] != every_sample["ci95"]
        in_first_band = results["by_band"]["differences"]["simplescope"]["surprisal"]["mean"][0]
        assert in_first_band == pytest.approx(np.mean(difference["mean"][:2]))

    def test_a_placeholder_at_the_end_does_not_matter(self, results):
        _, nothing, _, _, other_placeholder, arrow, other_arrow = results["train"]["candidates"]
        for metric in ("precision_at_1", "surprisal"):
            assert other_placeholder[metric] == nothing[metric]
        # With a token behind it, it does.
        assert arrow["surprisal"] != other_arrow["surprisal"]

    @pytest.mark.parametrize("n_chunks", [1, 4])
    def test_resumed_equals_uninterrupted(self, llama, results, tmp_path, monkeypatch, n_chunks):
        """Interrupted after the first of three chunks of train samples, and after the first of three of the others."""
        measured = []
        measure = target_prompts.measure_samples

        def measure_some(*args):
            if len(measured) == n_chunks:
                raise KeyboardInterrupt
            measured.append(args)
            return measure(*args)

        monkeypatch.setattr(target_prompts, "measure_samples", measure_some)
        with pytest.raises(KeyboardInterrupt):
            run(llama, tmp_path)
        assert len(list(tmp_path.rglob("*.json"))) == n_chunks
        monkeypatch.setattr(target_prompts, "measure_samples", lambda *args: measured.append(args) or measure(*args))
        resumed, timing = run(llama, tmp_path)
        assert len(measured) == 6
        assert resumed == results
        assert set(timing["seconds"]) == {"sources", "candidates", *TargetPromptsConfig.METHODS, "total"}

    def test_some_layers_and_the_batch_size(self, llama, results, tmp_path):
        some, _ = run(llama, tmp_path, config=replace(CONFIG, layers=(3, 1), batch_size=7))
        assert some["layers"] == [3, 1]
        assert [(band["first"], band["last"], band["layers"]) for band in some["bands"]] == [(0, 1, [1]), (2, 3, [3])]
        for one, every in zip(some["train"]["candidates"], results["train"]["candidates"], strict=True):
            for metric in ("precision_at_1", "surprisal"):
                mean = every[metric]["mean"]
                np.testing.assert_allclose(one[metric]["mean"], [mean[3], mean[1]], atol=1e-4)

    def test_prompts_that_the_model_cannot_use_are_left_out(self, llama, tmp_path):
        config = TargetPromptsConfig(n_bands=1, n_train_samples=3, n_samples=3, layers=(1,))
        two_tokens = Candidate(prompt="a xy", placeholder="xy")
        too_long = Candidate(prompt="very " * 200 + "?")
        found, _ = run(llama, tmp_path, candidates=(two_tokens, CANDIDATES[1], too_long), config=config)
        assert [one["prompt"] for one in found["train"]["candidates"]] == ["?"]
        assert "the placeholder 'xy' is not one token of its own" in found["left_out"][0]
        assert "the model reads at most" in found["left_out"][1]
        with pytest.raises(PatchscopesError, match="none of the 1 target prompts can be used: the placeholder 'xy'"):
            run(llama, tmp_path, candidates=(two_tokens,), config=config)

    def test_mistakes(self, llama, tmp_path):
        with pytest.raises(PatchscopesError, match="layer 4 does not exist"):
            run(llama, tmp_path, config=TargetPromptsConfig(layers=(4,)))
        with pytest.raises(PatchscopesError, match="at least 1 band"):
            run(llama, tmp_path, config=TargetPromptsConfig(n_bands=0))
        with pytest.raises(PatchscopesError, match="samples asked for"):
            run(llama, tmp_path, config=TargetPromptsConfig(n_train_samples=10_000))
        assert list(tmp_path.iterdir()) == []


class TestMethodOfFigure2:
    BANDS = (
        PromptBand(first=0, last=1, prompt=SIMPLESCOPE_PROMPT, placeholder="?"),
        PromptBand(first=2, last=3, prompt=build_token_identity_prompt(), placeholder="?"),
    )

    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    def test_is_the_plain_patchscope_lens_at_each_layer(self, tiny_models, family):
        model = tiny_models(family)
        bands = (
            *self.BANDS[:1],
            replace(self.BANDS[1], prompt="x, ? and", last=2),
            replace(self.BANDS[0], first=3, last=3),
        )
        lens = build_best_prompt_lens(model, bands)
        torch.manual_seed(0)
        layers = torch.tensor([3, 0, 2, 1, 2, EMBEDDING, 3])
        vectors = torch.randn(len(layers), 32)
        logits = lens(vectors, layers)
        for row, layer in enumerate(layers.tolist()):
            band = next(band for band in bands if band.first <= max(0, layer) <= band.last)
            target = placeholder_target(model, band.prompt, band.placeholder)
            plain = patch_logits(target, vectors[row : row + 1], [layer], engine="hooks")[0]
            torch.testing.assert_close(logits[row], plain, atol=1e-3, rtol=1e-4)

    def test_bands_with_one_prompt_share_it(self, llama):
        lens = build_best_prompt_lens(llama, [replace(self.BANDS[0], last=2), replace(self.BANDS[0], first=3, last=3)])
        assert len(set(lens.targets)) == 1

    def test_reads_each_layer_with_the_prompt_of_its_band(self, llama, tmp_path):
        config = NextTokenConfig(n_samples=80, methods=("token_identity", "simplescope", "best_prompt"))
        results, _ = next_token.run(llama, TEXTS, config, ChunkStore(tmp_path), prompts=self.BANDS)
        identity, simplescope, best = (results["methods"][method] for method in config.methods)
        for metric in ("precision_at_1", "surprisal"):
            for part in ("mean", "ci95"):
                assert best[metric][part] == simplescope[metric][part][:2] + identity[metric][part][2:]

    @pytest.mark.parametrize("bands", [(), BANDS[:1], BANDS[::-1], (*BANDS, BANDS[1])])
    def test_prompts_of_another_depth_are_refused(self, llama, tmp_path, bands):
        config = NextTokenConfig(n_samples=8, methods=("best_prompt",))
        with pytest.raises(PatchscopesError, match="a prompt for each of the model's layers 0 to 3, got them for"):
            next_token.run(llama, TEXTS, config, ChunkStore(tmp_path), prompts=bands)

    def test_is_there_only_when_asked_for(self):
        assert "best_prompt" in NextTokenConfig.METHODS
        assert "best_prompt" not in NextTokenConfig().methods
