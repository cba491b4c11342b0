"""Inside the blocks of the fast engine: what rows write over what a sublayer adds, and the edges that they cut.

Writing happens on the twin's own module behind the hook point that the plain engine writes at. Edges are cut in the
mask with which the family's own forward calls the block: each row gets its own.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from patchscopes.engine.clean_run import BlockCall, enter_blocks
from patchscopes.engine.prefix import PrefixCache
from patchscopes.engine.rows import Placement, Row, Site, check_keys_left, place_cuts, place_writes
from patchscopes.engine.twin import Twin, module_forwards, unwrap_hidden_states
from patchscopes.errors import PatchscopesError
from patchscopes.model.lens_model import LensModel


@dataclass(frozen=True, eq=False)
class Changes:
    """What a batch of rows does otherwise than the unpatched run.

    Attributes:
        start: the first token that the rows run.
        writes: what is written at each (layer, site).
        cuts: the edges that are cut in each block.
        masked: per block, what stands in a mask where a query does not see a key; empty if nothing is cut.
    """

    start: int
    writes: dict[tuple[int, Site], Placement]
    cuts: dict[int, Int[Tensor, "row_query_key edge"]]
    masked: list[Any]

    def write_residual(
        self, layer: int, hidden: Float[Tensor, "row suffix d_model"]
    ) -> Float[Tensor, "row suffix d_model"]:
        """The residual stream at `layer` with what is written there."""
        placement = self.writes.get((layer, "resid"))
        return hidden if placement is None else placement.write_into(hidden, self.start)


def collect_changes(twin: Twin, rows: Sequence[Row], start: int) -> Changes:
    """What rows do, by their numbers in this order."""
    cuts = place_cuts(rows)
    return Changes(start, place_writes(rows), cuts, find_masked_values(twin) if cuts else [])


def run_block(
    model: LensModel,
    twin: Twin,
    number: int,
    call: BlockCall,
    hidden: Float[Tensor, "row suffix d_model"],
    cache: PrefixCache,
    changes: Changes,
) -> Float[Tensor, "row suffix d_model"]:
    """Run one block of the twin with what the rows write in it; its call has the edges cut (`cut_calls`).

    Raises:
        PatchscopesError: no module gives what a sublayer adds.
    """
    with ExitStack() as stack:
        for site in ("attn_out", "mlp_out"):
            placement = changes.writes.get((number, site))
            if placement is not None:
                stack.enter_context(written_over(model, twin, number, site, placement, changes.start, hidden))
        return call(twin.blocks[number], hidden, cache)


def cut_calls(twin: Twin, calls: Sequence[BlockCall], n_rows: Sequence[int], changes: Changes) -> list[BlockCall]:
    """The calls of all blocks, which run so many rows, with the edges cut.

    This is done before the blocks are walked, because to see whether keys are left a GPU must be waited for.

    Raises:
        PatchscopesError: as for `cut_edges`.
    """
    return [
        cut_edges(twin, number, call, n_rows[number], changes) if number in changes.cuts else call
        for number, call in enumerate(calls)
    ]


def cut_edges(twin: Twin, number: int, call: BlockCall, n_rows: int, changes: Changes) -> BlockCall:
    """The call of a block with a mask for each row, which hides the keys that are cut.

    Raises:
        PatchscopesError: the block is called with no mask, or a query is left with no key that it sees.
    """
    key, mask = find_mask(twin.blocks[number], call)
    mask = mask.expand(n_rows, -1, -1, -1).clone()
    rows, queries, keys = changes.cuts[number].to(mask.device)
    mask[rows, :, queries - changes.start, keys] = changes.masked[number]
    check_keys_left(number, changes.cuts[number], mask == changes.masked[number], changes.start)
    return call.replace_argument(key, mask)


def find_mask(block: nn.Module, call: BlockCall) -> tuple[int | str, Shaped[Tensor, "mask_row head query key"]]:
    """A block's attention mask, and its name or place among the arguments that follow the hidden states.

    Raises:
        PatchscopesError: the block is called with no mask of queries and keys.
    """
    key: int | str = "attention_mask"
    if key not in call.kwargs:
        names = list(inspect.signature(type(block).forward).parameters)[2:]
        key = names.index("attention_mask") if "attention_mask" in names else key
    mask = call.get_argument(key)
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise PatchscopesError(
            "the fast engine cannot cut edges in this model: its blocks are called with no mask; use engine='hooks'"
        )
    return key, mask


def find_masked_values(twin: Twin) -> list[Any]:
    """What stands in each block's mask where a query does not see a key: where the first of two tokens is the query
    and the second is the key.

    Raises:
        PatchscopesError: a block is called with no mask.
    """
    two_tokens = torch.zeros(1, 2, dtype=torch.long, device=twin.device)
    _, calls = enter_blocks(twin, two_tokens, twin.new_cache())
    values = []
    for block, call in zip(twin.blocks, calls, strict=True):
        _, mask = find_mask(block, call)
        if bool(mask[0, 0, 0, 1] == mask[0, 0, 0, 0]):
            raise PatchscopesError("the fast engine cannot read the masks of this model; use engine='hooks'")
        values.append(mask[0, 0, 0, 1].item())
    return values


@contextmanager
def written_over(
    model: LensModel,
    twin: Twin,
    number: int,
    site: Site,
    placement: Placement,
    start: int,
    hidden: Float[Tensor, "row suffix d_model"],
) -> Iterator[None]:
    """Within the context, what a sublayer of one block adds to the residual stream `hidden` is written over.

    Raises:
        PatchscopesError: no module gives it.
    """
    module, scale = find_sublayer(model, twin, number, site)
    forward = module.forward
    # What is added is what the module gives times the scale.
    given = placement if scale == 1.0 else replace(placement, vectors=placement.vectors / scale)

    def writing(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        added = unwrap_hidden_states(output)
        # Some sublayers run all tokens of all rows as one sequence.
        added = given.write_into(added.reshape(hidden.shape), start).reshape(added.shape)
        return (added, *output[1:]) if isinstance(output, tuple) else added

    with module_forwards([module], [writing]):
        yield


def find_sublayer(model: Any, twin: Twin, number: int, site: Site) -> tuple[nn.Module, float]:
    """The twin's module behind the hook point of what a sublayer adds, and by what the block multiplies its output.

    Raises:
        PatchscopesError: there is none.
    """
    bridge = model.blocks[number]
    scale = 1.0
    alias = bridge.hook_aliases.get(f"hook_{site}")
    if isinstance(alias, str) and alias.endswith(".hook_out"):
        component = bridge.get_submodule(alias.removesuffix(".hook_out"))
    elif hasattr(bridge, "residual_contribution_scale"):
        scale = bridge.residual_contribution_scale
        component = bridge.get_submodule(
            bridge.scaled_attn_submodule if site == "attn_out" else bridge.scaled_mlp_submodule
        )
    else:
        raise PatchscopesError(
            f"the fast engine knows no module of block {number} that gives its {site}; use engine='hooks'"
        )
    while getattr(component, "original_component", None) is not None:
        component = component.original_component
    for module in twin.blocks[number].modules():
        # Copied modules share the dictionary of their parameters with the model's own.
        if module._parameters is component._parameters:
            return module, scale
    raise PatchscopesError(
        f"the fast engine has no copy of the module of block {number} that gives its {site}; use engine='hooks'"
    )
