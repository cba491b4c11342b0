"""Figure 1: what one representation says at each layer, through the token-identity Patchscope.

The representation of one token of a source prompt is written, layer by layer, over the placeholder of the
token-identity prompt; the most likely next tokens and a short generation show how its meaning is resolved.
"""

from patchscopes.engine.hooks import extract_replaced
from patchscopes.engine.target import TargetPrompt
from patchscopes.experiments.chunks import Progress
from patchscopes.experiments.config import LayerReadoutConfig, Mode
from patchscopes.likely_tokens import list_likely_tokens
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import patch_generate, patch_logits
from patchscopes.patchscope import Patchscope
from patchscopes.results import Json
from patchscopes.tokens import decode_each_token


def run(model: LensModel, config: LayerReadoutConfig) -> Json:
    """The `results` of the result file: per layer, tokens with their probabilities and what was generated.

    Raises:
        PatchscopesError: word, placeholder or layer does not exist.
    """
    patchscope = Patchscope(
        model=model,
        source_prompt=config.chat.of_source(config.source_prompt),
        source_position=config.source_word,
        source_layers=config.layers,
        target_prompt=config.chat.of_target(config.target_prompt),
        target_position=config.placeholder,
        target_layers=config.target_layer,
    )
    return read_layers(
        patchscope, config.mode, k=config.k, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size
    )


def read_layers(
    patchscope: Patchscope,
    mode: Mode = LayerReadoutConfig.mode,
    *,
    k: int = LayerReadoutConfig.k,
    max_new_tokens: int = LayerReadoutConfig.max_new_tokens,
    batch_size: int | None = None,
    unpatched: Json | None = None,
    progress: Progress = iter,
) -> Json:
    """The same of any Patchscope, whatever its f, M* and i*; and as `unpatched` what T alone says.

    Args:
        mode, k, max_new_tokens, batch_size: as the options of those names.
        unpatched: what `read_unpatched` has said already; it depends neither on layers nor on S and i.
        progress: wraps the iteration over new tokens.

    Raises:
        PatchscopesError: as `Patchscope.top_k` and `Patchscope.generate`.
    """
    source_tokens, source_position = patchscope.source
    readout: Json = {}
    if mode in ("top_k", "both"):
        readout["top_k"] = [
            [likely._asdict() for likely in of_layer] for of_layer in patchscope.top_k(k, batch_size=batch_size)
        ]
    if mode in ("generate", "both"):
        readout["generations"] = patchscope.generate(max_new_tokens, batch_size=batch_size, progress=progress)
    if unpatched is None:
        unpatched = read_unpatched(patchscope.target, mode, k=k, max_new_tokens=max_new_tokens)
    return {
        "layers": patchscope.resolved_source_layers,
        "n_samples": 1,
        "source_tokens": decode_each_token(patchscope.model, source_tokens),
        "source_position": source_position,
        "target_tokens": decode_each_token(patchscope.target.model, patchscope.target.tokens),
        "target_position": patchscope.target.position,
        "target_layers": patchscope.resolved_target_layers,
        "methods": {"token_identity": readout, "unpatched": unpatched},
    }


def read_unpatched(
    target: TargetPrompt,
    mode: Mode = LayerReadoutConfig.mode,
    *,
    k: int = LayerReadoutConfig.k,
    max_new_tokens: int = LayerReadoutConfig.max_new_tokens,
) -> Json:
    """What T alone says: the control. Args and errors: as for `read_layers`."""
    # A state that is written over itself changes nothing.
    last = [target.model.cfg.n_layers - 1]
    replaced = extract_replaced(target, last)
    unpatched: Json = {}
    if mode in ("top_k", "both"):
        (alone,) = list_likely_tokens(target.model, patch_logits(target, replaced, last), k)
        unpatched["top_k"] = [likely._asdict() for likely in alone]
    if mode in ("generate", "both"):
        tokens = patch_generate(target, replaced, last, max_new_tokens=max_new_tokens)
        (unpatched["generation"],) = target.model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return unpatched
