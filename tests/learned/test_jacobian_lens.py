"""The Jacobian Lens is that of TransformerLens, and is kept, resumed and refused as all learned lenses are."""

from dataclasses import asdict, replace

import huggingface_hub
import pytest
import torch
from conftest import make_hf_model
from transformer_lens.tools.analysis import JacobianLens

from patchscopes.baselines import AffineLens, LogitLens, source_patchscope
from patchscopes.data.texts import TextSet
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.jacobian import compute_jacobians
from patchscopes.errors import PatchscopesError
from patchscopes.learned import jacobian_lens
from patchscopes.learned.config import JacobianLensConfig
from patchscopes.learned.jacobian_lens import centre_maps, fit_jacobian_lens, load_pretrained_jacobian_lens
from patchscopes.learned.mappings import LayerMapping, MapKey, load_maps, save_maps
from patchscopes.model.loading import load_model
from patchscopes.tokens import to_token_ids

TEXTS = TextSet("made up", "train", ("few", *(f"text {n}: {n * 7919 % 1000} dogs and cats" for n in range(6))))
CONFIG = JacobianLensConfig(n_texts=4, max_tokens=20, skip_first=5, dim_batch=32)
# Of each kind of position, block and output one.
FAMILIES = ("llama", "gpt2", "gptj", "gemma2", "cohere")
SOURCE, POSITION = "the source prompt", 6
LAYERS = torch.arange(4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=FAMILIES)
def model(request, tiny_models):
    return tiny_models(request.param)


def interrupted_after(n: int):
    """A progress wrapper that breaks off the iteration over texts."""

    def progress(texts):
        for number, text in enumerate(texts):
            if number == n:
                raise KeyboardInterrupt
            yield text

    return progress


def fit_with_transformer_lens(model, texts) -> JacobianLens:
    settings = {"dim_batch": 8, "max_seq_len": 20, "skip_first_positions": 5}
    return JacobianLens.fit(model, texts, corpus="made up", show_progress=False, **settings)


class TestFit:
    def test_is_transformer_lenss_own(self, model):
        maps = fit_jacobian_lens(model, TEXTS, replace(CONFIG, n_texts=6))
        theirs = fit_with_transformer_lens(model, TEXTS.texts[1:])
        assert set(maps) == {MapKey(layer, 3) for layer in range(4)}
        for layer, jacobian in theirs.jacobians.items():
            torch.testing.assert_close(maps[MapKey(layer, 3)].weight, jacobian, atol=1e-4, rtol=1e-3)
        read = theirs.readout(model, SOURCE, positions=[POSITION], return_full_logits=True)
        rows = extract_representations(model, [SOURCE], [POSITION])[0]
        ours = AffineLens(model, LayerMapping.to_last(model, maps))(rows, LAYERS)
        for layer in range(4):
            torch.testing.assert_close(ours[layer], read.lens_logits[layer][0], atol=1e-3, rtol=1e-4)

    @pytest.mark.parametrize("engine", ["hooks", "auto"])
    def test_equals_its_patchscope(self, model, engine):
        mapping = LayerMapping.to_last(model, fit_jacobian_lens(model, TEXTS, CONFIG))
        rows = extract_representations(model, [SOURCE], [POSITION])[0]
        twin = source_patchscope(model, SOURCE, POSITION, mapping, engine=engine)
        torch.testing.assert_close(AffineLens(model, mapping)(rows, LAYERS), twin(rows, LAYERS), atol=1e-4, rtol=0)

    def test_at_the_last_layer_it_is_the_prediction(self, llama):
        mapping = LayerMapping.to_last(llama, fit_jacobian_lens(llama, TEXTS, CONFIG))
        rows, last = torch.randn(5, 32), torch.full((5,), 3)
        torch.testing.assert_close(AffineLens(llama, mapping)(rows, last), LogitLens(llama)(rows, last))

    def test_of_one_position_it_is_the_jacobian_there(self, llama):
        (text,) = texts = TEXTS.texts[1:2]
        ids = to_token_ids(llama, text)
        config = replace(CONFIG, max_tokens=len(ids), skip_first=len(ids) - 2)
        maps = fit_jacobian_lens(llama, replace(TEXTS, texts=texts), config)
        there = compute_jacobians(llama, ids[:-1], -1)
        for layer in range(4):
            torch.testing.assert_close(maps[MapKey(layer, 3)].weight, there.jacobians[layer], atol=1e-4, rtol=1e-3)

    def test_provenance_counts_what_was_fitted(self, llama):
        made = fit_jacobian_lens(llama, TEXTS, CONFIG)[MapKey(0, 3)].provenance
        assert made.estimator == "jacobian_lens"
        # Of 20 tokens the first five and the last are left out.
        assert made.n_positions == 4 * 14
        assert made.options["metadata"]["n_prompts"] == 4
        assert made.options["max_tokens"] == 20

    def test_gradients_may_be_switched_off_around_it(self, llama):
        with torch.inference_mode():
            off = fit_jacobian_lens(llama, TEXTS, CONFIG)
        on = fit_jacobian_lens(llama, TEXTS, CONFIG, fresh=True)
        assert torch.equal(off[MapKey(0, 3)].weight, on[MapKey(0, 3)].weight)
        assert not any(parameter.requires_grad for parameter in llama.parameters())


class TestKept:
    def test_resumed_equals_uninterrupted(self, llama, cache, monkeypatch):
        whole = fit_jacobian_lens(llama, TEXTS, CONFIG)
        monkeypatch.setenv("PATCHSCOPES_CACHE", str(cache / "other"))
        for texts_more in (1, 2):
            with pytest.raises(KeyboardInterrupt):
                fit_jacobian_lens(llama, TEXTS, CONFIG, progress=interrupted_after(texts_more))
        fitted = []
        fit_text = jacobian_lens._fit_text
        monkeypatch.setattr(jacobian_lens, "_fit_text", lambda *args: fitted.append(args) or fit_text(*args))
        resumed = fit_jacobian_lens(llama, TEXTS, CONFIG)
        assert len(fitted) == 1
        for key in whole:
            assert torch.equal(whole[key].weight, resumed[key].weight)
            assert whole[key].provenance == resumed[key].provenance
        left = sorted(path.suffix for path in (cache / "other" / "lenses").iterdir())
        assert left in ([".lock", ".safetensors"], [".safetensors"])

    def test_the_cache_is_reused_unless_fresh(self, llama):
        first = fit_jacobian_lens(llama, TEXTS, CONFIG)
        again = fit_jacobian_lens(llama, TEXTS, CONFIG, progress=interrupted_after(0))
        assert torch.equal(first[MapKey(0, 3)].weight, again[MapKey(0, 3)].weight)
        assert first[MapKey(0, 3)].provenance == again[MapKey(0, 3)].provenance
        with pytest.raises(KeyboardInterrupt):
            fit_jacobian_lens(llama, TEXTS, CONFIG, fresh=True, progress=interrupted_after(0))

    def test_round_trip_and_refusal_of_another_model(self, llama, tokenizer, tmp_path):
        maps = fit_jacobian_lens(llama, TEXTS, CONFIG)
        save_maps(tmp_path / "lens.safetensors", maps)
        loaded = load_maps(tmp_path / "lens.safetensors")
        assert torch.equal(loaded[MapKey(2, 3)].weight, maps[MapKey(2, 3)].weight)
        assert asdict(loaded[MapKey(2, 3)].provenance) == asdict(maps[MapKey(2, 3)].provenance)
        other = load_model(hf_model=make_hf_model("llama", seed=1), tokenizer=tokenizer)
        with pytest.raises(PatchscopesError, match="learned from"):
            LayerMapping.to_last(other, loaded)

    def test_a_damaged_checkpoint_is_named(self, llama, cache):
        with pytest.raises(KeyboardInterrupt):
            fit_jacobian_lens(llama, TEXTS, CONFIG, progress=interrupted_after(1))
        (checkpoint,) = (cache / "lenses").glob("*.checkpoint")
        checkpoint.write_text("damaged")
        with pytest.raises(PatchscopesError, match=r"checkpoint is damaged, .* remove it"):
            fit_jacobian_lens(llama, TEXTS, CONFIG)

    def test_mistakes(self, llama, monkeypatch):
        with pytest.raises(PatchscopesError, match="train split, got 'evaluation'"):
            fit_jacobian_lens(llama, replace(TEXTS, split="evaluation"), CONFIG)
        with pytest.raises(PatchscopesError, match="no train text of 'made up' has more than 6 tokens"):
            fit_jacobian_lens(llama, replace(TEXTS, texts=("few",)), CONFIG)
        with pytest.raises(PatchscopesError, match="skip_first from 0 to max_tokens - 2; got 4, 32, 19 of 20 tokens"):
            replace(CONFIG, skip_first=19)
        monkeypatch.setattr(llama, "compatibility_mode", True)
        with pytest.raises(PatchscopesError, match=r"fits no Jacobian Lens on .*compatibility mode"):
            fit_jacobian_lens(llama, TEXTS, CONFIG)


class TestCentred:
    def test_the_mean_representation_becomes_the_mean_of_the_last_layer(self, model):
        maps = fit_jacobian_lens(model, TEXTS, CONFIG)
        centred = centre_maps(model, maps, TEXTS)
        ids = [to_token_ids(model, text) for text in TEXTS.texts]
        # All that the function may draw from: not the held-out text, not the first token of each.
        sources = [(text, at) for text in ids[1:] for at in range(1, len(text))]
        prompts, positions = zip(*sources, strict=True)
        means = extract_representations(model, list(prompts), list(positions)).mean(dim=0)
        for layer in range(4):
            one = centred[MapKey(layer, 3)]
            assert torch.equal(one.weight, maps[MapKey(layer, 3)].weight)
            torch.testing.assert_close(one(means[layer]), means[3], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(centred[MapKey(3, 3)].bias, torch.zeros_like(means[3]), atol=1e-6, rtol=0)

    def test_its_provenance_says_so_and_more_positions_change_nothing(self, llama, monkeypatch):
        maps = fit_jacobian_lens(llama, TEXTS, CONFIG)
        centred = centre_maps(llama, maps, TEXTS)
        made = centred[MapKey(0, 3)].provenance
        assert made.options["centred"]["n_positions"] == sum(
            len(to_token_ids(llama, text)) - 1 for text in TEXTS.texts[1:]
        )
        assert "centred" not in maps[MapKey(0, 3)].provenance.options
        monkeypatch.setattr(jacobian_lens, "AT_A_TIME", 5)
        in_parts = centre_maps(llama, maps, TEXTS)[MapKey(0, 3)]
        torch.testing.assert_close(in_parts.bias, centred[MapKey(0, 3)].bias, atol=1e-5, rtol=1e-5)

    def test_only_on_train_texts(self, llama):
        maps = fit_jacobian_lens(llama, TEXTS, CONFIG)
        with pytest.raises(PatchscopesError, match="train split, got 'evaluation'"):
            centre_maps(llama, maps, replace(TEXTS, split="evaluation"))


class TestPretrained:
    @pytest.fixture
    def published(self, llama, tmp_path):
        """As the reference implementation writes them: in 16 bit, and without a word on the model."""
        lens = fit_with_transformer_lens(llama, TEXTS.texts[1:4])
        lens.metadata = {}
        lens.save(str(tmp_path / "lens.pt"))
        return tmp_path / "lens.pt"

    @pytest.mark.parametrize("is_folder", [False, True])
    def test_a_local_one(self, llama, published, is_folder):
        maps = load_pretrained_jacobian_lens(llama, str(published.parent if is_folder else published))
        theirs = JacobianLens.load(str(published))
        for layer in range(3):
            assert torch.equal(maps[MapKey(layer, 3)].weight, theirs.jacobians[layer])
        assert torch.equal(maps[MapKey(3, 3)].weight, torch.eye(32))
        made = maps[MapKey(0, 3)].provenance
        assert (made.options["n_texts"], made.dataset) == (3, {"name": "not recorded"})
        AffineLens(llama, LayerMapping.to_last(llama, maps))(torch.randn(4, 32), LAYERS)

    def test_by_name_from_the_hub(self, llama, published, monkeypatch):
        asked = []

        def download(**wanted):
            asked.append(wanted)
            return str(published)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        named = load_pretrained_jacobian_lens(llama, "gpt2-small")
        monkeypatch.setattr(llama.cfg, "model_name", "gpt2")
        own = load_pretrained_jacobian_lens(llama)
        assert asked[0] == asked[1]
        assert asked[0]["repo_id"] == "neuronpedia/jacobian-lens"
        assert "gpt2-small" in asked[0]["filename"]
        assert named[MapKey(0, 3)].provenance.options["pretrained"] == "gpt2-small"
        assert own[MapKey(0, 3)].provenance.options["pretrained"] == "openai-community/gpt2"
        load_pretrained_jacobian_lens(llama, "some/lenses", filename="a.pt", revision="b")
        assert asked[2] == {"repo_id": "some/lenses", "filename": "a.pt", "revision": "b"}

    def test_one_that_is_not_of_this_model_is_refused(self, llama, tiny_models, models_by_tokenizer, tmp_path):
        theirs = fit_with_transformer_lens(llama, TEXTS.texts[1:3])
        theirs.save(str(tmp_path / "lens.pt"))
        with pytest.raises(PatchscopesError, match="fitted for model 'LlamaForCausalLM', but"):
            load_pretrained_jacobian_lens(tiny_models("gpt2"), str(tmp_path / "lens.pt"))
        theirs.metadata = {}
        theirs.save(str(tmp_path / "lens.pt"))
        with pytest.raises(PatchscopesError, match="d_model=32, but the model has d_model=24"):
            load_pretrained_jacobian_lens(models_by_tokenizer["sentencepiece_like"], str(tmp_path / "lens.pt"))

    def test_one_that_cannot_be_had_or_read(self, llama, tmp_path):
        with pytest.raises(PatchscopesError, match=r"no Jacobian Lens 'gpt2-small' .* could be loaded") as raised:
            load_pretrained_jacobian_lens(llama, "gpt2-small")
        assert "\n" not in str(raised.value)
        (tmp_path / "lens.pt").write_text("damaged")
        with pytest.raises(PatchscopesError, match="could be loaded"):
            load_pretrained_jacobian_lens(llama, str(tmp_path / "lens.pt"))
        torch.save({"weights": torch.zeros(2)}, tmp_path / "lens.pt")
        with pytest.raises(PatchscopesError, match="does not look like a Jacobian lens"):
            load_pretrained_jacobian_lens(llama, str(tmp_path / "lens.pt"))
