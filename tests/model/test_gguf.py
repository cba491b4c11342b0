"""GGUF files of the user: what is in them, and what cannot be read."""

import pytest
import torch
from conftest import byte_level
from made_up_gguf import make_qwen2, round_to_8_bits, write_gguf

from patchscopes.errors import PatchscopesError
from patchscopes.model.fingerprint import weights_sha256
from patchscopes.model.loading import load_model

TOKENS = torch.arange(40, 52)[None]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("quantised", [False, True])
def test_a_file_is_loaded_with_its_weights_and_tokenizer(tmp_path, quantised):
    path = tmp_path / "tiny.GGUF"
    write_gguf(path, make_qwen2(), quantised)
    model = load_model(str(path))
    expected = round_to_8_bits(make_qwen2()) if quantised else make_qwen2()
    torch.testing.assert_close(model(TOKENS), expected(TOKENS).logits, atol=1e-4, rtol=1e-4)
    assert model.cfg.model_name == str(path)
    assert model.cfg.dtype == torch.float32
    text = "The capital of France is Paris"
    assert model.to_tokens(text)[0].tolist()[-5:] == byte_level().encode(text).ids[-5:]


def test_it_is_dequantised_once_and_found_by_what_is_in_it(tmp_path, cache):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, make_qwen2())
    first = weights_sha256(load_model(str(path)))
    moved = tmp_path / "elsewhere" / "tiny.gguf"
    moved.parent.mkdir()
    path.rename(moved)
    made = {folder: folder.stat().st_mtime_ns for folder in cache.iterdir() if folder.is_dir()}
    # A folder that holds nothing else stands for the file.
    assert weights_sha256(load_model(str(moved.parent))) == first
    assert {folder: folder.stat().st_mtime_ns for folder in cache.iterdir() if folder.is_dir()} == made
    write_gguf(moved, make_qwen2(seed=1))
    assert weights_sha256(load_model(str(moved))) != first
    assert len([folder for folder in cache.iterdir() if folder.is_dir()]) == 2


def test_what_cannot_be_read_is_one_sentence(tmp_path, cache):
    path = tmp_path / "tiny.gguf"
    with pytest.raises(PatchscopesError, match=r"there is no file .*tiny.gguf"):
        load_model(str(path))
    write_gguf(path, make_qwen2())
    content = path.read_bytes()
    for n_bytes in (0, 3, 100, 5000, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:n_bytes])
        with pytest.raises(PatchscopesError, match=r"tiny.gguf cannot be read") as error:
            load_model(str(path))
        assert "\n" not in str(error.value)
    write_gguf(path, make_qwen2(), leave_out="layers.2.mlp")
    with pytest.raises(PatchscopesError, match=r"holds a part of a model only: 3 of its weights .*layers.2.mlp"):
        load_model(str(path))
    assert [folder for folder in cache.iterdir() if folder.is_dir()] == []


def test_a_folder_of_several_files(tmp_path):
    for name in ("Q4.gguf", "Q8.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(PatchscopesError, match=r"holds 2 .gguf files; give the path of one, such as .*Q4.gguf"):
        load_model(str(tmp_path))
