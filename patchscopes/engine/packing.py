"""Reading several texts as one sequence: without padding, and what they begin with alike is run once.

The tokens of the texts are the nodes of a tree, each after the token before it. They run in any order as one sequence,
in which each sees itself and what is before it in its own text: `attention_mask` says so, and `position_ids` how deep
in the tree it is. That a family takes both at their word is proved on first use, block by block.
"""

import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.engine.building import REFUSALS, get_twin
from patchscopes.engine.prefix import cache_in_use
from patchscopes.engine.tolerance import Difference, get_tolerance, measure_error
from patchscopes.engine.twin import Twin, block_forwards, unwrap_hidden_states, wrap_hidden_states
from patchscopes.errors import PatchscopesError
from patchscopes.model.layers import EMBEDDING
from patchscopes.model.lens_model import LensModel, has_hooks, is_bridge

# Scores of more tokens with each other cost more than padding does.
MOST_PACKED = 256
# Of the tokens that a padded batch runs; what a fuller one saves goes into the mask.
LARGEST_SHARE = 0.8

# From token sequences, with rows and columns to read and layers, to the residuals there: with plain hooks.
ReadPlainly = Callable[[LensModel, list[tuple[int, ...]], list[int], list[int], list[int]], Tensor]


@dataclass(frozen=True)
class Tree:
    """Token sequences, each beginning that several of them share once.

    Attributes:
        tokens: of each node; a node comes behind that of the token before it.
        parents: of each node the one before it; -1 of the first tokens.
        nodes: for each sequence those of its tokens.
    """

    tokens: list[int]
    parents: list[int]
    nodes: list[list[int]]


def build_tree(runs: Sequence[Sequence[int]]) -> Tree:
    """The tree of some token sequences."""
    numbers: dict[tuple[int, int], int] = {}
    nodes = []
    for run in runs:
        before, of_run = -1, []
        for token in run:
            before = numbers.setdefault((before, token), len(numbers))
            of_run.append(before)
        nodes.append(of_run)
    return Tree([token for _, token in numbers], [parent for parent, _ in numbers], nodes)


class LastLayerRead(Exception):
    """Ends a forward pass when everything asked for has been read."""


def read_packed(
    twin: Twin, tree: Tree, wanted: Int[Tensor, " node"], layers: Sequence[int]
) -> Float[Tensor, "node layer d_model"]:
    """The residuals of some nodes at each of `layers` (given once each). No block after the last of them runs."""
    states: dict[int, Tensor] = {}

    def read(layer: int, hidden: Tensor) -> None:
        if layer in layers:
            states[layer] = hidden[0, wanted]

    def reading(number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            if number == 0:
                read(EMBEDDING, hidden)
            if number > max(layers):
                raise LastLayerRead
            output = forward(hidden, *args, **kwargs)
            read(number, unwrap_hidden_states(output))
            return output

        return run

    with suppress(LastLayerRead):
        run_tree(twin, tree, [reading(number, block.forward) for number, block in enumerate(twin.blocks)])
    return torch.stack([states[layer] for layer in layers], dim=1)


def run_tree(twin: Twin, tree: Tree, forwards: Sequence[Callable[..., Any]]) -> None:
    """Run all nodes as one sequence, without unembedding them, with `forwards` in place of those of the blocks."""
    n_nodes, dtype = len(tree.tokens), twin.causal_lm.dtype
    hidden = torch.full((n_nodes, n_nodes), torch.finfo(dtype).min, dtype=dtype)
    positions = torch.zeros(n_nodes, dtype=torch.long)
    for node, parent in enumerate(tree.parents):
        if parent >= 0:
            hidden[node] = hidden[parent]
            positions[node] = positions[parent] + 1
        hidden[node, node] = 0.0
    with cache_in_use(twin.new_cache()), block_forwards(twin, forwards):
        twin.causal_lm.base_model(
            input_ids=torch.tensor([tree.tokens], device=twin.device),
            attention_mask=hidden[None, None].to(twin.device),
            position_ids=positions[None].to(twin.device),
            use_cache=False,
        )


def choose_tree(model: LensModel, runs: Sequence[tuple[int, ...]], read_plainly: ReadPlainly) -> Tree | None:
    """The tree of some texts if it is worth running, and can be run on this model; else None, for plain hooks.

    On a CPU alone: a GPU minds neither padding nor what is computed twice. Not where the user has hooks on the model.
    """
    if len(runs) == 1 or torch.device(model.cfg.device).type != "cpu":
        return None
    tree = build_tree(runs)
    if len(tree.tokens) > min(MOST_PACKED, LARGEST_SHARE * len(runs) * max(map(len, runs))):
        return None
    return tree if not has_hooks(model) and can_pack(model, read_plainly) else None


# Whether texts can be packed, and in which of TransformerLens's modes that was found.
_verdicts: weakref.WeakKeyDictionary[LensModel, tuple[bool, bool]] = weakref.WeakKeyDictionary()


@torch.no_grad()
def can_pack(model: LensModel, read_plainly: ReadPlainly) -> bool:
    """Whether the model's blocks add to packed texts what they add with plain hooks; found out on first use."""
    mode = bool(getattr(model, "compatibility_mode", False))
    if model not in _verdicts or _verdicts[model][1] != mode:
        _verdicts[model] = _prove(model, read_plainly), mode
    return _verdicts[model][0]


def _prove(model: LensModel, read_plainly: ReadPlainly) -> bool:
    if not is_bridge(model):
        return False
    try:
        twin = get_twin(model)
        if not twin.shares_prefix or _has_windows(twin):
            return False
        _compare(model, twin, read_plainly)
    except torch.OutOfMemoryError:
        raise
    except (Difference, PatchscopesError, *REFUSALS):
        return False
    return True


def _has_windows(twin: Twin) -> bool:
    """Whether attention sees only so many tokens in some block: the mask of a tree has no such windows."""
    config = twin.causal_lm.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    return any(window is not None for window in windows)


def _compare(model: LensModel, twin: Twin, read_plainly: ReadPlainly) -> None:
    """Run a small tree, each block from the plain engine's residuals.

    Raises:
        Difference: a block adds something else.
    """
    branches = ((1, 2, 3, 4, 5, 6), (1, 2, 3, 7, 8, 9, 10, 11), (1, 9, 4), (6, 5, 4, 3))
    # Twelfths of the vocabulary: its first tokens may be all the same to the model.
    runs = [tuple(number * model.cfg.d_vocab // 12 for number in branch) for branch in branches]
    tree = build_tree(runs)
    place_of = {node: (row, column) for row, nodes in enumerate(tree.nodes) for column, node in enumerate(nodes)}
    rows, columns = (list(part) for part in zip(*(place_of[node] for node in range(len(tree.tokens))), strict=True))
    plain = read_plainly(model, runs, rows, columns, [EMBEDDING, *range(model.cfg.n_layers)])
    tolerance = get_tolerance(twin, plain.dtype)

    def supervise(number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        entering, leaving = (plain[None, :, residual] for residual in (number, number + 1))

        def run(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            error = measure_error(hidden, entering, entering)
            computed = unwrap_hidden_states(forward(entering, *args, **kwargs))
            error = torch.maximum(error, measure_error(computed - entering, leaving - entering, leaving))
            if not bool((error <= tolerance).all()):
                raise Difference(f"block {number} adds something else to packed texts")
            return wrap_hidden_states(twin, leaving)

        return run

    run_tree(twin, tree, [supervise(number, block.forward) for number, block in enumerate(twin.blocks)])
