"""What experiments over pairs (ℓ, ℓ*) share: which pairs succeed, and how well one chosen on other samples does."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


def tabulate_solved(
    solved: Sequence[Sequence[Sequence[int]]], layers: Sequence[int], target_layers: Sequence[int]
) -> Bool[np.ndarray, "sample layer target_layer"]:
    """Whether each pair (ℓ, ℓ*) solves each sample, from the pairs that do."""
    table = np.zeros((len(solved), len(layers), len(target_layers)), dtype=bool)
    for number, pairs in enumerate(solved):
        for layer, target_layer in pairs:
            table[number, layers.index(layer), target_layers.index(target_layer)] = True
    return table


def score_held_out(
    table: Bool[np.ndarray, "sample layer target_layer"], groups: Int[np.ndarray, " sample"], seed: int
) -> tuple[Float[np.ndarray, " sample"], list[tuple[int, int]]]:
    """Whether each sample is solved by the pair that solves most of the other half, and the pairs of both halves.

    The halves are drawn at random, once; samples of one group (about the same thing) are in the same half. Of pairs
    that solve equally many, the first counts.
    """
    order = np.random.default_rng(seed).permutation(np.unique(groups))
    in_first = np.isin(groups, order[: len(order) // 2])
    scores = np.zeros(len(table))
    pairs = []
    for chosen_on, scored_on in ((in_first, ~in_first), (~in_first, in_first)):
        best = int(table[chosen_on].sum(axis=0).argmax())
        row, column = divmod(best, table.shape[2])
        scores[scored_on] = table[scored_on, row, column]
        pairs.append((row, column))
    return scores, pairs
