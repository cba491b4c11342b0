"""Layers by name. Nothing heavy is imported: options and figures name layers too."""

EMBEDDING = -1
_EMBEDDING_NAME = "embedding"


def name_layer(layer: int) -> str:
    """The layer as options, tables and figures have it: its number, or `embedding` for what enters block 0."""
    return _EMBEDDING_NAME if layer == EMBEDDING else str(layer)


def parse_layer(name: str) -> int | None:
    """The layer of a name, which `name_layer` gives, or its number; None for what is neither."""
    if name.lower() in (_EMBEDDING_NAME, str(EMBEDDING)):
        return EMBEDDING
    return int(name) if name.isdecimal() else None
