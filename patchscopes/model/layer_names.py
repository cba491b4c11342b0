"""Layers by name, and choices of them. Nothing heavy is imported: options, figures and pages name layers too."""

from collections.abc import Sequence

from patchscopes.errors import PatchscopesError

EMBEDDING = -1
# Of the number of a layer.
MOST_DIGITS = 4
_EMBEDDING_NAME = "embedding"


def name_layer(layer: int) -> str:
    """The layer as options, tables and figures have it: its number, or `embedding` for what enters block 0."""
    return _EMBEDDING_NAME if layer == EMBEDDING else str(layer)


def parse_layer(name: str) -> int | None:
    """The layer of a name, which `name_layer` gives, or its number; None for what is neither."""
    if name.lower() in (_EMBEDDING_NAME, str(EMBEDDING)):
        return EMBEDDING
    return int(name) if name.isdecimal() and len(name) <= MOST_DIGITS else None


def parse_layers(text: str) -> tuple[int, ...] | None:
    """`0,4,8`, `0-15`, `embedding` (also -1), a mixture, or `all` (None): all blocks.

    Raises:
        PatchscopesError: it is none of these, or names a layer twice.
    """
    if text == "all":
        return None
    layers: list[int] = []
    for part in map(str.strip, text.split(",")):
        # The sign of -1 is no dash between two layers.
        dash = part.find("-", 1)
        first, last = (parse_layer(end) for end in ((part, part) if dash < 0 else (part[:dash], part[dash + 1 :])))
        if first is None or last is None or last < first:
            raise PatchscopesError(f"expected layers like 0,4,8 or 0-15 or all (embedding is one too), got {text!r}")
        layers.extend(range(first, last + 1))
    if len(set(layers)) < len(layers):
        raise PatchscopesError(f"some layer is given twice in {text!r}")
    return tuple(layers)


def thin_out(layers: Sequence[int], n_layers: int) -> list[int]:
    """At most `n_layers` of the layers at equal distances, the first and last among them."""
    n_layers = min(n_layers, len(layers))
    return [layers[round(number * (len(layers) - 1) / max(1, n_layers - 1))] for number in range(n_layers)]
