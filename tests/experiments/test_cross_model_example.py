"""One state of one model, read by a second one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from patchscopes import Patchscope
from patchscopes.alignment import align_positions
from patchscopes.data.texts import TextSet
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import cross_model, cross_model_example
from patchscopes.experiments.config import CrossModelConfig, EntityConfig
from patchscopes.learned.fitting import fit_cross_model_maps
from patchscopes.learned.mappings import LayerMapping
from patchscopes.plots.cross_model_example import plot_cross_model_descriptions, plot_cross_model_example
from patchscopes.prompts import NEXT_TOKEN_PROMPTS
from patchscopes.results import ChunkStore
from patchscopes.tokens import decode_each_token, to_token_ids

TRAIN = TextSet("made up", "train", tuple(f"text {n}: {n * 7919 % 1000} dogs and {n**3 % 101} cats" for n in range(40)))
CONFIG = CrossModelConfig(layers=(0, 2, 3), target_layers=(0, 2), entity=EntityConfig(max_new_tokens=4))
PROMPT = "Zoë sang in Москва, and 25 birds"


@pytest.fixture(scope="module")
def pair(models_by_tokenizer):
    """Two tiny models that differ in everything."""
    return models_by_tokenizer["byte_level"], models_by_tokenizer["sentencepiece_like"]


@pytest.fixture(scope="module")
def maps(pair):
    return fit_cross_model_maps(*pair, TRAIN, CONFIG.layers, CONFIG.target_layers)


@pytest.fixture(scope="module")
def position(pair):
    """One at which both models have read the same, though not the last."""
    return [first for first, second in align_positions(*pair, PROMPT) if min(first, second) > 0][-2]


@pytest.fixture(scope="module")
def results(pair, maps, position):
    return cross_model_example.run(*pair, PROMPT, position, CONFIG, maps=maps)


class TestNextToken:
    @pytest.mark.parametrize("method", NEXT_TOKEN_PROMPTS)
    def test_is_the_patchscope(self, pair, maps, position, results, method):
        """Pair by pair, as a notebook writes it."""
        prompt = NEXT_TOKEN_PROMPTS[method]
        for row, layer in enumerate(CONFIG.layers):
            for column, target_layer in enumerate(CONFIG.target_layers):
                ((likeliest,),) = Patchscope(
                    model=pair[0],
                    source_prompt=PROMPT,
                    source_position=position,
                    source_layers=layer,
                    target_model=pair[1],
                    target_prompt=prompt,
                    target_position="?",
                    target_layers=target_layer,
                    mapping=LayerMapping.between(*pair, maps, {layer: target_layer}),
                ).top_k(1)
                of_method = results["methods"][method]
                assert of_method["token"][row][column] == likeliest.token
                assert of_method["probability"][row][column] == pytest.approx(likeliest.probability, abs=1e-5)

    def test_is_what_the_experiment_says_of_this_sample(self, pair, maps, results, position, tmp_path):
        texts = TextSet("made up", "evaluation", (PROMPT,))
        pairs = [one for one in align_positions(*pair, PROMPT) if min(one) > 0]
        config = replace(CONFIG, n_samples=len(pairs))
        cross_model.run(*pair, texts, [], config, ChunkStore(tmp_path), maps=maps)
        measured = ChunkStore(tmp_path / "next_token").load("00000")["measured"]
        number = [first for first, _ in pairs].index(position)
        for method, ours in (("token_identity", "token_identity"), ("target_model_alone", "target_model_alone")):
            for metric in ("precision_at_1", "surprisal"):
                np.testing.assert_allclose(
                    results["methods"][ours][metric], measured[method][metric][number], rtol=1e-4, atol=1e-5
                )

    def test_says_what_the_model_itself_says(self, pair, results, position):
        tokens = to_token_ids(pair[0], PROMPT)[: position + 1]
        likely = torch.softmax(pair[0](tokens[None])[0, -1], dim=-1)
        assert results["next_token"] == decode_each_token(pair[0], [int(likely.argmax())])[0]
        assert results["next_token_probability"] == pytest.approx(float(likely.max()), abs=1e-5)

    def test_a_model_that_reads_itself(self, llama):
        """With M* = M and f = identity the diagonal is the control `same_model`, and M reads the text as M does."""
        config = CrossModelConfig(layers=(0, 1, 3), target_layers=(0, 1, 3), mapping="identity")
        methods = cross_model_example.run(llama, llama, "two dogs", -1, config)["methods"]
        for field, values in methods["same_model"].items():
            diagonal = [methods["token_identity"][field][number][number] for number in range(3)]
            assert diagonal == (values if field == "token" else pytest.approx(values, abs=1e-5))
        assert methods["target_model_alone"]["precision_at_1"] == 1

    def test_where_no_token_of_the_other_model_ends(self, pair, maps):
        """BOS stands for no part of the text."""
        assert cross_model_example.run(*pair, PROMPT, 0, CONFIG, maps=maps)["methods"]["target_model_alone"] is None

    def test_what_is_wrong_is_said(self, pair, maps):
        with pytest.raises(PatchscopesError, match="f is missing for the layers 1→0"):
            cross_model_example.run(*pair, PROMPT, -1, replace(CONFIG, layers=(1,)), maps=maps)
        with pytest.raises(PatchscopesError, match="models of one width"):
            cross_model_example.run(*pair, PROMPT, -1, replace(CONFIG, mapping="identity"))
        with pytest.raises(PatchscopesError, match="position"):
            cross_model_example.run(*pair, PROMPT, 999, CONFIG, maps=maps)
        with pytest.raises(PatchscopesError, match="simplescope"):
            cross_model_example.run(*pair, PROMPT, -1, CONFIG, prompts=["none"], maps=maps)


class TestDescriptions:
    def test_are_those_of_the_patchscope(self, pair, maps, position):
        results = cross_model_example.describe(*pair, PROMPT, position, CONFIG, maps=maps)
        shared = {
            "model": pair[0],
            "source_prompt": PROMPT,
            "source_position": position,
            "source_layers": CONFIG.layers,
        }
        shared |= {"target_prompt": CONFIG.entity.target_prompt, "target_position": "x"}
        there = dict(zip(CONFIG.layers, results["target_layers"], strict=True))
        cross = Patchscope(
            **shared,
            target_model=pair[1],
            target_layers=results["target_layers"],
            mapping=LayerMapping.between(*pair, maps, there),
        )
        assert results["methods"]["cross_model"]["generation"] == cross.generate(4)
        assert results["methods"]["same_model"]["generation"] == Patchscope(**shared).generate(4)

    def test_progress_can_stop_it(self, pair, maps, position):
        def stop(steps):
            yield steps[0]
            raise KeyboardInterrupt

        for function in (cross_model_example.describe, cross_model_example.run):
            with pytest.raises(KeyboardInterrupt):
                function(*pair, PROMPT, position, CONFIG, maps=maps, progress=stop)


@pytest.mark.parametrize("position", [0, -1])
def test_figures(pair, maps, position):
    document = {
        "config": {"mapping": "affine", "source_prompt": PROMPT},
        "environment": {"model": {"id": "one"}, "target_model": {"id": "other"}},
        "results": cross_model_example.run(*pair, PROMPT, position, CONFIG, maps=maps),
    }
    figure = plot_cross_model_example(document)
    figure.canvas.draw()
    drawn = {line.get_label(): list(line.get_ydata()) for line in figure.axes[1].lines}
    surprisal = document["results"]["methods"]["simplescope"]["surprisal"]
    columns = [CONFIG.target_layers.index(target_layer) for _, target_layer in document["results"]["pairs"]]
    assert drawn["Simplescope"] == [row[column] for row, column in zip(surprisal, columns, strict=True)]
    only = {"prompts": ["simplescope"], "maps": maps}
    document["results"] = cross_model_example.run(*pair, PROMPT, position, CONFIG, **only)
    labels = {line.get_label() for line in plot_cross_model_example(document).axes[1].lines}
    assert labels == set(drawn) - {"Token identity", "Token identity, unpatched"}
    document["results"] = cross_model_example.describe(*pair, PROMPT, position, CONFIG, maps=maps)
    plot_cross_model_descriptions(document).canvas.draw()
