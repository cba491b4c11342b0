"""Attribute extraction: the samples, the Patchscope with its controls, the experiment, and its measures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_relations import CARRIERS, make_relation

from patchscopes.data.questions import contains_answer
from patchscopes.data.relations import (
    RELATIONS_FOLDER,
    Relation,
    RelationSample,
    find_relation_files,
    load_carriers,
    load_relations,
)
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import attribute_layers, attribute_lens, attribute_tasks, attributes
from patchscopes.experiments.attribute_measures import (
    compare_methods,
    measure_most_frequent,
    summarise_by_layer,
    summarise_patchscope,
)
from patchscopes.experiments.attribute_patching import (
    build_attribute_target,
    draw_others,
    find_answers,
    flatten_pairs,
    patch_samples,
)
from patchscopes.experiments.attribute_samples import (
    AttributeSample,
    choose_source_texts,
    cut_source_prompt,
    draw_samples,
    find_known,
    find_subject_tokens,
    find_subjects,
    select_known,
)
from patchscopes.experiments.config import AttributesConfig
from patchscopes.model.embedded import get_cache_folder, unpack_embedded_model
from patchscopes.patch import patch_generate
from patchscopes.results import ChunkStore
from patchscopes.tokens import to_token_ids

CONFIG = AttributesConfig(
    layers=(0, 2, 3), target_layers=(-1, 1), n_subjects=10, n_prompts=3, n_examples=4, ranks=(1, 8)
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """What is learned about tiny models stays out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        unpack_embedded_model()
        folder = tmp_path_factory.mktemp("cache")
        for path in get_cache_folder().glob("smollm2-*"):
            (folder / path.name).symlink_to(path)
        patch.setenv("PATCHSCOPES_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def relation(llama) -> Relation:
    return make_relation(llama)


@pytest.fixture(scope="module")
def samples(llama, relation) -> list[AttributeSample]:
    known = find_known(llama, relation, CONFIG)
    return draw_samples(
        llama, select_known(relation, known), choose_source_texts(relation, CARRIERS, None, CONFIG), CONFIG
    )


class TestSamples:
    def test_a_window_holds_the_subject_and_ends_after_it(self, smollm):
        subject = "Buenos Aires"
        text = (
            "For many years nobody in the whole department had been able to say who it was that had first proposed the "
            f"journey to {subject}, where the archives were said to be kept in the cellar of a library near the port."
        )
        sample = RelationSample(subject=subject, object="Argentina")
        ends = set()
        for seed in range(30):
            cut = cut_source_prompt(smollm, text, sample, np.random.default_rng(seed))
            assert cut.tokens[0] == smollm.tokenizer.bos_token_id
            assert smollm.tokenizer.decode(cut.tokens[1:]) in text
            assert len(cut.tokens) <= AttributesConfig.WINDOW + 1
            assert smollm.tokenizer.decode(cut.tokens[: cut.position + 1]).endswith(subject)
            ends.add(len(cut.tokens) - cut.position)
        assert len(ends) > 3

    def test_a_long_subject_is_whole(self, llama):
        """A token per byte: the subject alone is longer than the window."""
        subject = "a very long name indeed for a dog"
        sample = RelationSample(subject=subject, object="x")
        cut = cut_source_prompt(llama, f"This is {subject}, and more", sample, np.random.default_rng(0))
        assert llama.tokenizer.decode(cut.tokens[: cut.position + 1]).endswith("indeed for a dog")

    def test_a_short_text_is_taken_from_its_start(self, llama):
        sample = RelationSample(subject="DOG", object="x")
        cut = cut_source_prompt(llama, "A DOG", sample, np.random.default_rng(0))
        assert list(cut.tokens) == to_token_ids(llama, "A DOG").tolist()
        assert cut.position == len(cut.tokens) - 1

    def test_the_subject_must_be_there(self, llama):
        with pytest.raises(PatchscopesError, match="the subject 'CAT' does not stand in 'A DOG'"):
            find_subject_tokens(llama, "A DOG", "CAT")

    def test_source_texts(self, relation):
        """From carriers of the kind of subject, from texts, or those that a table gives."""
        chosen = choose_source_texts(relation, CARRIERS, None, CONFIG)
        assert {len(set(of_subject)) for of_subject in chosen.values()} == {3}
        for subject, of_subject in chosen.items():
            assert all(text in [one.replace("{}", subject) for one in CARRIERS["animal"]] for text in of_subject)
        assert chosen == choose_source_texts(relation, CARRIERS, None, CONFIG)
        assert chosen != choose_source_texts(relation, CARRIERS, None, replace(CONFIG, seed=1))
        other_kind = choose_source_texts(replace(relation, subject_kind="dish"), CARRIERS, None, CONFIG)
        assert all(len(of_subject) == 2 for of_subject in other_kind.values())

        first = relation.samples[0].subject
        texts = choose_source_texts(relation, CARRIERS, [f"One {first} here", "Nobody"], CONFIG)
        assert texts[first] == [f"One {first} here"]
        assert not any(of_subject for subject, of_subject in texts.items() if subject != first)

        given = replace(relation, samples=(replace(relation.samples[0], source_prompts=("a", "b", "b", "c", "d")),))
        (drawn,) = choose_source_texts(given, CARRIERS, None, CONFIG).values()
        assert len(set(drawn)) == 3
        assert set(drawn) < {"a", "b", "c", "d"}

    def test_a_source_prompt_of_a_table_stays_whole(self, llama):
        prompt = "It has more tokens than the window, this is OX as ever"
        sample = RelationSample(subject="OX", object="x", source_prompts=(prompt,))
        (drawn,) = draw_samples(llama, [sample], {"OX": [prompt]}, CONFIG)
        assert list(drawn.tokens) == to_token_ids(llama, prompt).tolist()
        assert llama.tokenizer.decode(drawn.tokens[: drawn.position + 1]).endswith("this is OX")

    def test_subjects_are_whole_words_and_the_longest(self):
        texts = ["Guinea-Bissau is small.", "Guinea is larger, and Guinea again.", "Guineas", "guinea"]
        found = find_subjects(texts, ["Guinea", "Guinea-Bissau"])
        assert found == {"Guinea": [texts[1]], "Guinea-Bissau": [texts[0]]}

    def test_a_subject_after_a_longer_one_that_holds_it_is_not_taken(self):
        texts = ["South Sudan borders Sudan in the north.", "Sudan lies north of South Sudan."]
        found = find_subjects(texts, ["Sudan", "South Sudan"])
        assert found == {"Sudan": [texts[1]], "South Sudan": texts}

    def test_subjects_in_texts_without_spaces(self):
        texts = ["我们谈到了日本的首都。", "东日本很大。", "มาจากประเทศไทยเมื่อวาน"]
        found = find_subjects(texts, ["日本", "东日本", "ไทย"])
        assert found == {"日本": texts[:1], "东日本": texts[1:2], "ไทย": texts[2:]}

    def test_only_known_subjects_in_all_their_texts(self, llama, relation, samples):
        assert len(samples) == 10 * 3
        assert len({sample.fact.subject for sample in samples}) == 10
        found = [{"known": 0} for _ in relation.samples]
        found[3] = {"known": 1}
        known = select_known(relation, found)
        texts = choose_source_texts(relation, CARRIERS, None, CONFIG)
        assert {one.fact for one in draw_samples(llama, known, texts, CONFIG)} == {relation.samples[3]}

    def test_known_is_what_the_model_says_in_clear(self, smollm):
        relation = Relation(
            name="capital",
            prompt="The capital city of {}",
            samples=(
                RelationSample(subject="France", object="Paris"),
                RelationSample(subject="Japan", object="Buenos Aires"),
            ),
        )
        known = find_known(smollm, relation, AttributesConfig())
        assert [one["known"] for one in known] == [1, 0]
        assert contains_answer(known[0]["text"], ["Paris"])

    def test_the_librarys_own_relations_and_carriers(self, smollm):
        """Every subject is found in every carrier of its kind, and none of these says an answer."""
        carriers = load_carriers()
        for relation in load_relations(find_relation_files()):
            assert build_attribute_target(smollm, relation).suffix_length == 1
            for sample in relation.samples[::20]:
                for sentence in carriers[relation.subject_kind]:
                    assert not contains_answer(sentence.replace("{}", sample.subject), sample.accepted)
                    _, last = find_subject_tokens(smollm, sentence.replace("{}", sample.subject), sample.subject)
                    assert last >= 5


class TestPatching:
    def test_the_placeholder_stands_where_the_subject_does(self, llama):
        for prompt in ("{} is an example of", "six boxes hold {} , and an axe"):
            target = build_attribute_target(llama, Relation(name="kind", prompt=prompt, samples=()))
            before = llama.tokenizer.decode(target.tokens[: int(target.position) + 1])
            assert before.endswith(prompt.partition("{}")[0] + "x")

    def test_pairs_are_counted_exactly_as_one_by_one_with_plain_hooks(self, llama, relation, samples):
        """The any-ℓ* measure, of rows in one call that stop at the answer."""
        layers, target_layers = list(CONFIG.layers), list(CONFIG.target_layers)
        target = build_attribute_target(llama, relation)
        others = draw_others(samples, seed=0)
        states = extract_representations(
            llama, [list(one.tokens) for one in samples], [one.position for one in samples], layers
        )
        found = patch_samples(target, samples, others, states, layers, target_layers, CONFIG)
        n_counted = 0
        for number in range(0, len(samples), 4):
            sample, other = samples[number], others[number]
            own, others_own = [], []
            for slot, layer in enumerate(layers):
                for target_layer in target_layers:
                    alone = patch_generate(
                        target, states[number, slot][None], [target_layer], max_new_tokens=10, engine="hooks"
                    )
                    (text,) = llama.tokenizer.batch_decode(alone, skip_special_tokens=True)
                    own += [[layer, target_layer]] * contains_answer(text, sample.fact.accepted)
                    if other is not None:
                        others_own += [[layer, target_layer]] * contains_answer(text, other.accepted)
            assert flatten_pairs(found[number]["texts"]) == own
            n_counted += len(own)
            if other is not None:
                assert flatten_pairs(found[number]["other_texts"]) == others_own
        assert n_counted > 0

    def test_the_control_is_of_the_first_prompt_of_each_subject(self, samples):
        others = draw_others(samples, seed=0)
        assert [other is not None for other in others] == [True, False, False] * 10
        for sample, other in zip(samples, others, strict=True):
            if other is not None:
                assert not contains_answer("; ".join(other.accepted), sample.fact.accepted)
        assert others == draw_others(samples, seed=0)

    def test_where_all_share_an_object_there_is_no_control(self, samples):
        alike = [replace(one, fact=replace(one.fact, object="same", aliases=())) for one in samples]
        assert draw_others(alike, seed=0) == [None] * len(samples)

    def test_answers_by_their_text(self):
        texts = [["a dog", "no"], ["a dog", "the dog"]]
        found = find_answers(texts, ["dog"], [3, 5], [0, 1])
        assert found == {"a dog": [[3, 0], [5, 0]], "the dog": [[5, 1]]}
        assert flatten_pairs(found) == [[3, 0], [5, 0], [5, 1]]

    def test_a_state_in_its_own_place_says_what_the_model_says_in_clear(self, smollm):
        """S = "The capital city of Canada" written over T's x at the embedding: a subject of one token is itself."""
        (relation,) = load_relations([RELATIONS_FOLDER / "capital.json"])
        target = build_attribute_target(smollm, relation)
        state = extract_representations(smollm, [relation.fill("Canada")], [-1], [-1])
        said = patch_generate(target, state[0], [-1], max_new_tokens=10)
        assert torch.equal(said, generate_after(smollm, [relation.fill("Canada")], max_new_tokens=10))


class TestExperiment:
    def test_the_results(self, llama, relation, tmp_path):
        other = make_relation(llama, "kind", "So what about {}", 6)
        few = replace(relation, name="few", samples=relation.samples[:4])
        results, timing = attributes.run(llama, [relation, other, few], CARRIERS, CONFIG, ChunkStore(tmp_path))
        assert (results["layers"], results["target_layers"]) == ([0, 2, 3], [-1, 1])
        assert set(results["tasks"]) == {"colour", "kind"}
        assert [(one["name"], one["n_samples"]) for one in results["dropped"]] == [("few", 12)]
        task = results["tasks"]["colour"]
        assert set(task["methods"]) == {
            "most_frequent",
            "patchscope",
            "probe",
            "probe_by_sample",
            "lre",
            "lre_patchscope",
        }
        for measures in task["methods"].values():
            for of in measures.values():
                if isinstance(of, dict) and "ci95" in of:
                    low, high = np.moveaxis(np.array(of["ci95"]), -1, 0)
                    assert (low <= np.array(of["mean"]) + 1e-9).all()
                    assert (high >= np.array(of["mean"]) - 1e-9).all()
        patchscope = task["methods"]["patchscope"]
        assert patchscope["any"]["mean"] >= np.max(patchscope["accuracy"]["mean"], axis=1).mean() - 1e-9
        assert patchscope["any"]["mean"] == pytest.approx(np.mean(patchscope["any_by_layer"]["mean"]))
        assert task["methods"]["lre_patchscope"]["largest_logit_difference"] < 1e-4
        assert task["methods"]["lre_patchscope"]["faithfulness"] == task["methods"]["lre"]["faithfulness"]
        assert set(task["patchscope_against"]) == {"probe", "probe_by_sample", "lre"}
        tested = [sample for sample in task["samples"] if "lre" in sample]
        assert {sample["subject"] for sample in tested}.isdisjoint(task["methods"]["lre"]["examples"])
        assert len(tested) == (10 - 4) * 3
        # Every generation that counted.
        solved = sum(len(flatten_pairs(sample["patchscope"]["texts"])) for sample in task["samples"])
        assert solved == pytest.approx(np.sum(patchscope["accuracy"]["mean"]) * task["n_samples"])
        assert [one["known"] for one in task["known"]] == [1] * task["n_known"]
        assert set(task["known"][0]) == {"subject", "text", "known"}
        unrelated = [flatten_pairs(sample["patchscope"]["unrelated_texts"]) for sample in task["samples"]]
        layers_found = [len({layer for layer, _ in pairs}) for pairs in unrelated]
        assert patchscope["control_unrelated_any"]["mean"] == pytest.approx(np.mean(layers_found) / 3)
        assert isinstance(patchscope["unpatched_text"], str)
        assert {"known", "patchscope", "controls", "probe", "lre", "total"} == set(timing["seconds"])
        # Six subjects are two more than the LRE takes.
        assert "lre" in results["tasks"]["kind"]["methods"]

    def test_with_few_subjects_there_is_no_lre(self, llama, relation, tmp_path):
        config = replace(CONFIG, n_subjects=6, n_examples=6, methods=("lre", "lre_patchscope"))
        results, _ = attributes.run(llama, [relation], CARRIERS, config, ChunkStore(tmp_path))
        assert set(results["tasks"]["colour"]["methods"]) == {"most_frequent"}

    @pytest.mark.parametrize("methods", [("patchscope",), ("probe",), ("lre_patchscope",)])
    def test_some_methods(self, llama, relation, tmp_path, methods):
        config = replace(CONFIG, methods=methods)
        results, _ = attributes.run(llama, [relation], CARRIERS, config, ChunkStore(tmp_path))
        assert set(methods) < set(results["tasks"]["colour"]["methods"])

    @pytest.fixture(scope="class")
    @classmethod
    def two_tasks(cls, llama, relation, tmp_path_factory) -> tuple[list[Relation], dict]:
        """Two relations, and their results in one go."""
        relations = [
            replace(one, name=name, samples=one.samples[:6])
            for one, name in ((relation, "colour"), (relation, "a kind / of"))
        ]
        results, _ = attributes.run(llama, relations, CARRIERS, CONFIG, ChunkStore(tmp_path_factory.mktemp("whole")))
        return relations, results

    @pytest.mark.parametrize("step", ["known", "patchscope", "controls", "probe", "lre"])
    def test_an_interrupted_run_goes_on(self, llama, two_tasks, tmp_path, monkeypatch, step):
        monkeypatch.setattr(attribute_tasks, "CHUNK_SAMPLES", 12)
        relations, whole = two_tasks
        save, refused = ChunkStore.save, []

        def interrupted(store, name, content):
            if name.startswith(f"2-a-kind-of/{step}") and not refused:
                refused.append(name)
                raise KeyboardInterrupt
            save(store, name, content)

        monkeypatch.setattr(ChunkStore, "save", interrupted)
        store = ChunkStore(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            attributes.run(llama, relations, CARRIERS, CONFIG, store)
        kept = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*.json")}
        assert kept
        assert attributes.run(llama, relations, CARRIERS, CONFIG, store)[0] == whole
        assert all(path.stat().st_mtime_ns == before for path, before in kept.items())

    def test_what_is_wrong_is_said(self, llama, relation, tmp_path):
        store = ChunkStore(tmp_path)
        with pytest.raises(PatchscopesError, match="no method is called 'lens'"):
            attributes.run(llama, [relation], CARRIERS, replace(CONFIG, methods=("lens",)), store)
        with pytest.raises(PatchscopesError, match="layer 9 does not exist"):
            attributes.run(llama, [relation], CARRIERS, replace(CONFIG, target_layers=(9,)), store)
        few = replace(relation, samples=relation.samples[:4])
        with pytest.raises(PatchscopesError, match="no task has enough samples .* the best has 12"):
            attributes.run(llama, [few], CARRIERS, CONFIG, store)


class TestMeasures:
    def make_samples(self, objects: dict[str, str], n_prompts: int = 2) -> list[AttributeSample]:
        of = [RelationSample(subject=subject, object=answer) for subject, answer in objects.items()]
        return [AttributeSample(fact=one, tokens=(1, 2), position=1) for one in of for _ in range(n_prompts)]

    def test_by_hand(self):
        samples = self.make_samples({"a": "red", "b": "blue"})
        patched = [
            {"texts": {"red": [[0, 0], [0, 1]]}, "other_texts": {}},
            {"texts": {"a red": [[1, 1]]}},
            {"texts": {}, "other_texts": {"red": [[0, 0], [1, 0]]}},
            {"texts": {"blue": [[0, 0], [1, 0]]}},
        ]
        without = {"unpatched": [0, 0, 1, 1], "unrelated_texts": [{}, {}, {}, {"blue": [[0, 1]]}]}
        measures, by_layer = summarise_patchscope(samples, patched, without, [0, 1], [0, 1], seed=0)
        assert by_layer.tolist() == [[1, 0], [0, 1], [0, 0], [1, 1]]
        assert measures["any"]["mean"] == 0.5
        assert measures["any_by_layer"]["mean"] == [0.5, 0.5]
        assert measures["accuracy"]["mean"] == [[0.5, 0.25], [0.25, 0.25]]
        assert measures["control_any"]["mean"] == 0.5
        assert measures["control_unpatched"]["mean"] == 0.5
        assert measures["control_unrelated_any"]["mean"] == 0.125
        # One subject chooses the pair for the other.
        assert measures["held_out"]["mean"] == 0.5

    def test_the_most_frequent_answer(self):
        samples = self.make_samples({"a": "red", "b": "green", "c": "red"})
        found = measure_most_frequent(samples, seed=0)
        assert (found["answer"], found["accuracy"]["mean"]) == ("red", pytest.approx(2 / 3))
        accepted = [replace(one, fact=replace(one.fact, aliases=("green",))) for one in samples]
        assert measure_most_frequent(accepted, seed=0)["answer"] == "green"
        assert measure_most_frequent(accepted, seed=0)["accuracy"]["mean"] == 1

    def test_one_answer_at_each_layer(self):
        rightly = np.array([[1, 0], [1, 0], [1, 1], [0, 0]])
        found = summarise_by_layer(rightly, np.array([0, 0, 1, 1]), [4, 7], "accuracy", seed=0)
        assert found["accuracy"]["mean"] == [0.75, 0.25]
        assert found["mean_accuracy"]["mean"] == 0.5
        assert found["held_out_layers"] == [4, 4]
        assert found["held_out"]["mean"] == 0.75

    def test_two_methods_are_compared_over_layers_and_over_subjects(self):
        generator = np.random.default_rng(0)
        better = (generator.random((40, 8)) < 0.8).astype(float)
        worse = (generator.random((40, 8)) < 0.2).astype(float)
        groups = np.arange(40) // 2
        found = compare_methods(better, worse, groups, n_comparisons=12, seed=0)
        assert found["difference"]["mean"] == pytest.approx((better - worse).mean())
        assert found["difference"]["ci95"][0] > 0.4
        assert found["t_test_over_layers"]["p_bonferroni"] < 0.01
        same = compare_methods(better, better, groups, n_comparisons=12, seed=0)
        assert (same["difference"]["mean"], same["t_test_over_layers"]["p_bonferroni"]) == (0, 1)
        assert (
            compare_methods(better[:, :1], worse[:, :1], groups, n_comparisons=1, seed=0)["t_test_over_layers"] is None
        )


class TestOneSubject:
    def test_the_table_of_one_subject_is_that_of_the_experiment(self, llama, relation):
        sample, seen = relation.samples[0], []
        source_prompt = f"Here comes {sample.subject}"
        results = attribute_layers.run(
            llama,
            relation,
            sample,
            source_prompt,
            CONFIG,
            lambda *shown: seen.append(shown),
            lambda *shown: seen.append(shown),
        )
        assert [shown[0] for shown in seen] == ["in_clear", "unpatched", 0, 2, 3]
        assert results["methods"]["in_clear"]["solved"] in (0, 1)
        tokens = tuple(to_token_ids(llama, source_prompt).tolist())
        alone = AttributeSample(fact=sample, tokens=tokens, position=len(tokens) - 1)
        states = extract_representations(llama, [list(tokens)], [-1], CONFIG.layers)
        target = build_attribute_target(llama, relation)
        (found,) = patch_samples(target, [alone], [None], states, CONFIG.layers, CONFIG.target_layers, CONFIG)
        solved = results["methods"]["patchscope"]["solved"]
        pairs = [
            [layer, target_layer]
            for layer, of_layer in zip(CONFIG.layers, solved, strict=True)
            for target_layer, right in zip(CONFIG.target_layers, of_layer, strict=True)
            if right
        ]
        assert pairs == flatten_pairs(found["texts"])

    def test_without_an_object_nothing_is_marked(self, llama, relation):
        sample = RelationSample(subject="OX", object="")
        results = attribute_layers.run(llama, relation, sample, "An OX", CONFIG, lambda *_: None, lambda *_: None)
        assert not np.any(results["methods"]["patchscope"]["solved"])


class TestAttributeLens:
    def test_every_token_and_layer(self, llama, relation):
        results = attribute_lens.run(llama, relation, "A DOG and a CAT", replace(CONFIG, layers=(1, 3)))
        assert len(results["tokens"]) == len(to_token_ids(llama, "A DOG and a CAT"))
        assert np.shape(results["top"]) == np.shape(results["probability"]) == (2, len(results["tokens"]))
        assert np.all(np.array(results["probability"]) > 0)
        assert len(results["examples"]) == CONFIG.n_examples

    def test_too_few_known_subjects(self, llama, relation):
        few = replace(relation, samples=relation.samples[:2])
        with pytest.raises(PatchscopesError, match=r"knows 2 subjects of 'colour'.*estimated from 4"):
            attribute_lens.run(llama, few, "A DOG", CONFIG)
