"""One state of one model, read by a second one: what comes next at each pair (ℓ, ℓ*), and what the state stands for.

The state of one token of S in M goes through f into M*, over the placeholder of one of two prompts: the token-identity
prompt, or the Simplescope, which is the placeholder alone. What M* then finds most likely is compared with what M
itself predicts, as in the experiment over many samples (`cross_model`). The controls: M* after the same prompt
unpatched, M* that reads S itself, and M that reads its own states (ℓ* = ℓ).
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.alignment import Vocabularies, align_positions
from patchscopes.data.entities import cut_description
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt, find_target_position
from patchscopes.engine.unembedding import logit_lens
from patchscopes.engine.unpatched import generate_after
from patchscopes.experiments.checks import check_methods
from patchscopes.experiments.chunks import Progress
from patchscopes.experiments.config import CrossModelConfig
from patchscopes.experiments.cross_model_prediction import compare_predictions
from patchscopes.experiments.entity import build_description_target, generate_from_vectors
from patchscopes.experiments.model_pair import ModelPair, pair_models
from patchscopes.learned.mappings import AffineMap, MapKey
from patchscopes.model.layers import EMBEDDING
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import patch_logits
from patchscopes.prompts import NEXT_TOKEN_PROMPTS, PLACEHOLDER, Chat
from patchscopes.results import Json
from patchscopes.tokens import decode_each_token, resolve_position, to_token_ids


def run(
    source: LensModel,
    target: LensModel,
    source_prompt: str,
    source_position: int,
    config: CrossModelConfig,
    *,
    prompts: Sequence[str] = tuple(NEXT_TOKEN_PROMPTS),
    maps: Mapping[MapKey, AffineMap] | None = None,
    vocabularies: Vocabularies | None = None,
    progress: Progress = iter,
) -> Json:
    """The `results` of the result file: for each target prompt tables [ℓ][ℓ*] of what M* says, how likely it finds
    that, whether M says the same, and M's surprisal at it; the same for each control, over ℓ or once.

    Args:
        source_prompt, source_position: S, and i counted from either end.
        config: its layers, f and form of the prompts count here.
        prompts: which of `NEXT_TOKEN_PROMPTS` M* reads.
        maps: f for each pair, if it is affine.
        vocabularies: `Vocabularies.of(source, target)`, made anew unless given.
        progress: wraps the iteration over what is read, `tqdm` for instance.

    Raises:
        PatchscopesError: a prompt, layer or position does not exist, or f does not fit the models.
    """
    check_methods(prompts, tuple(NEXT_TOKEN_PROMPTS))
    pair, tokens, position = _pair_and_locate(source, target, source_prompt, source_position, config, maps)
    vocabularies = vocabularies or Vocabularies.of(source, target)
    states = extract_representations(source, [tokens], [position], [*pair.layers, source.cfg.n_layers - 1])
    final_logits = logit_lens(source, states[:, -1])
    states = states[:, :-1]
    vectors = pair.map_representations(states, pair.grid)[0]
    # The state of M, read by M itself.
    itself = ModelPair(source, source, pair.layers, pair.layers, None)
    own_vocabulary = Vocabularies.of(source, source)

    def read(prompt: TargetPrompt, vectors: Tensor, layers: Sequence[int], shape: tuple[int, ...]) -> Json:
        of, words = (pair, vocabularies) if prompt.model is target else (itself, own_vocabulary)
        logits = patch_logits(prompt, vectors, layers, batch_size=config.batch_size)
        return _describe(of, logits, final_logits, words, shape)

    def read_unpatched(prompt: TargetPrompt) -> Json:
        # An embedding that is written over itself changes nothing.
        own = extract_representations(prompt.model, [prompt.tokens], [prompt.position], [EMBEDDING])[0]
        return read(prompt, own, [EMBEDDING], ())

    methods: Json = {}
    grid = (len(pair.layers), len(pair.target_layers))
    for method in progress([*prompts, "same_model", CrossModelConfig.TARGET_MODEL_ALONE]):
        if method in prompts:
            prompt = _find_placeholder(target, config.chat.of_target(NEXT_TOKEN_PROMPTS[method]))
            methods[method] = read(prompt, vectors, [layer for _, layer in pair.grid], grid)
            methods[f"{method}_unpatched"] = read_unpatched(prompt)
        elif method == "same_model":
            prompt = _find_placeholder(source, config.chat.of_target(NEXT_TOKEN_PROMPTS["token_identity"]))
            methods[method] = read(prompt, states[0], pair.layers, (len(pair.layers),))
        else:
            seen = _find_in_target(source, target, source_prompt, position, config)
            methods[method] = None if seen is None else read_unpatched(TargetPrompt(target, seen, -1))
    likeliest = torch.softmax(final_logits[0].float(), dim=-1).max(dim=-1)
    return {
        "layers": pair.layers,
        "target_layers": pair.target_layers,
        "pairs": pair.diagonal,
        "n_samples": 1,
        "source_tokens": decode_each_token(source, tokens),
        "source_position": position,
        "next_token": decode_each_token(source, [int(likeliest.indices)])[0],
        "next_token_probability": float(likeliest.values),
        "methods": methods,
    }


def describe(
    source: LensModel,
    target: LensModel,
    source_prompt: str,
    source_position: int,
    config: CrossModelConfig,
    *,
    maps: Mapping[MapKey, AffineMap] | None = None,
    progress: Progress = iter,
) -> Json:
    """What the state stands for, in the words of both models: the `results` with texts over ℓ of M* (`cross_model`, at
    the ℓ* of the same relative depth), of M (`same_model`, ℓ* = ℓ), and of M* unpatched.

    Args and errors: as for `run`.
    """
    pair, tokens, position = _pair_and_locate(source, target, source_prompt, source_position, config, maps)
    states = extract_representations(source, [tokens], [position], pair.layers)
    readers = {
        "cross_model": (target, pair.map_representations(states, pair.diagonal), [layer for _, layer in pair.diagonal]),
        "same_model": (source, states, pair.layers),
    }
    methods: Json = {}
    for method, (model, vectors, layers) in progress(list(readers.items())):
        prompt = build_description_target(model, config.entity)
        (said,) = generate_from_vectors(prompt, vectors, layers, config.entity)
        methods[method] = {
            "generation": said,
            "description": [cut_description(text, config.entity.separator) for text in said],
        }
    prompt = build_description_target(target, config.entity)
    unpatched = generate_after(target, [prompt.tokens], max_new_tokens=config.entity.max_new_tokens)
    (said,) = target.tokenizer.batch_decode(unpatched, skip_special_tokens=True)
    methods["unpatched_target_model"] = {
        "generation": said,
        "description": cut_description(said, config.entity.separator),
    }
    return {
        "layers": pair.layers,
        "target_layers": [layer for _, layer in pair.diagonal],
        "n_samples": 1,
        "source_tokens": decode_each_token(source, tokens),
        "source_position": position,
        "methods": methods,
    }


def _pair_and_locate(
    source: LensModel,
    target: LensModel,
    source_prompt: str,
    source_position: int,
    config: CrossModelConfig,
    maps: Mapping[MapKey, AffineMap] | None,
) -> tuple[ModelPair, Int[Tensor, " pos"], int]:
    """Both models with f, the tokens of S in M, and i counted from the start."""
    tokens = to_token_ids(source, config.chat.of_source(source_prompt))
    return pair_models(source, target, config, maps), tokens, resolve_position(len(tokens), source_position)


def _find_placeholder(model: LensModel, prompt: str | Chat) -> TargetPrompt:
    """T with i* at its placeholder. A space in front of that may be a token too: some tokenizers put one there."""
    return TargetPrompt(model, prompt, find_target_position(model, prompt, PLACEHOLDER))


def _find_in_target(
    source: LensModel, target: LensModel, source_prompt: str, position: int, config: CrossModelConfig
) -> Int[Tensor, " pos"] | None:
    """The tokens of M* that have read the same part of S as M at i; None where no token of M* ends there."""
    forms = config.chat.of_source(source_prompt), config.chat.of_target(source_prompt)
    seen = dict(align_positions(source, target, *forms)).get(position)
    return None if seen is None else to_token_ids(target, forms[1])[: seen + 1]


def _describe(
    pair: ModelPair,
    logits: Float[Tensor, "row d_target_vocab"],
    final_logits: Float[Tensor, "1 d_vocab"],
    vocabularies: Vocabularies,
    shape: tuple[int, ...],
) -> Json:
    """What each row says, how likely it is, and how it compares with what M predicts, as tables of `shape`."""
    likely, tokens = torch.softmax(logits.float(), dim=-1).max(dim=-1)
    compared = compare_predictions(pair, tokens[None], final_logits, vocabularies, shape)
    texts: Json = decode_each_token(pair.target, tokens)
    for size in shape[:0:-1]:
        texts = [texts[start : start + size] for start in range(0, len(texts), size)]
    return {
        "token": texts if shape else texts[0],
        "probability": likely.reshape(shape).tolist(),
        **{metric: compared[metric][0] for metric in ("precision_at_1", "surprisal")},
    }
