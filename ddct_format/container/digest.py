"""Tensor digests and model ids (spec sections 1.1 and 1.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from ddct_format.container.buffers import byte_view

if TYPE_CHECKING:
    from ddct_format.container.buffers import Buffer

__all__ = ["DIGEST_NAME", "LEAF_SIZE", "TensorHasher", "model_id", "tensor_digest"]

DIGEST_NAME: Final = "sha256-64k"
LEAF_SIZE: Final = 65536
"""Bytes of a leaf; the last may be shorter."""


class TensorHasher:
    """The digest ``sha256-64k`` of bytes that arrive in pieces of any size.

    Args:
        many: the digests of some of the first leaves of a buffer, perhaps none: see ``native/digest.py``.
    """

    __slots__ = ("_leaf", "_leaf_size", "_leaves", "_many", "_size")

    def __init__(self, many: Callable[[Buffer], bytes] | None = None) -> None:
        self._many = many
        # The outer hash begins with the total size, so that leaf digests wait here until the end:
        # 32 bytes for each 64 KiB.
        self._leaves = bytearray()
        self._leaf = hashlib.sha256()
        self._leaf_size = 0
        self._size = 0

    def update(self, data: Buffer) -> None:
        """Take the next bytes; ``data`` is any C-contiguous buffer."""
        view = byte_view(data)
        self._size += len(view)
        start = 0
        while start < len(view):
            if self._many is not None and not self._leaf_size and len(view) - start >= LEAF_SIZE:
                digests = self._many(view[start:])
                self._leaves += digests
                start += len(digests) // 32 * LEAF_SIZE
                if digests:
                    continue
            piece = view[start : start + LEAF_SIZE - self._leaf_size]
            self._leaf.update(piece)
            self._leaf_size += len(piece)
            start += len(piece)
            if self._leaf_size == LEAF_SIZE:
                self._leaves += self._leaf.digest()
                self._leaf = hashlib.sha256()
                self._leaf_size = 0

    def extend(self, other: TensorHasher) -> None:
        """Take as the next bytes what another hasher has taken, which is of no use any more then.

        Raises:
            ValueError: the bytes so far end within a leaf.
        """
        if self._leaf_size:
            raise ValueError("the next bytes do not begin a leaf")
        self._leaves += other._leaves
        self._leaf, self._leaf_size = other._leaf, other._leaf_size
        self._size += other._size

    def hexdigest(self) -> str:
        """64 lower-case hexadecimal digits; more bytes may still follow."""
        outer = hashlib.sha256(self._size.to_bytes(8, "little"))
        outer.update(self._leaves)
        if self._leaf_size:
            outer.update(self._leaf.digest())
        return outer.hexdigest()


def tensor_digest(data: Buffer) -> str:
    """The digest ``sha256-64k`` of a tensor's bytes (any C-contiguous buffer)."""
    hasher = TensorHasher()
    hasher.update(data)
    return hasher.hexdigest()


def model_id(entries: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """Id of a set of tensors, given as (name, dtype, shape, digest) in any order."""
    # Code points sort as their UTF-8 bytes do.
    lines = [
        f"{name}\t{dtype}\t{','.join(map(str, shape))}\t{digest}\n"
        for name, dtype, shape, digest in sorted(entries, key=lambda entry: entry[0])
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
