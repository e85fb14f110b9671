"""Every number that a reader enforces (spec section 8, "Limits").

Limits exist so that a hostile file is refused before memory is allocated for it. They belong to
format version 1: raising one is a new feature bit, not an edit.
"""

from __future__ import annotations

__all__ = [
    "MAX_CHUNKS",
    "MAX_CHUNK_SIZE",
    "MAX_COMPONENT_BYTES",
    "MAX_ELEMENTS",
    "MAX_FILES",
    "MAX_GENERATOR_BYTES",
    "MAX_HINT_BYTES",
    "MAX_INTEGER",
    "MAX_JSON_DEPTH",
    "MAX_LAYERS",
    "MAX_METADATA_SIZE",
    "MAX_NAME_BYTES",
    "MAX_PATH_BYTES",
    "MAX_PAYLOAD_SIZE",
    "MAX_RANK",
    "MAX_SHARDS",
    "MAX_TENSORS",
    "MAX_WINDOW_SIZE",
    "MIN_CHUNK_SIZE",
]

MAX_METADATA_SIZE = 64 << 20
"""Bytes of the metadata JSON, stored and decompressed alike."""

MAX_CHUNKS = 1 << 25
"""Chunks in an archive, which bounds the chunk table to 256 MiB."""

MIN_CHUNK_SIZE = 4 << 10
MAX_CHUNK_SIZE = 16 << 20
"""Bytes of a chunk before compression; a power of two."""

MAX_WINDOW_SIZE = 8 << 20
"""Bytes that a zstd frame may ask its decoder to keep."""

MAX_JSON_DEPTH = 16
MAX_INTEGER = 2**53 - 1
"""Largest integer that every JSON library keeps exact."""

MAX_TENSORS = 1 << 20
MAX_SHARDS = 1 << 16
MAX_FILES = 1 << 12
MAX_NAME_BYTES = 1024
MAX_PATH_BYTES = 1024
MAX_COMPONENT_BYTES = 255
"""Bytes of one component of a path."""

MAX_GENERATOR_BYTES = 256
MAX_HINT_BYTES = 1024
MAX_RANK = 8
MAX_ELEMENTS = 1 << 48
MAX_LAYERS = 4
MAX_PAYLOAD_SIZE = 1 << 48
"""Raw bytes of one layer of a tensor, or of a side file."""
