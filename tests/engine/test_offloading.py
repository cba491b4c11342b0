"""Models whose weights wait on the CPU or the disk until they are needed: everything is as on the whole model."""

import gc
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import peft
import psutil
import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.utils import OffloadedWeightsLoader
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
from patchscopes.model.environment import describe_environment
from patchscopes.model.fingerprint import weights_sha256
from patchscopes.model.loading import load_model
from patchscopes.model.offloading import count_offloaded_bytes, is_offloaded, plan_offloading, shown_where_it_runs
from patchscopes.model.sizes import read_size
from patchscopes.patch import extract_representations, generate_rows, patch_generate, patch_logits, patch_rows

TEXTS = TextSet("made up", "train", tuple(f"text {n}: {n * 7919 % 1000} dogs and {n**3 % 101} cats" for n in range(24)))
FEW = TextSet("few", "train", ("a dog", "cats", "x?"))
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


CASES = (("llama", "mixed"), ("gpt2", "in memory"), ("gemma3", "on the disk"), ("gpt_oss", "dispatched"))


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
    model, _ = pair
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


@pytest.fixture(scope="module")
def learning_pair(tiny_models, tokenizer, tmp_path_factory):
    hf_model = spread("gpt2", "mixed", tmp_path_factory.mktemp("spread"))
    return load_model(hf_model=hf_model, tokenizer=tokenizer), tiny_models("gpt2")


def test_what_is_fitted(learning_pair):
    maps, expected = (fit_affine_maps(one, TEXTS, [0, 2], n_positions=200) for one in learning_pair)
    for key in expected:
        torch.testing.assert_close(maps[key].weight, expected[key].weight, atol=1e-4, rtol=1e-3)
    config = TrainingConfig(n_steps=2, evaluate_every=2, batch_size=16)
    maps, expected = (train_tuned_lens(one, TEXTS, [0, 2], config, fresh=True) for one in learning_pair)
    for key in expected:
        torch.testing.assert_close(maps[key].weight, expected[key].weight, atol=1e-5, rtol=1e-4)


def test_what_is_learned_through_the_blocks(learning_pair):
    jacobians, expected = (compute_jacobians(one, PROMPT, 3).jacobians for one in learning_pair)
    torch.testing.assert_close(jacobians, expected, atol=1e-5, rtol=1e-4)
    samples = tuple(RelationSample(subject=one, object=other) for one, other in (("ab", "x"), ("cd", "y")))
    relation = Relation(name="made up", prompt="Of {} comes", samples=samples)
    fitted, expected = (fit_lre(one, relation, samples, [1]) for one in learning_pair)
    torch.testing.assert_close(fitted.weights, expected.weights, atol=1e-5, rtol=1e-4)
    config = JacobianLensConfig(n_texts=1, max_tokens=10, skip_first=5, dim_batch=32)
    maps, expected = (fit_jacobian_lens(one, TEXTS, config, fresh=True) for one in learning_pair)
    for key in expected:
        torch.testing.assert_close(maps[key].weight, expected[key].weight, atol=1e-5, rtol=1e-4)
    settings = replace(SOFT_PROMPT_TRAINING, n_steps=2, evaluate_every=2, batch_size=4)
    learned, expected = (
        train_soft_prompt(one, FEW, None, settings, prompt="? x", n_samples=4, fresh=True) for one in learning_pair
    )
    torch.testing.assert_close(learned.vectors, expected.vectors, atol=1e-5, rtol=1e-4)


@pytest.fixture
def on_disk(tokenizer, tmp_path):
    """A llama with its second and fourth block on the disk."""
    return load_model(hf_model=spread("llama", "mixed", tmp_path), tokenizer=tokenizer)


def count_reads(model, monkeypatch) -> Counter[str]:
    """How often each weight is read from where it waits, from here on."""
    reads: Counter[str] = Counter()
    read = OffloadedWeightsLoader.__getitem__

    def counting(self, name):
        reads[name] += 1
        return read(self, name)

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", counting)
    return reads


def test_a_block_is_read_once_for_all_rows_that_fit(on_disk, monkeypatch):
    target = TargetPrompt(on_disk, PROMPT, POSITION)
    assert find_fast_engine_failure(target) is None
    vectors, layers = torch.randn(1000, 32), torch.arange(1000) % 4
    _ = target.clean_run
    reads = count_reads(on_disk, monkeypatch)
    # 5,000 tokens, more than run at a time where they are not read again.
    patch_logits(target, vectors, layers, engine="fast")
    assert {reads[name] for name in reads if "layers.1.mlp" in name} == {1}
    texts = ["x" * 100 + str(number) for number in range(32)]
    # Whether such texts can be read as one is found out the first time.
    extract_representations(on_disk, texts, [-1] * 32)
    reads.clear()
    extract_representations(on_disk, texts, [-1] * 32)
    # TransformerLens reads them once around its own part of a module, and once for the module.
    assert {reads[name] for name in reads if "layers.1.mlp" in name} <= {1, 2}


def test_gradients_that_would_keep_too_much_are_refused(on_disk, monkeypatch):
    n_bytes = sum(parameter.nbytes for parameter in on_disk.parameters() if parameter.is_meta)
    assert count_offloaded_bytes(on_disk) == n_bytes
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=n_bytes // 2))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=0))
    with pytest.raises(PatchscopesError, match="the offloaded weights, which a gradient through them keeps in memory"):
        compute_jacobians(on_disk, PROMPT, 3)
    with pytest.raises(PatchscopesError, match="the offloaded weights"):
        train_soft_prompt(on_disk, TEXTS)
    with pytest.raises(PatchscopesError, match="the offloaded weights"):
        fit_jacobian_lens(on_disk, TEXTS)


class TestAuto:
    @pytest.fixture(params=["llama", "mixtral"])
    def folder(self, request, tokenizer, tmp_path):
        """Experts are saved one by one and run together: they are written anew where they are offloaded."""
        make_hf_model(request.param).save_pretrained(tmp_path / "saved")
        tokenizer.save_pretrained(tmp_path / "saved")
        return tmp_path / "saved"

    def limit(self, monkeypatch, n_bytes):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=n_bytes))
        monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=0))

    def test_what_does_not_fit_waits_on_the_disk(self, folder, monkeypatch, cache):
        whole = load_model(str(folder), device="auto")
        n_bytes = sum(parameter.nbytes for parameter in whole.parameters())
        assert not is_offloaded(whole)
        with monkeypatch.context() as patch:
            self.limit(patch, n_bytes)
            model = load_model(str(folder), device="auto")
        assert is_offloaded(model)
        assert model.cfg.dtype == torch.float32
        assert 0.15 * n_bytes <= count_offloaded_bytes(model) < n_bytes
        assert weights_sha256(model) == weights_sha256(whole)
        tokens = torch.arange(5, 15)[None]
        assert torch.equal(model(tokens), whole(tokens))
        offloaded = cache / "offloaded"
        assert len(list(offloaded.iterdir())) == 1
        del model
        gc.collect()
        assert list(offloaded.iterdir()) == []

    def test_quantised_weights_are_not_offloaded(self, folder, monkeypatch):
        self.limit(monkeypatch, 1000)
        with pytest.raises(PatchscopesError, match="the weights .* in 8bit take"):
            load_model(str(folder), device="auto", quantization="8bit")

    def test_an_adapter_is_not_merged_into_offloaded_weights(self, folder, monkeypatch, tmp_path):
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["v_proj"], init_lora_weights=False)
        peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).save_pretrained(tmp_path / "adapter")
        self.limit(monkeypatch, 1000)
        with pytest.raises(PatchscopesError, match="the weights .* in float32 take"):
            load_model(str(tmp_path / "adapter"), device="auto")


def test_it_stays_where_and_as_it_is(tokenizer, tmp_path):
    hf_model = spread("llama", "mixed", tmp_path)
    for change in ({"device": "cpu"}, {"dtype": "bfloat16"}):
        with pytest.raises(PatchscopesError, match="a model with offloaded weights stays where and as it is"):
            load_model(hf_model=hf_model, tokenizer=tokenizer, **change)


def test_a_map_with_gpus_is_shown_as_where_modules_run():
    placed = {"embed": 0, "blocks.0": 1, "blocks.1": "cpu", "blocks.2": "disk"}
    spread_model = SimpleNamespace(hf_device_map=placed)
    with shown_where_it_runs(spread_model):
        assert spread_model.hf_device_map == {"embed": 0, "blocks.0": 1, "blocks.1": 0, "blocks.2": 0}
    assert spread_model.hf_device_map is placed
    with shown_where_it_runs(SimpleNamespace()) as nothing:
        assert nothing is None


def test_what_weights_may_take(monkeypatch, tmp_path):
    make_hf_model("llama").save_pretrained(tmp_path)
    size = read_size(str(tmp_path))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    for of_gpu, expected in ((size.n_parameters * 3, None), (1000, {0: 850, 1: 850, "cpu": 850_000})):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=of_gpu: (free, 10**9))
        assert plan_offloading(str(tmp_path), dtype=torch.float32, quantization=None) == expected
    assert plan_offloading(str(tmp_path), dtype=torch.float32, quantization="8bit") is None
