"""One two-hop question over layers, from any token of its first hop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_questions import make_questions

from patchscopes import Patchscope
from patchscopes.data.questions import build_question, contains_answer
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import multi_hop_example
from patchscopes.experiments.config import MultiHopConfig, MultiHopExampleConfig
from patchscopes.experiments.multi_hop import ask_unpatched
from patchscopes.experiments.multi_hop_patching import build_patching, build_rows, patch_questions
from patchscopes.patch import generate_rows
from patchscopes.plots.multi_hop_example import plot_multi_hop_example
from patchscopes.positions import find_first_tokens
from patchscopes.tokens import to_token_ids

LAYERS, TARGET_LAYERS = (0, 2, 3), (1, 3)
CONFIG = MultiHopExampleConfig(layers=LAYERS, target_layers=TARGET_LAYERS, max_new_tokens=5, cot_new_tokens=6)


@pytest.fixture(scope="module")
def questions(llama):
    """With π1 as the first hop alone begins, as the tutorial writes them."""
    return [replace(one, hop1_prompt=f"{one.pi1} is") for one in make_questions(llama)]


@pytest.fixture(scope="module")
def results(llama, questions):
    return multi_hop_example.run(llama, questions[0], questions[1], CONFIG)


class TestExample:
    def test_says_what_the_experiment_says(self, llama, questions, results):
        """Row by row, for each method, from the last token of π1."""
        question, other = questions[:2]
        for method in MultiHopExampleConfig.METHODS:
            source, position, target = build_patching(llama, method, question, other)
            states = dict(
                zip(
                    LAYERS,
                    Patchscope(
                        model=llama, source_prompt=source, source_position=position, source_layers=LAYERS
                    ).vectors,
                    strict=True,
                )
            )
            for row, layer in enumerate(LAYERS):
                rows = build_rows(target, states, [(layer, target_layer) for target_layer in TARGET_LAYERS])
                said = llama.tokenizer.batch_decode(generate_rows(rows, max_new_tokens=5), skip_special_tokens=True)
                assert results["methods"][method]["text"][row] == said
                right = [int(contains_answer(text, question.accepted)) for text in said]
                assert results["methods"][method]["solved"][row] == right
        config = MultiHopConfig(max_new_tokens=5, cot_new_tokens=6)
        (found,) = patch_questions(llama, [question], [other], list(LAYERS), list(TARGET_LAYERS), config)["questions"]
        for method in MultiHopExampleConfig.METHODS:
            solved = [
                [layer, target_layer]
                for layer, of_layer in zip(LAYERS, results["methods"][method]["solved"], strict=True)
                for target_layer, right in zip(TARGET_LAYERS, of_layer, strict=True)
                if right
            ]
            assert found["methods"][method]["solved"] == solved
        for method in MultiHopConfig.UNPATCHED:
            (asked,) = ask_unpatched(llama, [question], method, config)
            assert {field: results["methods"][method][field] for field in asked} == asked

    def test_the_original_is_its_patchscope(self, results):
        for method in ("vanilla", "cot", "unpatched"):
            assert results["methods"][method]["largest_difference"] < 1e-5

    def test_the_probability_is_that_of_the_plain_way(self, llama, questions, results):
        """Token by token, with whole forward passes, for the question as it is."""
        question = questions[0]
        tokens = to_token_ids(llama, question.combined_question)
        first, likely = find_first_tokens(llama, question.accepted), []
        for _ in range(5):
            logits = llama(tokens[None])[0, -1]
            likely.append(float(torch.softmax(logits, dim=-1)[first].sum()))
            tokens = torch.cat([tokens, logits.argmax()[None]])
        assert results["methods"]["vanilla"]["probability"] == pytest.approx(max(likely), abs=1e-5)

    def test_any_token_of_the_first_hop(self, llama, questions, results):
        """The token that is chosen in π1 is the one that is read in the query; from the end or the start alike."""
        n_tokens = len(to_token_ids(llama, questions[0].pi1))
        config = replace(CONFIG, layers=(3,), target_layers=(0,))
        read = {}
        for position in (n_tokens - 3, -3, 1):
            read[position] = multi_hop_example.run(*(llama, *questions[:2], config), source_position=position)
            tokens = read[position]["source_tokens"], read[position]["query_tokens"]
            places = read[position]["source_position"], read[position]["query_source_position"]
            assert tokens[0][places[0]].strip() == tokens[1][places[1]].strip()
        assert read[n_tokens - 3]["methods"] == read[-3]["methods"]
        assert read[1]["methods"]["patchscope"] != read[-3]["methods"]["patchscope"]
        # The other question's, but read beside other texts, which rounds otherwise.
        one, other = (read[position]["methods"]["control"] for position in (1, -3))
        assert one.keys() == other.keys()
        assert one["text"] == other["text"]
        np.testing.assert_allclose(one["probability"], other["probability"], rtol=1e-5)

    def test_what_was_asked_unpatched_is_not_asked_again(self, llama, questions, results):
        alone = multi_hop_example.ask_unpatched(llama, questions[0], CONFIG)
        assert set(alone) == {"vanilla", "cot", "unpatched"}
        assert multi_hop_example.run(llama, *questions[:2], CONFIG, unpatched=alone) == results

    def test_progress_can_stop_it(self, llama, questions, results, monkeypatch):
        """And however many rows go on together, they say the same."""
        monkeypatch.setattr(multi_hop_example, "ROWS_AT_A_TIME", 1)
        assert (
            multi_hop_example.run(llama, *questions[:2], CONFIG)["methods"]["control"]["text"]
            == (results["methods"]["control"]["text"])
        )

        def stop(steps):
            assert len(steps) == 2 * len(TARGET_LAYERS)
            yield steps[0]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            multi_hop_example.run(llama, *questions[:2], CONFIG, progress=stop)

    def test_target_layers_unless_given(self, llama, questions):
        config = replace(CONFIG, target_layers=None, layers=(1,))
        assert multi_hop_example.run(llama, *questions[:2], config)["target_layers"] == [2]

    def test_what_is_wrong_is_said(self, llama, questions):
        def ask(question=questions[0], **options):
            return multi_hop_example.run(llama, question, questions[1], CONFIG, **options)

        with pytest.raises(PatchscopesError, match="has no answer"):
            ask(replace(questions[0], hop2_answer="", hop2_aliases=()))
        with pytest.raises(PatchscopesError, match="stands for no part of it"):
            ask(source_position=0)
        with pytest.raises(PatchscopesError, match="position"):
            ask(source_position=99)


def test_a_place_before_the_end_and_a_cue_of_its_own(llama, questions):
    """π1 in the middle of π2, and an end of its own."""
    question = build_question(
        "here", id=0, hop1_prompt="Zoë's home", hop1_answer="", hop2_prompt="Of {} the money is", hop2_answer="yen"
    )
    results = multi_hop_example.run(llama, question, questions[1], replace(CONFIG, layers=(0,)), source_position=-2)
    assert "".join(results["query_tokens"][: results["query_source_position"] + 1]).endswith("'s hom")
    assert "".join(results["query_tokens"][: results["query_target_position"] + 1]).endswith("the money")


@pytest.mark.parametrize("target_layers", [(1,), TARGET_LAYERS])
def test_figure(llama, questions, target_layers):
    config = replace(CONFIG, target_layers=target_layers)
    results = multi_hop_example.run(llama, *questions[:2], config)
    question = {"combined_question": questions[0].combined_question, "hop2_answer": questions[0].hop2_answer}
    document = {
        "config": {"question": question},
        "environment": {"model": {"id": "tiny"}},
        "results": results,
    }
    figure = plot_multi_hop_example(document)
    figure.canvas.draw()
    if len(target_layers) == 1:
        drawn = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
        assert list(drawn["Patchscope"]) == [row[0] for row in results["methods"]["patchscope"]["probability"]]
        vanilla = next(values for label, values in drawn.items() if label.startswith("Vanilla"))
        assert vanilla[0] == results["methods"]["vanilla"]["probability"]
