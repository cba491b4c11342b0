"""Reading texts as one sequence: the same states, fewer tokens, and never where a family does not take it."""

import pytest
import torch
from conftest import FAMILIES, make_hf_model
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.engine import extract, packing
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.packing import build_tree, can_pack
from patchscopes.model.layers import EMBEDDING
from patchscopes.model.loading import load_model

TEXTS = [
    torch.tensor(ids) for ids in ([0, 50, 9, 77, 31, 5], [0, 50, 9, 12], [0, 50], [0, 8, 9, 10, 11, 12, 13], [7, 9])
]
POSITIONS = [-1, -1, 1, 4, 0]
# Attention with windows, positions or biases of its own, or no attention interface.
NOT_PACKED = {
    *("mistral", "gemma2", "gemma3", "gpt_oss", "llama4", "gpt_neo"),
    *("bloom", "mpt", "falcon", "gptj", "stablelm", "deepseek_v3"),
    # TransformerLens has hooks of its own on it.
    "opt",
}


@pytest.fixture
def trees(monkeypatch):
    """How many nodes the trees had that were read."""
    sizes = []
    read_packed = extract.read_packed

    def noting(twin, tree, *args):
        sizes.append(len(tree.tokens))
        return read_packed(twin, tree, *args)

    monkeypatch.setattr(extract, "read_packed", noting)
    return sizes


@pytest.mark.parametrize("family", FAMILIES)
def test_the_states_are_those_of_each_text_alone(tiny_models, trees, family):
    model = tiny_models(family)
    layers = [2, EMBEDDING, 0, 2]
    together = extract_representations(model, TEXTS, POSITIONS, layers)
    assert bool(trees) == (family not in NOT_PACKED)
    alone = [extract_representations(model, [text], [at], layers) for text, at in zip(TEXTS, POSITIONS, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


class TestLlama:
    def test_what_texts_begin_with_is_run_once(self, llama, trees):
        extract_representations(llama, TEXTS, POSITIONS)
        # Of 0 50 9 77 31 5, of the second text 12, of the fourth up to its position 8 9 10 11, and 7.
        assert trees == [6 + 1 + 4 + 1]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_other_types(self, tokenizer, trees, dtype):
        model = load_model(hf_model=make_hf_model("llama").to(dtype), tokenizer=tokenizer)
        together = extract_representations(model, TEXTS, POSITIONS)
        assert trees
        assert together.dtype == dtype
        alone = torch.cat([extract_representations(model, [t], [at]) for t, at in zip(TEXTS, POSITIONS, strict=True)])
        tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(together, alone, rtol=tolerance, atol=tolerance)

    def test_texts_of_one_length_with_nothing_in_common_are_not_packed(self, llama, trees):
        extract_representations(llama, [torch.tensor([token, 5, 6]) for token in (1, 2, 3)], [-1] * 3)
        extract_representations(llama, TEXTS[:1], [-1])
        assert trees == []

    def test_nor_long_ones(self, llama, trees):
        texts = [torch.arange(n) % 200 for n in (300, 299)]
        extract_representations(llama, texts, [-1] * 2)
        assert trees == []

    def test_hooks_of_the_user_fire(self, llama, trees):
        def halve(residual, hook):
            return residual / 2

        plain = extract_representations(llama, TEXTS, POSITIONS, [1])
        with llama.hooks(fwd_hooks=[("blocks.1.hook_resid_post", halve)]):
            halved = extract_representations(llama, TEXTS, POSITIONS, [1])
        assert len(trees) == 1
        torch.testing.assert_close(halved, plain / 2, rtol=1e-4, atol=1e-4)

    def test_blocks_after_the_last_layer_do_not_run(self, llama, monkeypatch):
        later = extract.get_twin(llama).blocks[2]
        monkeypatch.setattr(later, "forward", lambda *args, **kwargs: pytest.fail("it ran"))
        states = extract_representations(llama, TEXTS, POSITIONS, [1])
        assert torch.isfinite(states).all()

    def test_a_leak_between_texts_is_found(self, tokenizer, monkeypatch):
        model = load_model(hf_model=make_hf_model("llama"), tokenizer=tokenizer)
        build = packing.build_tree

        def leaking(runs):
            tree = build(runs)
            # The first token of the last text sees the one before it.
            parents = [node - 1 if parent == -1 else parent for node, parent in enumerate(tree.parents)]
            return packing.Tree(tree.tokens, parents, tree.nodes)

        monkeypatch.setattr(packing, "build_tree", leaking)
        assert not can_pack(model, extract._read_padded)

    def test_a_window_of_attention_is_respected(self, tokenizer):
        hf_model = make_hf_model("llama")
        hf_model.config.sliding_window = 4096
        assert not can_pack(load_model(hf_model=hf_model, tokenizer=tokenizer), extract._read_padded)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=6))
def test_a_tree_spells_its_sequences(runs):
    tree = build_tree(runs)
    for run, nodes in zip(runs, tree.nodes, strict=True):
        assert [tree.tokens[node] for node in nodes] == run
        assert [tree.parents[node] for node in nodes] == [-1, *nodes[:-1]]
    assert all(parent < node for node, parent in enumerate(tree.parents))
    assert len(tree.tokens) == len({tuple(run[: n + 1]) for run in runs for n in range(len(run))})
