"""The prompts of the Future Lens (Pal et al. 2023): what does one hidden state say about the tokens that come later?

A representation is written over the last token of a prompt that has nothing to do with its source, at its own
layer, and the model goes on: a Patchscope with ℓ* = ℓ. The prompt is a fixed text, or learned vectors (a soft prompt)
that make the model say what it would have said after the source. The third form, the linear one, is `AffineLens` with
maps to later tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.data.texts import TextSet
from patchscopes.engine import fast
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.generation import Advance, LogitsInParts, concatenate_logits
from patchscopes.engine.proof import find_fast_engine_failure
from patchscopes.engine.target import TargetPrompt
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.learned.config import FIXED_PROMPT, N_TOKENS, N_TRAIN_SAMPLES, SOFT_PROMPT_TRAINING, TrainingConfig
from patchscopes.learned.continuation import Continued, read_with_continuation
from patchscopes.learned.files import get_cached_path, learn_once, load_tensors, save_tensors
from patchscopes.learned.provenance import Provenance, check_model, describe_provenance
from patchscopes.learned.training import kl_divergence, train
from patchscopes.learned.tuned_lens import draw_at_most, split_held_out
from patchscopes.model.layers import EMBEDDING, resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.model.offloading import check_gradients_fit
from patchscopes.positions import find_end
from patchscopes.tokens import Text, to_token_ids

N_HELD_OUT_SAMPLES = 96
_MODULES = ["learned/future_lens", "learned/tuned_lens", "learned/training", "learned/continuation"]
_MODULES += [
    f"engine/{name}"
    for name in (
        "target",
        "unembedding",
        "building",
        "twin",
        "clean_run",
        "fast",
        "decoding",
        "generation",
        "prefix",
    )
]


def build_fixed_prompt_target(model: LensModel, prompt: Text = FIXED_PROMPT) -> TargetPrompt:
    """The fixed prompt, with i* at its last token."""
    return TargetPrompt(model, prompt, find_end(model, prompt))


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """A learned prompt.

    Attributes:
        tokens: those of the text that it began as.
        vectors: what enters block 0 in place of what the tokens put there.
        provenance: what it was learned from.
    """

    tokens: Int[Tensor, " pos"]
    vectors: Float[Tensor, "pos d_model"]
    provenance: Provenance

    def target(self, model: LensModel) -> TargetPrompt:
        """The prompt with i* at its last token.

        Raises:
            PatchscopesError: it was learned on another model.
        """
        check_model(self.provenance.source_model, model)
        return TargetPrompt(model, self.tokens, -1, soft_prompt=self.vectors.to(model.cfg.device))

    def save(self, path: Path) -> None:
        """Write it with its provenance as safetensors, atomically."""
        save_tensors(path, {"tokens": self.tokens, "vectors": self.vectors}, self.provenance)

    @classmethod
    def load(cls, path: Path) -> "SoftPrompt":
        """Read what `save` wrote.

        Raises:
            PatchscopesError: no such file, or not a soft prompt.
        """
        tensors, made = load_tensors(path)
        if set(tensors) != {"tokens", "vectors"}:
            raise PatchscopesError(f"{path} holds no soft prompt; write one with scripts/train_lens.py")
        return cls(tensors["tokens"], tensors["vectors"], made)


def train_soft_prompt(
    model: LensModel,
    texts: TextSet,
    layers: Sequence[int] | None = None,
    config: TrainingConfig = SOFT_PROMPT_TRAINING,
    *,
    prompt: str = FIXED_PROMPT,
    n_samples: int = N_TRAIN_SAMPLES,
    fresh: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> SoftPrompt:
    """One prompt for the representations of all `layers`, from the cache folder if it was trained before.

    It begins as the text `prompt`; every vector but that of the first token (the BOS token, where there is one) is
    learned. The loss is the KL divergence of what the patched prompt predicts from what the model predicts after the
    source, averaged over tokens t+1 … t+3 of the model's own continuation, which both are given. One text in ten only
    measures it. An interrupted training goes on from its last measurement.

    Args:
        texts: of the train split.
        layers: all blocks unless given; one layer for a prompt of its own, as in the paper.
        n_samples: representations to draw the batches from, each at a random one of `layers`.
        fresh: train again, from the start.
        progress: wraps the iterations over texts and over steps, `tqdm` for instance.

    Returns:
        the prompt. The `options` of its provenance hold `held_out`: for each measurement the steps before it, and the
        KL in nats.

    Raises:
        PatchscopesError: texts of another split, fewer than two with a position, or a model that the fast engine
            cannot run.
    """
    layers = resolve_layers(model, layers)
    options = {"layers": layers, "prompt": prompt, "n_samples": n_samples, **asdict(config)}
    return learn_once(
        get_cached_path("soft-prompt", [model], texts, options, _MODULES),
        SoftPrompt.load,
        lambda checkpoint: _learn(model, texts, options, config, checkpoint, progress),
        lambda path, learned: learned.save(path),
        fresh=fresh,
    )


def _learn(
    model: LensModel,
    texts: TextSet,
    options: dict[str, Any],
    config: TrainingConfig,
    checkpoint: Path,
    progress: Callable[[Iterable[Any]], Iterable[Any]],
) -> SoftPrompt:
    """Train the prompt that its provenance describes with these options."""
    layers, tokens = options["layers"], to_token_ids(model, options["prompt"])
    check_gradients_fit(model)
    learning, held_out = split_held_out(model, texts, room=N_TOKENS - 1)
    failure = find_fast_engine_failure(TargetPrompt(model, tokens))
    if failure is not None:
        raise PatchscopesError(f"a soft prompt is trained with the fast engine, and on this model {failure}")
    beginning = extract_representations(model, [tokens] * len(tokens), list(range(len(tokens))), [EMBEDDING])[:, 0]
    first, rest = beginning[:1].float(), beginning[1:].float().clone().requires_grad_()

    def read(texts_read: Sequence[tuple[Tensor, str]], n: int) -> Continued:
        drawn = draw_at_most(texts_read, n, config.seed)
        return read_with_continuation(
            model,
            [texts_read[sample.text][0] for sample in drawn],
            [sample.position for sample in drawn],
            layers,
            N_TOKENS,
            progress=progress,
        )

    sources, unseen = read(learning, options["n_samples"]), read(held_out, N_HELD_OUT_SAMPLES)
    unseen_slots = np.random.default_rng(config.seed).integers(len(layers), size=len(unseen.tokens))

    def loss(source: Continued, samples: Int[np.ndarray, " row"], slots: Int[np.ndarray, " row"]) -> Tensor:
        target = TargetPrompt(model, tokens, -1, soft_prompt=torch.cat([first, rest]))
        return _loss(target, source, layers, samples, slots)

    def add_gradients(step: int) -> None:
        random = np.random.default_rng([config.seed, step])
        samples = random.integers(len(sources.tokens), size=config.batch_size)
        loss(sources, samples, random.integers(len(layers), size=config.batch_size)).backward()

    @torch.no_grad()
    def held_out_losses() -> list[float]:
        return [float(loss(unseen, np.arange(len(unseen.tokens)), unseen_slots))]

    trained = train([[rest]], add_gradients, held_out_losses, config, checkpoint, progress)
    made = describe_provenance(
        "kl", model, texts, trained.n_steps * config.batch_size, options | {"held_out": trained.held_out}
    )
    return SoftPrompt(tokens.cpu(), torch.cat([first, trained.parts[0][0]]).cpu(), made)


def _loss(
    target: TargetPrompt,
    source: Continued,
    layers: Sequence[int],
    samples: Int[np.ndarray, " row"],
    slots: Int[np.ndarray, " row"],
    start_generation: Callable[..., tuple[LogitsInParts, Advance]] = fast.start_generation,
) -> Tensor:
    """Mean KL over rows and tokens ahead; row r is sample `samples[r]` at layer `layers[slots[r]]`."""
    rows = torch.from_numpy(samples).to(source.tokens.device)
    vectors = source.representations[rows, torch.from_numpy(slots).to(rows.device)]
    target_layers = torch.tensor([layers[slot] for slot in slots], device=rows.device)
    logits, advance = start_generation(target, vectors, target_layers)
    everyone = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    total = torch.zeros((), device=rows.device)
    for ahead in range(N_TOKENS):
        if ahead > 0:
            logits = advance(source.tokens[rows, ahead - 1], everyone)
        own = torch.log_softmax(logit_lens(target.model, source.final[rows, ahead]).float(), dim=-1)
        total = total + kl_divergence(own, concatenate_logits(logits))
    return total / (N_TOKENS * len(rows))
