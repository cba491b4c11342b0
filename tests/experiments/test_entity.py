"""Entity descriptions: their prompt, their scores, and both experiments."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from patchscopes.data.entities import Entity, cut_description, load_entities
from patchscopes.data.files import DATA_FOLDER
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.relevancy import Continuation
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import entity, entity_layers
from patchscopes.experiments.config import EntityConfig
from patchscopes.metrics import rouge
from patchscopes.patch import patch_generate, patch_logits
from patchscopes.patchscope import Patchscope
from patchscopes.prompts import build_entity_description_prompt
from patchscopes.results import ChunkStore

ENTITIES = tuple(
    Entity(name=name, references=(f"a kind of {name[::-1]}",), popularity=popularity)
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

    @pytest.mark.parametrize(
        "text",
        [
            "Столица России",
            "首都是北京",
            "พระมหากษัตริย์",
            "عاصمة فرنسا",
            "भारत की राजधानी",
            "대한민국의 수도",
            "Þingvellir",
        ],
    )
    def test_of_any_script(self, text):
        assert all(score == 1.0 for of_kind in rouge(text, text).values() for score in of_kind.values())
        assert rouge(text, "capital of Kenya")["rouge1"]["f1"] == 0.0

    def test_letters_of_scripts_without_spaces_count_one_by_one(self):
        scores = rouge("英国的君主", "英国君主")
        assert scores["rougeL"]["precision"] == pytest.approx(4 / 5)
        assert scores["rougeL"]["recall"] == 1.0
        assert rouge("主君国英", "英国君主")["rougeL"]["f1"] == pytest.approx(1 / 4)

    @given(*[st.text(st.characters(max_codepoint=127), max_size=60)] * 2)
    def test_ascii_as_the_package_counts_it(self, text, reference):
        scores = RougeScorer(["rouge1", "rougeL"]).score(reference, text)
        expected = {
            kind: {"precision": score.precision, "recall": score.recall, "f1": score.fmeasure}
            for kind, score in scores.items()
        }
        assert rouge(text, reference) == expected


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
            assert (
                of["rouge1_recall_of_generation"][2] == rouge(of["generation"][2], *one.references)["rouge1"]["recall"]
            )
        assert len({described["methods"]["unpatched"]["generation"][0] for described in results["entities"]}) == 1

    def test_is_the_plain_computation(self, llama, tmp_path):
        results, _ = self.run(llama, tmp_path, EntityConfig(max_new_tokens=6, layers=(1, 3), target_layer="embedding"))
        target = placeholder_target(llama, EntityConfig.target_prompt, "x")
        for described, one in zip(results["entities"], ENTITIES, strict=True):
            vectors = extract_representations(llama, [one.name], [-1], [1, 3])[0]
            tokens = patch_generate(target, vectors, [-1, -1], max_new_tokens=6, engine="hooks")
            expected = llama.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            assert described["methods"]["patchscope"]["generation"] == expected

    def test_relevancy_is_of_the_tokens_of_the_description(self, smollm, tmp_path):
        config = EntityConfig(layers=(2, 29), max_new_tokens=12)
        entities = [
            Entity(name="Reykjavík", references=("a city",)),
            Entity(name="Barack Obama", references=("a man",)),
        ]
        results, _ = self.run(smollm, tmp_path, config, entities)
        for described, one in zip(results["entities"], entities, strict=True):
            of = described["methods"]["patchscope"]
            whole = Patchscope(
                model=smollm,
                source_prompt=one.name,
                source_layers=(2, 29),
                target_prompt=config.target_prompt,
                target_position="x",
            ).generate(12, relevancy=True)
            for number, (description, continuation) in enumerate(zip(of["description"], whole, strict=True)):
                tokens, relevancies = of["tokens_of_description"][number], of["relevancy_of_description"][number]
                assert "".join(tokens).strip() == description
                start = next(
                    place
                    for place in range(len(continuation.tokens))
                    if continuation.tokens[place : place + len(tokens)] == tokens
                )
                assert relevancies == pytest.approx(continuation.relevancies[start : start + len(tokens)], abs=1e-3)
            early, last = of["relevancy_of_description"]
            assert max(early) > 0.05
            # No later token sees what is written behind the last block.
            assert last == pytest.approx([0.0] * len(last), abs=1e-3)
        assert "tokens_of_description" not in results["methods"]["patchscope"]
        assert "tokens_of_description" not in results["entities"][0]["methods"]["unpatched"]

    @pytest.mark.parametrize(
        ("tokens", "expected"),
        [
            ((":", " Country", " in", " Europe", ",", " y", ":", " Town"), (1, 2, 3)),
            ((" of", " Wales", ":", " Country"), (3,)),
            ((" Country", "\n", "more"), (0,)),
            ((":", " "), ()),
            ((), ()),
            ((": a", "b, c", "d: e"), (0, 1)),
        ],
    )
    def test_tokens_of_a_description(self, tokens, expected):
        continuation = Continuation("".join(tokens), list(tokens), [float(place) for place in range(len(tokens))])
        within = entity.cut_tokens(continuation, ", ")
        assert within == [(tokens[place], float(place)) for place in expected]

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

    def test_the_ending_that_gains_most(self):
        endings = ["Wales", "of Wales", "Princess of Wales"]
        unpatched = [-1.0, -4.0, -6.0]
        # The likeliest one is not the one that gains most.
        assert entity_layers.find_most_gained(endings, [-0.5, -4.0, -4.0], unpatched) == ("Princess of Wales", 2.0)
        assert entity_layers.find_most_gained(endings, [-0.0, -3.0, -5.5], unpatched)[0] == "Wales"
        resolved, gain = entity_layers.find_most_gained(endings, [-0.5, -4.5, -6.5], unpatched)
        assert resolved == ""
        assert gain == 0.5

    def test_probabilities_of_descriptions_are_the_plain_ones(self, llama):
        target = placeholder_target(llama, EntityConfig.target_prompt, "x")
        config = EntityConfig(max_new_tokens=6)
        meanings = entity_layers.describe_in_clear(llama, ["dog", "a big dog", "the big dog"], config)
        said = generate_after(llama, [entity.fill_placeholder(config, "dog")], max_new_tokens=6)
        assert torch.equal(meanings[0].tokens, said[0, : len(meanings[0].tokens)])
        # One with tokens before it, and one of nothing.
        meanings[1] = replace(meanings[1], tokens=torch.tensor([5, 9, 7]), start=1)
        meanings[2] = replace(meanings[2], description="", tokens=torch.tensor([], dtype=torch.long), start=0)
        vectors = extract_representations(llama, ["big dog"], [-1], [1, 2])[0]
        scores = entity_layers.score_meanings(target, vectors, [0, 2], meanings, None)
        for row, (vector, layer) in enumerate([(vectors[0], 0), (vectors[1], 2), (None, None)]):
            for column, meaning in enumerate(meanings):
                likely = []
                for number in range(meaning.start, len(meaning.tokens)):
                    read = TargetPrompt(llama, torch.cat([target.tokens, meaning.tokens[:number]]), target.position)
                    if vector is None:
                        logits = llama(read.tokens[None])[:, -1]
                    else:
                        logits = patch_logits(read, vector[None], [layer], engine="hooks")
                    likely.append(float(logits.log_softmax(dim=-1)[0, meaning.tokens[number]]))
                expected = sum(likely) / len(likely) if likely else 0.0
                assert float(scores[row, column]) == pytest.approx(expected, abs=1e-4)

    def test_a_state_that_changes_nothing_resolves_nothing(self, llama):
        config = EntityConfig(max_new_tokens=6)
        target = placeholder_target(llama, EntityConfig.target_prompt, "x")
        own = extract_representations(llama, [target.tokens], [target.position])[0]
        meanings = entity_layers.describe_in_clear(llama, ["dog", "a dog"], config)
        *patched, unpatched = entity_layers.score_meanings(target, own, range(4), meanings, None).tolist()
        for likely in patched:
            assert likely == pytest.approx(unpatched, abs=1e-4)
            resolved, gain = entity_layers.find_most_gained(["dog", "a dog"], likely, unpatched)
            assert (resolved, gain) == ("", pytest.approx(0.0, abs=1e-4))

    def test_says_what_the_experiment_says_and_shows_each_layer_once(self, llama, tmp_path):
        config = EntityConfig(max_new_tokens=6, layers=(3, 0, 1))
        shown = []
        results = entity_layers.run(llama, "big dog", config, shown.append)
        assert [one.layer for one in shown] == results["layers"] == [3, 0, 1]
        expected, _ = entity.run(llama, ENTITIES[:1], config, ChunkStore(tmp_path))
        patchscope = expected["entities"][0]["methods"]["patchscope"]
        assert results["methods"]["patchscope"]["generation"] == patchscope["generation"]
        assert [one.description for one in shown] == patchscope["description"]
        for field in ("tokens_of_description", "relevancy_of_description"):
            assert results["methods"]["patchscope"][field] == patchscope[field]
            assert [getattr(one, field) for one in shown] == patchscope[field]
        assert [one["ending"] for one in results["endings"]] == ["dog", "big dog"]
        of = results["methods"]["patchscope"]
        unpatched = [one["unpatched_log_probability"] for one in results["endings"]]
        for number, one in enumerate(shown):
            assert of["log_probability"][number] == one.log_probability
            assert entity_layers.find_most_gained(["dog", "big dog"], one.log_probability, unpatched) == (
                of["resolved"][number],
                of["gain"][number],
            )
            meanings = {ending["ending"]: ending["description"] for ending in results["endings"]}
            alike = of["most_alike"][number], of["likeness"][number]
            assert alike == entity_layers.find_most_alike(one.description, meanings)

    def test_diana_on_the_embedded_model(self, smollm):
        config = EntityConfig(layers=(2, 12, 15, 29))
        results = entity_layers.run(smollm, "Diana, Princess of Wales", config, lambda one: None)
        says = results["methods"]["patchscope"]
        assert says["description"][:2] == ["Country in the United Kingdom", "British monarch"]
        # Layer 15 says "British-American actor", and yet makes "British royal princess" much more likely.
        diana = "Diana, Princess of Wales"
        assert says["resolved"] == ["Wales", diana, diana, ""]
        assert says["most_alike"] == ["Wales", diana, "", ""]
        assert says["gain"][3] == pytest.approx(0.0, abs=1e-4)
