"""Models whose weights wait on the CPU or the disk until they are needed: everything is as on the whole model."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from conftest import make_hf_model
from torch import nn
from transformers import AutoModelForCausalLM

from patchscopes.baselines import LogitLens
from patchscopes.data.relations import Relation, RelationSample
from patchscopes.data.texts import TextSet
from patchscopes.engine.jacobian import compute_jacobians
from patchscopes.engine.proof import find_fast_engine_failure
from patchscopes.engine.rows import Cut, Row, Write
from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.learned.config import SOFT_PROMPT_TRAINING, JacobianLensConfig, TrainingConfig
from patchscopes.learned.fitting import fit_affine_maps
from patchscopes.learned.future_lens import train_soft_prompt
from patchscopes.learned.jacobian_lens import fit_jacobian_lens
from patchscopes.learned.lre import fit_lre
from patchscopes.learned.tuned_lens import train_tuned_lens
from patchscopes.model import devices, offloading
from patchscopes.model.environment import describe_environment
from patchscopes.model.loading import load_model
from patchscopes.patch import extract_representations, generate_rows, patch_generate, patch_logits, patch_rows

FAMILIES = ("llama", "gpt2", "gemma3", "gpt_oss")
TEXTS = TextSet("made up", "train", tuple(f"text {n}: {n * 7919 % 1000} dogs and {n**3 % 101} cats" for n in range(24)))
PROMPT, POSITION = "a dog; a cat; x and", -5
LAYERS = torch.tensor([-1, 0, 1, 2, 3, 1, 2])


def map_blocks(hf_model: nn.Module, elsewhere: str) -> dict[str, str]:
    """A device map: every second block on the disk, the others on the CPU, and the rest `elsewhere`."""
    placed = {}
    blocks = next(name for name, module in hf_model.named_modules() if isinstance(module, nn.ModuleList))
    inner = blocks.rpartition(".")[0]
    for name, _ in [*hf_model.get_submodule(inner).named_children()]:
        placed[f"{inner}.{name}"] = elsewhere
    del placed[blocks]
    placed |= {f"{blocks}.{number}": ("cpu", "disk")[number % 2] for number in range(4)}
    return placed | {name: elsewhere for name, _ in hf_model.named_children() if name != inner.partition(".")[0]}


def spread(family: str, how: str, folder) -> nn.Module:
    """The model of `make_hf_model`, offloaded."""
    whole = make_hf_model(family)
    if how == "in memory":
        # As where a GPU runs what waits in the memory of the CPU.
        return cpu_offload(whole, execution_device=torch.device("cpu"))
    if how == "dispatched":
        return dispatch_model(whole, map_blocks(whole, "cpu"), offload_dir=folder / "offloaded")
    whole.save_pretrained(folder / "saved")
    placed = map_blocks(whole, "disk" if how == "on the disk" else "cpu")
    return AutoModelForCausalLM.from_pretrained(
        folder / "saved", device_map=placed, offload_folder=folder / "offloaded", dtype=torch.float32
    )


CASES = (
    *((family, "mixed") for family in FAMILIES),
    ("llama", "in memory"),
    ("gpt2", "in memory"),
    ("gemma3", "on the disk"),
    ("llama", "dispatched"),
)


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def pair(request, tiny_models, tokenizer, tmp_path_factory):
    """A spread model and the same one in one place."""
    family, how = request.param
    hf_model = spread(family, how, tmp_path_factory.mktemp("spread"))
    assert any(parameter.is_meta for parameter in hf_model.parameters())
    return load_model(hf_model=hf_model, tokenizer=tokenizer), tiny_models(family)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_rows(model):
    torch.manual_seed(0)
    target = TargetPrompt(model, PROMPT, POSITION)
    vectors = torch.randn(4, 32)
    n_tokens = len(target.tokens)
    writes = [Write(position=n_tokens + POSITION, layer=layer, vector=vectors[layer]) for layer in range(3)]
    rows = [Row(target=target, writes=writes[layer : layer + 1]) for layer in range(3)]
    cut = Cut(query=n_tokens - 1, keys=[n_tokens + POSITION], layers=[1, 2])
    return [*rows, Row(target=target, writes=writes[:1], cuts=[cut])]


def test_what_the_engines_say(pair):
    model, whole = pair
    assert model.cfg.device == "cpu"
    targets = [TargetPrompt(one, PROMPT, POSITION) for one in pair]
    assert find_fast_engine_failure(targets[0]) is None
    torch.manual_seed(0)
    vectors = torch.randn(len(LAYERS), 32)
    for engine in ("fast", "hooks"):
        # The same numbers by the same operations.
        logits, expected = (patch_logits(target, vectors, LAYERS, engine=engine) for target in targets)
        assert torch.equal(logits, expected)
        said, expected = (
            patch_generate(target, vectors, LAYERS, max_new_tokens=4, engine=engine) for target in targets
        )
        assert torch.equal(said, expected)
    states, expected = (extract_representations(one, ["abc", "a dog"], [-1, 2]) for one in pair)
    assert torch.equal(states, expected)
    lens, expected = (LogitLens(one)(states[0], torch.arange(4)) for one in pair)
    assert torch.equal(lens, expected)


def test_rows(pair):
    for engine in ("fast", "hooks"):
        logits, expected = (patch_rows(make_rows(one), engine=engine) for one in pair)
        torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)
    said, expected = (generate_rows(make_rows(one), max_new_tokens=3) for one in pair)
    assert torch.equal(said, expected)


def test_what_a_result_file_says_of_it(pair):
    described, expected = (describe_environment(one) for one in pair)
    assert described["model"]["weights_sha256"] == expected["model"]["weights_sha256"]
    assert (described["device"], described["dtype"]) == (expected["device"], expected["dtype"])


def test_what_is_fitted(pair):
    maps, expected = (fit_affine_maps(one, TEXTS, [0, 2], n_positions=200) for one in pair)
    for key in expected:
        torch.testing.assert_close(maps[key].weight, expected[key].weight, atol=1e-4, rtol=1e-3)
    config = TrainingConfig(n_steps=3, evaluate_every=3, batch_size=16)
    maps, expected = (train_tuned_lens(one, TEXTS, [0, 2], config, fresh=True) for one in pair)
    for key in expected:
        torch.testing.assert_close(maps[key].weight, expected[key].weight, atol=1e-5, rtol=1e-4)


def test_what_is_learned_through_the_blocks(pair):
    jacobians, expected = (compute_jacobians(one, PROMPT, 3).jacobians for one in pair)
    torch.testing.assert_close(jacobians, expected, atol=1e-5, rtol=1e-4)
    samples = tuple(RelationSample(subject=one, object=other) for one, other in (("ab", "x"), ("cd", "y"), ("ef", "z")))
    relation = Relation(name="made up", prompt="Of {} comes", samples=samples)
    fitted, expected = (fit_lre(one, relation, samples, [1, 2]) for one in pair)
    torch.testing.assert_close(fitted.weights, expected.weights, atol=1e-5, rtol=1e-4)
    config = JacobianLensConfig(n_texts=1, max_tokens=20, skip_first=5, dim_batch=32)
    maps, expected = (fit_jacobian_lens(one, TEXTS, config, fresh=True) for one in pair)
    for key in expected:
        torch.testing.assert_close(maps[key].weight, expected[key].weight, atol=1e-5, rtol=1e-4)
    settings = replace(SOFT_PROMPT_TRAINING, n_steps=2, evaluate_every=2, batch_size=4)
    learned, expected = (
        train_soft_prompt(one, TEXTS, None, settings, prompt="? x", n_samples=8, fresh=True) for one in pair
    )
    torch.testing.assert_close(learned.vectors, expected.vectors, atol=1e-5, rtol=1e-4)
