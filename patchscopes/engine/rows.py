"""Rows that may do more than write one vector in one place: what they say, and what of it is where.

A `Row` is one run over a target prompt: any number of vectors written over what the residual stream, the attention or
the MLP of any block gives at any token from i* on, and attention edges that are cut. Up to the first token and the
first block at which it does anything, a row is the unpatched run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.given import AnyNumber, AnyVector, Numbers, to_number, to_numbers, to_tensor
from patchscopes.model.layers import EMBEDDING, check_layer
from patchscopes.model.lens_model import LensModel

Site: TypeAlias = Literal["resid", "attn_out", "mlp_out"]
SITES: tuple[Site, ...] = get_args(Site)
# What a row can ask of an engine beyond writing over the residual stream.
Feature: TypeAlias = Literal["attn_out", "mlp_out", "cuts"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Write:
    """A vector written over what a site of one block gives at one position of T.

    Attributes:
        position: counted from the start of T.
        layer: for `"resid"` the residual after that block, or `EMBEDDING` (-1), what enters block 0.
        vector: what is written.
        site: the residual stream, or what the attention or the MLP of the block adds to it.
    """

    position: AnyNumber
    layer: AnyNumber
    vector: AnyVector
    site: Site = "resid"

    def __post_init__(self) -> None:
        object.__setattr__(self, "position", to_number(self.position, "a position"))
        object.__setattr__(self, "layer", to_number(self.layer, "a layer"))
        object.__setattr__(self, "vector", to_tensor(self.vector))


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Attention edges that are cut, from a query to keys: in all heads of some layers, before the softmax.

    Attributes:
        query, keys: positions of T, counted from its start; no key is after the query.
        layers: blocks.
    """

    query: AnyNumber
    keys: Numbers
    layers: Numbers

    def __post_init__(self) -> None:
        object.__setattr__(self, "query", to_number(self.query, "a query"))
        object.__setattr__(self, "keys", tuple(to_numbers(self.keys, "keys")))
        object.__setattr__(self, "layers", tuple(to_numbers(self.layers, "layers")))


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One run over a target prompt.

    Within a block, cuts act in its attention; `"attn_out"` replaces what the attention adds, `"mlp_out"` what the MLP
    adds, `"resid"` what leaves the block. Of several writes to one place the last one wins.

    Attributes:
        target: T; i* is the first token at which the row may write or cut.

    Raises:
        PatchscopesError: a position, layer, site or width does not exist, or a query is left with no key at all.
    """

    target: TargetPrompt
    writes: Sequence[Write] = ()
    cuts: Sequence[Cut] = ()

    def __post_init__(self) -> None:
        for write in self.writes:
            _check_write(self.target, write)
        for cut in self.cuts:
            _check_cut(self.target, cut)
        for (layer, query), keys in self.cut_keys.items():
            if len(keys) > query:
                raise PatchscopesError(
                    f"cuts leave the query at position {query} no key in block {layer}; leave it at least one of 0 to "
                    f"{query}"
                )

    @cached_property
    def placed(self) -> dict[tuple[int, Site, int], Float[Tensor, " d_model"]]:
        """What is written at each (layer, site, position)."""
        return {(write.layer, write.site, write.position): write.vector for write in self.writes}

    @cached_property
    def cut_keys(self) -> dict[tuple[int, int], set[int]]:
        """The keys that are cut from each query, by (block, query)."""
        keys: dict[tuple[int, int], set[int]] = {}
        for cut in self.cuts:
            for layer in cut.layers if cut.keys else ():
                keys.setdefault((layer, cut.query), set()).update(cut.keys)
        return keys

    @cached_property
    def start(self) -> int:
        """The first token at which the row does anything; the last of T if it does nothing."""
        positions = [position for _, _, position in self.placed] + [query for _, query in self.cut_keys]
        return min(positions, default=len(self.target.tokens) - 1)

    @cached_property
    def first_block(self) -> int:
        """The first block whose input or computation is not that of the unpatched run; behind the last one, the number
        of blocks."""
        entered = [layer + 1 if site == "resid" else layer for layer, site, _ in self.placed]
        return min([*entered, *(layer for layer, _ in self.cut_keys)], default=self.target.model.cfg.n_layers)

    @cached_property
    def features(self) -> frozenset[Feature]:
        """What it asks of an engine beyond writing over the residual stream."""
        sites: set[Feature] = {site for _, site, _ in self.placed if site != "resid"}
        return frozenset(sites | {"cuts"} if self.cut_keys else sites)


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """All that a batch of rows writes at one site of one layer: each vector with its row and position."""

    rows: Int[Tensor, " write"]
    positions: Int[Tensor, " write"]
    vectors: Float[Tensor, "write d_model"]

    def write_into(self, values: Float[Tensor, "row pos d_model"], start: int = 0) -> Float[Tensor, "row pos d_model"]:
        """A copy of the values of the tokens from `start` on, written over."""
        values = values.clone()
        rows, positions = self.rows.to(values.device), self.positions.to(values.device)
        values[rows, positions - start] = self.vectors.to(values)
        return values


def place_writes(rows: Sequence[Row]) -> dict[tuple[int, Site], Placement]:
    """What is written at each (layer, site), by the rows' numbers in the batch."""
    places: dict[tuple[int, Site], list[tuple[int, int, Tensor]]] = {}
    for number, row in enumerate(rows):
        for (layer, site, position), vector in row.placed.items():
            places.setdefault((layer, site), []).append((number, position, vector))
    device = rows[0].target.model.cfg.device
    placements = {}
    for place, writes in places.items():
        numbers, positions, vectors = zip(*writes, strict=True)
        placements[place] = Placement(
            rows=torch.tensor(numbers, device=device),
            positions=torch.tensor(positions, device=device),
            vectors=torch.stack([vector.to(device) for vector in vectors]),
        )
    return placements


def place_cuts(rows: Sequence[Row]) -> dict[int, Int[Tensor, "row_query_key edge"]]:
    """The edges that are cut in each block: of each its row's number in the batch, its query and its key."""
    edges: dict[int, list[tuple[int, int, int]]] = {}
    for number, row in enumerate(rows):
        for (layer, query), keys in row.cut_keys.items():
            edges.setdefault(layer, []).extend((number, query, key) for key in keys)
    return {layer: torch.tensor(of_layer).T for layer, of_layer in edges.items()}


def check_keys_left(
    layer: int,
    edges: Int[Tensor, "row_query_key edge"],
    hidden: Bool[Tensor, "row head query key"],
    start: int = 0,
) -> None:
    """Refuse cuts of all that a query sees: where attention has a window, a `Row` cannot know what that is.

    Args:
        edges: that are cut in this block.
        hidden: the keys that each query from `start` on does not see.

    Raises:
        PatchscopesError: a query sees no key.
    """
    rows, queries = torch.unique(edges[:2], dim=1).to(hidden.device)
    blind = hidden[rows, :, queries - start].all(dim=-1).any(dim=-1)
    if bool(blind.any()):
        raise PatchscopesError(
            f"cuts leave the query at position {int(queries[blind][0])} no key in block {layer}, whose attention sees "
            "a window of tokens; leave it one of the nearest"
        )


def get_model(rows: Sequence[Row]) -> LensModel:
    """The one model of all rows.

    Raises:
        PatchscopesError: they have several.
    """
    model = rows[0].target.model
    if any(row.target.model is not model for row in rows):
        raise PatchscopesError("the rows have target prompts of different models; patch the rows of each one by itself")
    return model


def _check_write(target: TargetPrompt, write: Write) -> None:
    model = target.model
    if write.site not in SITES:
        raise PatchscopesError(f"a site is one of {', '.join(SITES)}, got {write.site!r}")
    _check_position(target, write.position, "written to")
    check_layer(model, write.layer)
    if write.layer == EMBEDDING and write.site != "resid":
        raise PatchscopesError(f"only blocks have {write.site}: write it there, or write 'resid' at EMBEDDING (-1)")
    if write.vector.shape != (model.cfg.d_model,):
        raise PatchscopesError(
            f"a written vector must have the model's width, [{model.cfg.d_model}], got {list(write.vector.shape)}"
        )


def _check_cut(target: TargetPrompt, cut: Cut) -> None:
    _check_position(target, cut.query, "cut from its keys")
    for key in cut.keys:
        if not 0 <= key <= cut.query:
            raise PatchscopesError(
                f"key {key} cannot be cut from the query at position {cut.query}: it sees the positions 0 to "
                f"{cut.query}, counted from the start"
            )
    for layer in cut.layers:
        check_layer(target.model, layer)
        if layer == EMBEDDING:
            raise PatchscopesError("EMBEDDING (-1) has no attention whose edges could be cut; name blocks")


def _check_position(target: TargetPrompt, position: int, done: str) -> None:
    if not 0 <= position < len(target.tokens):
        raise PatchscopesError(
            f"position {position} is not in the target prompt: it has positions 0 to {len(target.tokens) - 1}, counted "
            "from the start"
        )
    if position < target.position:
        raise PatchscopesError(
            f"position {position} cannot be {done}: it is before the target prompt's own position {target.position}; "
            f"make the TargetPrompt with position {position}"
        )
