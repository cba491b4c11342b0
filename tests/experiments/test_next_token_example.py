"""The next tokens of one prompt: every lens as original, Patchscope and control."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from drawn_figures import check_texts
from test_lens_experiments import TEXTS, TRAIN, draw_up

from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import future_lens, lenses, next_token, next_token_example
from patchscopes.experiments.config import FutureLensConfig, LensesConfig, NextTokenConfig, NextTokenExampleConfig
from patchscopes.experiments.sampling import sample_positions
from patchscopes.learned.fitting import fit_affine_maps
from patchscopes.learned.future_lens import SoftPrompt, build_fixed_prompt_target
from patchscopes.learned.provenance import describe_provenance
from patchscopes.patchscope import Patchscope
from patchscopes.plots.next_token_example import plot_next_token_example
from patchscopes.prompts import SIMPLESCOPE_PROMPT, build_token_identity_prompt
from patchscopes.results import ChunkStore, encode_on_one_line
from patchscopes.tokens import decode_each_token

ALL = NextTokenExampleConfig.METHODS
ORIGINALS = ALL[:6]


@pytest.fixture(scope="module")
def learned(llama):
    """Maps for every method that needs some (the Jacobian Lens's are no Jacobians here), and a random prompt."""
    maps = fit_affine_maps(llama, TRAIN, ahead=(0, 1, 2))
    torch.manual_seed(0)
    tokens = build_fixed_prompt_target(llama).tokens
    prompt = SoftPrompt(tokens, torch.randn(len(tokens), 32), describe_provenance("kl", llama, TRAIN, 0, {}))
    return {"maps": dict.fromkeys(("tuned_lens", "jacobian_lens", "linear"), maps), "soft_prompt": prompt}


@pytest.fixture(scope="module")
def sampled(llama):
    """The one sample of the big experiments, in their texts, and the same for the example."""
    (sample,) = sample_positions(llama, TEXTS, 1, 0, room=2).samples
    return NextTokenExampleConfig(source_prompt=TEXTS.texts[sample.text], source_position=sample.position)


class TestForms:
    @pytest.mark.parametrize("ahead", [1, 3])
    def test_an_original_is_its_patchscope(self, llama, learned, ahead):
        config = NextTokenExampleConfig(source_prompt="a big dog in the sun", source_position=7, ahead=ahead, k=3)
        results = next_token_example.run(llama, config, **learned)
        encode_on_one_line(results)
        methods = ALL if ahead == 1 else NextTokenExampleConfig.AHEAD
        originals = [method for method in methods if method in ORIGINALS]
        assert list(results["twins"]) == originals
        assert set(results["methods"]) == {*methods, *(f"{method}_patchscope" for method in originals)}
        for original, twin in results["twins"].items():
            assert twin["same_token"] == 1.0
            assert max(twin["by_layer"]) == twin["largest_difference"] < 1e-3 < twin["largest_logit"]
            ours, theirs = (results["methods"][name] for name in (f"{original}_patchscope", original))
            assert (ours["rank"], ours["surprisal"]) == (theirs["rank"], theirs["surprisal"])
        for read in results["methods"].values():
            assert [len(of_layer) for of_layer in read["top_k"]] == [3, 3, 3, 3]
            assert min(read["surprisal"]) >= results["own"]["surprisal"] - 1e-6
            least = results["own"]["surprisal"]
            assert [place == 0 for place in read["rank"]] == [value <= least + 1e-6 for value in read["surprisal"]]

    def test_without_anything_learned(self, llama, sampled):
        results = next_token_example.run(llama, sampled)
        plain = ("logit_lens", "fixed_prompt", "token_identity", "simplescope")
        assert [name for name in results["methods"] if not name.endswith("_patchscope")] == list(plain)
        assert set(results["controls"]) == set(plain[1:])

    def test_the_last_layer_says_what_the_model_says(self, llama, sampled):
        results = next_token_example.run(llama, replace(sampled, layers=(3,)))
        assert all(read["rank"] == [0] for read in results["methods"].values())
        assert results["own"]["rank"] == 0
        assert results["own"]["top_k"][0]["token"] == results["continuation"][-1]

    def test_shows_how_far_it_is(self, llama, sampled):
        seen = []
        next_token_example.run(llama, sampled, progress=lambda steps: (seen.append(step) or step for step in steps))
        assert seen == ["logit_lens", "fixed_prompt", "token_identity", "simplescope"]


class TestTheBigExperimentsSayTheSame:
    def test_figure_2(self, llama, learned, tmp_path):
        methods = ("logit_lens", "tuned_lens", "jacobian_lens", "token_identity", "simplescope")
        (sample,) = sample_positions(llama, TEXTS, 1, 0).samples
        config = NextTokenExampleConfig(
            source_prompt=TEXTS.texts[sample.text], source_position=sample.position, methods=methods
        )
        results = next_token_example.run(llama, config, **learned)
        big, _ = next_token.run(
            llama,
            TEXTS,
            NextTokenConfig(n_samples=1, methods=methods),
            ChunkStore(tmp_path),
            maps=learned["maps"],
        )
        for method in methods:
            ours, theirs = results["methods"][method], big["methods"][method]
            np.testing.assert_allclose(ours["surprisal"], theirs["surprisal"]["mean"], atol=1e-4)
            assert [float(rank == 0) for rank in ours["rank"]] == theirs["precision_at_1"]["mean"]

    def test_the_twins(self, llama, learned, tmp_path):
        (sample,) = sample_positions(llama, TEXTS, 1, 0).samples
        big, _ = lenses.run(
            llama,
            TEXTS,
            LensesConfig(n_samples=1, future_lens="fixed_prompt"),
            ChunkStore(tmp_path),
            maps=learned["maps"]["tuned_lens"],
        )
        config = NextTokenExampleConfig(source_prompt=TEXTS.texts[sample.text], source_position=sample.position)
        results = next_token_example.run(llama, config, **learned)
        for ours, theirs in (("logit_lens",) * 2, ("tuned_lens",) * 2, ("fixed_prompt", "future_lens")):
            difference = results["twins"][ours]["largest_difference"]
            assert difference == pytest.approx(big["twins"][theirs]["largest_difference"], abs=1e-4)

    @pytest.mark.parametrize("ahead", [1, 2, 3])
    def test_the_future_lens(self, llama, learned, sampled, tmp_path, ahead):
        config = replace(sampled, ahead=ahead, methods=FutureLensConfig.METHODS)
        results = next_token_example.run(llama, config, **learned)
        big, _ = future_lens.run(
            llama,
            TEXTS,
            FutureLensConfig(n_samples=1),
            ChunkStore(tmp_path),
            maps=learned["maps"]["linear"],
            soft_prompt=learned["soft_prompt"],
        )
        for method in FutureLensConfig.METHODS:
            ours, theirs = results["methods"][method], big["methods"][method]
            np.testing.assert_allclose(ours["surprisal"], theirs["surprisal"]["mean"][ahead - 1], atol=1e-4)
            for k in FutureLensConfig.PRECISION_AT:
                hits = [float(rank < k) for rank in ours["rank"]]
                assert hits == theirs[f"precision_at_{k}"]["mean"][ahead - 1]

    def test_top_k_is_that_of_a_patchscope(self, llama, sampled):
        results = next_token_example.run(llama, sampled)
        for method, prompt in (
            ("token_identity", build_token_identity_prompt()),
            ("simplescope", SIMPLESCOPE_PROMPT),
        ):
            patchscope = Patchscope(
                model=llama,
                source_prompt=sampled.source_prompt,
                source_position=sampled.source_position,
                target_prompt=prompt,
                target_position="?",
            )
            ours = results["methods"][method]["top_k"]
            for of_layer, expected in zip(ours, patchscope.top_k(sampled.k), strict=True):
                assert [entry["token"] for entry in of_layer] == [token for token, _ in expected]


class TestControls:
    @pytest.mark.parametrize("ahead", [1, 3])
    def test_are_what_the_model_says_after_the_target_prompt(self, llama, learned, sampled, ahead):
        results = next_token_example.run(llama, replace(sampled, ahead=ahead), **learned)
        prompts = {"token_identity": build_token_identity_prompt(), "simplescope": SIMPLESCOPE_PROMPT}
        for method, prompt in prompts.items():
            tokens = TargetPrompt(llama, prompt).tokens
            for _ in range(ahead):
                logits = llama(tokens[None])[0, -1]
                tokens = torch.cat([tokens, logits.argmax()[None]])
            control = results["controls"][method]
            assert control["top_k"][0]["token"] == decode_each_token(llama, tokens[-1:])[0]
            assert control["top_k"][0]["probability"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-4)

    def test_do_not_depend_on_the_source(self, llama, learned, sampled):
        one, other = (
            next_token_example.run(llama, replace(sampled, source_prompt=prompt, source_position=-1), **learned)
            for prompt in ("a dog", "quite another text")
        )
        for method, control in one["controls"].items():
            assert control["top_k"] == other["controls"][method]["top_k"]


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"methods": ("magic",)}, "no method is called 'magic'"),
            ({"methods": ("tuned_lens",)}, "tuned_lens must be learned first"),
            ({"methods": ("logit_lens",), "ahead": 2}, "logit_lens reads the next token only"),
            ({"ahead": 0}, "ahead must be from 1"),
            ({"ahead": 4}, "to 3, got 4"),
            ({"layers": (4,)}, "layer 4 does not exist"),
            ({"layers": ()}, "there is no layer to read"),
            ({"source_position": 99}, "position 99 does not exist"),
            ({"k": 0}, "0 most likely ones were asked for"),
            ({"source_prompt": "x" * 513}, "514 tokens, the model reads at most 512"),
        ],
    )
    def test_are_said_in_a_sentence(self, llama, options, message):
        with pytest.raises(PatchscopesError, match=message):
            next_token_example.run(llama, NextTokenExampleConfig(**options))


class TestPlot:
    @pytest.mark.parametrize("ahead", [1, 2, 3])
    def test_all_methods(self, llama, learned, ahead):
        config = NextTokenExampleConfig(source_prompt="a $big_dog\n<b>in</b> the sun", ahead=ahead)
        document = draw_up(next_token_example.run(llama, config, **learned), config)
        texts = check_texts(plot_next_token_example(document))
        assert {
            "Surprisal (nats)",
            "Rank of the model's token (0: first)",
            "Simplescope",
            "The same via Patchscope",
        } <= set(texts)
        assert ("Logit Lens" in texts) == (ahead == 1)

    def test_one_method_and_layer(self, llama):
        config = NextTokenExampleConfig(methods=("simplescope",), layers=(-1,))
        document = draw_up(next_token_example.run(llama, config), config)
        assert asdict(config) == document["config"]
        texts = check_texts(plot_next_token_example(document))
        assert "The same via Patchscope" not in texts
        assert "Its target prompt unpatched" in texts
