"""This library beside its peers: all say the same, and the benchmark's frame (nnterp, which is in no environment of the
tests, by a stand-in that is called as it is)."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import make_hf_model

from patchscopes.errors import PatchscopesError
from patchscopes.experiments import peer_calls, peers
from patchscopes.experiments.config import PeersConfig
from patchscopes.experiments.peer_calls import FastEngine, Nnterp, PaperLoop, TransformerLensHooks, find_module, pad_to
from patchscopes.experiments.peers import build_generation_task, build_next_token_task, forget_padding, spell_out
from patchscopes.model.loading import load_model
from patchscopes.plots.benchmark import plot_benchmark

SOURCES = ["The capital of Chad is", "Oslo", "two dogs and a"]
TARGET, FROM_END = "ab -> ab; x is", -4
FAMILIES = ("llama", "gpt2", "gpt_neox")


class StandIn:
    """What a `StandardizedTransformer` of nnterp is here: the paper's loop, called as nnterp's functions are."""

    def __init__(self, folder, dtype, device_map):
        self.loop = PaperLoop.load(folder, dtype)
        self.tokenizer = self.loop.tokenizer


def patchscope_lens(model, source_prompts, target_patch_prompts):
    prompt = target_patch_prompts
    return model.loop.sweep(source_prompts, prompt.prompt, prompt.index_to_patch).softmax(dim=-1)


def patchscope_generate(model, prompts, target_patch_prompt, max_length):
    prompt = target_patch_prompt
    said = model.loop.generate(prompts, prompt.prompt, prompt.index_to_patch, max_length)
    before = torch.tensor(model.tokenizer(prompt.prompt)["input_ids"]).expand(len(prompts), -1)
    return {layer: torch.cat([before, tokens], dim=1) for layer, tokens in enumerate(said.unbind(dim=1))}


@pytest.fixture
def nnterp(monkeypatch):
    """A stand-in for the package nnterp."""
    package, interventions = ModuleType("nnterp"), ModuleType("nnterp.interventions")
    package.StandardizedTransformer = StandIn
    interventions.patchscope_lens, interventions.patchscope_generate = patchscope_lens, patchscope_generate
    interventions.TargetPrompt = lambda prompt, index: SimpleNamespace(prompt=prompt, index_to_patch=index)
    monkeypatch.setitem(sys.modules, "nnterp", package)
    monkeypatch.setitem(sys.modules, "nnterp.interventions", interventions)
    monkeypatch.setattr(peer_calls, "find_version", {"nnterp": "1.3.0", "nnsight": "0.7.0"}.__getitem__)


@pytest.fixture(scope="module")
def model(model_folder):
    return load_model(model_folder)


@pytest.mark.parametrize("family", FAMILIES)
class TestPeers:
    @pytest.fixture
    def called(self, tiny_models, tokenizer, family):
        """From a peer to its prompts."""
        model = tiny_models(family)

        def prompts(peer):
            return (
                [spell_out(model, peer.tokenizer, text) for text in SOURCES],
                spell_out(model, peer.tokenizer, TARGET),
                FROM_END,
            )

        everyone = FastEngine(model), TransformerLensHooks(model), PaperLoop(make_hf_model(family), tokenizer)
        return [(peer, prompts(peer)) for peer in everyone]

    def test_all_give_the_same_logits(self, called):
        ours, *others = (peer.sweep(*prompts) for peer, prompts in called)
        assert ours.shape[:2] == (len(SOURCES), 4)
        for logits in others:
            torch.testing.assert_close(logits, ours, rtol=1e-4, atol=1e-4)

    def test_all_say_the_same(self, called, monkeypatch):
        # Also where the rows of one source are in two batches.
        monkeypatch.setattr(peer_calls, "ROWS_AT_A_TIME", 5)
        ours, *others = (peer.generate(*prompts, 3) for peer, prompts in called)
        end = torch.tensor([1])
        for tokens in others:
            assert torch.equal(forget_padding(tokens, end), forget_padding(ours, end))

    def test_nothing_is_left_on_the_model(self, called):
        for peer, prompts in called:
            first = peer.sweep(*prompts)
            torch.testing.assert_close(peer.sweep(*prompts), first, rtol=0, atol=0)


class TestPrompts:
    def test_bos_is_written_out_where_the_tokenizer_puts_none(self, llama, tokenizer):
        assert spell_out(llama, tokenizer, "ab") == "<s>ab"
        assert tokenizer("<s>ab")["input_ids"] == llama.to_tokens("ab")[0].tolist()

    def test_and_not_where_it_puts_one(self, models_by_tokenizer):
        model = models_by_tokenizer["sentencepiece_like"]
        assert spell_out(model, model.tokenizer, "ab") == "ab"

    def test_other_tokens_are_told(self, llama, models_by_tokenizer):
        other = models_by_tokenizer["byte_level"].tokenizer
        with pytest.raises(PatchscopesError, match="does not give the tokens of 'the dog'"):
            spell_out(llama, other, "the dog")

    def test_too_many(self, llama):
        with pytest.raises(PatchscopesError, match="source prompts, got 9999 samples"):
            build_next_token_task(llama, PeersConfig(n_samples=9999))
        with pytest.raises(PatchscopesError, match="there are 10 entities, got 11"):
            build_generation_task(llama, PeersConfig(n_entities=11))


def test_generations_without_padding():
    said = torch.tensor([[5, 1, 7, 1], [1, 1, 1, 1], [5, 6, 7, 8]])
    assert forget_padding(said, torch.tensor([1])).tolist() == [[5, 1, -1, -1], [1, -1, -1, -1], [5, 6, 7, 8]]
    assert pad_to(said[:, :2], 3).tolist() == [[5, 1, 1], [1, 1, 1], [5, 6, 6]]


def test_a_family_that_the_papers_loop_does_not_know():
    with pytest.raises(PatchscopesError, match="a Linear has none of the modules layers, h"):
        find_module(torch.nn.Linear(1, 1), ("layers", "h"))


class TestRun:
    def test_frame_and_figure(self, nnterp, model, model_folder):
        config = PeersConfig(n_samples=2, n_entities=1, max_new_tokens=2, n_turns=2)
        everyone = peers.load_peers(model, str(model_folder))
        results = peers.run(model, everyone, config)
        sweep, generation = results["tasks"]
        assert (sweep["n_rows"], generation["n_rows"]) == (8, 4)
        for task in (sweep, generation):
            ours, *others = task["ways"]
            assert ours["times_fast_engine"] == 1.0
            assert "same_tokens" not in ours
            assert [way["same_tokens"] for way in others] == [1.0] * 3
            assert {len(way["seconds"]) for way in task["ways"]} == {2}
        assert max(way["largest_probability_difference"] for way in sweep["ways"][1:]) < 1e-4
        names = [way["name"] for way in sweep["ways"]]
        assert names == ["fast engine", "nnterp 1.3.0 on nnsight 0.7.0", TransformerLensHooks.name, PaperLoop.name]
        environment = {"model": {"id": "tiny"}, "dtype": "float32", "device": "cpu", "threads": 1}
        figure = plot_benchmark({"results": results, "environment": environment})
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names

    def test_another_answer_shows(self, nnterp, model, model_folder, monkeypatch):
        everyone = peers.load_peers(model, str(model_folder))[:2]
        monkeypatch.setattr(Nnterp, "sweep", lambda self, *prompts: self.model.loop.sweep(*prompts).roll(1, dims=1))
        config = PeersConfig(n_samples=2, n_turns=1, methods=("next_token",))
        answer = peers.run(model, everyone, config)["tasks"][0]["ways"][1]
        assert answer["same_tokens"] < 1
        assert answer["largest_probability_difference"] > 1e-3

    def test_a_model_that_peers_cannot_load(self, model, tmp_path):
        (tmp_path / "m.gguf").touch()
        with pytest.raises(PatchscopesError, match="load a model by its folder or hub id"):
            peers.load_peers(model, str(tmp_path / "m.gguf"))
