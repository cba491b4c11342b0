"""What callers give in place of the library's own types: the same results where it is clear, else one sentence."""

import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from conftest import make_hf_model
from transformers import AutoModelForCausalLM

from patchscopes import LogitLens, Patchscope, source_patchscope
from patchscopes.errors import PatchscopesError, PatchscopesWarning
from patchscopes.given import to_lens_model, to_number, to_numbers, to_rows, to_tensor
from patchscopes.patch import (
    Cut,
    Row,
    TargetPrompt,
    Write,
    extract_representation,
    extract_representations,
    generate_after,
    generate_with_patch,
    patch_generate,
    patch_logits,
    patch_rows,
    placeholder_target,
    run_with_patch,
)

PROMPT = "cat -> cat\nhello -> hello\n?"


def save_and_load(tokenizer, folder):
    """A model of Hugging Face with a tokenizer under its name."""
    make_hf_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def bare(tokenizer, tmp_path):
    return save_and_load(tokenizer, tmp_path)


class TestModels:
    def test_a_bare_one_is_wrapped_once_and_said_so(self, bare, llama):
        with pytest.warns(PatchscopesWarning, match="a bare LlamaForCausalLM was given: it is wrapped"):
            target = TargetPrompt(bare, PROMPT)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            states = extract_representations(bare, ["a dog"], [-1])[0]
        assert target.model is to_lens_model(bare)
        assert target.model.original_model is bare
        torch.testing.assert_close(states, extract_representations(llama, ["a dog"], [-1])[0])
        layers = [3, 2, 1, 0]
        expected = patch_logits(TargetPrompt(llama, PROMPT), states, layers)
        torch.testing.assert_close(patch_logits(target, states, layers), expected, atol=1e-4, rtol=0)
        assert (
            generate_after(bare, [PROMPT], max_new_tokens=3).tolist()
            == generate_after(llama, [PROMPT], max_new_tokens=3).tolist()
        )
        for ask in (
            lambda model: run_with_patch(model, PROMPT, -1, states[0]),
            lambda model: generate_with_patch(model, PROMPT, -1, states[0])[1].float(),
            lambda model: extract_representation(model, "a dog", 2, -1),
            lambda model: LogitLens(model)(states, torch.tensor(layers)),
            lambda model: source_patchscope(model, "a dog", -1)(states, torch.tensor(layers)),
            lambda model: patch_logits(placeholder_target(model, PROMPT), states, layers),
            lambda model: Patchscope(source_prompt="a dog", model=model, target_prompt=PROMPT).logits(),
            lambda model: Patchscope(
                source_prompt="a dog", model=llama, target_prompt=PROMPT, target_model=model
            ).logits(),
        ):
            torch.testing.assert_close(ask(bare), ask(llama), atol=1e-3, rtol=1e-3)

    def test_it_is_not_kept_for_ever(self, tokenizer, tmp_path):
        bare = save_and_load(tokenizer, tmp_path)
        with pytest.warns(PatchscopesWarning):
            patch_logits(TargetPrompt(bare, PROMPT), torch.randn(1, 32), [0])
        gone = weakref.ref(bare), weakref.ref(to_lens_model(bare))
        del bare
        gc.collect()
        assert [one() for one in gone] == [None, None]

    def test_without_a_tokenizer(self):
        with pytest.raises(PatchscopesError, match=r"give one with tokenizer=... to load_model\(hf_model=...\)"):
            TargetPrompt(make_hf_model("llama"), PROMPT)

    def test_what_is_none(self, llama):
        for wrong, message in (
            ("gpt2", r"load it once, and give load_model\('gpt2'\)"),
            (torch.nn.Linear(2, 2), "got a Linear"),
            (llama.tokenizer, "a model must be what load_model gives"),
            (None, "got a NoneType"),
        ):
            with pytest.raises(PatchscopesError, match=message):
                to_lens_model(wrong)


class TestVectors:
    def test_of_numpy_and_in_lists(self, llama):
        target = TargetPrompt(llama, PROMPT)
        vectors = torch.randn(4, llama.cfg.d_model)
        expected = patch_logits(target, vectors, [0, 1, 2, 3])
        forms = [
            vectors.numpy(),
            vectors.numpy().astype(np.float64),
            vectors.tolist(),
            list(vectors),
            tuple(vectors.numpy()),
            vectors.double(),
            vectors[::1].requires_grad_(),
        ]
        layers = [range(4), np.arange(4), [np.int64(n) for n in range(4)], torch.arange(4), (0, 1, 2, 3)]
        for form, numbers in zip(forms, [*layers, *layers], strict=False):
            given = patch_logits(target, form, numbers)
            assert given.dtype == expected.dtype
            torch.testing.assert_close(given, expected, atol=1e-4, rtol=0)
        said = patch_generate(target, vectors, range(4), max_new_tokens=3)
        assert patch_generate(target, vectors.numpy(), np.arange(4), max_new_tokens=3).tolist() == said.tolist()
        lens = LogitLens(llama)
        torch.testing.assert_close(lens(vectors.numpy(), range(4)), lens(vectors, torch.arange(4)))
        lens = source_patchscope(llama, "a dog", -1)
        torch.testing.assert_close(lens(vectors.tolist(), range(4)), lens(vectors, torch.arange(4)))

    def test_whole_numbers_are_numbers(self, llama):
        target, ones = TargetPrompt(llama, PROMPT), torch.ones(1, llama.cfg.d_model)
        torch.testing.assert_close(patch_logits(target, ones.long(), [1]), patch_logits(target, ones, [1]))
        torch.testing.assert_close(patch_logits(target, ones.long().numpy(), [1]), patch_logits(target, ones, [1]))

    def test_in_rows(self, llama):
        target = TargetPrompt(llama, PROMPT, 3)
        vector = torch.randn(llama.cfg.d_model)
        cut = Cut(query=5, keys=(3, 4), layers=(1, 2))
        expected = patch_rows([Row(target=target, writes=(Write(position=3, layer=1, vector=vector),), cuts=(cut,))])
        write = Write(position=np.int64(3), layer=torch.tensor(1), vector=vector.numpy())
        cut = Cut(query=np.int64(5), keys=range(3, 5), layers=[np.int64(1), 2])
        torch.testing.assert_close(patch_rows([Row(target=target, writes=[write], cuts=[cut])]), expected)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ([[1.0, 2.0], [1.0]], "vectors must be numbers in rows of one length"),
            (["a", "b"], "vectors must be numbers"),
            (np.array([["a"]]), "vectors must be numbers"),
            ([None], "vectors must be numbers"),
            ([torch.ones(2), torch.ones(3)], "rows of one length"),
            (torch.ones(1, 2, dtype=torch.complex64), "real numbers"),
            (np.array([[True, False]]), "real numbers"),
        ],
    )
    def test_what_is_none(self, wrong, message):
        with pytest.raises(PatchscopesError, match=message):
            to_tensor(wrong)

    def test_shapes(self, llama):
        with pytest.raises(PatchscopesError, match="give one vector as a list of one"):
            to_rows(llama, [1.0] * 32, [0])
        with pytest.raises(PatchscopesError, match="2 vectors need as many layers, got 3"):
            to_rows(llama, np.ones((2, 32)), range(3))
        with pytest.raises(PatchscopesError, match=r"with d_model = 32, got shape \(2, 31\)"):
            patch_logits(TargetPrompt(llama, PROMPT), np.ones((2, 31)), [0, 1])
        with pytest.raises(PatchscopesError, match="layers must be one whole number, got .*0.5"):
            to_rows(llama, np.ones((2, 32)), np.array([0.5, 1]))


class TestPositions:
    def test_ranges_arrays_and_tensors(self, llama):
        expected = extract_representations(llama, [PROMPT] * 3, [1, 2, 3], [0, 2])
        for positions in (range(1, 4), np.array([1, 2, 3]), torch.tensor([1, 2, 3]), (np.int64(1), 2, 3)):
            torch.testing.assert_close(extract_representations(llama, [PROMPT] * 3, positions, (0, 2)), expected)
        # One text, not the letters of one.
        torch.testing.assert_close(extract_representations(llama, PROMPT, range(1, 4), np.array([0, 2])), expected)

    def test_of_a_patchscope(self, llama):
        parts = {"source_prompt": "a dog", "model": llama, "target_prompt": PROMPT}
        expected = Patchscope(**parts, source_position=2, source_layers=[1, 2], target_position=[3, 4, 5]).logits()
        for places in (range(3, 6), np.arange(3, 6), torch.arange(3, 6), [3, np.int64(4), -len(PROMPT) + 4]):
            asked = Patchscope(**parts, source_position=np.int64(2), source_layers=range(1, 3), target_position=places)
            torch.testing.assert_close(asked.logits(), expected)
        one = Patchscope(**parts, source_layers=np.int64(1), target_position=np.int64(-1), target_layers=np.int64(2))
        same = Patchscope(**parts, source_layers=1, target_position=-1, target_layers=2)
        torch.testing.assert_close(one.logits(), same.logits())
        several = Patchscope(**parts, source_layers=range(2), target_layers=np.array([2, 3]))
        assert several.resolved_target_layers == [2, 3]

    def test_several_where_there_is_one(self):
        for wrong in (range(3), [1], 1.0, "a", None):
            with pytest.raises(PatchscopesError, match="a position must be one whole number"):
                to_number(wrong, "a position")

    def test_numbers(self):
        assert to_numbers(range(2), "x") == to_numbers(np.arange(2), "x") == to_numbers(torch.arange(2), "x") == [0, 1]
        assert to_numbers(np.int32(4), "x") == to_numbers(torch.tensor(4), "x") == [4]
        for wrong in ("12", None, [1.5], np.array([0.5]), [[1]]):
            with pytest.raises(PatchscopesError, match="x must be"):
                to_numbers(wrong, "x")
