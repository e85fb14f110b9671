"""Where each chunk lies (spec section 6)."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from ddct_format.container.records import Metadata
from ddct_format.errors import InvalidError

__all__ = ["ENTRY_SIZE", "ChunkTable", "build_table", "chunk_count", "parse_table", "payload_sizes"]

ENTRY_SIZE: Final = 8
_UINT32: Final = "I"
_UINT64: Final = "Q"


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """Position and checksum of every chunk, and the first chunk of every payload."""

    offsets: array[int]
    """File offset of each chunk, and of the end of the last."""
    checksums: array[int]
    """crc32c of the stored bytes of each chunk."""
    files: Mapping[str, int]
    """First chunk of each side file, by path."""
    layers: tuple[Mapping[str, int], ...]
    """First chunk of each layer's payload: by layer, then by name of the tensor."""

    def __len__(self) -> int:
        return len(self.checksums)


def chunk_count(size: int, chunk_size: int) -> int:
    """Chunks of a payload of ``size`` bytes."""
    return -(-size // chunk_size)


def payload_sizes(metadata: Metadata) -> Iterator[int]:
    """Raw bytes of each payload, in the order of the file."""
    for file in metadata.files:
        yield file.size
    for index in range(len(metadata.target_ids)):
        for tensor in metadata.tensors:
            if index < len(tensor.layers):
                yield tensor.layers[index].size


def build_table(stored_sizes: array[int], checksums: array[int]) -> bytes:
    """The table's bytes, from the stored size and the crc32c of each chunk in the order of the file."""
    numbers = array(_UINT32, bytes(ENTRY_SIZE * len(stored_sizes)))
    numbers[0::2], numbers[1::2] = stored_sizes, checksums
    return _little_endian(numbers).tobytes()


def parse_table(table: bytes, metadata: Metadata, chunks_offset: int, file_size: int) -> ChunkTable:
    """Check and read the table's bytes: spec section 9, step 9.

    Args:
        table: a multiple of 8 bytes.
        metadata: what the chunks must add up to.
        chunks_offset: file offset of the first chunk.
        file_size: of the whole file, in bytes.

    Raises:
        InvalidError: number of entries, a stored size or their sum is not what it must be.
    """
    chunk_size = metadata.chunk_size
    expected = sum(chunk_count(size, chunk_size) for size in payload_sizes(metadata))
    if len(table) != expected * ENTRY_SIZE:
        raise InvalidError(f"the chunk table has {len(table) // ENTRY_SIZE} entries, not {expected}")
    numbers = array(_UINT32)
    numbers.frombytes(table)
    numbers = _little_endian(numbers)
    sizes, checksums = numbers[0::2], numbers[1::2]
    if sizes and not 0 < min(sizes) <= max(sizes) <= chunk_size:
        raise InvalidError(f"a chunk's stored size is not in 1 … {chunk_size}")
    end = 0
    for size in payload_sizes(metadata):
        end += chunk_count(size, chunk_size)
        last = size % chunk_size
        if last and sizes[end - 1] > last:
            raise InvalidError(f"chunk {end - 1} stores {sizes[end - 1]} bytes, more than its raw {last}")
    offsets = array(_UINT64, accumulate(sizes, initial=chunks_offset))
    if offsets[-1] != file_size:
        raise InvalidError(f"the chunks end at byte {offsets[-1]}, the file at byte {file_size}")
    return _with_first_chunks(metadata, offsets, checksums)


def _with_first_chunks(metadata: Metadata, offsets: array[int], checksums: array[int]) -> ChunkTable:
    first = 0
    files: dict[str, int] = {}
    for file in metadata.files:
        files[file.path] = first
        first += chunk_count(file.size, metadata.chunk_size)
    layers: list[dict[str, int]] = []
    for index in range(len(metadata.target_ids)):
        starts: dict[str, int] = {}
        for tensor in metadata.tensors:
            if index < len(tensor.layers):
                starts[tensor.name] = first
                first += chunk_count(tensor.layers[index].size, metadata.chunk_size)
        layers.append(starts)
    return ChunkTable(offsets, checksums, files, tuple(layers))


def _little_endian(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
