"""This library beside its peers: the same model, prompts and layers, whole public calls, in turn.

Before anything is timed twice, the answers are compared: all must say the same at every layer.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from patchscopes.data.facts import load_own_facts
from patchscopes.engine.target import placeholder_target
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.benchmark_tasks import ENTITIES, FAST
from patchscopes.experiments.checks import check_methods
from patchscopes.experiments.chunks import Progress
from patchscopes.experiments.config import PeersConfig
from patchscopes.experiments.peer_calls import FastEngine, Nnterp, PaperLoop, Peer, TransformerLensHooks
from patchscopes.model.embedded import unpack_embedded_model
from patchscopes.model.lens_model import LensModel
from patchscopes.model.sources import find_source
from patchscopes.prompts import (
    DESCRIPTION_PLACEHOLDER,
    PLACEHOLDER,
    build_entity_description_prompt,
    build_token_identity_prompt,
)
from patchscopes.results import Json
from patchscopes.tokens import get_end_tokens, to_token_ids


@dataclass(frozen=True, kw_only=True)
class PeerTask:
    """Something that all peers do, on the same prompts and at all layers.

    Attributes:
        call: what one peer gives for source prompts, a target prompt and a position in it, counted from its end.
        compare: how well a peer's answer agrees with that of this library.
    """

    title: str
    sources: Sequence[str]
    target: str
    placeholder: str
    call: Callable[[Peer, Sequence[str], str, int], Tensor]
    compare: Callable[[Tensor, Tensor], Json]


def load_peers(model: LensModel, name: str) -> list[Peer]:
    """This library, and its peers with the same model.

    Args:
        name: of the model, as `load_model` has it.

    Raises:
        PatchscopesError: the peers cannot load it by this name.
    """
    source = find_source(name)
    if source.kind not in ("embedded", "folder", "hub"):
        raise PatchscopesError(f"the peers load a model by its folder or hub id, and {name!r} is a {source.kind}")
    folder = str(unpack_embedded_model(source.place)) if source.kind == "embedded" else source.place
    dtype = model.cfg.dtype
    return [FastEngine(model), Nnterp(folder, dtype), TransformerLensHooks(model), PaperLoop.load(folder, dtype)]


def run(model: LensModel, peers: Sequence[Peer], config: PeersConfig, *, progress: Progress = iter) -> Json:
    """The `results` of the result file: for each task the time per row of each peer, and how well they agree.

    Args:
        progress: wraps the iteration over the turns of each task.

    Raises:
        PatchscopesError: a method does not exist, or there are not so many prompts.
    """
    check_methods(config.methods, PeersConfig.METHODS)
    builders = {"next_token": build_next_token_task, "generation": build_generation_task}
    tasks = [
        measure_in_turn(model, peers, builders[method](model, config), config, progress) for method in config.methods
    ]
    return {"tasks": tasks}


def build_next_token_task(model: LensModel, config: PeersConfig) -> PeerTask:
    """The next token after the token-identity prompt, from the last token of prompts about facts."""
    facts = load_own_facts()
    if config.n_samples > len(facts):
        raise PatchscopesError(f"there are {len(facts)} source prompts, got {config.n_samples} samples; give fewer")
    sources = [facts[number * len(facts) // config.n_samples].prompt for number in range(config.n_samples)]

    def compare(ours: Tensor, theirs: Tensor) -> Json:
        probabilities = [answer if bool((answer >= 0).all()) else answer.softmax(dim=-1) for answer in (ours, theirs)]
        return {
            "same_tokens": (ours.argmax(dim=-1) == theirs.argmax(dim=-1)).float().mean().item(),
            "largest_probability_difference": (probabilities[0] - probabilities[1]).abs().max().item(),
        }

    return PeerTask(
        title=f"next token, {len(sources)} prompts × {model.cfg.n_layers} layers, with their extraction",
        sources=sources,
        target=build_token_identity_prompt(),
        placeholder=PLACEHOLDER,
        call=lambda peer, *prompts: peer.sweep(*prompts),
        compare=compare,
    )


def build_generation_task(model: LensModel, config: PeersConfig) -> PeerTask:
    """Descriptions of entities."""
    if config.n_entities > len(ENTITIES):
        raise PatchscopesError(f"there are {len(ENTITIES)} entities, got {config.n_entities}; give fewer")
    ends = get_end_tokens(model).cpu()
    names = "1 entity" if config.n_entities == 1 else f"{config.n_entities} entities"

    def compare(ours: Tensor, theirs: Tensor) -> Json:
        same = forget_padding(ours, ends) == forget_padding(theirs, ends)
        return {"same_tokens": same.float().mean().item(), "same_generations": same.all(dim=-1).float().mean().item()}

    return PeerTask(
        title=f"{config.max_new_tokens} tokens, {names} × {model.cfg.n_layers} layers, with their extraction",
        sources=ENTITIES[: config.n_entities],
        target=build_entity_description_prompt(),
        placeholder=DESCRIPTION_PLACEHOLDER,
        call=lambda peer, *prompts: peer.generate(*prompts, config.max_new_tokens),
        compare=compare,
    )


def forget_padding(tokens: Tensor, ends: Tensor) -> Tensor:
    """Generations with -1 behind their first end-of-sequence token, where every peer pads in its own way."""
    ended = torch.isin(tokens, ends).cumsum(dim=-1)
    return tokens.where((ended == 0) | ((ended == 1) & torch.isin(tokens, ends)), torch.tensor(-1))


def measure_in_turn(
    model: LensModel, peers: Sequence[Peer], task: PeerTask, config: PeersConfig, progress: Progress
) -> Json:
    """Time all peers one after the other, several times; their answers of the first time are compared.

    That one is also when each warms up, and proves what it proves: the median leaves it out.
    """
    position = placeholder_target(model, task.target, task.placeholder).position
    prompts = {
        peer.name: [spell_out(model, peer.tokenizer, text) for text in (*task.sources, task.target)] for peer in peers
    }
    from_end = position - len(to_token_ids(model, task.target))
    seconds: dict[str, list[float]] = {peer.name: [] for peer in peers}
    agreement: dict[str, Json] = {}

    for turn in progress(range(config.n_turns)):
        answers: dict[str, Tensor] = {}
        for peer in peers:
            *sources, target = prompts[peer.name]
            started = time.perf_counter()
            answer = task.call(peer, sources, target, from_end)
            seconds[peer.name].append(time.perf_counter() - started)
            if turn == 0:
                answers[peer.name] = answer
        agreement |= {name: task.compare(answers[FAST], answer) for name, answer in answers.items() if name != FAST}
    n_rows = len(task.sources) * model.cfg.n_layers
    ours = median(seconds[FAST])
    ways = [
        {
            "name": name,
            "ms_per_row": 1000 * median(taken) / n_rows,
            "runs": len(taken),
            "times_fast_engine": median(taken) / ours,
            "seconds": taken,
            **agreement.get(name, {}),
        }
        for name, taken in seconds.items()
    ]
    return {"title": task.title, "n_rows": n_rows, "ways": ways}


def spell_out(model: LensModel, tokenizer: Any, text: str) -> str:
    """The text that a peer's tokenizer cuts into the tokens that this library reads: with BOS written out if need be.

    Args:
        tokenizer: None if the peer reads texts as this library does.

    Raises:
        PatchscopesError: there is no such text.
    """
    if tokenizer is None:
        return text
    wanted = to_token_ids(model, text).tolist()
    for candidate in (text, f"{tokenizer.bos_token}{text}"):
        if tokenizer(candidate)["input_ids"] == wanted:
            return candidate
    raise PatchscopesError(
        f"the tokenizer alone does not give the tokens of {text!r} that TransformerLens reads, with a "
        "BOS or without; compare the peers on another model"
    )
