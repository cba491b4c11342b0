"""A GGUF file made on the spot: a tiny Qwen2 with a byte-level tokenizer."""

from pathlib import Path

import gguf
import torch
import transformers
from conftest import SIZES, byte_level

VOCABULARY = 900


def make_qwen2(seed: int = 0) -> transformers.PreTrainedModel:
    """A tiny Qwen2 with random weights."""
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        **SIZES | {"vocab_size": VOCABULARY}, num_key_value_heads=2, tie_word_embeddings=False, rope_theta=10000.0
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(6)
    return model


def write_gguf(path: Path, model: transformers.PreTrainedModel, quantised: bool = False, leave_out: str = "") -> None:
    """Write the model as llama.cpp's converter does; its matrices in 8 bits if they are to be quantised.

    Args:
        leave_out: part of the name of tensors that are not written.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    tokenizer = byte_level()
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary)
    kinds = [gguf.TokenType.CONTROL if token in ("<s>", "</s>") else gguf.TokenType.NORMAL for token in vocabulary]
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in read_merges(tokenizer)])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if leave_out and leave_out in name:
            continue
        values = tensor.float().numpy()
        kind = gguf.GGMLQuantizationType.Q8_0
        written = gguf.quants.quantize(values, kind) if quantised and values.ndim == 2 else values
        raw = kind if quantised and values.ndim == 2 else None
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), written, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_merges(tokenizer) -> list[list[str]]:
    """The merges of a tokenizer of the package tokenizers, as pairs."""
    import json

    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]


def round_to_8_bits(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """The model with the numbers that its matrices have once they were in 8 bits."""
    kind = gguf.GGMLQuantizationType.Q8_0
    for parameter in model.parameters():
        if parameter.ndim == 2:
            rounded = gguf.quants.dequantize(gguf.quants.quantize(parameter.detach().numpy(), kind), kind)
            parameter.data.copy_(torch.tensor(rounded))
    return model
