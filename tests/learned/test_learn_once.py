"""What is learned is learned once: by one of several processes, and not again while the cache folder holds it."""

import threading
import time
from functools import partial

import pytest
from conftest import make_hf_model

from patchscopes.data.texts import TextSet
from patchscopes.errors import PatchscopesError
from patchscopes.learned import files
from patchscopes.learned.cached_fits import fit_or_load_affine_maps, load_if_learned
from patchscopes.learned.config import JacobianLensConfig, TrainingConfig
from patchscopes.learned.files import learn_once
from patchscopes.learned.future_lens import train_soft_prompt
from patchscopes.learned.jacobian_lens import fit_jacobian_lens
from patchscopes.model.loading import load_model

TEXTS = TextSet("made up", "train", tuple(f"{number} dogs and cats" for number in range(4)))


def read(path):
    try:
        return path.read_text()
    except OSError as error:
        raise PatchscopesError("unreadable") from error


def write(path, text):
    path.write_text(text)


def refuse(*args):
    raise AssertionError("it is there already")


def test_of_several_at_the_same_time_one_learns(tmp_path):
    learned, given = [], []

    def learn(checkpoint):
        checkpoint.write_text("half")
        learned.append(checkpoint.name)
        time.sleep(0.05)
        return "whole"

    def ask():
        given.append(learn_once(tmp_path / "lens.safetensors", read, learn, write))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert given == ["whole"] * 4
    assert learned == ["lens.checkpoint"]
    assert {path.name for path in tmp_path.iterdir()} <= {"lens.safetensors", "lens.safetensors.lock"}


def test_fresh_learns_it_again_from_the_start(tmp_path):
    path = tmp_path / "lens.safetensors"
    path.write_text("old")
    path.with_suffix(".checkpoint").write_text("old")

    def learn(checkpoint):
        assert not checkpoint.exists()
        assert not path.exists()
        return "new"

    assert learn_once(path, read, refuse, write) == "old"
    assert learn_once(path, read, learn, write, fresh=True) == path.read_text() == "new"


def test_a_failure_keeps_the_checkpoint_and_lets_the_next_one_go_on(tmp_path):
    path = tmp_path / "lens.safetensors"

    def interrupted(checkpoint):
        checkpoint.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_once(path, read, interrupted, write)
    assert learn_once(path, read, lambda checkpoint: checkpoint.read_text() + " whole", write) == "half whole"


def test_a_cache_folder_that_cannot_be_written_is_good_for_what_it_holds(tokenizer, tmp_path, monkeypatch):
    model = load_model(hf_model=make_hf_model("llama"), tokenizer=tokenizer)
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))
    maps = fit_or_load_affine_maps(model, TEXTS)

    def read_only(*args):
        raise PatchscopesError("cannot write")

    monkeypatch.setattr(files, "check_writable", read_only)
    monkeypatch.setattr(files, "hold_lock", read_only)
    assert fit_or_load_affine_maps(model, TEXTS, progress=refuse).keys() == maps.keys()


def test_a_cache_folder_that_cannot_be_written_is_told_before_the_work(tokenizer, tmp_path, monkeypatch):
    model = load_model(hf_model=make_hf_model("llama"), tokenizer=tokenizer)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path / "file"))
    with pytest.raises(PatchscopesError, match="cannot write .*name another cache folder in PATCHSCOPES_CACHE"):
        fit_or_load_affine_maps(model, TEXTS, progress=refuse)


@pytest.mark.parametrize(
    "learn",
    [
        partial(fit_or_load_affine_maps, n_positions=40),
        partial(train_soft_prompt, config=TrainingConfig(n_steps=1), n_samples=8),
        partial(fit_jacobian_lens, config=JacobianLensConfig(n_texts=2, skip_first=1, dim_batch=32)),
    ],
    ids=["affine maps", "soft prompt", "Jacobian Lens"],
)
def test_what_was_learned_is_loaded_and_nothing_else_learned(llama, tmp_path, monkeypatch, learn):
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))
    fit = partial(learn, llama, TextSet("made up", "train", tuple(f"{n} dogs are {n * n} cats" for n in range(20))))
    assert load_if_learned(fit) is None
    assert list(tmp_path.rglob("*.safetensors")) == []
    learned = fit()
    loaded = load_if_learned(fit)
    assert type(loaded) is type(learned)
    if isinstance(learned, dict):
        assert loaded.keys() == learned.keys()
    else:
        assert loaded.vectors.equal(learned.vectors)
