"""A payload as it is stored: its chunks and their checksums (spec sections 4 and 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import google_crc32c

from ddct_format.container.buffers import byte_view
from ddct_format.container.zstd_frame import Effort, compress_chunks

if TYPE_CHECKING:
    from ddct_format.container.buffers import Buffer

__all__ = ["StoredPayload", "store_payload"]


@dataclass(frozen=True, slots=True)
class StoredPayload:
    """A compressed payload, ready to be appended to an archive."""

    raw_size: int
    chunks: tuple[bytes, ...]
    checksums: tuple[int, ...]
    """crc32c of each of ``chunks``."""
    raw_crc32c: int
    """Of the raw bytes."""

    @property
    def stored_size(self) -> int:
        return sum(map(len, self.chunks))


def store_payload(sections: Sequence[Buffer], chunk_size: int, effort: Effort = "default") -> StoredPayload:
    """Cut the concatenated sections into chunks and compress each. Pure; runs on any thread.

    Args:
        sections: C-contiguous buffers; where one ends, the payload's statistics change.
        chunk_size: raw bytes of all chunks but the last.
        effort: see :func:`~ddct_format.container.zstd_frame.compress`.
    """
    views = [byte_view(section) for section in sections]
    raw = b"".join(views)
    chunks = tuple(compress_chunks(raw, chunk_size, list(accumulate(map(len, views))), effort))
    checksums = tuple(google_crc32c.value(chunk) for chunk in chunks)
    return StoredPayload(len(raw), chunks, checksums, google_crc32c.value(raw))
