"""One safetensors file: a reader without copies, and a writer that writes what safetensors writes."""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from safetensors import SafetensorError, safe_open

from ddct_format.checkpoint.names import check_tensor
from ddct_format.checkpoint.pages import Region, drop_cached, release_pages
from ddct_format.checkpoint.storage import FileState, open_regular_file, start_writing_back, storage_errors, write_at
from ddct_format.container.buffers import byte_view
from ddct_format.container.dtypes import tensor_nbytes
from ddct_format.errors import CheckpointError

if TYPE_CHECKING:
    from ddct_format.container.buffers import Buffer

__all__ = ["SafetensorsFile", "SafetensorsWriter", "StoredTensor"]

_MAX_HEADER_SIZE = 100_000_000
"""Bytes; the safetensors library refuses longer headers."""

_DROP_EVERY = 256 << 20
"""Bytes."""

_DTYPE_ORDER = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
)
"""The order in which safetensors' serializer lays tensors out; within a type they go by name."""

_DTYPE_RANK = {dtype: rank for rank, dtype in enumerate(_DTYPE_ORDER)}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor is in its file: `nbytes` bytes from position `start` of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


class SafetensorsFile:
    """A safetensors file, open and mapped for reading until `close`.

    The header is validated by the safetensors library. Its rules (no holes, no overlaps, sizes that
    follow from type and shape, nothing after the last tensor) fix every position, so positions are
    derived here and a file that lies about them cannot be expressed.

    A mapped file that another process truncates kills the reader with SIGBUS: whoever reads files
    that are still being written does so in a process of its own.

    Args:
        drop_cache: what is released for good, and all of it at the end, leaves the operating system's page cache, too.

    Attributes:
        path: as given.
        metadata: the header's `__metadata__`, in the file's order; empty if there is none.
        tensors: by name, in the order of the file.
        state: of the file when it was opened.

    Raises:
        CheckpointError: no such file, or not a complete safetensors file, or a tensor in it has a
            name, type or shape that an archive cannot carry (spec sections 1 and 5.1).
        StorageError: the operating system refuses to open or map it.
    """

    def __init__(self, path: str | os.PathLike[str], *, drop_cache: bool = False) -> None:
        self.path = Path(path)
        self._drop_cache = drop_cache
        self._descriptor, self.state = open_regular_file(self.path)
        try:
            with storage_errors(self.path):
                data_start = self._data_start()
                listed, self.metadata = self._validate()
                self._map = _map_for_reading(self._descriptor, self.state.size)
            self.tensors = self._derive_positions(listed, data_start)
            if len(self.metadata) > 1:
                # The library's dictionary has lost the order, without which no copy is byte for byte.
                self.metadata = _metadata_in_order(self._map[8:data_start], self.path)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._view: memoryview | None = memoryview(self._map)

    def read(self, name: str) -> memoryview:
        """The bytes of a tensor: row-major, little-endian, read-only, not copied, not always aligned.

        The view stays valid after `close`; the memory map goes when the last view of it goes.

        Raises:
            CheckpointError: no tensor of this name.
        """
        if self._view is None:
            raise ValueError(f"{self.path} is closed")
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError("no such tensor", place=self.path, tensor=name)
        return self._view[tensor.start : tensor.start + tensor.nbytes]

    def release(self, name: str, start: int = 0, stop: int | None = None, *, done: bool = False) -> None:
        """Let go of the memory that bytes `start` to `stop` of a tensor occupy; views stay valid and read them again.

        Mapped pages count as this process's memory from the first touch until they are let go.

        Args:
            done: they will not be needed again; with `drop_cache` they leave the operating system's cache, too.
        """
        if self._view is None:
            return
        tensor = self.tensors[name]
        first = tensor.start + min(start, tensor.nbytes)
        last = tensor.start + (tensor.nbytes if stop is None else min(stop, tensor.nbytes))
        release_pages(self._map, first, last)
        if done and self._drop_cache and first < last:
            drop_cached(self._descriptor, first, last)

    def check_unchanged(self) -> None:
        """Check that the file is what it was when it was opened.

        A file that was deleted since counts as unchanged: the open descriptor keeps all its bytes, so
        a checkpoint can be read to its end although the trainer has already rotated it away.

        Raises:
            CheckpointError: its size or modification time is another, or its path names another file.
        """
        if not self.is_unchanged():
            raise CheckpointError("was changed or replaced while it was being read", place=self.path)

    def is_unchanged(self) -> bool:
        """Whether `check_unchanged` would pass."""
        with storage_errors(self.path):
            try:
                status = self.path.stat()
            except (FileNotFoundError, NotADirectoryError):
                status = os.fstat(self._descriptor)
        return FileState.of(status) == self.state

    def close(self) -> None:
        """Close the file; views from `read` stay valid. Closing twice is harmless."""
        if self._view is None:
            return
        self._view.release()
        self._view = None
        # Where views are alive, the memory is unmapped together with the last of them.
        with suppress(BufferError):
            self._map.close()
        if self._drop_cache:
            drop_cached(self._descriptor)
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _data_start(self) -> int:
        prefix = os.pread(self._descriptor, 8, 0)
        if len(prefix) < 8:
            raise CheckpointError("truncated: no safetensors header", place=self.path)
        (header_size,) = struct.unpack("<Q", prefix)
        if header_size > _MAX_HEADER_SIZE:
            raise CheckpointError("not a safetensors file: its header size makes no sense", place=self.path)
        if 8 + header_size > self.state.size:
            raise CheckpointError("truncated: the file ends in its safetensors header", place=self.path)
        return int(8 + header_size)

    def _validate(self) -> tuple[list[tuple[str, str, tuple[int, ...]]], dict[str, str]]:
        """Have the library check the header; list (name, dtype, shape) by position, and the metadata."""
        try:
            with safe_open(self.path, framework="np") as handle:
                metadata = handle.metadata() or {}
                listed = []
                for name in handle.offset_keys():
                    tensor = handle.get_slice(name)
                    listed.append((name, tensor.get_dtype(), tuple(tensor.get_shape())))
        except SafetensorError as error:
            raise CheckpointError(
                f"not a complete safetensors file (damaged, truncated or still being written): {error}",
                place=self.path,
            ) from error
        # The library opens by path: be sure that it looked at the file that is open here.
        if FileState.of(self.path.stat()) != self.state:
            raise CheckpointError("was changed or replaced while it was being opened", place=self.path)
        return listed, metadata

    def _derive_positions(
        self, listed: Sequence[tuple[str, str, tuple[int, ...]]], data_start: int
    ) -> dict[str, StoredTensor]:
        tensors = {}
        position = data_start
        for name, dtype, shape in listed:
            check_tensor(name, dtype, shape, self.path)
            nbytes = tensor_nbytes(dtype, shape)
            tensors[name] = StoredTensor(name, dtype, shape, position, nbytes)
            position += nbytes
        if position != self.state.size:
            raise CheckpointError(f"has {self.state.size} bytes where its header implies {position}", place=self.path)
        return tensors


class SafetensorsWriter:
    """Write a safetensors file, byte for byte as safetensors' own serializer would.

    The whole layout follows from names, types and shapes, so tensors are written in any order and
    from any thread, each straight to its place. The file must not exist; it is created with the mode
    that the umask leaves. As a context manager it closes the file, or removes it after an exception.

    Args:
        path: of the new file.
        tensors: (name, dtype, shape) of each tensor, in any order.
        metadata: texts for `__metadata__`, written in the given order; none are written if empty.
        drop_cache: what is written is put on disk every now and then, and leaves the operating system's page cache.

    Raises:
        CheckpointError: a name is listed twice, or breaks spec sections 1 or 5.1, or the header is too
            long for the safetensors library to read it.
        StorageError: the operating system refuses to create the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tensors: Sequence[tuple[str, str, tuple[int, ...]]],
        metadata: Mapping[str, str],
        *,
        drop_cache: bool = False,
    ) -> None:
        self.path = Path(path)
        self._drop_cache = drop_cache
        self._undropped = 0
        header, self._tensors, size = _lay_out(tensors, metadata, self.path)
        self._unwritten = set(self._tensors)
        self._discarded = self._closed = False
        with storage_errors(self.path):
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                os.ftruncate(self._descriptor, size)
                write_at(self._descriptor, memoryview(header), 0)
            except BaseException:
                self.discard()
                raise

    def write(self, name: str, data: Buffer) -> None:
        """Write all bytes of one tensor: row-major, little-endian, contiguous.

        Raises:
            StorageError: no space left, or another refusal of the operating system.
            ValueError: not a tensor of this file, written before, or not of the tensor's size.
        """
        tensor = self._unwritten_tensor(name)
        view = byte_view(data)
        if view.nbytes != tensor.nbytes:
            raise ValueError(f"tensor {name!r} has {tensor.nbytes} bytes, not {view.nbytes}")
        with storage_errors(self.path):
            write_at(self._descriptor, view, tensor.start)
            self._written(tensor)

    @contextmanager
    def region(self, name: str) -> Iterator[Region]:
        """The place of one tensor in the file, to be filled within the block; for those too large for memory.

        Raises:
            StorageError: no space left, or another refusal of the operating system.
            ValueError: not a tensor of this file, written before, or empty.
        """
        tensor = self._unwritten_tensor(name)
        if not tensor.nbytes:
            raise ValueError(f"tensor {name!r} is empty")
        with storage_errors(self.path):
            region = Region(self._descriptor, tensor.start, tensor.nbytes)
        yield region
        region.release()
        with storage_errors(self.path):
            self._written(tensor)

    def close(self) -> None:
        """Make the file durable and close it. Closing twice is harmless.

        Raises:
            StorageError: the operating system could not store the bytes.
            ValueError: a tensor was not written, or the file was discarded.
        """
        if self._discarded:
            raise ValueError(f"{self.path} was discarded")
        if self._closed:
            return
        if self._unwritten:
            missing = min(self._unwritten)
            raise ValueError(f"{len(self._unwritten)} tensors were not written, such as {missing!r}")
        with storage_errors(self.path):
            os.fsync(self._descriptor)
            if self._drop_cache:
                drop_cached(self._descriptor)
            self._closed = True
            os.close(self._descriptor)

    def discard(self) -> None:
        """Close and remove the file, if it is not closed yet; never raises, for use after an error."""
        if self._closed:
            return
        self._discarded = self._closed = True
        with suppress(OSError):
            os.close(self._descriptor)
        with suppress(OSError):
            self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.discard()

    def _unwritten_tensor(self, name: str) -> StoredTensor:
        tensor = self._tensors.get(name)
        if tensor is None or name not in self._unwritten:
            raise ValueError(f"tensor {name!r} is not to be written, or was written already")
        return tensor

    def _written(self, tensor: StoredTensor) -> None:
        self._unwritten.discard(tensor.name)
        start_writing_back(self._descriptor, tensor.start, tensor.nbytes)
        if self._drop_cache:
            self._undropped += tensor.nbytes
            if self._undropped >= _DROP_EVERY:
                self._undropped = 0
                os.fsync(self._descriptor)  # what is not on disk cannot be dropped
                drop_cached(self._descriptor)


def _map_for_reading(descriptor: int, size: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        # Without this the map would keep a second descriptor: half as many shards could be open.
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ, trackfd=False)
    return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)


def _metadata_in_order(header: bytes, path: Path) -> dict[str, str]:
    try:
        metadata: dict[str, str] = json.loads(header)["__metadata__"]
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its header is no plain JSON: {error}", place=path) from error
    return metadata


def _lay_out(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str], path: Path
) -> tuple[bytes, dict[str, StoredTensor], int]:
    """Header bytes with their length prefix, tensors with file positions, and the file's size."""
    for name, dtype, shape in tensors:
        check_tensor(name, dtype, shape, path)
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    relative: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    position = 0
    for name, dtype, shape in sorted(tensors, key=lambda item: (_DTYPE_RANK[item[1]], item[0])):
        if name in relative or name == "__metadata__":
            raise CheckpointError("the name is taken already", place=path, tensor=name)
        nbytes = tensor_nbytes(dtype, shape)
        end = position + nbytes
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        relative[name] = (dtype, tuple(shape), position, nbytes)
        position = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER_SIZE:
        raise CheckpointError("too many tensors for the header of one safetensors file", place=path)
    start = 8 + len(text)
    stored = {
        name: StoredTensor(name, dtype, shape, start + offset, nbytes)
        for name, (dtype, shape, offset, nbytes) in relative.items()
    }
    return struct.pack("<Q", len(text)) + text, stored, start + position
