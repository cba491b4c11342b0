"""The Tuned Lens as Belrose et al. 2023 train it: an affine translator per layer, by KL against the model's prediction.

The translator of layer ℓ is h + W h + b with W and b zero at the start, so that training begins at the Logit Lens. It
is kept as an affine map to the last layer, like one fitted by least squares (`patchscopes.learned.fitting`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.data.texts import Sample, TextSet, check_train, draw_samples
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.unembedding import unembed_rows
from patchscopes.errors import PatchscopesError
from patchscopes.learned.config import TrainingConfig
from patchscopes.learned.files import get_cached_path, learn_once
from patchscopes.learned.mappings import AffineMap, MapKey, load_maps, save_maps
from patchscopes.learned.provenance import describe_provenance
from patchscopes.learned.training import COPIES, Trained, kl_divergence, train
from patchscopes.model.devices import require_memory_for_layers
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.tokens import to_token_ids

# Texts whose positions are shuffled together; and the share of texts, one in so many, that only measures.
TEXTS_IN_BUFFER = 32
HELD_OUT_EVERY = 10
HELD_OUT_POSITIONS = 256
# What the learned values depend on: their cache keeps for as long as none of these changes.
_MODULES = [
    "learned/tuned_lens",
    "learned/training",
    "learned/mappings",
    "engine/unembedding",
    "engine/building",
    "engine/twin",
]


def train_tuned_lens(
    model: LensModel,
    texts: TextSet,
    layers: Sequence[int] | None = None,
    config: TrainingConfig = TrainingConfig(),  # noqa: B008 (it is frozen)
    *,
    fresh: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[MapKey, AffineMap]:
    """The translators of `layers` (all blocks unless given), from the cache folder if they were trained before.

    One text in ten only measures the held-out KL, which decides when to stop and which values each layer keeps. An
    interrupted training goes on from its last measurement.

    Args:
        texts: of the train split.
        fresh: train again, from the start.
        progress: wraps the iteration over steps, `tqdm` for instance.

    Returns:
        the maps. The `options` of their provenance hold `held_out`: for each measurement the steps before it, and the
        KL of each layer in nats.

    Raises:
        PatchscopesError: texts of another split, fewer than two with a position, or translators that need clearly more
            memory than there is.
    """
    layers = resolve_layers(model, layers)
    learning, held_out = split_held_out(model, texts)
    options = {"layers": layers, **asdict(config)}

    def learn(checkpoint: Path) -> dict[MapKey, AffineMap]:
        trained = _train(model, learning, held_out, layers, config, checkpoint, progress)
        n_positions = trained.n_steps * config.batch_size
        made = describe_provenance("kl", model, texts, n_positions, options | {"held_out": trained.held_out})
        maps = {}
        for layer, (weight, bias) in zip(layers, trained.parts, strict=True):
            key = MapKey(layer, model.cfg.n_layers - 1)
            weight = torch.eye(len(weight)) + weight.cpu()
            maps[key] = AffineMap(weight=weight, bias=bias.cpu(), key=key, provenance=made)
        return maps

    path = get_cached_path("tuned-kl", [model], texts, options, _MODULES)
    return learn_once(path, load_maps, learn, save_maps, fresh=fresh)


def split_held_out(
    model: LensModel, texts: TextSet, room: int = 0
) -> tuple[list[tuple[Int[Tensor, " _"], str]], list[tuple[Int[Tensor, " _"], str]]]:
    """The tokens of each text, and the text: those to learn from, and every tenth to measure on.

    Args:
        room: tokens that the model's context must hold beside a text.

    Raises:
        PatchscopesError: texts of another split than train, or fewer than two with a position.
    """
    check_train(texts)
    longest = model.cfg.n_ctx - room
    all_tokens = [(to_token_ids(model, text, truncate=True)[:longest], text) for text in texts.texts]
    usable = [(ids, text) for ids, text in all_tokens if len(ids) > 1]
    if len(usable) < 2:
        raise PatchscopesError(f"{texts.name!r} has {len(usable)} train texts of two tokens or more; give at least two")
    held_out = usable[::HELD_OUT_EVERY]
    return [one for number, one in enumerate(usable) if number % HELD_OUT_EVERY != 0], held_out


def draw_at_most(texts: Sequence[tuple[Int[Tensor, " _"], str]], n_samples: int, seed: int) -> list[Sample]:
    """`draw_samples` of as many positions as there are, at most `n_samples`, sorted by text."""
    lengths = [len(ids) for ids, _ in texts]
    available = sum(length - 1 for length in lengths)
    drawn = draw_samples(lengths, [text for _, text in texts], min(n_samples, available), seed)
    return sorted(drawn, key=lambda sample: (sample.text, sample.position))


def _train(
    model: LensModel,
    learning: Sequence[tuple[Int[Tensor, " _"], str]],
    held_out: Sequence[tuple[Int[Tensor, " _"], str]],
    layers: Sequence[int],
    config: TrainingConfig,
    checkpoint: Path,
    progress: Callable[[Iterable[Any]], Iterable[Any]],
) -> Trained:
    last, width = model.cfg.n_layers - 1, model.cfg.d_model
    require_memory_for_layers(
        f"translators of width {width}, as {config.optimizer} trains them,",
        len(layers),
        4 * COPIES[config.optimizer] * width * (width + 1),
        model.cfg.device,
        "train on a machine with more memory",
    )
    zeros = {"device": model.cfg.device, "dtype": torch.float32, "requires_grad": True}
    parts = [[torch.zeros(width, width, **zeros), torch.zeros(width, **zeros)] for _ in layers]
    drawn = draw_at_most(held_out, HELD_OUT_POSITIONS, config.seed)
    measured = extract_representations(
        model,
        [held_out[sample.text][0] for sample in drawn],
        [sample.position for sample in drawn],
        [*layers, last],
    )
    batches: Iterator[Tensor] | None = None

    def translated(number: int, representations: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        weight, bias = parts[number]
        change = torch.nn.functional.linear(representations.float(), weight, bias)
        return representations + change.to(representations)

    def losses(states: Float[Tensor, "row slot d_model"]) -> Iterator[Tensor]:
        """The mean KL of each layer, one at a time: logits of all layers at once would not fit."""
        with torch.no_grad():
            own = torch.log_softmax(unembed_rows(model, states[:, -1]).float(), dim=-1)
        for number in range(len(layers)):
            yield kl_divergence(own, unembed_rows(model, translated(number, states[:, number]))) / len(states)

    def add_gradients(step: int) -> None:
        nonlocal batches
        if batches is None:
            batches = shuffle_batches(model, learning, [*layers, last], config.batch_size, config.seed, step)
        for loss in losses(next(batches)):
            loss.backward()

    @torch.no_grad()
    def held_out_losses() -> list[float]:
        parts_of = measured.split(config.batch_size)
        sums = torch.tensor([[float(loss) * len(states) for loss in losses(states)] for states in parts_of])
        return (sums.sum(dim=0) / len(measured)).tolist()

    return train(parts, add_gradients, held_out_losses, config, checkpoint, progress)


def shuffle_batches(
    model: LensModel,
    texts: Sequence[tuple[Int[Tensor, " _"], str]],
    layers: Sequence[int],
    batch_size: int,
    seed: int,
    first_batch: int = 0,
) -> Iterator[Float[Tensor, "row layer d_model"]]:
    """Representations of positions of the texts, again and again in new orders, from batch `first_batch` on.

    Positions are shuffled within groups of texts: the hidden states of one group are all that is in memory.
    """
    number = 0
    for epoch in count():
        order = np.random.default_rng([seed, epoch]).permutation(len(texts)).tolist()
        for start in range(0, len(order), TEXTS_IN_BUFFER):
            group = [texts[index][0] for index in order[start : start + TEXTS_IN_BUFFER]]
            places = [(ids, position) for ids in group for position in range(1, len(ids))]
            # What is left over when there are no more full batches waits for the next order.
            n_batches = max(1, len(places) // batch_size)
            if number + n_batches <= first_batch:
                number += n_batches
                continue
            states = extract_representations(
                model, [ids for ids, _ in places], [position for _, position in places], layers
            )
            shuffled = torch.from_numpy(np.random.default_rng([seed, epoch, start]).permutation(len(places)))
            for rows in shuffled.split(batch_size)[:n_batches]:
                if number >= first_batch:
                    yield states[rows.to(states.device)]
                number += 1
