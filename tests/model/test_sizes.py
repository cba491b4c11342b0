"""Memory beforehand: what weights take is known from a configuration, and what does not fit is refused in one line."""

from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import FAMILIES, make_hf_model
from made_up_gguf import make_qwen2, write_gguf

from patchscopes.data.texts import TextSet
from patchscopes.engine.batching import RowSize, run_in_batches
from patchscopes.engine.jacobian import compute_jacobians
from patchscopes.engine.memory import measure_free_memory
from patchscopes.errors import PatchscopesError
from patchscopes.learned.config import TrainingConfig
from patchscopes.learned.fitting import fit_affine_maps
from patchscopes.learned.jacobian_lens import fit_jacobian_lens
from patchscopes.learned.tuned_lens import train_tuned_lens
from patchscopes.model.devices import fits, measure_free_memory_of, require_memory
from patchscopes.model.loading import load_model
from patchscopes.model.sizes import measure_size, read_size

TEXTS = TextSet("made up", "train", tuple(f"text {n}: {n * 7919 % 1000} dogs and cats" for n in range(24)))


@pytest.fixture
def limit_memory(monkeypatch, tmp_path):
    """Let the machine have so many bytes free."""
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path / "cache"))

    def limit(n_bytes: int, swap: int = 0) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=n_bytes))
        monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=swap))

    return limit


def count_bytes(model) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_size_of_a_model_is_that_of_its_weights(family):
    model = make_hf_model(family)
    size = measure_size(model.config)
    assert size.count_bytes(torch.float32) == count_bytes(model)
    assert size.count_bytes(torch.bfloat16) == count_bytes(model) / 2
    assert 0 < size.n_linear < size.n_parameters


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_the_size_in_few_bits_is_about_that_of_the_quantised_weights(model_folder, quantization):
    model = load_model(str(model_folder), quantization=quantization)
    estimate = read_size(str(model_folder)).count_bytes(torch.float32, quantization)
    assert estimate == pytest.approx(count_bytes(model.original_model), rel=0.1)


def test_what_has_no_size_is_left_to_the_loader(tmp_path, model_folder):
    assert read_size(str(tmp_path)) is None
    assert read_size("owner/not-in-the-cache") is None
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    assert read_size(str(tmp_path)) is None
    with pytest.raises(
        PatchscopesError, match="not hold a complete model .*: Validation error for field 'hidden_size'$"
    ):
        load_model(str(tmp_path))


class TestLimit:
    def test_only_what_is_clearly_more_is_refused(self, limit_memory):
        limit_memory(1000)
        assert measure_free_memory_of("cpu") == measure_free_memory_of("auto") == 1000
        assert fits(1100, "cpu")
        assert not fits(1101, "cpu")
        limit_memory(1000, swap=1000)
        assert fits(2200, "cpu")
        require_memory("the rows", 2200, "cpu", "give fewer")
        limit_memory(2**30)
        with pytest.raises(PatchscopesError, match=r"^the rows take 2.0 GiB, and 1.0 GiB are free on cpu: give fewer$"):
            require_memory("the rows", 2**31, "cpu", "give fewer")

    def test_of_gpus(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 * (1 + device.index), 9000))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
        assert measure_free_memory_of("cuda:1") == 2020
        assert measure_free_memory_of("auto") == 3040
        # All weights wait elsewhere.
        nowhere = SimpleNamespace(cfg=SimpleNamespace(device="cuda:1"), named_parameters=lambda: iter(()))
        assert measure_free_memory.__wrapped__(nowhere) == 2020


class TestWeights:
    def test_what_would_fit_is_said(self, model_folder, limit_memory, tokenizer):
        in_float32 = count_bytes(make_hf_model("llama"))
        limit_memory(in_float32)
        assert load_model(str(model_folder)).cfg.d_model == 32
        limit_memory(int(in_float32 * 0.6))
        with pytest.raises(PatchscopesError) as error:
            load_model(str(model_folder))
        message = str(error.value)
        assert message.startswith(
            f"the weights of {str(model_folder)!r} in float32 take 0.0 GiB, and 0.0 GiB are free on cpu"
        )
        assert "what fits is --dtype bfloat16 (0.0 GiB), --quantization 8bit" in message
        assert load_model(str(model_folder), dtype="bfloat16").cfg.dtype == torch.bfloat16
        limit_memory(int(in_float32 * 0.01))
        with pytest.raises(PatchscopesError, match="what fits is --device auto"):
            load_model(str(model_folder), quantization="4bit")

    def test_a_gguf_file(self, limit_memory, tmp_path):
        file = tmp_path / "tiny.gguf"
        write_gguf(file, make_qwen2())
        limit_memory(1000)
        with pytest.raises(PatchscopesError, match="the weights of tiny.gguf, which are dequantised"):
            load_model(str(file))


class TestSteps:
    def test_rows(self, llama, limit_memory):
        row = RowSize(run=4)
        limit_memory(10 * row.count_bytes(llama))
        with pytest.raises(PatchscopesError, match=r"1,000 rows of the model at a time take .*\(--batch-size 10\)"):
            list(run_in_batches(llama, 1000, lambda rows: rows, row=row, batch_size=1000))
        # No more are run than there are; and chosen by size they fit.
        assert list(run_in_batches(llama, 10, lambda rows: rows, row=row, batch_size=1000))
        sizes = [rows.stop - rows.start for rows, _ in run_in_batches(llama, 20, lambda rows: rows, row=row)]
        assert max(sizes) == 5
        limit_memory(row.count_bytes(llama) // 2)
        with pytest.raises(PatchscopesError, match="give shorter prompts or fewer new tokens"):
            list(run_in_batches(llama, 1, lambda rows: rows, row=row))

    def test_fits_and_trainings(self, llama, limit_memory):
        # Moments of one map in float64, and the map.
        limit_memory(2 * (8 * 2 + 4) * 32**2)
        with pytest.raises(PatchscopesError, match=r"the moments .* of 4 layers .*: 2 of them would fit.*--layers"):
            fit_affine_maps(llama, TEXTS, n_positions=100)
        limit_memory(3 * 4 * 6 * 32 * 33)
        with pytest.raises(PatchscopesError, match=r"as adamw trains them, of 4 layers take .*: 3 of them would fit"):
            train_tuned_lens(llama, TEXTS, config=TrainingConfig(optimizer="adamw"), fresh=True)
        limit_memory(3 * 4 * 32**2)
        with pytest.raises(PatchscopesError, match="the Jacobians of 4 layers of width 32 .* has one for every block"):
            fit_jacobian_lens(llama, TEXTS, fresh=True)
        limit_memory(4 * 32**2)
        with pytest.raises(PatchscopesError, match="the Jacobians of width 32 of 3 layers .*: 1 of them would fit"):
            compute_jacobians(llama, "a dog", 1, [0, 1, 2])
