"""Fixtures: tiny random models of many families, a tokenizer made on the spot, and the embedded real model."""

import os

# No test may reach for the hub: what is not local fails at once instead of after retries.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tests that run side by side, and the scripts that they start, have a core each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

from jaxtyping import install_import_hook

# Every shape in a signature of the package is checked while the tests run.
install_import_hook("patchscopes", "typechecking.check_types")

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from typechecking import CheckedOnce

from patchscopes.model.lens_model import LensModel
from patchscopes.model.loading import load_model

LensModel.__class__ = CheckedOnce

# Of TransformerLens 3; `make test-hooked-transformer` has it.
collect_ignore = [] if find_spec("transformer_lens.HookedTransformer") else ["hooked_transformer"]

pytest_plugins = ["tutorial_app"]

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

# How long one example takes tells more about the machine than about the code.
settings.register_profile("patchscopes", deadline=None)
settings.load_profile("patchscopes")

VOCABULARY = 300
CONTEXT = 512

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCABULARY,
}
GPT_SIZES = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": CONTEXT, "vocab_size": VOCABULARY}

# Sliding windows are shorter than the test prompts, so that they matter.
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(**GPT_SIZES),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SIZES),
    "gptj": lambda: transformers.GPTJConfig(**GPT_SIZES, rotary_dim=4),
    "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=2),
    "mistral": lambda: transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "gemma2": lambda: transformers.Gemma2Config(
        **SIZES,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SIZES,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "phi3": lambda: transformers.Phi3Config(**SIZES, num_key_value_heads=2, pad_token_id=0),
    "opt": lambda: transformers.OPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        ffn_dim=64,
        word_embed_proj_dim=32,
        max_position_embeddings=CONTEXT,
        vocab_size=VOCABULARY,
    ),
    "bloom": lambda: transformers.BloomConfig(hidden_size=32, n_layer=4, n_head=4, vocab_size=VOCABULARY),
    "mixtral": lambda: transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=3),
    "cohere": lambda: transformers.CohereConfig(**SIZES, num_key_value_heads=2, logit_scale=0.3),
    "granite": lambda: transformers.GraniteConfig(**SIZES, num_key_value_heads=2, logits_scaling=4.0),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **SIZES, num_key_value_heads=2, head_dim=8, sliding_window=4, num_local_experts=3, num_experts_per_tok=2
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **SIZES,
        num_key_value_heads=4,
        moe_intermediate_size=16,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=12,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=6,
    ),
    "mpt": lambda: transformers.MptConfig(
        d_model=32, n_heads=4, n_layers=4, max_seq_len=CONTEXT, vocab_size=VOCABULARY
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SIZES, num_key_value_heads=2, head_dim=8, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2
    ),
    "olmoe": lambda: transformers.OlmoeConfig(**SIZES, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2),
    # Chunks of attention are shorter than the test prompts, and one layer in two has rotary positions.
    "llama4": lambda: transformers.Llama4TextConfig(
        **SIZES,
        intermediate_size_mlp=64,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=3,
        attention_chunk_size=4,
        no_rope_layer_interval=2,
        pad_token_id=0,
    ),
    "falcon": lambda: transformers.FalconConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, vocab_size=VOCABULARY
    ),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        hidden_size=32,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=4,
        max_position_embeddings=CONTEXT,
        vocab_size=VOCABULARY,
    ),
    "phi": lambda: transformers.PhiConfig(**SIZES, partial_rotary_factor=0.5),
    "stablelm": lambda: transformers.StableLmConfig(**SIZES, num_key_value_heads=2),
    "olmo2": lambda: transformers.Olmo2Config(**SIZES, num_key_value_heads=2),
    "smollm3": lambda: transformers.SmolLM3Config(**SIZES, num_key_value_heads=2, pad_token_id=0),
}
FAMILIES = tuple(CONFIGS)
# Of each kind of attention, position, block and output one: for properties that need not be tried on all.
KINDS = (
    "gpt2",
    "gptj",
    "llama",
    "gemma2",
    "gemma3",
    "bloom",
    "mixtral",
    "cohere",
    "gpt_oss",
    "deepseek_v3",
    "mpt",
    "llama4",
)


def make_hf_model(family: str, seed: int = 0) -> transformers.PreTrainedModel:
    """A tiny model with random weights, large enough that every block changes its output."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(6)
    return model


SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}


def sentencepiece_like() -> Tokenizer:
    """As Llama 2's: spaces as ▁, one put in front, unknown characters as bytes, BOS added by the tokenizer."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    tokenizer.train([str(ROOT / "data" / "passages.jsonl")], trainer)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    return tokenizer


def byte_level() -> Tokenizer:
    """As GPT-2's: merges over bytes, leading spaces inside the tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(ROOT / "data" / "passages.jsonl")], trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer: one token per byte, and BOS and EOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=bytes_only, **SPECIAL).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def model_folder(tokenizer, tmp_path_factory):
    """A tiny Llama, saved with its tokenizer; nobody changes it."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    make_hf_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def models_by_tokenizer(tmp_path_factory):
    """Tiny models that cut text into different tokens; they also differ in family, width and depth."""
    made = {}
    for tokenize, config in ((byte_level, CONFIGS["llama"]()), (sentencepiece_like, CONFIGS["gpt2"]())):
        folder = tmp_path_factory.mktemp(tokenize.__name__)
        PreTrainedTokenizerFast(tokenizer_object=tokenize(), **SPECIAL).save_pretrained(folder)
        config.vocab_size = 1024
        if tokenize is sentencepiece_like:
            config.n_embd, config.n_layer = 24, 3
        torch.manual_seed(0)
        hf_model = transformers.AutoModelForCausalLM.from_config(config).eval()
        made[tokenize.__name__] = load_model(hf_model=hf_model, tokenizer=AutoTokenizer.from_pretrained(folder))
    return made


@pytest.fixture(scope="session")
def tiny_models(tokenizer):
    """Bridges by family, each made on first use."""
    made = {}

    def get(family: str):
        if family not in made:
            made[family] = load_model(hf_model=make_hf_model(family), tokenizer=tokenizer)
        return made[family]

    return get


@pytest.fixture(scope="session")
def llama(tiny_models):
    return tiny_models("llama")


@pytest.fixture(scope="session")
def smollm():
    """The embedded real model."""
    return load_model()
