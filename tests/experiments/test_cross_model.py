"""One model explains the hidden states of another: the experiment."""

import itertools

import numpy as np
import pytest
import torch

from patchscopes.alignment import Vocabularies, find_longest_beginning, map_vocabulary_by_text
from patchscopes.data.entities import Entity
from patchscopes.data.texts import TextSet
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import cross_model, entity
from patchscopes.experiments.config import CrossModelConfig, EntityConfig
from patchscopes.experiments.cross_model_prediction import compare_predictions
from patchscopes.experiments.model_pair import ModelPair
from patchscopes.experiments.sampling import sample_aligned_positions
from patchscopes.learned.fitting import fit_cross_model_maps
from patchscopes.learned.mappings import MapKey
from patchscopes.model.layers import spread_layers
from patchscopes.patch import patch_logits
from patchscopes.prompts import build_token_identity_prompt
from patchscopes.results import ChunkStore
from patchscopes.tokens import decode_each_token, to_token_ids

MIXED = "Zoë naïvely paid 25 € in Москва, then 東京 and 서울 🙂👩‍🚀; ﷺ done.\nשלום  two  spaces"
TRAIN = TextSet("made up", "train", tuple(f"text {n}: {n * 7919 % 1000} dogs and {n**3 % 101} cats" for n in range(40)))
EVALUATION = TextSet(
    "made up", "evaluation", tuple(f"In {n} years {n * 31 % 57} birds sang, {MIXED}" for n in range(9))
)
ENTITIES = [
    Entity(name="Syria", references=("Country in the Middle East",), kind="place", popularity="well_known"),
    Entity(name="東京", references=("capital of Japan",), kind="place", popularity="well_known"),
]
CONFIG = CrossModelConfig(
    n_samples=40, layers=(0, 2, 3), target_layers=(0, 2), entity=EntityConfig(max_new_tokens=4), seed=1
)


@pytest.fixture(scope="module")
def pair(models_by_tokenizer):
    """Two tiny models that differ in everything."""
    return models_by_tokenizer["byte_level"], models_by_tokenizer["sentencepiece_like"]


@pytest.fixture(scope="module")
def maps(pair):
    return fit_cross_model_maps(*pair, TRAIN, CONFIG.layers, CONFIG.target_layers)


def run(pair, folder, config=CONFIG, **options):
    return cross_model.run(*pair, EVALUATION, ENTITIES, config, ChunkStore(folder), **options)[0]


class TestExperiment:
    def test_is_the_plain_computation(self, pair, maps, tmp_path):
        """One sample after the other, one pair of layers after the other, with plain hooks."""
        source, target = pair
        results = run(pair, tmp_path, maps=maps)
        by_text = map_vocabulary_by_text(source)
        tables = {
            method: {"precision_at_1": np.zeros((3, 2)), "surprisal": np.zeros((3, 2))}
            for method in CrossModelConfig.METHODS
        }
        drawn = sample_aligned_positions(source, target, EVALUATION, CONFIG.n_samples, CONFIG.seed)
        for sample in drawn.samples:
            text = EVALUATION.texts[sample.text]
            position, target_position = drawn.pairs[sample.text][sample.position]
            ids = to_token_ids(source, text)[: position + 1]
            own = torch.log_softmax(source(ids[None])[0, -1], dim=-1)
            prompts = {
                "token_identity": placeholder_target(target, build_token_identity_prompt()),
                "source_prompt": TargetPrompt(target, to_token_ids(target, text)[: target_position + 1], -1),
            }
            states = extract_representations(source, [ids], [-1], CONFIG.layers)[0]
            for (row, layer), (column, target_layer) in itertools.product(
                enumerate(CONFIG.layers), enumerate(CONFIG.target_layers)
            ):
                vector = maps[MapKey(layer, target_layer)](states[row])[None]
                for method, prompt in prompts.items():
                    logits = patch_logits(prompt, vector, [target_layer], engine="hooks")
                    (said,) = decode_each_token(target, logits.argmax(dim=-1))
                    closest = find_longest_beginning(said, by_text)
                    of = tables[method]
                    of["precision_at_1"][row, column] += by_text.get(said) == int(own.argmax())
                    of["surprisal"][row, column] -= float(own.min() if closest is None else own[closest])
        for method, of in tables.items():
            for metric, table in of.items():
                measured = results["next_token"]["methods"][method][metric]["mean"]
                np.testing.assert_allclose(measured, table / 40, rtol=1e-4, err_msg=f"{method} {metric}")

    def test_a_model_that_reads_itself(self, llama, tmp_path):
        """With f = identity and M* = M it is the Patchscope of one model."""
        config = CrossModelConfig(n_samples=30, layers=(0, 1, 2, 3), target_layers=(0, 1, 2, 3), mapping="identity")
        results = run((llama, llama), tmp_path, config)
        methods = results["next_token"]["methods"]
        assert results["next_token"]["aligned_positions"] <= results["next_token"]["source_positions"]
        assert methods["target_model_alone"]["precision_at_1"]["mean"] > 0.9
        # T = S and ℓ* = ℓ patches a state over itself.
        own = np.diagonal(methods["source_prompt"]["surprisal"]["mean"])
        np.testing.assert_allclose(own, methods["target_model_alone"]["surprisal"]["mean"], atol=1e-5)
        # The same relative depth is the same layer: both describe alike.
        assert results["entity"]["pairs"] == [(layer, layer) for layer in range(4)]
        for described in results["entity"]["entities"]:
            texts = described["methods"]
            assert texts["cross_model"] == texts["same_model"]
            assert texts["name_in_clear_source_model"] == texts["name_in_clear_target_model"]

    def test_describes_as_the_entity_experiment_does(self, llama, tmp_path):
        config = CrossModelConfig(n_samples=5, layers=(0, 1, 2, 3), mapping="identity", entity=EntityConfig())
        ours = run((llama, llama), tmp_path / "cross", config)["entity"]["entities"]
        theirs = entity.run(llama, ENTITIES, EntityConfig(), ChunkStore(tmp_path / "one"))[0]["entities"]
        for one, other in zip(ours, theirs, strict=True):
            # What is due to the patch is not asked of two models.
            described = other["methods"]["patchscope"]
            del described["tokens_of_description"], described["relevancy_of_description"]
            assert one["methods"]["cross_model"] == described
            assert one["methods"]["name_in_clear_target_model"] == other["methods"]["name_in_clear"]
            assert one["methods"]["unpatched_target_model"] == other["methods"]["unpatched"]

    @pytest.mark.parametrize("part", ["next_token", "entity"])
    def test_an_interrupted_run_goes_on(self, pair, maps, tmp_path, monkeypatch, part):
        monkeypatch.setattr(cross_model, "CHUNK_ENTITIES", 1)
        whole = run(pair, tmp_path / "whole", maps=maps)
        save = ChunkStore.save

        def interrupted(store, name, content):
            if name == f"{part}/00001":
                raise KeyboardInterrupt
            save(store, name, content)

        monkeypatch.setattr(ChunkStore, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(pair, tmp_path / "stopped", maps=maps)
        monkeypatch.setattr(ChunkStore, "save", save)
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped").glob("*/*.json")}
        assert [path.name for path in kept if path.parent.name == part] == ["00000.json"]
        assert run(pair, tmp_path / "stopped", maps=maps) == whole
        assert kept == {path: path.stat().st_mtime_ns for path in kept}

    def test_one_method_and_no_entities(self, pair, maps, tmp_path):
        config = CrossModelConfig(n_samples=10, layers=(0,), target_layers=(2,), methods=("token_identity",))
        results, _ = cross_model.run(*pair, EVALUATION, [], config, ChunkStore(tmp_path), maps=maps)
        assert list(results["next_token"]["methods"]) == ["token_identity", "target_model_alone"]
        assert "entity" not in results

    def test_layers_at_equal_distances(self, smollm, llama):
        assert spread_layers(smollm, 10) == [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]
        assert spread_layers(llama, 10) == [0, 1, 2, 3]
        assert spread_layers(llama, 1) == [0]

    def test_mistakes(self, pair, maps, llama, tmp_path):
        def config(**options):
            return CrossModelConfig(**{"layers": (0, 2), "target_layers": (0,), "n_samples": 3} | options)

        with pytest.raises(PatchscopesError, match="one width.*use the affine mapping"):
            run(pair, tmp_path, config(mapping="identity"))
        with pytest.raises(PatchscopesError, match="mapping must be affine or identity"):
            run(pair, tmp_path, config(mapping="linear"), maps=maps)
        with pytest.raises(PatchscopesError, match="f is missing for the layers 1→0"):
            run(pair, tmp_path, config(layers=(0, 1)), maps=maps)
        with pytest.raises(PatchscopesError, match="f is missing"):
            run(pair, tmp_path, config())
        with pytest.raises(PatchscopesError, match="learned from"):
            run((llama, pair[1]), tmp_path, config(), maps=maps)
        with pytest.raises(PatchscopesError, match="no method is called 'guess'"):
            run(pair, tmp_path, config(methods=("guess",)), maps=maps)
        with pytest.raises(PatchscopesError, match="layer 9 does not exist"):
            run(pair, tmp_path, config(target_layers=(9,)), maps=maps)


def test_predictions_of_different_vocabularies_are_compared_by_text(pair):
    source, target = pair
    vocabulary = map_vocabulary_by_text(source)
    predicted = torch.tensor([[map_vocabulary_by_text(target)[" the"], target.tokenizer.eos_token_id]])
    logits = torch.zeros(1, 1024)
    logits[0, vocabulary[" the"]] = 5.0
    two = ModelPair(source, target, [0], [0, 1], None)
    compared = compare_predictions(two, predicted, logits, Vocabularies.of(source, target), (1, 2))
    assert compared["precision_at_1"] == [[[1, 0]]]
    own = torch.log_softmax(logits, dim=-1)[0, vocabulary[" the"]]
    assert compared["surprisal"][0][0][0] == pytest.approx(-float(own))
    assert compared["surprisal"][0][0][1] > 5
