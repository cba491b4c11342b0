"""Two-hop questions: where they are patched, the experiment, and its measures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_questions import make_questions

from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.questions import build_question, contains_answer, load_questions
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import multi_hop, multi_hop_grid, multi_hop_patching
from patchscopes.experiments.config import MultiHopConfig
from patchscopes.experiments.layer_pairs import score_held_out
from patchscopes.experiments.multi_hop_measures import summarise_methods
from patchscopes.experiments.multi_hop_patching import (
    build_patching,
    build_rows,
    find_obstacle,
    find_patch_positions,
    generate_until_answered,
    patch_questions,
)
from patchscopes.patch import patch_generate, patch_logits
from patchscopes.results import ChunkStore
from patchscopes.tokens import to_token_ids

QUESTIONS = load_questions(DATA_FOLDER / "multihop_examples.json")
TOKYO = next(one for one in QUESTIONS if "currency of the country whose capital is Tokyo" in one.combined_question)
CONFIG = MultiHopConfig(layers=(0, 2, 3), target_layers=(0, 1, 3), max_new_tokens=5, cot_new_tokens=6, n_samples=3)


class TestPositions:
    @pytest.mark.parametrize("tokenizer_kind", ["byte_level", "embedded"])
    def test_last_tokens_of_both_parts_of_every_question(self, tokenizer_kind, models_by_tokenizer, smollm):
        model = smollm if tokenizer_kind == "embedded" else models_by_tokenizer[tokenizer_kind]

        def read(ids) -> str:
            return model.tokenizer.decode(ids).removeprefix(model.tokenizer.bos_token).strip()

        for question in QUESTIONS:
            source_position, target_position = find_patch_positions(model, question)
            ids = to_token_ids(model, question.query)
            assert read(ids[: target_position + 1]) == question.pi2.removesuffix(" {}")
            assert read(ids[: source_position + 1]) == question.combined_question.removesuffix(" is")

    def test_a_tokenizer_that_merges_words_is_right_or_refused(self, models_by_tokenizer):
        model = models_by_tokenizer["sentencepiece_like"]
        n_refused = 0
        for question in QUESTIONS[::5]:
            ids = to_token_ids(model, question.query)
            try:
                _, position = find_patch_positions(model, question)
            except PatchscopesError:
                n_refused += 1
                continue
            assert model.tokenizer.decode(ids[: position + 1]).endswith(question.pi2.removesuffix(" {}"))
        assert 0 < n_refused < len(QUESTIONS[::5])

    def test_without_a_cue_it_is_the_last_token(self, smollm):
        question = replace(TOKYO, cue="")
        ids = to_token_ids(smollm, question.query)
        assert find_patch_positions(smollm, question)[0] == len(ids) - 1

    def test_a_token_across_the_seam_is_refused(self, smollm):
        question = replace(TOKYO, pi2="The official cur{}", pi1="rency of it")
        with pytest.raises(PatchscopesError, match="has one token for the end of 'The official cur'"):
            find_patch_positions(smollm, question)

    def test_where_the_first_hop_comes_first(self, smollm):
        """Both ends are where the query says, and so is the placeholder."""
        question = build_question(
            "here",
            id=0,
            hop1_prompt="the country whose capital is Tokyo",
            hop1_answer="Japan",
            hop2_prompt="{}'s taxes and currency is",
            hop2_answer="yen",
        )
        ids = to_token_ids(smollm, question.query)
        source_position, target_position = find_patch_positions(smollm, question)
        assert smollm.tokenizer.decode(ids[source_position]) == " Tokyo"
        assert smollm.tokenizer.decode(ids[target_position]) == " currency"
        # Not the x of "taxes".
        _, _, target = build_patching(smollm, "placeholder", question, question)
        assert smollm.tokenizer.decode(target.tokens[: target.position + 1], skip_special_tokens=True) == "x"

    @pytest.mark.parametrize("tokenizer_kind", ["byte_level", "embedded"])
    def test_languages_without_spaces(self, tokenizer_kind, models_by_tokenizer, smollm):
        """A token ends where π1 and π2 end, or the question is left out and the reason given."""
        model = smollm if tokenizer_kind == "embedded" else models_by_tokenizer[tokenizer_kind]
        for hop1, hop2, cue in (("首都是东京的国家", "{}的货币", "是"), ("東京が首都の国", "{}の通貨", "は")):
            question = build_question(
                "here", id=0, hop1_prompt=hop1, hop1_answer="", hop2_prompt=hop2, hop2_answer="", cue=cue
            )
            ids = to_token_ids(model, question.query)
            obstacle = find_obstacle(model, question, ("patchscope",))
            if obstacle is not None:
                assert "has one token for the end of" in obstacle
                continue
            ends = find_patch_positions(model, question)
            read = [model.tokenizer.decode(ids[: end + 1], skip_special_tokens=True).strip() for end in ends]
            assert read == [hop1, hop1 + hop2.removeprefix("{}")]


class TestExperiment:
    def test_rows_of_several_questions_equal_each_alone_with_plain_hooks(self, llama):
        asked = make_questions(llama)[:3]
        # One that is longer than the others.
        asked[1] = replace(asked[1], pi1=asked[1].pi1.replace("the", "one and the"))
        pairs = [(layer, target_layer) for layer in CONFIG.layers for target_layer in CONFIG.target_layers]
        # Long enough for what follows an answer to end its last word.
        config = replace(CONFIG, max_new_tokens=6)
        rows, expected = [], []
        for question, other in zip(asked, reversed(asked), strict=True):
            for method in MultiHopConfig.PATCHED:
                source, position, target = build_patching(llama, method, question, other)
                states = extract_representations(llama, [source], [position], CONFIG.layers)[0]
                rows += build_rows(target, dict(zip(CONFIG.layers, states, strict=True)), pairs)
                for layer, target_layer in pairs:
                    vector = states[CONFIG.layers.index(layer)][None]
                    tokens = patch_generate(target, vector, [target_layer], max_new_tokens=6, engine="hooks")
                    (alone,) = llama.tokenizer.batch_decode(tokens, skip_special_tokens=True)
                    expected.append((question, alone))
        texts = generate_until_answered(rows, [question for question, _ in expected], config)
        stopped = 0
        for (question, alone), text in zip(expected, texts, strict=True):
            # A row stops once it has answered its own question.
            assert alone.startswith(text)
            assert text == alone or contains_answer(text, question.accepted)
            assert contains_answer(alone, question.accepted) == contains_answer(text, question.accepted)
            stopped += text != alone
        assert stopped > 0

    def test_questions_together_find_what_each_finds_alone(self, llama):
        asked = make_questions(llama, 5)
        asked[3] = replace(asked[3], pi1=asked[3].pi1.replace("the", "one and the"))
        unrelated = [*asked[1:4], None, asked[0]]
        grid = CONFIG.layers, CONFIG.target_layers, CONFIG
        together = patch_questions(llama, asked, unrelated, *grid)["questions"]
        for question, other, found in zip(asked, unrelated, together, strict=True):
            assert patch_questions(llama, [question], [other], *grid)["questions"] == [found]
            methods = set(MultiHopConfig.PATCHED) - ({"control"} if other is None else set())
            assert set(found["methods"]) == methods
            assert found["control_id"] == (None if other is None else other.id)

    def test_what_is_written_where(self, smollm):
        """Of the real tokens."""
        question = TOKYO
        other = next(one for one in QUESTIONS if "Eiffel" in one.combined_question)
        found = {method: build_patching(smollm, method, question, other) for method in MultiHopConfig.PATCHED}

        def token(ids, position) -> str:
            return smollm.tokenizer.decode(ids[position])

        sources = {method: token(source, position) for method, (source, position, _) in found.items()}
        assert sources == {
            "patchscope": " Tokyo",
            "control": " located",
            "placeholder": " Tokyo",
            "back_patch": " Tokyo",
        }
        targets = {method: token(target.tokens, target.position) for method, (_, _, target) in found.items()}
        assert targets == {"patchscope": " of", "control": " of", "placeholder": " x", "back_patch": " Tokyo"}

    def test_back_patching_goes_from_later_to_earlier_layers(self, llama):
        question = make_questions(llama)[0]
        config = MultiHopConfig(methods=("patchscope", "back_patch"))
        found = patch_questions(llama, [question], [None], (0, 1, 3), (0, 1, 3), config)["questions"][0]["methods"]
        assert set(found) == {"patchscope", "back_patch"}
        assert (found["patchscope"]["n_pairs"], found["back_patch"]["n_pairs"]) == (9, 3)
        assert all(layer > target_layer for layer, target_layer in found["back_patch"]["solved"])

    def test_patching_after_the_last_block_changes_nothing(self, llama):
        question = make_questions(llama)[0]
        _, _, target = build_patching(llama, "patchscope", question, question)
        vectors = torch.randn(1, llama.cfg.d_model)
        own = llama(target.tokens[None])[:, -1]
        torch.testing.assert_close(patch_logits(target, vectors, [3]), own, atol=1e-4, rtol=1e-4)

    def test_the_results(self, llama, tmp_path):
        questions = make_questions(llama, 8)
        results, timing = multi_hop.run(llama, questions, CONFIG, ChunkStore(tmp_path))
        assert results["n_questions"] == 8
        assert results["n_samples"] == min(3, results["n_passed"]) > 0
        assert set(results["methods"]) == set(MultiHopConfig.METHODS)
        assert sum(count["both"] for count in results["hops_alone"].values()) == results["n_passed"]
        for measures in results["methods"].values():
            for of in measures.values():
                if isinstance(of, dict):
                    low, high = np.moveaxis(np.array(of["ci95"]), -1, 0)
                    assert (low <= np.array(of["mean"]) + 1e-9).all()
                    assert (high >= np.array(of["mean"]) - 1e-9).all()
        patchscope = results["methods"]["patchscope"]
        assert patchscope["any"]["mean"] >= patchscope["any_upwards"]["mean"]
        assert patchscope["any"]["mean"] >= np.max(patchscope["accuracy"]["mean"])
        # Target layer 3 is the last: what is written there is read by no one.
        assert patchscope["any"]["mean"] >= results["methods"]["vanilla"]["accuracy"]["mean"]
        assert set(timing["seconds"]) == {"hop1 and hop2", "vanilla and cot", "states", "patched", "total"}
        assert len(results["questions"]) == 3
        by_id = {question.id: question for question in questions}
        for question in results["questions"]:
            one, other = by_id[question["id"]], by_id[question["control_id"]]
            (found,) = patch_questions(llama, [one], [other], CONFIG.layers, CONFIG.target_layers, CONFIG)["questions"]
            assert {method: question[method] for method in MultiHopConfig.PATCHED} == found["methods"]
            (said,) = llama.tokenizer.batch_decode(
                generate_after(llama, [question["combined_question"]], max_new_tokens=5), skip_special_tokens=True
            )
            assert question["vanilla"]["text"] == said

    def test_questions_that_cannot_be_patched_are_left_out(self, llama, tmp_path, monkeypatch):
        questions = make_questions(llama, 8)
        positions = multi_hop_patching.find_patch_positions

        def refusing(model, question, chat):
            if question.id == questions[0].id:
                raise PatchscopesError("one token across the seam")
            return positions(model, question, chat)

        monkeypatch.setattr(multi_hop_patching, "find_patch_positions", refusing)
        results, _ = multi_hop.run(llama, questions, CONFIG, ChunkStore(tmp_path))
        assert (results["n_questions"], results["n_unpatchable"]) == (8, 1)
        assert results["unpatchable"] == [{"id": questions[0].id, "reason": "one token across the seam"}]
        assert all(one["id"] != questions[0].id for one in results["questions"])

    def test_questions_in_other_words_and_with_names_for_ids(self, llama, tmp_path):
        """Vanilla asks the question, the query is patched; names for ids draw as well as numbers."""
        questions = [
            replace(one, id=f"example_{one.id:03}", combined_question=f"It is said that {one.combined_question}")
            for one in make_questions(llama, 8)
        ]
        results, _ = multi_hop.run(llama, questions, CONFIG, ChunkStore(tmp_path))
        by_id = {question.id: question for question in questions}
        for answered in results["questions"]:
            one, other = by_id[answered["id"]], by_id[answered["control_id"]]
            said = generate_after(llama, [one.combined_question], max_new_tokens=5)
            assert answered["vanilla"]["text"] == llama.tokenizer.decode(said[0], skip_special_tokens=True)
            as_query = replace(one, combined_question=one.query)
            (found,) = patch_questions(llama, [as_query], [other], CONFIG.layers, CONFIG.target_layers, CONFIG)[
                "questions"
            ]
            assert {method: answered[method] for method in MultiHopConfig.PATCHED} == found["methods"]

    @pytest.mark.parametrize("phase", ["hops", "unpatched", "patched"])
    def test_an_interrupted_run_goes_on(self, llama, tmp_path, monkeypatch, phase):
        monkeypatch.setattr(multi_hop, "CHUNK_QUESTIONS", 2)
        # Two questions with all their pairs.
        monkeypatch.setattr(multi_hop, "CHUNK_PAIRS", 2 * len(CONFIG.layers) * len(CONFIG.target_layers))
        questions = make_questions(llama, 8)
        whole, _ = multi_hop.run(llama, questions, CONFIG, ChunkStore(tmp_path / "whole"))
        save, refused = ChunkStore.save, []

        def interrupted(store, name, content):
            if store.folder.name == phase and name == "00001" and not refused:
                refused.append(name)
                raise KeyboardInterrupt
            save(store, name, content)

        monkeypatch.setattr(ChunkStore, "save", interrupted)
        store = ChunkStore(tmp_path / "stopped")
        with pytest.raises(KeyboardInterrupt):
            multi_hop.run(llama, questions, CONFIG, store)
        assert [path.name for path in (store.folder / phase).iterdir()] == ["00000.json"]
        first = (store.folder / phase / "00000.json").stat().st_mtime_ns
        again, _ = multi_hop.run(llama, questions, CONFIG, store)
        assert again == whole
        assert (store.folder / phase / "00000.json").stat().st_mtime_ns == first

    def test_the_control_is_about_something_else(self):
        for question in QUESTIONS[::7]:
            other = multi_hop.draw_unrelated(question, QUESTIONS, seed=0)
            assert other.category != question.category
            assert other.hop1_answer != question.hop1_answer
            assert not contains_answer(other.combined_question, question.accepted)
            assert not contains_answer(" ".join(other.accepted), question.accepted)
            assert multi_hop.draw_unrelated(question, QUESTIONS, seed=0) == other
        # Of one category alone, another answer will do.
        assert multi_hop.draw_unrelated(QUESTIONS[0], QUESTIONS[:4], seed=0) in QUESTIONS[1:4]
        assert multi_hop.draw_unrelated(QUESTIONS[0], QUESTIONS[:1], seed=0) is None

    def test_mistakes(self, llama, smollm, tmp_path):
        store = ChunkStore(tmp_path)
        with pytest.raises(PatchscopesError, match="no method is called 'guess'"):
            multi_hop.run(llama, make_questions(llama), MultiHopConfig(methods=("guess",)), store)
        with pytest.raises(PatchscopesError, match="layer 9 does not exist"):
            multi_hop.run(llama, make_questions(llama), MultiHopConfig(target_layers=(9,)), store)
        with pytest.raises(PatchscopesError, match="answers both hops of none of the 5 questions"):
            multi_hop.run(llama, QUESTIONS[:5], MultiHopConfig(max_new_tokens=2), store)
        joined = [replace(question, pi2="cur{}", pi1="rency") for question in QUESTIONS[:2]]
        with pytest.raises(
            PatchscopesError, match="none of the 2 questions can be patched; of the first, .* one token"
        ):
            multi_hop.run(smollm, joined, MultiHopConfig(), store)


class TestMeasures:
    def test_held_out_is_scored_on_the_half_that_did_not_choose(self):
        """The best pair of each half solves nothing of the other, in which questions of one group are together."""
        groups = np.array([0, 0, 1, 1, 2, 2, 3, 3])
        table = np.zeros((8, 2, 2), dtype=bool)
        first = np.isin(groups, np.random.default_rng(0).permutation(4)[:2])
        table[first, 0, 1] = True
        table[~first, 1, 0] = True
        scores, pairs = score_held_out(table, groups, seed=0)
        assert pairs == [(0, 1), (1, 0)]
        assert scores.sum() == 0
        table[:, 0, 0] = True
        scores, pairs = score_held_out(table, groups, seed=0)
        assert pairs == [(0, 0), (0, 0)]
        assert scores.all()

    def test_by_hand(self):
        questions = list(QUESTIONS[:2])
        solved = [[(0, 1)], []]
        answered = [
            {
                "vanilla": {"solved": vanilla},
                "patchscope": {"solved": pairs},
                "control": {"solved": [(1, 0)]},
            }
            for vanilla, pairs in zip((0, 1), solved, strict=True)
        ]
        config = MultiHopConfig(methods=("vanilla", "patchscope", "control"))
        summary = summarise_methods(questions, answered, [0, 1], [0, 1], config)
        assert summary["vanilla"]["accuracy"]["mean"] == 0.5
        assert summary["patchscope"]["any"]["mean"] == summary["patchscope"]["any_upwards"]["mean"] == 0.5
        assert summary["patchscope"]["any_above_control"]["mean"] == -0.5
        assert summary["control"]["any_upwards"]["mean"] == 0.0
        assert summary["patchscope"]["accuracy"]["mean"] == [[0.0, 0.5], [0.0, 0.0]]
        assert (summary["patchscope"]["n_repaired"], summary["patchscope"]["n_failed"]) == (1, 1)


class TestOneQuestion:
    def test_says_what_the_experiment_says(self, llama):
        question = make_questions(llama)[0]
        seen = []
        results = multi_hop_grid.run(
            llama,
            question,
            CONFIG,
            lambda method, text, solved: seen.append(method),
            lambda layer, texts, solved: seen.append((layer, len(texts))),
        )
        assert seen == ["vanilla", "cot", (0, 3), (2, 3), (3, 3)]
        grid = CONFIG.layers, CONFIG.target_layers, CONFIG
        (found,) = patch_questions(llama, [question], [None], *grid)["questions"]
        of = results["methods"]["patchscope"]["solved"]
        pairs = [
            (layer, target_layer)
            for row, layer in enumerate(CONFIG.layers)
            for column, target_layer in enumerate(CONFIG.target_layers)
            if of[row][column]
        ]
        assert pairs == [tuple(pair) for pair in found["methods"]["patchscope"]["solved"]]

    def test_tokyo_on_the_embedded_model(self, smollm):
        config = MultiHopConfig(layers=(0, 2, 3), target_layers=(14, 16), cot_new_tokens=1)
        results = multi_hop_grid.run(smollm, TOKYO, config, lambda *_: None, lambda *_: None)
        assert not results["methods"]["vanilla"]["solved"]
        assert np.array(results["methods"]["patchscope"]["solved"]).any()
        assert any("the Japanese yen" in text for texts in results["methods"]["patchscope"]["texts"] for text in texts)
