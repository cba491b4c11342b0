"""Every lens in its original form equals its Patchscope."""

import pytest
import torch
from conftest import KINDS, make_hf_model

from patchscopes.baselines import AffineLens, LogitLens, PatchscopeLens, source_patchscope
from patchscopes.data.texts import TextSet, load_texts
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.learned.fitting import fit_affine_maps
from patchscopes.learned.future_lens import build_fixed_prompt_target
from patchscopes.learned.mappings import LayerMapping
from patchscopes.model.loading import load_model

TEXTS = TextSet("made up", "train", tuple(f"number {n} is {n * n}, not {n + 1}" for n in range(8)))
SOURCE, POSITION = "the source prompt", 6


@pytest.fixture(params=KINDS)
def model(request, tiny_models):
    return tiny_models(request.param)


@pytest.fixture
def rows(model):
    return extract_representations(model, [SOURCE], [POSITION])[0]


LAYERS = torch.arange(4)


@pytest.mark.parametrize("engine", ["hooks", "auto"])
class TestTwins:
    def test_logit_lens(self, model, rows, engine):
        twin = source_patchscope(model, SOURCE, POSITION, engine=engine)
        torch.testing.assert_close(LogitLens(model)(rows, LAYERS), twin(rows, LAYERS), atol=1e-4, rtol=0)

    @pytest.mark.parametrize("ahead", [0, 2])
    def test_affine_lens(self, model, rows, engine, ahead):
        mapping = LayerMapping.to_last(model, fit_affine_maps(model, TEXTS, ahead=(0, 2)), ahead)
        twin = source_patchscope(model, SOURCE, POSITION, mapping, engine=engine)
        torch.testing.assert_close(AffineLens(model, mapping)(rows, LAYERS), twin(rows, LAYERS), atol=1e-4, rtol=0)


def test_future_lens_by_hooks_and_by_the_engine(model, rows):
    target = build_fixed_prompt_target(model)
    plain, twin = PatchscopeLens(target, engine="hooks"), PatchscopeLens(target)
    torch.testing.assert_close(plain(rows, LAYERS), twin(rows, LAYERS), atol=1e-3, rtol=0)


def test_the_last_layer_is_the_models_own_prediction(model, rows):
    own = model(model.to_tokens(SOURCE))[0, POSITION]
    for lens in (LogitLens(model), source_patchscope(model, SOURCE, POSITION)):
        torch.testing.assert_close(lens(rows[3:], LAYERS[3:])[0], own, atol=1e-4, rtol=1e-4)


def test_tokens_after_the_position_have_no_part(llama):
    rows = torch.randn(4, 32)
    whole, cut = (source_patchscope(llama, text, 6, engine="hooks") for text in ("the source prompt", "the so"))
    assert torch.equal(whole(rows, LAYERS), cut(rows, LAYERS))


def test_fixed_target_layer_and_mapping_come_before_writing(llama):
    mapping = LayerMapping.to_last(llama, fit_affine_maps(llama, TEXTS))
    target = build_fixed_prompt_target(llama)
    rows = torch.randn(4, 32)
    mapped = PatchscopeLens(target, 1, mapping)(rows, LAYERS)
    plain = PatchscopeLens(target)(mapping(rows, LAYERS), torch.ones(4, dtype=torch.long))
    torch.testing.assert_close(mapped, plain)


def test_maps_of_another_model_are_refused(llama, tokenizer):
    maps = fit_affine_maps(llama, TEXTS)
    other = load_model(hf_model=make_hf_model("llama", seed=1), tokenizer=tokenizer)
    with pytest.raises(PatchscopesError, match="learned from 'LlamaForCausalLM', and the weights") as raised:
        LayerMapping.to_last(other, maps)
    assert "\n" not in str(raised.value)
    with pytest.raises(PatchscopesError, match=r"no map to layer 3, 1 tokens ahead; .* \[\(3, 0\)\]"):
        LayerMapping.to_last(llama, maps, ahead=1)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_bfloat16(tokenizer, family):
    """Twins agree as far as 16 bit go, and the results have the model's type."""
    model = load_model(hf_model=make_hf_model(family), tokenizer=tokenizer, dtype="bfloat16")
    mapping = LayerMapping.to_last(model, fit_affine_maps(model, TEXTS, ridge=1e-3))
    rows = extract_representations(model, [SOURCE], [POSITION])[0]
    tuned, twin = AffineLens(model, mapping)(rows, LAYERS), source_patchscope(model, SOURCE, POSITION, mapping)
    assert tuned.dtype == torch.bfloat16
    torch.testing.assert_close(tuned, twin(rows, LAYERS))


def test_on_the_embedded_model(smollm):
    """The twins agree, and the Tuned Lens reads early layers far better than the Logit Lens."""
    train = TextSet("passages", "train", smollm_texts("train"))
    mapping = LayerMapping.to_last(smollm, fit_affine_maps(smollm, train, [4, 16], n_positions=3000))
    texts = smollm_texts("evaluation")
    states = extract_representations(smollm, texts, [-1] * len(texts), [4, 16, 29])
    own = logit_lens(smollm, states[:, 2]).argmax(dim=-1)
    for slot, layer in enumerate((4, 16)):
        layers = torch.full((len(texts),), layer)
        tuned = AffineLens(smollm, mapping)(states[:, slot], layers)
        plain = LogitLens(smollm)(states[:, slot], layers)
        assert ((tuned.argmax(dim=-1) == own).sum() > (plain.argmax(dim=-1) == own).sum() + 3).item()
        twin = source_patchscope(smollm, texts[0], -1, mapping, engine="hooks")
        torch.testing.assert_close(twin(states[:1, slot], layers[:1]), tuned[:1], atol=1e-4, rtol=0)


def smollm_texts(split) -> tuple[str, ...]:
    texts = load_texts(split=split).texts
    return texts[:30] if split == "train" else tuple(" ".join(text.split()[:12]) for text in texts[:60])
