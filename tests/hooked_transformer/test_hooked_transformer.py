"""A HookedTransformer: what the library reads and writes in it is what the model's own hooks read and write."""

from types import SimpleNamespace

import pytest
import torch
from conftest import CONTEXT, make_hf_model
from transformer_lens import HookedTransformer, HookedTransformerConfig

from patchscopes import LogitLens, Patchscope, PatchscopeLens, logit_lens
from patchscopes.data.texts import TextSet
from patchscopes.errors import PatchscopesError
from patchscopes.learned.future_lens import train_soft_prompt
from patchscopes.model.environment import describe_environment
from patchscopes.model.layers import EMBEDDING, get_hook_name
from patchscopes.model.loading import load_model
from patchscopes.patch import (
    Cut,
    Row,
    TargetPrompt,
    Write,
    extract_representations,
    generate_rows,
    patch_generate,
    patch_logits,
    patch_rows,
    placeholder_target,
)
from patchscopes.prompts import build_token_identity_prompt

# TransformerLens tells users to move on; the library has nothing to say.
pytestmark = [
    pytest.mark.filterwarnings("error::patchscopes.errors.PatchscopesWarning"),
    pytest.mark.filterwarnings("ignore:HookedTransformer:DeprecationWarning"),
]

SOURCE = "Amazon's former CEO attended Oscars"
# Norms before each block, folded into the weights, or none; positions of each kind; a cap on the logits.
KINDS = {
    "gpt": {"normalization_type": "LN", "positional_embedding_type": "standard", "act_fn": "gelu"},
    "llama": {
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
        "act_fn": "silu",
        "gated_mlp": True,
        "final_rms": True,
    },
    "soft caps": {
        "normalization_type": "RMSPre",
        "positional_embedding_type": "alibi",
        "act_fn": "relu",
        "output_logits_soft_cap": 2.0,
        "attn_scores_soft_cap": 3.0,
    },
    "no norm": {"normalization_type": None, "positional_embedding_type": "shortformer", "attn_only": True},
}
# By which TransformerLens knows the families of conftest.
OFFICIAL_NAMES = {
    "gpt2": "gpt2",
    "gpt_neox": "EleutherAI/pythia-70m",
    "mistral": "mistralai/Mistral-7B-v0.1",
    "qwen3": "Qwen/Qwen3-0.6B",
}
FOLDING = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")


def make_model(tokenizer=None, **options) -> HookedTransformer:
    sizes = {"n_layers": 3, "d_model": 32, "n_ctx": 256, "d_head": 8, "n_heads": 4, "d_mlp": 64, "d_vocab": 300}
    return HookedTransformer(HookedTransformerConfig(**sizes, **options, seed=0, device="cpu"), tokenizer=tokenizer)


def from_pretrained(tokenizer, family: str, **options) -> HookedTransformer:
    """As notebooks have it, with a tiny model that stands for the one of the hub."""
    hf_model = make_hf_model(family)
    # What the file on the hub has besides.
    hf_model.config.architectures, hf_model.config.n_ctx = [type(hf_model).__name__], CONTEXT
    with pytest.MonkeyPatch.context() as patch:
        hub = SimpleNamespace(from_pretrained=lambda *args, **kwargs: hf_model.config)
        patch.setattr("transformer_lens.loading_from_pretrained.AutoConfig", hub)
        return HookedTransformer.from_pretrained(
            OFFICIAL_NAMES[family], hf_model=hf_model, tokenizer=tokenizer, device="cpu", **options
        )


@pytest.fixture(scope="module", params=[*KINDS, "from_pretrained"])
def model(request, tokenizer):
    if request.param == "from_pretrained":
        return from_pretrained(tokenizer, "gpt2")
    return make_model(tokenizer, **KINDS[request.param])


def write_with_own_hooks(model, tokens, position, vector, layer):
    """The last token's logits, with a vector written by a hook that the user gives the model."""

    def write(residual, hook):
        residual[:, position] = vector
        return residual

    return model.run_with_hooks(tokens, fwd_hooks=[(get_hook_name(layer), write)])[:, -1]


@torch.no_grad()
def test_extraction_is_the_models_own_cache(model):
    tokens = model.to_tokens(SOURCE)
    _, cache = model.run_with_cache(tokens)
    layers = [EMBEDDING, *range(model.cfg.n_layers)]
    read = extract_representations(model, [SOURCE], [-1], layers)[0]
    for layer, state in zip(layers, read, strict=True):
        assert torch.equal(state, cache[get_hook_name(layer)][0, -1])
    # Texts of other lengths beside it, and positions within.
    texts = ["a", SOURCE, "some more words than these"]
    together = extract_representations(model, [*texts, SOURCE], [0, -1, 3, 5], layers)
    torch.testing.assert_close(together[1], read)
    torch.testing.assert_close(together[3], torch.stack([cache[get_hook_name(layer)][0, 5] for layer in layers]))
    assert not any(point.has_hooks() for point in model.hook_dict.values())


@torch.no_grad()
def test_patched_logits_are_those_of_the_models_own_hooks(model):
    target = placeholder_target(model, build_token_identity_prompt())
    layers = [EMBEDDING, *range(model.cfg.n_layers)]
    vectors = extract_representations(model, [SOURCE], [-1], layers)[0]
    expected = [
        write_with_own_hooks(model, target.tokens[None], target.position, vector, layer)
        for vector, layer in zip(vectors, layers, strict=True)
    ]
    assert torch.equal(patch_logits(target, vectors, layers, batch_size=1), torch.cat(expected))
    torch.testing.assert_close(patch_logits(target, vectors, layers), torch.cat(expected))
    with pytest.raises(PatchscopesError, match="the fast engine cannot run this HookedTransformer"):
        patch_logits(target, vectors, layers, engine="fast")


@torch.no_grad()
def test_generation_is_greedy_with_the_models_own_hooks(model):
    target = TargetPrompt(model, "hello? -> ", 5)
    layers = [EMBEDDING, model.cfg.n_layers - 1]
    vectors = extract_representations(model, [SOURCE], [-1], layers)[0]
    said = patch_generate(target, vectors, layers, max_new_tokens=6, batch_size=1)
    for row, (vector, layer) in enumerate(zip(vectors, layers, strict=True)):
        tokens = target.tokens[None]
        for _ in range(6):
            logits = write_with_own_hooks(model, tokens, target.position, vector, layer)
            tokens = torch.cat([tokens, logits.argmax(dim=-1, keepdim=True)], dim=1)
        new = tokens[0, len(target.tokens) :].tolist()
        end = new.index(model.tokenizer.eos_token_id) if model.tokenizer.eos_token_id in new else len(new)
        assert said[row, :end].tolist() == new[:end]


@torch.no_grad()
def test_the_logit_lens_of_the_last_layer_is_the_models_prediction(model):
    last = model.cfg.n_layers - 1
    states = extract_representations(model, [SOURCE], [-1], [0, last])[0]
    layers = torch.tensor([0, last])
    read = LogitLens(model)(states, layers)
    torch.testing.assert_close(read[1], model(model.to_tokens(SOURCE))[0, -1])
    assert not torch.allclose(read[0], read[1])
    identity = PatchscopeLens(placeholder_target(model, build_token_identity_prompt()))
    assert identity(states, layers).shape == read.shape


def test_the_notebook_example(model):
    patchscope = Patchscope(
        model=model,
        source_prompt=SOURCE,
        source_position="CEO",
        source_layers=[0, 1, 2],
        target_prompt=build_token_identity_prompt(),
        target_position="?",
    )
    assert [type(words) for words in patchscope.generate(5)] == [str] * 3
    assert patchscope.logits().shape == (3, 300)
    assert not patchscope.logits().requires_grad
    assert [len(tokens) for tokens in patchscope.top_k(3)] == [3] * 3
    assert "'O'" in repr(patchscope)
    assert "<table>" in patchscope._repr_html_()
    assert describe_environment(model)["model"]["id"] == model.cfg.model_name


def test_hooks_of_the_user_fire(tokenizer):
    model = make_model(tokenizer, **KINDS["gpt"])
    target, vectors = TargetPrompt(model, "hello"), torch.randn(2, 32)
    clean = patch_logits(target, vectors, [0, 0])
    model.add_hook("blocks.1.hook_mlp_out", lambda value, hook: torch.zeros_like(value))
    assert not torch.allclose(patch_logits(target, vectors, [0, 0]), clean)
    model.reset_hooks()
    assert torch.equal(patch_logits(target, vectors, [0, 0]), clean)


@torch.no_grad()
def test_rows_write_into_sublayers_and_cut_edges(tokenizer):
    model = make_model(tokenizer, **KINDS["gpt"])
    target, vector = TargetPrompt(model, "hello there", 2), torch.randn(32)
    last = len(target.tokens) - 1
    row = Row(
        target=target,
        writes=(Write(position=2, layer=1, vector=vector, site="mlp_out"),),
        cuts=(Cut(query=last, keys=(0, 1), layers=(0, 1, 2)),),
    )

    def write(added, hook):
        added[:, 2] = vector
        return added

    def cut(scores, hook):
        scores[:, :, last, :2] = -torch.inf
        return scores

    own = [("blocks.1.hook_mlp_out", write)] + [(f"blocks.{layer}.attn.hook_attn_scores", cut) for layer in range(3)]
    expected = model.run_with_hooks(target.tokens[None], fwd_hooks=own)[:, -1]
    assert torch.equal(patch_rows([row]), expected)
    assert generate_rows([row], max_new_tokens=3).shape == (1, 3)


@pytest.mark.parametrize("family", OFFICIAL_NAMES)
def test_folded_weights_or_raw_ones(tokenizer, family):
    """Representations of a model whose weights are folded are others; its predictions are not."""
    texts, positions = ["hello there", SOURCE], [-1, -1]
    read = []
    for folding in ({}, dict.fromkeys(FOLDING, False)):
        model = from_pretrained(tokenizer, family, **folding)
        states = extract_representations(model, texts, positions, [model.cfg.n_layers - 1])[:, 0]
        read.append(logit_lens(model, states).log_softmax(dim=-1))
    torch.testing.assert_close(read[0], read[1], atol=1e-4, rtol=0)


class TestWithoutTokenizer:
    """Toy models are made of numbers alone."""

    def test_token_ids_do(self):
        model = make_model(**KINDS["gpt"])
        patchscope = Patchscope(model=model, source_prompt=[5, 17, 3], target_prompt=[1, 2, 9, 4], target_position=2)
        assert patchscope.logits().shape == (3, 300)
        assert " 17" in repr(patchscope)
        assert patch_generate(patchscope.target, patchscope.vectors, [0, 1, 2], max_new_tokens=4).shape == (3, 4)
        assert all(row[0].token.strip().isdecimal() for row in patchscope.top_k(1))

    def test_what_wants_text_says_so(self):
        model = make_model(**KINDS["gpt"])
        with pytest.raises(PatchscopesError, match="no tokenizer: give token ids"):
            extract_representations(model, ["text"], [0])
        with pytest.raises(PatchscopesError, match="no tokenizer"):
            Patchscope(model=model, source_prompt=[5, 17, 3]).generate(2)


def test_what_needs_the_fast_engine_says_so(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))
    texts = TextSet("made up", "train", tuple(f"{number} dogs and cats" for number in range(4)))
    with pytest.raises(
        PatchscopesError, match="trained with the fast engine, and .* cannot run this HookedTransformer"
    ):
        train_soft_prompt(make_model(tokenizer, **KINDS["gpt"]), texts, [0, 1])


def test_it_and_a_bridge_explain_each_other(tokenizer):
    hooked, bridge = (
        make_model(tokenizer, **KINDS["llama"]),
        load_model(hf_model=make_hf_model("gpt2"), tokenizer=tokenizer),
    )
    for model, target_model in ((hooked, bridge), (bridge, hooked)):
        patchscope = Patchscope(
            model=model,
            source_prompt=SOURCE,
            source_layers=[0, 2],
            target_model=target_model,
            target_prompt="cat -> cat; ?",
            target_position="?",
        )
        assert [type(words) for words in patchscope.generate(3)] == [str] * 2
