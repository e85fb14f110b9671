"""Many chunks at once through the native core and the system's zstd, where there are both.

Chunk by chunk, every call gives up the interpreter's lock and waits for it again, and with many threads waiting is all
they do. This is for them. It takes only what is plainly right: whatever it refuses is read again chunk by chunk, and
refused with a reason.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from . import core

if TYPE_CHECKING:
    from ..container.buffers import Buffer

__all__ = ["inflate", "inflate_payloads", "read_stored"]

_FUNCTIONS = ("ZSTD_createDCtx", "ZSTD_freeDCtx", "ZSTD_decompressDCtx", "ZSTD_findFrameCompressedSize")


def inflate(stored: Buffer, offsets: Sequence[int], checksums: Sequence[int], chunk_size: int, out: Buffer) -> bool:
    """Fill ``out`` with the raw bytes of consecutive chunks; False if that was not possible.

    Args:
        stored: the chunks as they lie in the file.
        offsets: where each begins in the file, and where the last one ends.
        checksums: crc32c of each.
        out: writable, exactly as long as the raw bytes; undefined if the result is False.
    """
    functions = _zstd()
    if core is None or functions is None:
        return False
    return core.inflate_chunks(stored, array("Q", offsets), array("I", checksums), chunk_size, out, functions)


def inflate_payloads(
    descriptor: int,
    offsets: Buffer,
    checksums: Buffer,
    payloads: Sequence[tuple[int, int, int]],
    chunk_size: int,
    out: Buffer,
    threads: int,
    splits: tuple[Buffer, Buffer, Buffer, Buffer] = (b"", b"", bytearray(), bytearray()),
) -> bytes:
    """Read payloads from an open file into ``out``, by ``threads`` threads; of each, 1 if that was possible.

    Args:
        offsets: uint64, where each chunk of the file begins, and where the last one ends.
        checksums: uint32, crc32c of each.
        payloads: first chunk, place in ``out``, and bytes; what is there is undefined where the result is 0.
        splits: to be found out about each payload: see :class:`~ddct_format.codec.dctq.PayloadSplits`.
    """
    functions = _zstd()
    if core is None or functions is None:
        return bytes(len(payloads))
    numbers = array("Q", (number for payload in payloads for number in payload))
    return core.inflate_payloads(
        descriptor, offsets, checksums, numbers, chunk_size, out, threads, functions, splits, False
    )


def read_stored(
    descriptor: int,
    offsets: Buffer,
    checksums: Buffer,
    payloads: Sequence[tuple[int, int, int]],
    chunk_size: int,
    out: Buffer,
    threads: int,
) -> bytes:
    """As :func:`inflate_payloads`, but the chunks of a payload are left as they are stored, one after another.

    Everything is checked that can be without decompressing: checksums, frame headers, and where the frames end.
    """
    functions = _zstd()
    if core is None or functions is None:
        return bytes(len(payloads))
    numbers = array("Q", (number for payload in payloads for number in payload))
    nothing = (b"", b"", bytearray(), bytearray())
    return core.inflate_payloads(
        descriptor, offsets, checksums, numbers, chunk_size, out, threads, functions, nothing, True
    )


@cache
def _zstd() -> tuple[int, int, int, int] | None:
    try:
        library = ctypes.CDLL("libzstd.so.1")
        addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in _FUNCTIONS]
    except (OSError, AttributeError):
        return None
    return addresses[0], addresses[1], addresses[2], addresses[3]
