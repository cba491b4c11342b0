"""Which pairs and layers of a grid stand out of chance, though many are looked at.

If a state held nothing of its own name, it would say a name's keywords as often as any other state does. So the states
are dealt out to the names anew, many times, and each time the largest excess of the whole grid is noted. A pair stands
out if its own excess is as large only in few of these (Westfall and Young 1993: the largest of all is what accounts for
their number, and for how alike neighbours are). The same is done for the means of whole ℓ, and of whole ℓ*.
"""

import numpy as np
from jaxtyping import Float, Int

# Dealings of the states to the names, where there are too many to try each.
N_PERMUTATIONS = 2000
# Sums in another order round differently.
ROUNDING = 1e-9


def compute_p_values(
    share: Float[np.ndarray, "name state layer target_layer"], seed: int
) -> dict[str, Float[np.ndarray, "..."]]:
    """How often chance alone exceeds each pair, each ℓ and each ℓ* anywhere, corrected for their number.

    Args:
        share: how strong each state is on the keywords of each name; the first states are those of the names.
    """
    dealings = deal_states(len(share), share.shape[1], seed)
    excess = share - share.mean(axis=1, keepdims=True)
    views = {"pairs": excess, "layers": excess.mean(axis=3), "target_layers": excess.mean(axis=2)}
    return {what: _compare_with_largest(view, dealings) for what, view in views.items()}


def deal_states(n_names: int, n_states: int, seed: int) -> Int[np.ndarray, "dealing name"]:
    """Ways to give each name one of the states, none to two names; the first is as it is.

    One name can get each state, and these are all; for several names ways are drawn.
    """
    if n_names == 1:
        return np.arange(n_states)[:, None]
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(n_states)[:n_names] for _ in range(N_PERMUTATIONS)]
    return np.array([np.arange(n_names), *drawn])


def _compare_with_largest(
    excess: Float[np.ndarray, " name state *place"], dealings: Int[np.ndarray, "dealing name"]
) -> Float[np.ndarray, " *place"]:
    """For each place, the share of dealings whose largest excess is at least that of the states as they are."""
    total = np.zeros((len(dealings), *excess.shape[2:]))
    for of_name, states in zip(excess, dealings.T, strict=True):
        total += of_name[states]
    largest = total.reshape(len(dealings), -1).max(axis=1)
    order = np.sort(largest)
    n_below = np.searchsorted(order, total[0] - ROUNDING * len(excess), side="left")
    return np.asarray((len(dealings) - n_below) / len(dealings))
