"""A payload as it is stored: its chunks and their checksums (spec sections 4 and 6)."""

from __future__ import annotations

import os
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from itertools import accumulate
from typing import TYPE_CHECKING, Final, overload

import google_crc32c

from ddct_format.container.buffers import byte_view
from ddct_format.container.publish import write_all
from ddct_format.container.zstd_frame import Effort, compress_chunks

if TYPE_CHECKING:
    from ddct_format.container.buffers import Buffer

    Group = tuple[int, int]
    Compressed = tuple[bytes, Sequence[bytes]]
    Spread = Callable[[Callable[[Group], Compressed], Iterable[Group]], Iterator[Compressed]]

__all__ = ["StoredPayload", "store_payload"]

_GROUP: Final = 4 << 20
"""Raw bytes that are compressed at a time, about."""


@dataclass(frozen=True, slots=True)
class StoredPayload:
    """A compressed payload, ready to be appended to an archive."""

    raw_size: int
    chunks: Sequence[bytes]
    sizes: tuple[int, ...]
    """Bytes of each of ``chunks``."""
    checksums: tuple[int, ...]
    """crc32c of each of ``chunks``."""
    raw_crc32c: int
    """Of the raw bytes."""

    @property
    def stored_size(self) -> int:
        return sum(self.sizes)


class _SpilledChunks(Sequence[bytes]):
    """Chunks that lie one after the other in a file without a name, which vanishes with them."""

    def __init__(self, file: FileIO, sizes: Sequence[int]) -> None:
        self._file = file
        self._ends = list(accumulate(sizes, initial=0))
        weakref.finalize(self, file.close)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        number = range(len(self))[place]
        start = self._ends[number]
        return os.pread(self._file.fileno(), self._ends[number + 1] - start, start)


def store_payload(
    sections: Sequence[Buffer],
    chunk_size: int,
    effort: Effort = "default",
    *,
    spread: Spread = map,
    spill: FileIO | None = None,
    release: Callable[[], None] | None = None,
) -> StoredPayload:
    """Cut the concatenated sections into chunks and compress each. Pure, but for ``spill``; runs on any thread.

    Args:
        sections: C-contiguous buffers; where one ends, the payload's statistics change.
        chunk_size: raw bytes of all chunks but the last.
        effort: see :func:`~ddct_format.container.zstd_frame.compress`.
        spread: as ``map``, perhaps with several threads.
        spill: an empty file for the chunks, which belongs to the result; without one they are in memory.
        release: called now and then: sections in mapped files may leave the memory.

    Raises:
        OSError: ``spill`` cannot be written.
    """
    views = [byte_view(section) for section in sections]
    ends = list(accumulate(map(len, views)))
    size = ends[-1] if ends else 0
    step = chunk_size * max(1, _GROUP // chunk_size)

    def compress_group(group: Group) -> tuple[bytes, Sequence[bytes]]:
        start, stop = group
        raw = _join(views, ends, start, stop)
        inner = [end - start for end in ends[bisect_left(ends, start) : bisect_right(ends, stop)]]
        return raw, list(compress_chunks(raw, chunk_size, inner, effort))

    chunks: list[bytes] = []
    sizes: list[int] = []
    checksums: list[int] = []
    raw_crc32c = 0
    for raw, found in spread(compress_group, [(start, min(start + step, size)) for start in range(0, size, step)]):
        raw_crc32c = google_crc32c.extend(raw_crc32c, raw)
        sizes += map(len, found)
        checksums += map(google_crc32c.value, found)
        if spill is None:
            chunks += found
        else:
            write_all(spill.fileno(), b"".join(found))
        if release is not None:
            release()
    stored = chunks if spill is None else _SpilledChunks(spill, sizes)
    return StoredPayload(size, stored, tuple(sizes), tuple(checksums), raw_crc32c)


def _join(views: Sequence[memoryview], ends: Sequence[int], start: int, stop: int) -> bytes:
    """Bytes ``start`` to ``stop`` of the concatenated views, which end at ``ends``."""
    parts = []
    for number in range(bisect_right(ends, start), len(views)):
        first = ends[number] - len(views[number])
        if first >= stop:
            break
        parts.append(views[number][max(start - first, 0) : stop - first])
    return b"".join(parts)
