"""Figure 1: what one representation says at each layer, through the token-identity Patchscope.

The representation of one token of a source prompt is written, layer by layer, over the placeholder of the
token-identity prompt; the most likely next tokens and a short generation show how its meaning is resolved.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import placeholder_target
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.checks import resolve_layers
from patchscopes.experiments.config import LayerReadoutConfig
from patchscopes.model.layers import resolve_target_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import patch_generate, patch_logits
from patchscopes.positions import find_substring_token_position
from patchscopes.results import Json
from patchscopes.tokens import decode_each_token, to_token_ids


def run(model: LensModel, config: LayerReadoutConfig) -> Json:
    """The `results` of the result file: per layer, tokens with their probabilities and what was generated.

    Raises:
        PatchscopesError: word, placeholder or layer does not exist.
    """
    if config.k > model.cfg.d_vocab:
        raise PatchscopesError(f"the model has {model.cfg.d_vocab} tokens, {config.k} most likely ones were asked for")
    layers = resolve_layers(model, config.layers)
    position = find_substring_token_position(model, config.source_prompt, config.source_word)
    vectors = extract_representations(model, [config.source_prompt], [position], layers)[0]
    target = placeholder_target(model, config.target_prompt, config.placeholder)
    target_layers = resolve_target_layers(model, layers, config.target_layer)

    results: Json = {
        "layers": layers,
        "n_samples": 1,
        "source_tokens": decode_each_token(model, to_token_ids(model, config.source_prompt)),
        "source_position": position,
        "target_tokens": decode_each_token(model, target.tokens),
        "target_position": target.position,
        "target_layers": target_layers,
        "methods": {"token_identity": {}},
    }
    readout = results["methods"]["token_identity"]
    if config.mode in ("top_k", "both"):
        logits = patch_logits(target, vectors, target_layers, batch_size=config.batch_size)
        readout["top_k"] = _list_most_likely(model, logits, config.k)
    if config.mode in ("generate", "both"):
        generated = patch_generate(
            target, vectors, target_layers, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size
        )
        readout["generations"] = model.tokenizer.batch_decode(generated, skip_special_tokens=True)
    return results


def _list_most_likely(model: LensModel, logits: Float[Tensor, "row d_vocab"], k: int) -> list[list[Json]]:
    """The k most likely tokens of each row, with their probabilities."""
    top = torch.softmax(logits.float(), dim=-1).topk(k, dim=-1)
    return [
        [
            {"token": token, "probability": probability}
            for token, probability in zip(decode_each_token(model, ids), probabilities.tolist(), strict=True)
        ]
        for ids, probabilities in zip(top.indices, top.values, strict=True)
    ]
