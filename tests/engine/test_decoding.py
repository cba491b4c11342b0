"""Generating on: what rows have in common is run once, and nothing changes by that."""

import pytest
import torch
from conftest import KINDS
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.engine import decoding, fast
from patchscopes.engine.building import get_twin
from patchscopes.engine.decoding import Generation, append_tokens, count_below, empty_generation
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt
from patchscopes.engine.unpatched import generate_after
from patchscopes.model.layers import EMBEDDING
from patchscopes.patch import patch_generate

TOKENS = torch.tensor([0, 50, 9, 77, 31, 5, 68, 12])


def grid(model, position=3):
    """Representations of two tokens at all layers, each written at all layers: rows that say much the same."""
    layers = range(EMBEDDING, model.cfg.n_layers)
    states = extract_representations(model, [TOKENS] * 2, [-1, 4], list(layers)).flatten(0, 1)
    rows = [(state, layer) for state in states for layer in layers]
    return TargetPrompt(model, TOKENS, position), torch.stack([state for state, _ in rows]), [one for _, one in rows]


@pytest.mark.parametrize("family", KINDS)
class TestFamilies:
    def test_rows_that_stop_leave_the_others_alone(self, tiny_models, family):
        model = tiny_models(family)
        target, vectors, layers = grid(model)

        def every_third(tokens, rows):
            return (tokens.sum(dim=1) + tokens.shape[1]) % 3 == 0

        said = [
            patch_generate(target, vectors, layers, max_new_tokens=4, stop=every_third, engine=engine)
            for engine in ("fast", "hooks")
        ]
        assert torch.equal(*said)
        free = patch_generate(target, vectors, layers, max_new_tokens=4)
        assert not torch.equal(said[0], free)

    def test_batches_of_round_sizes_say_the_same(self, tiny_models, monkeypatch, family):
        model = tiny_models(family)
        target, vectors, layers = grid(model)
        vectors, layers = vectors.repeat(4, 1), layers * 4
        plain = patch_generate(target, vectors, layers, max_new_tokens=5, engine="fast")
        sizes = []
        pad_rows = decoding.pad_rows

        def noting(rows, twin):
            filled = pad_rows(rows, twin)
            sizes.append((len(rows), len(filled)))
            return filled

        monkeypatch.setattr(decoding, "is_16_bit", lambda dtype: True)
        monkeypatch.setattr(decoding, "pad_rows", noting)
        assert torch.equal(patch_generate(target, vectors, layers, max_new_tokens=5, engine="fast"), plain)
        assert any(filled > rows for rows, filled in sizes)

    def test_prompts_are_run_once_as_far_as_they_are_alike(self, tiny_models, family):
        model = tiny_models(family)
        prompts = [TOKENS[:4], TOKENS, TOKENS[:6], TOKENS[[0, 1, 2, 6]], TOKENS[[0, 1, 5, 5, 4]]]
        together = generate_after(model, prompts, max_new_tokens=4, engine="fast")
        for prompt, said in zip(prompts, together, strict=True):
            assert torch.equal(generate_after(model, [prompt], max_new_tokens=4, engine="hooks")[0], said)


class TestWork:
    @pytest.fixture
    def batches(self, monkeypatch):
        """How many rows each call of a block ran while new tokens were appended."""
        sizes = []
        decode_step = fast.decode_step

        def noting(twin, cache, *args):
            residual, generated = decode_step(twin, cache, *args)
            sizes.append([len(layer.row_keys_values[0]) for layer in cache.prefix_layers])
            return residual, generated

        monkeypatch.setattr(fast, "decode_step", noting)
        return sizes

    def test_rows_join_after_their_layer_and_texts_leave_after_their_last_row_has_joined(self, llama, batches):
        target = TargetPrompt(llama, TOKENS)
        layers = [0, 0, 0, 1, 1, 2]
        # Written over itself, a state changes nothing: all rows say the same.
        own = extract_representations(llama, [TOKENS], [-1], [0, 1, 2])[0]
        said = patch_generate(target, own[layers], layers, max_new_tokens=3, engine="fast")
        assert len(said.unique(dim=0)) == 1
        assert len(llama.original_model.model.layers) == 4
        # The one text, until the last row has joined; and the rows that have joined before.
        assert batches == [[0 + 1, 3 + 1, 5 + 1, 6]] * 2

    def test_rows_patched_after_the_last_block_cost_one_run_of_each_text(self, llama, batches):
        target = TargetPrompt(llama, TOKENS)
        last = llama.cfg.n_layers - 1
        vectors = torch.randn(5, llama.cfg.d_model)
        said = patch_generate(target, vectors, [last] * 5, max_new_tokens=2, engine="fast")
        n_texts = len(said[:, 0].unique())
        # What is written after the last block is unembedded, and goes nowhere else.
        assert batches == [[n_texts] * llama.cfg.n_layers]

    def test_what_prompts_begin_with_alike_is_run_once(self, llama, batches):
        prompts = [torch.cat([TOKENS, torch.tensor([token])]) for token in (30, 40, 50)]
        prompts += [torch.cat([TOKENS[:3], torch.tensor([99])])]
        generate_after(llama, prompts, max_new_tokens=1, engine="fast")
        assert [step[0] for step in batches[:6]] == [2, 2, 2, 2, 2, 4]


@given(data=st.data())
def test_texts_are_those_of_a_plain_loop(data):
    """Steps of random tokens and random losses of rows, against texts kept as lists."""
    n_layers = data.draw(st.integers(1, 4))
    layers = sorted(data.draw(st.lists(st.integers(EMBEDDING, n_layers - 1), min_size=1, max_size=12)))
    now = empty_generation(torch.tensor(layers))
    plain = [(layer, ()) for layer in layers]
    texts = [()]
    for _ in range(data.draw(st.integers(1, 4))):
        kept = sorted(data.draw(st.sets(st.sampled_from(range(len(plain))), min_size=1)))
        tokens = data.draw(st.lists(st.integers(0, 2), min_size=len(kept), max_size=len(kept)))
        now, parents, new_tokens = append_tokens(now, torch.tensor(kept), torch.tensor(tokens))
        texts = [(*texts[parent], token) for parent, token in zip(parents.tolist(), new_tokens.tolist(), strict=True)]
        plain = [(plain[row][0], (*plain[row][1], token)) for row, token in zip(kept, tokens, strict=True)]
        assert len(texts) == len(set(texts))
        assert [texts[text] for text in now.continuations.tolist()] == [text for _, text in plain]
        assert now.layers.tolist() == [layer for layer, _ in plain]
        highest = [max(layer for layer, text in plain if text == one) for one in texts]
        assert now.highest_layers.tolist() == highest == sorted(highest, reverse=True)
        assert now.count_rows_in_blocks(n_layers) == [
            sum(layer < block for layer, _ in plain) for block in range(n_layers + 1)
        ]
        assert now.count_continuations_in_blocks(n_layers) == [
            sum(one >= block for one in highest) for block in range(n_layers + 1)
        ]


def test_counts():
    assert count_below(torch.tensor([-1, 0, 0, 2]), 3) == [1, 3, 3, 4]
    layers = torch.tensor([2, 1, EMBEDDING])
    assert Generation(torch.tensor([0]), torch.tensor([0]), layers).count_continuations_in_blocks(3) == [2, 2, 1, 0]


def test_round_sizes_are_few_and_near(llama, monkeypatch):
    twin = get_twin(llama)
    rows = torch.arange(1000)
    assert len(decoding.pad_rows(rows[:333], twin)) == 333
    monkeypatch.setattr(decoding, "is_16_bit", lambda dtype: True)
    sizes = {n: len(decoding.pad_rows(rows[:n], twin)) for n in range(1, 1001)}
    assert all(n <= size <= n * 17 / 16 for n, size in sizes.items())
    assert len({size for n, size in sizes.items() if n >= 512}) <= 17
    filled = decoding.pad_rows(rows[1:334], twin)
    assert filled.tolist() == [*range(1, 334), *[1] * (len(filled) - 333)]
