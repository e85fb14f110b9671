"""Stored bytes: one zstd frame, or the bytes themselves where that is not smaller (spec section 4)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal

import zstandard

from ddct_format.container.buffers import byte_view
from ddct_format.errors import CorruptError, InvalidError
from ddct_format.limits import MAX_WINDOW_SIZE

if TYPE_CHECKING:
    from ddct_format.container.buffers import Buffer

__all__ = ["Effort", "compress", "compress_chunks", "decompress"]

Effort = Literal["entropy", "default", "max"]

_CANDIDATES: Final[Mapping[str, Mapping[str, int]]] = {
    # Bit-packed coefficients hold no matches; the few that chance offers cost more than they save,
    # and break up the runs that the Huffman stage needs. Long matches and a tiny table: almost none.
    "entropy": {
        "strategy": zstandard.STRATEGY_FAST,
        "min_match": 7,
        "hash_log": 6,
        "target_length": 0,
        "compression_level": 1,
    },
    # Sparse maps, byte planes of exponents, text: real matches. Level 3 finds more of them, level 1
    # leaves more to the entropy stage; which is smaller changes from chunk to chunk.
    "fast": {"compression_level": 1},
    "matches": {"compression_level": 3},
    # Slow to write, as fast to read. Its window is 8 MiB, the most that a reader accepts.
    "best": {"compression_level": 19},
}
_EFFORTS: Final[Mapping[Effort, Sequence[str]]] = {
    "entropy": ("entropy",),
    "default": ("entropy", "fast", "matches"),
    "max": ("entropy", "fast", "matches", "best"),
}
_TRIED_EVERY: Final = 8
"""Chunks of one section are alike: what was best for one serves so many, all but the first without comparing."""
_CLEARLY: Final = 1.02
_FEW_BYTES: Final = 4096
"""To a boundary, on average: then a frame that ends blocks there may be larger than one that does not."""

_MAGIC: Final = bytes.fromhex("28 B5 2F FD")
_SINGLE_SEGMENT: Final = 0x20
_CONTENT_SIZE_UNKNOWN: Final = 2**64 - 1
_RLE_BLOCK: Final = 1
_RESERVED_BLOCK: Final = 3


class _Contexts(threading.local):
    """One of each per thread: a zstd context serves one thread at a time, and is dear to make."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()
        self.compressors = {
            name: zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(**parameters))
            for name, parameters in _CANDIDATES.items()
        }


_contexts = _Contexts()


def compress(raw: Buffer, boundaries: Sequence[int] = (), effort: Effort = "default") -> bytes:
    """Stored bytes of ``raw``: the smallest frame of those tried, or ``raw`` if none is smaller.

    Args:
        raw: any C-contiguous buffer.
        boundaries: byte positions in ``raw`` where its statistics change. Frames end a block there, so that each part
            has entropy tables of its own; where there are many, frames that do not compete with them.
        effort: which parameter sets are tried; "entropy" is for bytes without matches.
    """
    source = byte_view(raw)
    frames = _compress_all(source, _inside(boundaries, 0, len(source)), _EFFORTS[effort])
    return _smallest(source, frames)


def compress_chunks(
    raw: Buffer, chunk_size: int, boundaries: Sequence[int] = (), effort: Effort = "default"
) -> Iterator[bytes]:
    """Stored bytes of each chunk of ``raw``, as :func:`compress` would give them, or nearly.

    Within a part without a boundary, not every chunk is tried with all parameter sets: where one was clearly the best,
    the next seven take it.
    """
    source = byte_view(raw)
    candidates = _EFFORTS[effort]
    usual: Sequence[str] = ()
    alike = 0  # chunks since all were tried
    for start in range(0, len(source), chunk_size):
        stop = min(start + chunk_size, len(source))
        inner = _inside(boundaries, start, stop)
        if inner or start in boundaries or alike == _TRIED_EVERY:
            usual = ()
        frames = _compress_all(source[start:stop], inner, usual or candidates)
        if not usual:
            usual, alike = _clearly_best(frames), 0
        alike += 1
        yield _smallest(source[start:stop], frames)


def _smallest(source: memoryview, frames: Mapping[str, bytes]) -> bytes:
    frame = min(frames.values(), key=len)
    return frame if len(frame) < len(source) else bytes(source)


def _inside(boundaries: Sequence[int], start: int, stop: int) -> list[int]:
    return sorted({position - start for position in boundaries if start < position < stop})


def _compress_all(source: memoryview, inner: Sequence[int], candidates: Sequence[str]) -> dict[str, bytes]:
    """The frame that each parameter set makes."""
    frames = {}
    for candidate in candidates:
        compressor = _contexts.compressors[candidate]
        made = [_compress_in_blocks(compressor, source, inner)] if inner else []
        if not inner or len(inner) * _FEW_BYTES > len(source):
            made.append(compressor.compress(source))
        frames[candidate] = min(made, key=len)
    return frames


def _clearly_best(frames: Mapping[str, bytes]) -> Sequence[str]:
    """The parameter set that made the smallest frame by far; none if there is no such."""
    best, *others = sorted(frames, key=lambda candidate: len(frames[candidate]))
    clearly = all(len(frames[best]) * _CLEARLY < len(frames[other]) for other in others)
    return (best,) if clearly else ()


def decompress(stored: bytes, raw_size: int) -> bytes:
    """The ``raw_size`` bytes that ``stored`` stands for; nothing is allocated before all is checked.

    Raises:
        InvalidError: the frame's header or a length breaks spec section 4.
        CorruptError: the frame does not decompress.
    """
    if not 0 < len(stored) <= raw_size:
        raise InvalidError(f"stored size {len(stored)} is not in 1 … {raw_size}, the raw size")
    if len(stored) == raw_size:
        return stored
    _check_frame_header(stored, raw_size)
    try:
        raw = _contexts.decompressor.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        # The library gives one error for all; bytes after the frame are the writer's fault.
        end = _frame_end(stored)
        if end is not None and end < len(stored):
            raise InvalidError(f"{len(stored) - end} bytes follow the zstd frame") from None
        raise CorruptError(f"the zstd frame does not decompress: {error}") from None
    if len(raw) != raw_size:
        raise CorruptError(f"the zstd frame holds {len(raw)} bytes, not {raw_size}")
    return raw


def _compress_in_blocks(compressor: zstandard.ZstdCompressor, source: memoryview, boundaries: Sequence[int]) -> bytes:
    # The size is pledged so that the header can state it.
    stream = compressor.compressobj(size=len(source))
    pieces: list[bytes] = []
    start = 0
    for end in boundaries:
        pieces.append(stream.compress(source[start:end]))
        pieces.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        start = end
    pieces.append(stream.compress(source[start:]))
    pieces.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH))
    return b"".join(pieces)


def _check_frame_header(stored: bytes, raw_size: int) -> None:
    # The library reads skippable frames as if they were frames with content.
    if not stored.startswith(_MAGIC):
        raise InvalidError("stored bytes are not a zstd frame")
    try:
        header = zstandard.get_frame_parameters(stored[:18])
    except zstandard.ZstdError as error:
        raise InvalidError(f"the zstd frame's header is not valid: {error}") from None
    if header.content_size == _CONTENT_SIZE_UNKNOWN:
        raise InvalidError("the zstd frame does not state its content size")
    if header.content_size != raw_size:
        raise InvalidError(f"the zstd frame states a content size of {header.content_size}, not {raw_size}")
    if not stored[4] & _SINGLE_SEGMENT and header.window_size > MAX_WINDOW_SIZE:
        raise InvalidError(f"the zstd frame's window of {header.window_size} is over {MAX_WINDOW_SIZE} bytes")
    if header.dict_id:
        raise InvalidError(f"the zstd frame names a dictionary: {header.dict_id}")


def _frame_end(stored: bytes) -> int | None:
    """Where the frame ends, by its block headers (RFC 8878, 3.1.1.2); None if they make no sense."""
    position = zstandard.frame_header_size(stored[:18])
    last = False
    while not last:
        if position + 3 > len(stored):
            return None
        block = int.from_bytes(stored[position : position + 3], "little")
        last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
        if kind == _RESERVED_BLOCK:
            return None
        position += 3 + (1 if kind == _RLE_BLOCK else size)
    if zstandard.get_frame_parameters(stored[:18]).has_checksum:
        position += 4
    return position if position <= len(stored) else None
