"""Entities: their files, where descriptions end, and the experiment."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.data.entities import Entity, cut_description, load_entities
from patchscopes.data.files import DATA_FOLDER
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import placeholder_target
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import entity, entity_layers
from patchscopes.experiments.config import EntityConfig
from patchscopes.metrics import rouge
from patchscopes.patch import patch_generate
from patchscopes.prompts import build_entity_description_prompt
from patchscopes.results import ChunkStore

ENTITIES = tuple(
    Entity(name=name, reference=f"a kind of {name[::-1]}", popularity=popularity)
    for name, popularity in (
        ("big dog", "well_known"),
        ("Reykjavík", "little_known"),
        ("a", "little_known"),
        ("x-ray machine", "well_known"),
    )
)


class TestPrompt:
    def test_is_that_of_the_paper(self):
        assert build_entity_description_prompt() == (
            "Syria: Country in the Middle East, Leonardo DiCaprio: American actor, "
            "Samsung: South Korean multinational major appliance and consumer electronics corporation, x"
        )

    def test_any_examples_placeholder_and_separator(self):
        prompt = build_entity_description_prompt([("a", "b"), ("c", "d")], placeholder="?", separator="\n")
        assert prompt == "a: b\nc: d\n?"

    def test_the_placeholder_is_one_token_of_the_embedded_model(self, smollm):
        target = placeholder_target(smollm, build_entity_description_prompt(), "x")
        assert target.position == len(target.tokens) - 1


class TestCut:
    @pytest.mark.parametrize(
        ("generation", "description"),
        [
            (": British monarch, Queen Elizabeth: English queen", "British monarch"),
            (
                ": Country in Europe, the Baltic and the north, Oslo: city",
                "Country in Europe, the Baltic and the north",
            ),
            (": American actor\nIt is", "American actor"),
            (" British monarch", "British monarch"),
            (": city", "city"),
            ("", ""),
            ("\n\nIn the context of", ""),
            ("ar: African-American male, Al-Sabah: Al-", "African-American male"),
            (" States: United Kingdom, United States: United", "United Kingdom"),
            ("actor, director: both", "actor"),
            (":", ""),
            (": , x: y", ""),
            (": actor, director", "actor, director"),
            (": at 10:30, in May", "at 10:30, in May"),
            (": one, two: three, four: five", "one"),
        ],
    )
    def test_ends_where_the_prompts_format_ends_it(self, generation, description):
        assert cut_description(generation) == description

    def test_another_separator(self):
        assert cut_description(": one, two: three; four: five", "; ") == "one, two: three"
        assert cut_description(": one\ntwo: three", "\n") == "one"

    @given(st.text(max_size=60))
    def test_is_a_part_of_one_line(self, generation):
        description = cut_description(generation)
        assert description in generation
        assert "\n" not in description


class TestRouge:
    def test_known_pairs(self):
        same = rouge("Country in the Middle East", "country in the middle east")
        assert all(score == 1.0 for of_kind in same.values() for score in of_kind.values())
        other = rouge("actor", "country in the middle east")
        assert all(score == 0.0 for of_kind in other.values() for score in of_kind.values())
        assert rouge("", "something")["rougeL"]["f1"] == 0.0

    def test_order_matters_to_rouge_l_alone(self):
        scores = rouge("east middle the in country", "country in the middle east")
        assert scores["rouge1"]["f1"] == 1.0
        assert scores["rougeL"]["f1"] == pytest.approx(1 / 5)

    def test_precision_and_recall(self):
        scores = rouge("the capital city of France", "capital of France")["rougeL"]
        assert scores["precision"] == pytest.approx(3 / 5)
        assert scores["recall"] == 1.0
        assert scores["f1"] == pytest.approx(2 * 0.6 / 1.6)


class TestFiles:
    def test_those_of_the_library(self):
        entities = load_entities(DATA_FOLDER / "entities.json")
        assert len(entities) >= 120
        assert len({one.name for one in entities}) == len(entities)
        kinds, popularity = ([getattr(one, name) for one in entities] for name in ("kind", "popularity"))
        assert set(kinds) == {"person", "place", "organisation", "work", "event", "species", "material"}
        assert min(map(kinds.count, set(kinds))) >= 14
        assert popularity.count("well_known") == popularity.count("little_known")
        for one in entities:
            assert one.name.lower() not in one.reference.lower()
            assert ":" not in one.name

    def test_csv_and_json_are_the_same(self, tmp_path):
        (tmp_path / "a.csv").write_text('entity,reference,kind\n"Diana, Princess of Wales",royal,person\nOslo,city,\n')
        rows = [
            {"entity": "Diana, Princess of Wales", "reference": "royal", "kind": "person"},
            {"entity": "Oslo", "reference": "city"},
        ]
        (tmp_path / "a.json").write_text(json.dumps(rows))
        assert load_entities(tmp_path / "a.csv") == load_entities(tmp_path / "a.json")
        assert load_entities(tmp_path / "a.json")[1].popularity == "unspecified"

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            (
                "a.json",
                '[{"entity": "a", "reference": "b"}, {"entity": "c"}]',
                "a.json, item 2: expected the strings",
            ),
            ("a.json", '[{"entity": "a", "reference": 3}]', "item 1"),
            ("a.json", '["a"]', "item 1"),
            ("a.json", '{"entity": "a"}', "expected a list of objects, got dict"),
            ("a.json", "[\n{,}]", "line 2: not JSON"),
            ("a.json", "[]", "has no entities"),
            ("a.csv", "entity,reference\na,b\nc\n", "a.csv, line 3: expected"),
            ("a.csv", "name,reference\na,b\n", "line 2: expected"),
            ("a.txt", "a", r"expected a .json or .csv file"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path, name, content, message):
        (tmp_path / name).write_text(content)
        with pytest.raises(PatchscopesError, match=message):
            load_entities(tmp_path / name)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(PatchscopesError, match="there is no file"):
            load_entities(tmp_path / "a.json")


class TestExperiment:
    CONFIG = EntityConfig(max_new_tokens=6)

    def run(self, model, tmp_path, config=CONFIG, entities=ENTITIES):
        return entity.run(model, entities, config, ChunkStore(tmp_path / str(len(list(tmp_path.iterdir())))))

    def test_shape_of_the_results(self, llama, tmp_path):
        results, timing = self.run(llama, tmp_path)
        assert results["layers"] == results["target_layers"] == [0, 1, 2, 3]
        assert set(results["methods"]) == {"patchscope", "name_in_clear", "unpatched"}
        assert {name: group["n_samples"] for name, group in results["popularity"].items()} == {
            "well_known": 2,
            "little_known": 2,
        }
        curve = results["methods"]["patchscope"]["rougeL_f1_of_description"]
        assert np.shape(curve["ci95"]) == (4, 2)
        assert set(timing["seconds"]) == {"patchscope", "baselines", "rouge", "total"}
        for described, one in zip(results["entities"], ENTITIES, strict=True):
            assert described["entity"] == one.name
            of = described["methods"]["patchscope"]
            assert of["description"] == [cut_description(text) for text in of["generation"]]
            assert of["rouge1_recall_of_generation"][2] == rouge(of["generation"][2], one.reference)["rouge1"]["recall"]
        assert len({described["methods"]["unpatched"]["generation"][0] for described in results["entities"]}) == 1

    def test_is_the_plain_computation(self, llama, tmp_path):
        results, _ = self.run(llama, tmp_path, EntityConfig(max_new_tokens=6, layers=(1, 3), target_layer="embedding"))
        target = placeholder_target(llama, EntityConfig.target_prompt, "x")
        for described, one in zip(results["entities"], ENTITIES, strict=True):
            vectors = extract_representations(llama, [one.name], [-1], [1, 3])[0]
            tokens = patch_generate(target, vectors, [-1, -1], max_new_tokens=6, engine="hooks")
            expected = llama.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            assert described["methods"]["patchscope"]["generation"] == expected

    def test_one_alone_equals_the_same_in_a_batch(self, llama, tmp_path):
        together, _ = self.run(llama, tmp_path)
        for number, one in enumerate(ENTITIES):
            alone, _ = self.run(llama, tmp_path, entities=(one,))
            assert alone["entities"][0] == together["entities"][number]

    def test_layers_one_by_one_equal_layers_at_once(self, llama, tmp_path):
        together, _ = self.run(llama, tmp_path)
        for layer in range(4):
            alone, _ = self.run(llama, tmp_path, EntityConfig(max_new_tokens=6, layers=(layer,)))
            for one, other in zip(alone["entities"], together["entities"], strict=True):
                patchscope = other["methods"]["patchscope"]
                assert one["methods"]["patchscope"]["generation"] == [patchscope["generation"][layer]]

    def test_an_interrupted_run_goes_on(self, llama, tmp_path, monkeypatch):
        monkeypatch.setattr(entity, "CHUNK_ENTITIES", 1)
        whole, _ = self.run(llama, tmp_path)
        store = ChunkStore(tmp_path / "killed")

        def two(items):
            yield from list(items)[:2]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            entity.run(llama, ENTITIES, self.CONFIG, store, progress=two)
        resumed, _ = entity.run(llama, ENTITIES, self.CONFIG, store)
        assert resumed == whole

    def test_mistakes(self, llama, tmp_path):
        with pytest.raises(PatchscopesError, match="no entities were given"):
            self.run(llama, tmp_path, entities=())
        with pytest.raises(PatchscopesError, match="layer 9 does not exist"):
            self.run(llama, tmp_path, EntityConfig(layers=(9,)))
        with pytest.raises(PatchscopesError, match="no placeholder 'y'"):
            self.run(llama, tmp_path, EntityConfig(placeholder="y", target_prompt="a: b, x"))

    def test_on_the_embedded_model(self, smollm, tmp_path):
        """Early layers already know the country; the name in clear is described better than nothing is."""
        entities = [one for one in load_entities(DATA_FOLDER / "entities.json") if one.popularity == "well_known"][::8]
        results, _ = self.run(smollm, tmp_path, EntityConfig(layers=(2, 6), max_new_tokens=12), entities)
        methods = results["methods"]
        metric = "rougeL_f1_of_description"
        assert methods["name_in_clear"][metric]["mean"][0] > methods["unpatched"][metric]["mean"][0]
        assert max(methods["patchscope"][metric]["mean"]) > methods["unpatched"][metric]["mean"][0]


class TestGenerateAfter:
    PROMPTS = ("one two", "one two three", "one", "one tree", "one two")

    @pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom", "gptj"])
    def test_equals_each_prompt_alone(self, tiny_models, family):
        model = tiny_models(family)
        together = generate_after(model, self.PROMPTS, max_new_tokens=5, batch_size=3)
        for prompt, tokens in zip(self.PROMPTS, together, strict=True):
            assert torch.equal(generate_after(model, [prompt], max_new_tokens=5, engine="hooks")[0], tokens)
            sequence = model.to_tokens(prompt)
            for token in tokens:
                assert model(sequence)[0, -1].argmax() == token
                if token in model.tokenizer.all_special_ids:
                    break
                sequence = torch.cat([sequence, token.view(1, 1)], dim=1)

    def test_an_end_of_sequence_in_a_prompt_does_not_end_it(self, llama):
        end = llama.tokenizer.eos_token_id
        prompts = [[5, end, 7], [5, 9, 9, 9]]
        together = generate_after(llama, prompts, max_new_tokens=4)
        assert torch.equal(together[0], generate_after(llama, prompts[:1], max_new_tokens=4)[0])

    def test_prompts_with_nothing_in_common(self, llama):
        """As those of models without a BOS token may be."""
        prompts = [[5, 6], [6, 5, 7], [5, 9], [8]]
        together = generate_after(llama, prompts, max_new_tokens=4)
        for prompt, tokens in zip(prompts, together, strict=True):
            assert torch.equal(generate_after(llama, [prompt], max_new_tokens=4)[0], tokens)

    def test_nothing_and_mistakes(self, llama):
        assert generate_after(llama, [], max_new_tokens=3).shape == (0, 3)
        with pytest.raises(PatchscopesError, match="do not fit the model's context"):
            generate_after(llama, [[5] * 250], max_new_tokens=20)


class TestLayerByLayer:
    def test_endings_begin_with_words(self):
        assert entity_layers.list_name_endings("Diana, Princess of Wales") == [
            "Wales",
            "of Wales",
            "Princess of Wales",
            "Diana, Princess of Wales",
        ]
        with pytest.raises(PatchscopesError, match="name is empty"):
            entity_layers.list_name_endings("  ")

    def test_the_ending_that_is_most_alike(self):
        meanings = {"Wales": "Country in Europe", "Diana of Wales": "British royal", "of Wales": "Country in Europe"}
        assert entity_layers.find_most_alike("country in Europe", meanings) == ("Wales", 1.0)
        assert entity_layers.find_most_alike("the British royal", meanings)[0] == "Diana of Wales"
        resolved, likeness = entity_layers.find_most_alike("British national rugby union team", meanings)
        assert resolved == ""
        assert 0 < likeness < 1 / 3

    def test_says_what_the_experiment_says_and_shows_each_layer_once(self, llama, tmp_path):
        config = EntityConfig(max_new_tokens=6, layers=(3, 0, 1))
        shown = []
        results = entity_layers.run(llama, "big dog", config, shown.append)
        assert [one.layer for one in shown] == results["layers"] == [3, 0, 1]
        expected, _ = entity.run(llama, ENTITIES[:1], config, ChunkStore(tmp_path))
        patchscope = expected["entities"][0]["methods"]["patchscope"]
        assert results["methods"]["patchscope"]["generation"] == patchscope["generation"]
        assert [one.description for one in shown] == patchscope["description"]
        assert [one["ending"] for one in results["endings"]] == ["dog", "big dog"]

    def test_diana_on_the_embedded_model(self, smollm):
        config = EntityConfig(layers=(2, 6))
        results = entity_layers.run(smollm, "Diana, Princess of Wales", config, lambda one: None)
        says = results["methods"]["patchscope"]
        assert says["description"] == ["Country in the United Kingdom", "British monarch"]
        assert says["resolved"] == ["Wales", "Diana, Princess of Wales"]
