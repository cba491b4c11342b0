"""Numbers that are none are found wherever they arise, by both engines."""

import pytest
import torch
from conftest import make_hf_model

from patchscopes import Patchscope
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.overflow import Overflow, check_finite, check_later
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.model.loading import load_model
from patchscopes.patch import (
    Row,
    TargetPrompt,
    Write,
    generate_after,
    generate_rows,
    generate_with_patch,
    patch_generate,
    patch_logits,
    patch_logits_ahead_in_batches,
    patch_rows,
    run_with_patch,
)

PROMPT = "cat -> cat\nhello -> hello\n?"
ASK = {
    "first": lambda model, vector, engine: patch_logits(TargetPrompt(model, PROMPT), vector[None], [0], engine=engine),
    "ahead": lambda model, vector, engine: list(
        patch_logits_ahead_in_batches(TargetPrompt(model, PROMPT), vector[None], [0], 2, engine=engine)
    ),
    "generate": lambda model, vector, engine: patch_generate(
        TargetPrompt(model, PROMPT), vector[None], [0], engine=engine
    ),
    "rows": lambda model, vector, engine: patch_rows(build_rows(model, vector), engine=engine),
    "generate rows": lambda model, vector, engine: generate_rows(build_rows(model, vector), engine=engine),
    "after": lambda model, vector, engine: generate_after(model, [PROMPT, "a dog"], engine=engine),
}


def build_rows(model, vector):
    target = TargetPrompt(model, PROMPT)
    return [Row(target=target, writes=(Write(position=target.position, layer=0, vector=vector),))]


@pytest.fixture(scope="module")
def overflowing(tokenizer):
    """In block 2."""
    hf_model = make_hf_model("llama")
    mlp = hf_model.get_submodule("model.layers.2.mlp")
    mlp.up_proj.weight.data.mul_(8)
    mlp.down_proj.weight.data.mul_(60000)
    return load_model(hf_model=hf_model, tokenizer=tokenizer, dtype="float16")


@pytest.mark.parametrize("engine", ["fast", "hooks", "auto"])
@pytest.mark.parametrize("asked", ASK)
def test_both_engines_tell(overflowing, asked, engine):
    vector = extract_representations(overflowing, ["a dog"], [-1], [0])[0, 0]
    with pytest.raises(PatchscopesError, match="overflow in float16.*use float32 or bfloat16"):
        ASK[asked](overflowing, vector, engine)


def test_states_before_the_overflow_can_be_read(overflowing):
    assert extract_representations(overflowing, ["a dog"], [-1], [-1, 0, 1]).isfinite().all()
    with pytest.raises(Overflow):
        extract_representations(overflowing, ["a dog"], [-1], [1, 2])


def test_so_does_everything_else_that_reads(overflowing):
    vector = extract_representations(overflowing, ["a dog"], [-1], [0])[0, 0]
    with pytest.raises(Overflow):
        run_with_patch(overflowing, PROMPT, -1, vector)
    with pytest.raises(Overflow):
        generate_with_patch(overflowing, PROMPT, -1, vector)
    with pytest.raises(Overflow):
        Patchscope(source_prompt="a dog", model=overflowing, target_prompt=PROMPT, source_layers=0).top_k()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_vectors_that_hold_no_numbers(llama, value):
    vectors = torch.randn(3, llama.cfg.d_model)
    vectors[1, 5] = value
    for ask in (
        lambda: patch_logits(TargetPrompt(llama, PROMPT), vectors, [0, 1, 2]),
        lambda: logit_lens(llama, vectors),
    ):
        with pytest.raises(PatchscopesError, match="hold NaN or infinity in float32"):
            ask()


def test_vectors_that_are_too_large_for_the_model_only(overflowing):
    huge = torch.full((1, overflowing.cfg.d_model), 1e6)
    with pytest.raises(Overflow, match="overflow in float16"):
        patch_logits(TargetPrompt(overflowing, PROMPT), huge, [3])


def test_the_largest_numbers_of_a_type_are_numbers():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        values = torch.tensor([[torch.finfo(dtype).max, torch.finfo(dtype).min]], dtype=dtype)
        assert check_finite(values, dtype) is values
    assert check_finite(torch.empty(0, 3), torch.float16).shape == (0, 3)


def test_what_is_checked_later_is_told_with_the_numbers():
    numbers = torch.tensor([3, 5])
    with check_later() as checks:
        check_finite(torch.ones(2), torch.float32)
        assert checks.fetch(numbers).tolist() == [3, 5]
        values = torch.tensor([1.0, torch.nan])
        assert check_finite(values, torch.float32, "logits") is values
    with pytest.raises(Overflow, match="logits hold NaN or infinity in float32"):
        checks.fetch(numbers)
    with pytest.raises(Overflow):
        check_finite(values, torch.float32)
