"""Attention knockout: windows, whose keys are knocked out, both forms against plain hooks, and the experiment."""

import numpy as np
import pytest
import torch
from conftest import make_hf_model
from made_up_facts import make_facts

from patchscopes.data.facts import Fact
from patchscopes.engine.extract import extract_representation
from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import attention_knockout
from patchscopes.experiments.attention_knockout_rows import (
    build_cut_row,
    build_zero_row,
    choose_window,
    divide_positions,
    knock_out,
    read_probability,
)
from patchscopes.experiments.config import AttentionKnockoutConfig
from patchscopes.model.layers import EMBEDDING, find_window, get_hook_name
from patchscopes.patch import patch_rows
from patchscopes.results import ChunkStore
from patchscopes.tokens import to_token_ids

TOKENS = (0, 40, 41, 42, 90, 33, 70)
LAST = len(TOKENS) - 1
# Of each kind of attention and position one; with attention sinks, scores that are capped, windows.
FAMILIES = ("gpt2", "llama", "gemma2", "bloom", "gpt_oss")


def predict(model, fwd_hooks) -> torch.Tensor:
    """Probabilities after a whole forward pass with plain hooks."""
    logits = model.run_with_hooks(torch.tensor([TOKENS]), fwd_hooks=fwd_hooks)[0, -1]
    return logits.detach().float().softmax(dim=-1)


def cut_with_hooks(model, keys, layers) -> torch.Tensor:
    """The original: the scores of the last query with the keys are -∞ before the softmax."""

    def cut(scores, hook):
        scores = scores.clone()
        scores[:, :, LAST, list(keys)] = -torch.inf
        return scores

    return predict(model, [(f"blocks.{layer}.attn.hook_attn_scores", cut) for layer in layers])


def zero_with_hooks(model, keys, layers) -> torch.Tensor:
    """The paper's form: the states of the keys are zero after each layer."""

    def zero(residual, hook):
        residual = residual.clone()
        residual[:, list(keys)] = 0
        return residual

    return predict(model, [(get_hook_name(layer), zero) for layer in layers])


def softmax(rows) -> torch.Tensor:
    return patch_rows(rows).float().softmax(dim=-1)


class TestWindows:
    @pytest.mark.parametrize(
        ("centre", "window", "expected"),
        [
            (0, 9, (0, 1, 2, 3, 4)),
            (4, 9, (0, 1, 2, 3, 4, 5, 6, 7, 8)),
            (5, 9, (1, 2, 3, 4, 5, 6, 7, 8, 9)),
            (29, 9, (25, 26, 27, 28, 29)),
            (3, 1, (3,)),
            (3, 2, (2, 3)),
            (0, 2, (0,)),
            (29, 4, (27, 28, 29)),
            (7, 100, tuple(range(30))),
        ],
    )
    def test_centred_and_clipped_at_both_ends(self, centre, window, expected):
        assert tuple(find_window(centre, window, 30)) == expected

    @pytest.mark.parametrize(
        ("n_layers", "expected"), [(1, 1), (4, 1), (6, 1), (9, 3), (12, 3), (16, 5), (24, 7), (27, 9), (30, 9), (80, 9)]
    )
    def test_nine_layers_and_fewer_of_a_shallow_model(self, n_layers, expected):
        assert choose_window(n_layers, None) == expected
        assert choose_window(n_layers, 5) == 5


class TestKeys:
    @pytest.mark.parametrize("subject", [(2,), (2, 3, 4), (1,), (0, 1), (5,), (0, 1, 2, 3, 4, 5)])
    def test_every_position_is_in_one_set(self, subject):
        sets = divide_positions(7, subject)
        assert sets["subject"] == subject
        assert sets["last"] == (6,)
        assert sorted(sum(sets.values(), ())) == list(range(7))

    def test_bos_is_of_the_rest(self, llama):
        tokens = to_token_ids(llama, "A dog is").tolist()
        assert tokens[0] == llama.tokenizer.bos_token_id
        assert 0 in divide_positions(len(tokens), (3, 4, 5))["rest"]

    def test_a_prompt_that_ends_with_the_subject_is_refused(self):
        with pytest.raises(PatchscopesError, match="add a word to the end of the prompt"):
            divide_positions(7, (5, 6))


@pytest.mark.parametrize("family", FAMILIES)
class TestForms:
    @pytest.mark.parametrize("keys", [(0,), (2,), (1, 2, 3), (0, 4, 5), (LAST,)])
    @pytest.mark.parametrize("layers", [(0,), (1, 2), (0, 1, 2, 3), (3,)])
    def test_both_are_what_plain_hooks_do(self, tiny_models, family, keys, layers):
        model = tiny_models(family)
        cut, zeroed = softmax(
            [
                build_cut_row(TargetPrompt(model, TOKENS), keys, layers),
                build_zero_row(TargetPrompt(model, TOKENS, min(keys)), keys, layers),
            ]
        )
        assert torch.allclose(cut, cut_with_hooks(model, keys, layers), atol=1e-5)
        assert torch.allclose(zeroed, zero_with_hooks(model, keys, layers), atol=1e-5)

    def test_no_edge_changes_nothing(self, tiny_models, family):
        model = tiny_models(family)
        target = TargetPrompt(model, TOKENS)
        expected = predict(model, [])
        for row in (build_cut_row(target, (), (0, 1)), build_zero_row(target, (), (0, 1))):
            assert torch.allclose(softmax([row])[0], expected, atol=1e-5)
        answer = int(expected.argmax())
        assert read_probability(model, TOKENS, answer) == pytest.approx(float(expected[answer]), abs=1e-5)

    def test_all_edges_in_all_layers_leave_the_last_token_alone(self, tiny_models, family):
        """What it reads then is itself, whatever its position: the only key has all the weight."""
        model = tiny_models(family)
        cut = softmax([build_cut_row(TargetPrompt(model, TOKENS), range(LAST), range(4))])[0]
        entering = extract_representation(model, TOKENS, EMBEDDING, LAST)

        def place(residual, hook):
            return entering.expand_as(residual)

        alone = model.run_with_hooks(torch.tensor([[TOKENS[-1]]]), fwd_hooks=[(get_hook_name(EMBEDDING), place)])
        assert torch.allclose(cut, alone[0, -1].float().softmax(dim=-1), atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("n_kept", [1, 3, LAST - 1])
def test_without_its_nearest_keys_it_is_a_shorter_prompt(tiny_models, family, n_kept):
    """No other token before the last reads the keys that stand right before it: all layers' edges to them cut are the
    prompt without them, the last token at its own position."""
    model = tiny_models(family)
    cut = softmax([build_cut_row(TargetPrompt(model, TOKENS), range(n_kept, LAST), range(4))])[0]
    tokens, positions = [*TOKENS[:n_kept], TOKENS[-1]], [*range(n_kept), LAST]
    with torch.no_grad():
        logits = make_hf_model(family)(torch.tensor([tokens]), position_ids=torch.tensor([positions])).logits
    assert torch.allclose(cut, logits[0, -1].float().softmax(dim=-1), atol=1e-5)


@pytest.mark.parametrize("keys", [(0,), (1, 2, 3), (LAST,)])
def test_they_are_not_the_same(llama, keys):
    target = TargetPrompt(llama, TOKENS, min(keys))
    cut, zeroed = softmax([build_cut_row(target, keys, (1, 2)), build_zero_row(target, keys, (1, 2))])
    assert (cut - zeroed).abs().max() > 1e-3


def test_each_set_of_keys_in_each_window(llama):
    """Whatever rows share and in whatever batches they run."""
    sets = divide_positions(len(TOKENS), (2, 3))
    windows = [find_window(layer, 3, 4) for layer in (2, 0)]
    for method, twin in (("original", cut_with_hooks), ("patchscope", zero_with_hooks)):
        found = knock_out(llama, TOKENS, sets, windows, 7, method, batch_size=4)
        assert list(found) == ["subject", "rest", "last"]
        for name, keys in sets.items():
            expected = [float(twin(llama, keys, layers)[7]) for layers in windows]
            assert found[name] == pytest.approx(expected, abs=1e-5)


CONFIG = AttentionKnockoutConfig(n_samples=4, window=3)


@pytest.fixture(scope="module")
def model(models_by_tokenizer):
    return models_by_tokenizer["byte_level"]


@pytest.fixture(scope="module")
def facts(model) -> tuple[Fact, ...]:
    return *make_facts(model, 8), Fact(prompt="We saw a DOG", span=(9, 12), attribute="yes")


@pytest.fixture(scope="module")
def results(model, facts, tmp_path_factory):
    found, timing = attention_knockout.run(model, facts, CONFIG, ChunkStore(tmp_path_factory.mktemp("whole")))
    assert set(timing["seconds"]) == {"known", "clean", "original", "patchscope", "example", "total"}
    return found


class TestExperiment:
    def test_the_results_are_means_over_facts(self, results):
        assert results["layers"] == [0, 1, 2, 3]
        assert results["windows"] == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]
        counts = {name: results[name] for name in ("n_facts", "n_left_out", "n_known", "n_samples")}
        assert counts == {"n_facts": 9, "n_left_out": 1, "n_known": 8, "n_samples": 4}
        assert len(results["facts"]) == 4
        for method in ("original", "patchscope"):
            changes = results["methods"][method]["relative_change"]
            assert set(changes) == {"subject", "rest", "last"}
            for keys, change in changes.items():
                assert np.shape(change["ci95"]) == (4, 2)
                by_fact = [fact["methods"][method]["relative_change"][keys] for fact in results["facts"]]
                assert np.allclose(change["mean"], np.mean(by_fact, axis=0))

    def test_each_fact_is_measured_by_its_own_answer(self, model, results):
        for fact in results["facts"]:
            tokens = to_token_ids(model, fact["prompt"]).tolist()
            logits = model.run_with_hooks(torch.tensor([tokens]))[0, -1].float()
            answer = int(logits.argmax())
            assert model.tokenizer.decode(answer) == fact["answer"]
            assert fact["answer"].strip() == fact["attribute"]
            assert fact["probability"] == pytest.approx(float(logits.softmax(dim=-1)[answer]), rel=1e-3)
            sets = divide_positions(len(tokens), fact["subject_positions"])
            changed = knock_out(model, tokens, sets, [(0, 1)], answer, "original", None)["subject"][0]
            expected = 100 * (changed - fact["probability"]) / fact["probability"]
            assert fact["methods"]["original"]["relative_change"]["subject"][0] == pytest.approx(expected, abs=0.01)

    def test_one_fact_is_shown_in_full(self, model, results):
        example = results["example"]
        assert len(example["subject_positions"]) > 1
        assert np.shape(example["relative_change"]) == (4, len(example["tokens"]))
        assert "".join(example["tokens"]).endswith(example["prompt"])
        (fact,) = [fact for fact in results["facts"] if fact["prompt"] == example["prompt"]]
        without_subject = [
            np.mean(one["methods"]["original"]["relative_change"]["subject"]) for one in results["facts"]
        ]
        assert results["facts"].index(fact) == int(np.argmin(without_subject))
        # The last token is a set of keys of its own in both.
        by_layer = [of_layer[-1] for of_layer in example["relative_change"]]
        assert by_layer == pytest.approx(fact["methods"]["original"]["relative_change"]["last"], abs=0.01)

    def test_an_interrupted_run_goes_on(self, model, facts, results, tmp_path, monkeypatch):
        store = ChunkStore(tmp_path)

        def two(items):
            yield from list(items)[:2]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            attention_knockout.run(model, facts, CONFIG, store, progress=two)
        measured = []
        measure = attention_knockout.measure_fact
        monkeypatch.setattr(
            attention_knockout, "measure_fact", lambda *given: measured.append(given[1]) or measure(*given)
        )
        resumed, _ = attention_knockout.run(model, facts, CONFIG, store)
        assert len(measured) == 2
        assert resumed == results

    def test_one_form_and_some_layers(self, model, facts, results, tmp_path):
        config = AttentionKnockoutConfig(methods=("original",), layers=(3, 1), window=3, n_samples=4)
        found, _ = attention_knockout.run(model, facts, config, ChunkStore(tmp_path))
        assert (found["layers"], list(found["methods"])) == ([3, 1], ["original"])
        for keys, change in found["methods"]["original"]["relative_change"].items():
            every = results["methods"]["original"]["relative_change"][keys]["mean"]
            assert change["mean"] == pytest.approx([every[3], every[1]], abs=0.01)

    def test_mistakes(self, model, facts, tmp_path):
        store = ChunkStore(tmp_path)
        with pytest.raises(PatchscopesError, match="no method is called 'zero'"):
            attention_knockout.run(model, facts, AttentionKnockoutConfig(methods=("zero",)), store)
        with pytest.raises(PatchscopesError, match="layer 4 does not exist"):
            attention_knockout.run(model, facts, AttentionKnockoutConfig(layers=(4,)), store)
        with pytest.raises(PatchscopesError, match="all 1 prompts end with their subjects"):
            attention_knockout.run(model, facts[-1:], CONFIG, store)
        assert list(tmp_path.iterdir()) == []
