"""One state described at each layer, on tiny models: what it is equal to, its controls, and what is refused."""

from dataclasses import replace

import pytest

from patchscopes.errors import PatchscopesError
from patchscopes.experiments import entity_example
from patchscopes.experiments.config import EntityConfig
from patchscopes.experiments.entity import build_description_target, fill_placeholder, generate_descriptions
from patchscopes.patch import EMBEDDING, extract_representation, generate_after, patch_generate
from patchscopes.patchscope import Patchscope

CONFIG = EntityConfig(max_new_tokens=5)
TEXT = "a Big Dog ran"


@pytest.fixture(scope="module")
def model(models_by_tokenizer):
    return models_by_tokenizer["byte_level"]


class TestRun:
    def test_a_name_alone_is_described_as_in_the_experiment_on_many(self, model):
        results = entity_example.run(model, "Big Dog", -1, CONFIG)
        target, layers = build_description_target(model, CONFIG), results["layers"]
        assert layers == list(range(model.cfg.n_layers))
        (expected,) = generate_descriptions(target, ["Big Dog"], layers, layers, CONFIG)
        assert results["methods"]["patchscope"]["generation"] == expected

    @pytest.mark.parametrize("target_layer", ["same", "embedding", "1"])
    def test_the_state_is_read_in_its_text(self, model, target_layer):
        config = replace(CONFIG, layers=(2, EMBEDDING), target_layer=target_layer)
        results = entity_example.run(model, TEXT, 2, config)
        target = build_description_target(model, CONFIG)
        for slot, layer in enumerate(config.layers):
            vector = extract_representation(model, TEXT, layer, 2)
            tokens = patch_generate(target, vector[None], [results["target_layers"][slot]], max_new_tokens=5)
            said = model.tokenizer.decode(tokens[0], skip_special_tokens=True)
            assert results["methods"]["patchscope"]["generation"][slot] == said

    def test_the_controls_are_the_name_and_the_placeholder(self, model):
        methods = entity_example.run(model, TEXT, -1, CONFIG, name="Big Dog")["methods"]
        for method, words in (("name_in_clear", "Big Dog"), ("unpatched", "x")):
            tokens = generate_after(model, [fill_placeholder(CONFIG, words)], max_new_tokens=5)
            assert methods[method]["generation"] == model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            assert len(methods[method]["description"]) == 1

    def test_alike_is_what_shares_words_with_the_name_in_clear(self):
        said = [": British monarch, Walmart: American", ": a dog", ": British royal princess, x: y"]
        compared = entity_example.compare_descriptions(said, "British royal princess", CONFIG.separator)
        assert compared["description"] == ["British monarch", "a dog", "British royal princess"]
        assert compared["rougeL_f1_of_description"] == pytest.approx([0.4, 0.0, 1.0])

    def test_the_name_is_found_from_the_token(self, model):
        position = Patchscope(model=model, source_prompt=TEXT, source_position="Dog").source[1]
        results = entity_example.run(model, TEXT, position, replace(CONFIG, layers=(0,)))
        assert results["name"] == "Big Dog"
        assert results["source_position"] == position
        assert entity_example.run(model, TEXT, position, replace(CONFIG, layers=(0,)), name=" cat ")["name"] == "cat"

    def test_progress_sees_every_layer_and_both_controls(self, model, monkeypatch):
        whole = entity_example.run(model, TEXT, -1, CONFIG)
        monkeypatch.setattr(entity_example, "ROWS_AT_A_TIME", 2)
        seen = []

        def progress(chunks):
            for chunk in chunks:
                seen.extend(chunk)
                yield chunk

        assert entity_example.run(model, TEXT, -1, CONFIG, progress=progress) == whole
        assert len(seen) == model.cfg.n_layers + 2


@pytest.mark.parametrize(
    ("position", "config", "message"),
    [
        (99, CONFIG, "99"),
        (-1, replace(CONFIG, layers=(77,)), "layer 77 does not exist"),
        (-1, replace(CONFIG, placeholder="§"), "§"),
        (-1, replace(CONFIG, target_layer="first"), "same, embedding, last or a number"),
    ],
)
def test_what_does_not_exist_is_refused(model, position, config, message):
    with pytest.raises(PatchscopesError, match=message):
        entity_example.run(model, TEXT, position, config)
