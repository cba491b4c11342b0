"""Jacobians of all layers from one pass: against plain hooks, and against finite differences."""

import pytest
import torch
from conftest import FAMILIES, KINDS, make_hf_model

from patchscopes.engine import jacobian
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.jacobian import compute_jacobians
from patchscopes.errors import PatchscopesError
from patchscopes.model.layers import EMBEDDING, get_hook_name
from patchscopes.model.loading import load_model

TOKENS = torch.arange(20, 32)
LAYERS = [3, EMBEDDING, 1]


def assert_same(ours, other) -> None:
    for one, expected in zip(ours.jacobians, other.jacobians, strict=True):
        assert (one - expected).norm() <= 1e-4 * expected.norm()
    torch.testing.assert_close(ours.representations, other.representations, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.output, other.output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_equals_hooks(tiny_models, family):
    """An inner token; one block is left out, and the layers are in no order."""
    fast, plain = (compute_jacobians(tiny_models(family), TOKENS, -3, LAYERS, engine=e) for e in ("fast", "hooks"))
    assert_same(fast, plain)
    # Nothing after the last block carries s to another token; below, it matters.
    assert plain.jacobians[0].abs().max() == 0
    assert plain.jacobians[1:].abs().amax(dim=(1, 2)).min() > 1e-4


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("position", [0, 11])
def test_first_and_last_token(tiny_models, family, position):
    assert_same(
        *(compute_jacobians(tiny_models(family), TOKENS, position, [0, 3], engine=e) for e in ("fast", "hooks"))
    )


def test_finite_differences(tokenizer):
    """In float64, one dimension of s at a time, with a hook that is written here.

    GPT-2, because the norms of other families go through float32.
    """
    model = load_model(hf_model=make_hf_model("gpt2").double(), tokenizer=tokenizer)
    computed, step = compute_jacobians(model, TOKENS, 7), 1e-5

    def output_after(layer: int, change: torch.Tensor) -> torch.Tensor:
        def add(residual, hook):
            residual = residual.clone()
            residual[:, 7] += change
            return residual

        # Each row changes one dimension.
        tokens = TOKENS.expand(len(change), -1)
        outputs = []
        hooks = [(get_hook_name(layer), add), (get_hook_name(3), lambda residual, hook: outputs.append(residual))]
        model.run_with_hooks(tokens, return_type=None, fwd_hooks=hooks)
        return outputs[0][:, -1]

    changes = step * torch.eye(32, dtype=torch.float64)
    for layer, derived in enumerate(computed.jacobians):
        differences = (output_after(layer, changes) - output_after(layer, -changes)) / (2 * step)
        torch.testing.assert_close(derived, differences.T, atol=1e-5, rtol=1e-5)


def test_what_it_was_taken_at(llama):
    """s and o are those of a plain run, and at the last layer o is s."""
    computed = compute_jacobians(llama, TOKENS, -1, LAYERS)
    plain = extract_representations(llama, [TOKENS], [-1], LAYERS)[0]
    torch.testing.assert_close(computed.representations, plain)
    torch.testing.assert_close(computed.output, plain[0])
    assert torch.equal(computed.jacobians[0], torch.eye(32))
    assert compute_jacobians(llama, "the prompt", 2).jacobians.shape == (4, 32, 32)


def test_parts_of_the_dimensions_change_nothing(llama, monkeypatch):
    whole = compute_jacobians(llama, TOKENS, 5, LAYERS)
    monkeypatch.setattr(jacobian, "TOKENS_AT_A_TIME", 21)
    torch.testing.assert_close(compute_jacobians(llama, TOKENS, 5, LAYERS).jacobians, whole.jacobians)


def test_user_hooks_fire(tokenizer):
    """As everywhere, auto takes plain hooks when the user has put some on the model."""
    model = load_model(hf_model=make_hf_model("llama"), tokenizer=tokenizer)
    plain = compute_jacobians(model, TOKENS, 5, [0]).jacobians
    model.add_hook(get_hook_name(1), lambda residual, hook: 2 * residual)
    assert (compute_jacobians(model, TOKENS, 5, [0]).jacobians - plain).norm() > 0.1 * plain.norm()


@pytest.mark.parametrize("engine", ["fast", "hooks"])
def test_leaves_nothing_behind(tokenizer, engine):
    """Under any mode of autograd, and with parameters that would take gradients."""
    model = load_model(hf_model=make_hf_model("llama"), tokenizer=tokenizer)
    expected = compute_jacobians(model, TOKENS, 5, LAYERS, engine=engine)
    model.requires_grad_(True)
    for context, enabled in ((torch.no_grad(), False), (torch.inference_mode(), False), (torch.enable_grad(), True)):
        with context:
            computed = compute_jacobians(model, TOKENS, 5, LAYERS, engine=engine)
            assert torch.is_grad_enabled() == enabled
        for name in ("jacobians", "representations", "output"):
            assert torch.equal(getattr(computed, name), getattr(expected, name))
            assert not getattr(computed, name).requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(not point.has_hooks() for point in model.hook_dict.values())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_bfloat16(tokenizer, family):
    model = load_model(hf_model=make_hf_model(family), tokenizer=tokenizer, dtype="bfloat16")
    fast, plain = (compute_jacobians(model, TOKENS, 5, LAYERS, engine=e) for e in ("fast", "hooks"))
    assert fast.jacobians.dtype == torch.bfloat16
    assert (fast.jacobians - plain.jacobians).norm() < 0.1 * plain.jacobians.norm()


def test_mistakes(llama):
    for wrong, message in (
        ({"position": 12}, "position 12 does not exist in a text of 12 tokens"),
        ({"layers": [9]}, "layer 9 does not exist"),
        ({"layers": []}, "no layer to differentiate at"),
    ):
        options = {"position": 3, "layers": [0]} | wrong
        with pytest.raises(PatchscopesError, match=message):
            compute_jacobians(llama, TOKENS, **options)
