"""A tiny model that knows a relation and in which what it knows is linear: the LRE of it is known beforehand."""

from typing import NamedTuple

import torch
import transformers
from conftest import CONFIGS

from patchscopes.data.relations import Relation, RelationSample
from patchscopes.engine.extract import extract_representations
from patchscopes.errors import PatchscopesError
from patchscopes.learned.lre import build_lre_prompt
from patchscopes.model.loading import load_model
from patchscopes.positions import find_first_tokens, verify_single_token

# The one block with attention; the others pass the residual on.
ATTENDING = 2


class LinearModel(NamedTuple):
    """The model, a relation that it knows, and how o depends on s below block `ATTENDING`; above, it does not."""

    model: object
    relation: Relation
    weight: torch.Tensor


def make_linear_model(tokenizer, n_samples: int = 8) -> LinearModel:
    """Norms do nothing, and one block averages the values of the last four tokens (a window): subject, cue, two more.

    The unembedding gives each subject's object a logit of 10 after it, and all others 0.
    """
    config = CONFIGS["mistral"]()
    config.vocab_size, config.tie_word_embeddings = 1024, False
    # So much is added to the mean square that what is divided by does not depend on it.
    config.rms_norm_eps = 1e12
    torch.manual_seed(0)
    hf_model = transformers.AutoModelForCausalLM.from_config(config).eval()
    zeroed = ("mlp", "q_proj", "o_proj", "lm_head")
    for name, parameter in hf_model.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1e6)
        elif any(part in name for part in zeroed) and f"layers.{ATTENDING}.self_attn.o_proj" not in name:
            parameter.data.zero_()
        else:
            parameter.data.mul_(20)
    attention = hf_model.model.layers[ATTENDING].self_attn
    # Two heads share the values of one.
    values = attention.v_proj.weight.data.view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32)
    weight = attention.o_proj.weight.data @ values / 4

    model = load_model(hf_model=hf_model, tokenizer=tokenizer)
    words = choose_words(model, 2 * n_samples)
    subjects, objects = words[:n_samples], words[n_samples:]
    pairs = zip(subjects, objects, strict=True)
    samples = tuple(RelationSample(subject=subject, object=of_subject) for subject, of_subject in pairs)
    relation = Relation(name="made up", prompt="and the name of {}", samples=samples)
    prompts = [build_lre_prompt(relation, [], subject) for subject in subjects]
    outputs = extract_representations(model, prompts, [-1] * n_samples, [3])[:, 0]
    tokens = [verify_single_token(model, f" {word}") for word in objects]
    hf_model.lm_head.weight.data[tokens] = 10 * torch.linalg.pinv(outputs).T
    return LinearModel(model, relation, weight)


def choose_words(model, n_words: int) -> list[str]:
    """Words of one token each that, also in upper case, begin with tokens of their own."""
    words: list[str] = []
    taken: set[int] = set()
    for token in range(model.cfg.d_vocab):
        word = model.tokenizer.decode([token]).strip()
        if len(word) < 2 or not word.isalpha():
            continue
        try:
            verify_single_token(model, f" {word}")
        except PatchscopesError:
            continue
        first = set(find_first_tokens(model, [word]).tolist())
        if not first & taken:
            taken |= first
            words.append(word)
    assert len(words) >= n_words
    return words[:n_words]
