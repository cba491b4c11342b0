"""One subject's attribute over layers: each method beside its plain form, controls, and what was learned from whom."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_relations import CARRIERS, make_relation

from patchscopes.baselines import AffineLens
from patchscopes.data.relations import Relation, RelationSample, find_subject, find_whole_subjects
from patchscopes.engine.extract import extract_representations
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import attribute_example, attribute_layers
from patchscopes.experiments.attribute_learning import find_other_subject, learn_from_others, split_relation
from patchscopes.experiments.attribute_samples import find_subject_at
from patchscopes.experiments.config import AttributeExampleConfig, AttributesConfig
from patchscopes.patchscope import Patchscope
from patchscopes.positions import find_first_tokens

LAYERS = (-1, 0, 2, 3)
LEARNING = AttributesConfig(n_subjects=10, n_prompts=3, n_examples=4)
METHODS = ["patchscope", "lre", "lre_patchscope", "probe"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHSCOPES_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def relation(llama) -> Relation:
    return make_relation(llama)


@pytest.fixture(scope="module")
def config(relation) -> AttributeExampleConfig:
    return AttributeExampleConfig(
        source_prompt=f"Here comes {relation.samples[0].subject}", source_position=-1, layers=LAYERS, target_layer="1"
    )


@pytest.fixture(scope="module")
def taught(llama, relation):
    return learn_from_others(llama, relation, relation.samples[0].subject, CARRIERS, LEARNING)


@pytest.fixture(scope="module")
def results(llama, relation, config, taught):
    return attribute_example.run(llama, relation, config, taught)


class TestMethods:
    def test_the_patchscope_is_that_of_the_paper_by_plain_hooks(self, llama, relation, config, results):
        read, sample = results["methods"]["patchscope"], relation.samples[0]
        patchscope = Patchscope(
            model=llama,
            source_prompt=config.source_prompt,
            source_layers=LAYERS,
            target_prompt="Colour of x",
            target_position="x",
            target_layers=1,
        )
        texts = patchscope.generate(config.max_new_tokens, engine="hooks")
        # Those that have said the object stop there.
        assert all(
            text.startswith(said.removesuffix("\ufffd")) for text, said in zip(texts, read["texts"], strict=True)
        )
        logits = replace(patchscope, target_prompt="Colour of x is").logits(engine="hooks")
        first = find_first_tokens(llama, sample.accepted)
        expected = torch.softmax(logits, dim=-1)[:, first].sum(dim=-1)
        assert read["probability"] == pytest.approx(expected.tolist(), rel=1e-3)
        assert read["top_probability"] == pytest.approx(torch.softmax(logits, -1).max(-1).values.tolist(), rel=1e-3)

    def test_it_says_what_the_table_of_the_subject_has(self, llama, relation, config, results):
        options = AttributesConfig(layers=LAYERS, target_layers=(1,), max_new_tokens=config.max_new_tokens)
        shown = (llama, relation, relation.samples[0], config.source_prompt, options)
        table = attribute_layers.run(*shown, lambda *_: None, lambda *_: None)["methods"]
        read = results["methods"]
        assert [[text] for text in read["patchscope"]["texts"]] == table["patchscope"]["texts"]
        assert [[one] for one in read["patchscope"]["solved"]] == table["patchscope"]["solved"]
        for method in ("in_clear", "unpatched"):
            assert read[method]["text"] == table[method]["text"]

    def test_written_in_as_an_embedding_it_is_the_subject_in_clear(self, llama, relation):
        """Of a subject that is one token the embedding is all there is."""
        options = AttributeExampleConfig(
            source_prompt="So Q", source_position=-1, layers=(-1,), target_layer="embedding", answer="red"
        )
        read = attribute_example.run(llama, relation, options)["methods"]
        assert list(read) == ["in_clear", "unpatched", "patchscope"]
        assert read["patchscope"]["probability"] == pytest.approx([read["in_clear"]["probability"]], rel=1e-3)
        assert read["patchscope"]["texts"] == [read["in_clear"]["text"]]
        assert read["unpatched"]["probability"] != pytest.approx(read["in_clear"]["probability"], rel=1e-2)

    def test_both_forms_of_the_lre_are_what_its_lens_reads(self, llama, relation, config, taught, results):
        read, sample = results["methods"], relation.samples[0]
        states = extract_representations(llama, [config.source_prompt], [-1], LAYERS)[0]
        lens = AffineLens(llama, taught.lre.mapping(llama))
        probabilities = torch.softmax(lens(states, torch.tensor(LAYERS)), dim=-1)
        expected = probabilities[:, find_first_tokens(llama, sample.accepted)].sum(dim=-1).tolist()
        for method in ("lre", "lre_patchscope"):
            assert read[method]["probability"] == pytest.approx(expected, rel=1e-3)
            assert read[method]["top_probability"] == pytest.approx(probabilities.max(-1).values.tolist(), rel=1e-3)
        assert read["lre_patchscope"]["largest_difference"] < 1e-4

    def test_the_probe_reads_the_state_of_its_layer(self, llama, relation, config, taught, results):
        read, sample = results["methods"]["probe"], relation.samples[0]
        states = extract_representations(llama, [config.source_prompt], [-1], LAYERS)[0].numpy()
        shares = taught.probes(states, [taught.layers.index(layer) for layer in LAYERS])
        assert read["top_probability"] == pytest.approx(shares.max(axis=1).tolist())
        assert read["top"] == [taught.probes.objects[place] for place in shares.argmax(axis=1)]
        is_known = any(name in sample.accepted for name in taught.objects)
        assert (read["share"] > 0) == is_known == any(read["probability"])

    def test_the_control_is_another_subject_in_the_same_place(self, llama, relation, config, taught, results):
        other = results["other_subject"]
        answer = relation.samples[0].object
        swapped = replace(config, source_prompt=f"Here comes {other}", answer=answer)
        read = attribute_example.run(llama, relation, swapped, taught)["methods"]
        own = attribute_example.run(llama, relation, replace(config, answer=answer), taught)["methods"]
        for method in METHODS:
            assert read[method]["probability"] == pytest.approx(own[method]["of_other"], rel=1e-3)

    def test_what_needs_no_patch_may_be_given(self, llama, relation, config, taught, results):
        once = attribute_example.read_without_patch(llama, relation, relation.samples[0], config.max_new_tokens)
        assert {method: results["methods"][method] for method in once} == once
        marked = once | {"in_clear": once["in_clear"] | {"text": "given"}}
        read = attribute_example.run(llama, relation, config, taught, marked)["methods"]
        assert read == results["methods"] | marked
        assert "patchscope" not in marked

    def test_without_an_object_nothing_is_marked(self, llama, relation, config, taught):
        results = attribute_example.run(llama, relation, replace(config, answer=""), taught)
        assert (results["object"], results["other_subject"]) == ("", None)
        for method in METHODS:
            read = results["methods"][method]
            assert len(read["top"]) == len(read["top_probability"]) == len(LAYERS)
            assert read["probability"] is read["of_other"] is None
            assert not np.any(read["solved"] or 0)

    def test_an_alias_of_the_object_is_the_object(self, relation):
        sample = RelationSample(subject="OX", object="red", aliases=("crimson",))
        some = replace(relation, samples=(sample,))
        assert attribute_example.find_sample(some, "OX", "crimson") == sample
        assert attribute_example.find_sample(some, "OX", "blue").accepted == ("blue",)
        assert attribute_example.find_sample(some, "HEN").object == ""


class TestLearning:
    def test_no_subject_is_read_with_what_was_learned_from_it(self, llama, relation, taught):
        subject = relation.samples[0].subject
        own, teaching = split_relation(relation, subject)
        assert {one.subject for one in (*own.samples, *teaching.samples)} == {one.subject for one in relation.samples}
        assert subject in {one.subject for one in own.samples}
        learned_from = {*taught.examples, *taught.subjects}
        assert learned_from <= {one.subject for one in teaching.samples}
        assert find_other_subject(relation, relation.samples[0]) not in learned_from
        assert set(taught.probes.objects) == set(taught.objects)
        assert taught.layers == taught.lre.layers == (-1, 0, 1, 2, 3)

    def test_halves_teach_each_other(self, relation):
        for sample in relation.samples:
            own, teaching = split_relation(relation, sample.subject)
            assert sample in own.samples
            assert split_relation(relation, teaching.samples[0].subject) == (teaching, own)
        assert split_relation(relation, "nobody")[0].samples[0] in relation.samples

    def test_too_few_known_subjects(self, llama, relation):
        unknown = replace(relation, samples=tuple(replace(one, object="qqqq", aliases=()) for one in relation.samples))
        with pytest.raises(PatchscopesError, match=r"knows 0 of the 6 subjects of 'colour'"):
            learn_from_others(llama, unknown, "OX", CARRIERS, LEARNING)


class TestFindSubject:
    @pytest.fixture
    def countries(self, relation):
        names = ("Sudan", "South Sudan", "Guinea", "Guinea-Bissau", "água")
        return replace(relation, samples=tuple(RelationSample(subject=name, object="qq") for name in names))

    def test_the_longest_that_ends_there(self, llama, countries):
        text = "In South Sudan, Sudan and guinea; água"
        positions = {end: len(text[:end].encode()) for end in (14, 21, 32, 38)}
        found = {end: find_subject_at(llama, countries, text, position) for end, position in positions.items()}
        assert {end: one[0] for end, one in found.items()} == {14: "South Sudan", 21: "Sudan", 32: "Guinea", 38: "água"}
        assert all(place[1] == end for end, (_, place) in found.items())

    def test_else_the_word(self, llama, countries):
        assert find_subject_at(llama, countries, "In South Sudan", 5) == ("South", (3, 8))
        assert find_subject_at(llama, countries, "Guinea-Bissau", -8) == ("Guinea", (0, 6))
        assert find_subject_at(llama, countries, "日本 went", 2)[0] == "日本"
        assert find_subject_at(llama, countries, "A x", -1) == ("x", (2, 3))

    @pytest.mark.parametrize(("text", "position", "token"), [("A dog, too", 0, "<s>"), ("A dog, too", 6, ",")])
    def test_a_token_of_no_word(self, llama, countries, text, position, token):
        with pytest.raises(PatchscopesError, match=rf"token {position} of .* is '{token}', of no word; give"):
            find_subject_at(llama, countries, text, position)

    def test_a_token_that_does_not_exist(self, llama, countries):
        with pytest.raises(PatchscopesError, match="9"):
            find_subject_at(llama, countries, "A dog", 9)

    def test_whole_words_in_the_given_case_first(self):
        assert find_whole_subjects("iron, Iron and irons", "Iron") == [(6, 10), (0, 4)]
        assert find_subject("iron, Iron", "Iron") == (6, 10)
        assert find_whole_subjects("dog", "cat") == []
