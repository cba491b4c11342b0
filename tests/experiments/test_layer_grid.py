"""Layer grids on tiny models: rows, every mode, interrupted runs."""

import copy

import numpy as np
import pytest
from conftest import make_hf_model
from made_up_names import TEMPLATES, make_names

from patchscopes.data.templates import Template
from patchscopes.engine.extract import extract_representation
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import layer_grid, layer_grid_patching
from patchscopes.experiments.config import LayerGridConfig
from patchscopes.experiments.layer_grid_choices import build_source, choose_names, choose_templates
from patchscopes.experiments.layer_grid_classes import classify
from patchscopes.experiments.layer_grid_patching import build_target, say_states
from patchscopes.model.loading import load_model
from patchscopes.patch import generate_after, patch_generate
from patchscopes.positions import find_substring_token_position
from patchscopes.results import ChunkStore

FEW = {"template": "identity", "max_new_tokens": 12, "n_others": 5}


@pytest.fixture(scope="module")
def model(models_by_tokenizer):
    return models_by_tokenizer["byte_level"]


@pytest.fixture(scope="module")
def entities(model):
    return make_names(model, 8)


@pytest.fixture(scope="module")
def run(model, entities, tmp_path_factory):
    """A mode in a folder of its own, with its results."""

    def run(mode: str, store=None, progress=iter, templates=TEMPLATES, **options) -> dict:
        config = LayerGridConfig(mode=mode, **(FEW | options))
        folder = store or ChunkStore(tmp_path_factory.mktemp(mode))
        names, chosen = choose_names(entities, config), choose_templates(templates, config)
        results, timing = layer_grid.run(model, names, chosen, config, folder, progress=progress)
        assert set(timing["seconds"]) == {"patched", "unpatched", "total"}
        return results

    return run


@pytest.fixture(scope="module")
def targeted(run):
    return run("targeted")


class TestRows:
    def test_grids_are_the_rows_one_by_one(self, model, entities):
        target = build_target(model, TEMPLATES[1])
        prompts = [f"We saw a {entity.name} there" for entity in entities[:3]]
        sources = [build_source(entity, prompt) for entity, prompt in zip(entities, prompts, strict=False)]
        config = LayerGridConfig(max_new_tokens=6, batch_size=7)
        texts = say_states(target, sources, [3, 0], [1, 0, 2], config)
        for source, of_source in zip(sources, texts, strict=True):
            position = find_substring_token_position(model, source.prompt, source.name)
            for layer, of_layer in zip((3, 0), of_source, strict=True):
                vector = extract_representation(model, source.prompt, layer, position)
                for target_layer, text in zip((1, 0, 2), of_layer, strict=True):
                    tokens = patch_generate(target, vector[None], [target_layer], max_new_tokens=6)
                    assert text == model.tokenizer.decode(tokens[0], skip_special_tokens=True)

    def test_the_result_has_every_row(self, model, entities, targeted):
        (grid,) = targeted["grids"]
        assert (grid["layers"], grid["target_layers"]) == ([0, 1, 2, 3], [0, 1, 2, 3])
        states = [grid["names"][0]["name"], *grid["others"]]
        assert np.shape(grid["texts"]) == (1, len(states), 4, 4)
        target = build_target(model, TEMPLATES[0])
        for name, of_state in zip(states, grid["texts"][0], strict=True):
            vector = extract_representation(model, name, 2, -1)
            tokens = patch_generate(target, vector[None], [1], max_new_tokens=12)
            assert of_state[2][1] == model.tokenizer.decode(tokens[0], skip_special_tokens=True)
        keywords = grid["names"][0]["keywords"]
        classes = [[classify(text, keywords) for text in row] for row in grid["texts"][0][0]]
        assert grid["classes"] == [[classes]]
        alone = generate_after(model, [target.tokens], max_new_tokens=12)
        assert grid["unpatched_texts"] == model.tokenizer.batch_decode(alone, skip_special_tokens=True)


class TestModes:
    def test_quick_is_four_pairs(self, run, entities):
        results = run("quick", source_prompt=f"We saw a {entities[2].name} there")
        (grid,) = results["grids"]
        assert np.shape(grid["classes"]) == (1, 1, 2, 2)
        assert results["source"]["name"] == entities[2].name
        assert results["source"]["name_in_prompt"] == entities[2].name
        assert len(grid["others"]) > 2
        assert grid["consistency"] is None

    def test_targeted_finds_what_the_name_was_made_for(self, targeted):
        (grid,) = targeted["grids"]
        assert grid["classes"][0][0][3][0] == 2
        assert grid["success"]["strong"]["mean"] >= 1 / 16

    def test_templates_leaves_out_what_the_model_has_not(self, run):
        results = run("templates")
        (grid,) = results["grids"]
        assert [template["name"] for template in grid["templates"]] == ["identity", "is", "colon"]
        assert [one["template"] for one in results["left_out"]] == ["user"]
        assert "has no chat template" in results["left_out"][0]["reason"]
        assert grid["consistency"]["labels"] == ["identity", "is", "colon"]
        assert np.shape(grid["texts"])[:2] == (3, 1 + len(grid["others"]))

    def test_patchscope_runs_one_family(self, run):
        (grid,) = run("patchscope", template_type="minimal")["grids"]
        assert [template["family"] for template in grid["templates"]] == ["minimal", "minimal"]
        with pytest.raises(PatchscopesError, match="has no chat template"):
            run("patchscope", template_type="chat")

    def test_multi_asks_every_name_and_needs_no_others(self, run, entities):
        results = run("multi", n_names=5)
        (grid,) = results["grids"]
        assert results["source"] is None
        assert grid["others"] == []
        labels = [name["name"] for name in grid["names"]]
        assert len(labels) == 5
        assert set(labels) <= {entity.name for entity in entities}
        assert grid["consistency"]["labels"] == labels
        assert np.shape(grid["by_pair"]["strong"]["ci95"]) == (4, 4, 2)

    def test_comprehensive_looks_closer_where_something_was_found(self, run):
        results = run("comprehensive", shares=(0.0, 1.0), target_shares=(0.0, 1.0), n_names=4)
        stages = {grid["stage"]: grid for grid in results["grids"]}
        assert list(stages) == ["targeted", "neighbourhood", "templates", "multi"]
        assert stages["targeted"]["layers"] == [0, 3]
        # All blocks from behind the layer before to the one at which it was found.
        near = stages["neighbourhood"]
        assert (near["layers"], near["target_layers"]) == ([1, 2, 3], [0, 1, 2])
        for stage in ("templates", "multi"):
            assert (stages[stage]["layers"], stages[stage]["target_layers"]) == (near["layers"], near["target_layers"])
        assert len(stages["templates"]["templates"]) == 3
        assert len(stages["multi"]["names"]) == 4

    def test_comprehensive_everywhere(self, run):
        results = run("comprehensive", full_grid=True, n_names=3, n_others=2)
        assert [grid["stage"] for grid in results["grids"]] == ["targeted", "templates", "multi"]
        assert all(grid["layers"] == grid["target_layers"] == [0, 1, 2, 3] for grid in results["grids"])

    def test_comprehensive_where_nothing_is_found(self, run):
        results = run("comprehensive", keywords=("unsaid", "unheard"), n_names=3)
        assert [grid["stage"] for grid in results["grids"]] == ["targeted", "templates", "multi"]

    def test_chats_on_a_model_that_has_them(self, model, entities, tmp_path):
        own = copy.deepcopy(model.tokenizer)
        own.chat_template = "{{ messages[0].content }}?{% if add_generation_prompt %} x-pert: {% endif %}"
        hf_model = make_hf_model("llama")
        hf_model.resize_token_embeddings(1024)
        chatty = load_model(hf_model=hf_model, tokenizer=own)
        target = build_target(chatty, TEMPLATES[3])
        # Not the x that the template says behind the prompt.
        prompt = TEMPLATES[3].prompt
        assert target.position == find_substring_token_position(chatty, prompt, "x")
        config = LayerGridConfig(mode="patchscope", template_type="chat", layers=(1,), target_layers=(0, 2))
        names = choose_names(entities, config)
        results, _ = layer_grid.run(chatty, names, TEMPLATES[3:], config, ChunkStore(tmp_path))
        assert results["grids"][0]["templates"][0]["text"] == f"{prompt}? x-pert: "


class TestChunks:
    def test_an_interrupted_run_goes_on(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr(layer_grid_patching, "CHUNK_ROWS", 18)
        store = ChunkStore(tmp_path)

        def two(items):
            yield from list(items)[:2]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run("templates", store, two)
        measured = []
        measure = layer_grid_patching.say_states
        monkeypatch.setattr(
            layer_grid_patching, "say_states", lambda *given: measured.append(given[1]) or measure(*given)
        )
        resumed = run("templates", store)
        # Three templates, and two states in a chunk at three by three layers.
        n_states = 1 + len(resumed["grids"][0]["others"])
        assert len(measured) == 3 * -(-n_states // 2) - 2
        assert resumed == run("templates")

    def test_mistakes_leave_nothing_behind(self, run, tmp_path):
        store = ChunkStore(tmp_path)
        with pytest.raises(PatchscopesError, match="layer 9 does not exist"):
            run("targeted", store, layers=(9,))
        split = (Template(name="identity", family="minimal", prompt="foxes x", placeholder="foxes"),)
        with pytest.raises(PatchscopesError, match="is not one token of its own"):
            run("targeted", store, templates=split)
        assert list(tmp_path.iterdir()) == []
