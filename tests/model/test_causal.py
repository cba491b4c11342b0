"""Models that are no causal decoders are refused when they are loaded."""

import pytest
import torch
import transformers
from conftest import GPT_SIZES, SIZES, make_hf_model

from patchscopes.errors import PatchscopesError
from patchscopes.model.loading import load_model

BERT = SIZES | {"max_position_embeddings": 64}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 300}
IMAGES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transformers.BertForMaskedLM(transformers.BertConfig(**BERT)), "lets tokens see those after them"),
        (lambda: transformers.BertLMHeadModel(transformers.BertConfig(**BERT)), "lets tokens see those after them"),
        (lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**BERT)), "lets tokens see those after"),
        (
            lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, decoder_start_token_id=0)),
            "is an encoder–decoder",
        ),
        (lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGES)), "reads no text"),
        (lambda: transformers.GPT2Model(transformers.GPT2Config(**GPT_SIZES)), "with its language-modelling head"),
        (
            lambda: transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**GPT_SIZES)),
            "with its language-modelling head",
        ),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_others_are_refused_in_one_sentence(tokenizer, make, message, dtype):
    with pytest.raises(PatchscopesError, match=message) as error:
        load_model(hf_model=make(), tokenizer=tokenizer, dtype=dtype)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_so_are_their_folders(tokenizer, tmp_path, kind):
    models = {
        "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**BERT)),
        "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, decoder_start_token_id=0)),
    }
    models[kind]().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(PatchscopesError, match="is no causal decoder"):
        load_model(str(tmp_path))


def test_a_bert_that_is_a_decoder_is_one(tokenizer):
    config = transformers.BertConfig(**BERT, is_decoder=True)
    assert load_model(hf_model=transformers.BertLMHeadModel(config).eval(), tokenizer=tokenizer).cfg.n_layers == 4


def test_so_does_one_with_a_context_of_one_token(tokenizer):
    hf_model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT_SIZES | {"n_positions": 1}))
    load_model(hf_model=hf_model, tokenizer=tokenizer)


def test_what_is_no_model_of_hugging_face():
    with pytest.raises(PatchscopesError, match="got a Linear"):
        load_model(hf_model=torch.nn.Linear(2, 2))


def test_an_overflow_is_another_matter(tokenizer):
    hf_model = make_hf_model("llama").half()
    hf_model.get_submodule("model.layers.0.mlp.down_proj").weight.data.mul_(60000)
    load_model(hf_model=hf_model, tokenizer=tokenizer)
