"""Writing an archive (spec sections 2 to 6)."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from itertools import accumulate, pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import google_crc32c

from ddct_format.container.buffers import byte_view
from ddct_format.container.chunk_table import ENTRY_SIZE, build_table, parse_table, payload_sizes
from ddct_format.container.digest import TensorHasher
from ddct_format.container.metadata import compress_metadata, parse_metadata, serialise_metadata
from ddct_format.container.payload import StoredPayload, store_payload
from ddct_format.container.preamble import PREAMBLE_SIZE, Preamble, build_preamble
from ddct_format.container.publish import publish_file, temporary_path, write_all
from ddct_format.container.records import FileRecord, Metadata
from ddct_format.container.zstd_frame import Effort
from ddct_format.errors import ArchiveError, InvalidError, OutputExistsError, StorageError
from ddct_format.limits import MAX_CHUNK_SIZE, MAX_CHUNKS, MAX_LAYERS, MAX_METADATA_SIZE, MIN_CHUNK_SIZE

if TYPE_CHECKING:
    from ddct_format.container.buffers import Buffer
    from ddct_format.container.payload import Spread

__all__ = ["DEFAULT_CHUNK_SIZE", "ArchiveWriter", "SealedArchive"]

DEFAULT_CHUNK_SIZE: Final = 64 << 10
_COPY_SIZE: Final = 4 << 20


@dataclass(slots=True)
class _Spool:
    """The payloads of one layer, in a file without a name: it vanishes with the process.

    They lie one after the other as they came; ``place`` is where each belongs.
    """

    file: FileIO
    places: array[int] = field(default_factory=lambda: array("Q"))
    raw_sizes: array[int] = field(default_factory=lambda: array("Q"))
    first_chunks: array[int] = field(default_factory=lambda: array("Q"))
    starts: array[int] = field(default_factory=lambda: array("Q", [0]))
    """Of each chunk in the file, and the end of the last."""
    checksums: array[int] = field(default_factory=lambda: array("I"))

    def begin(self, place: int | None = None) -> None:
        """Begin the next payload; None if all come in their order."""
        self.places.append(len(self.places) if place is None else place)
        self.raw_sizes.append(0)
        self.first_chunks.append(len(self.checksums))

    def extend(self, part: StoredPayload) -> None:
        """The next part of the payload; all parts but the last are whole chunks."""
        for chunk in part.chunks:
            write_all(self.file.fileno(), chunk)
        self.raw_sizes[-1] += part.raw_size
        self.starts.extend(accumulate(part.sizes, initial=self.starts.pop()))
        self.checksums.extend(part.checksums)

    @property
    def stored_size(self) -> int:
        return self.starts[-1]

    def in_order(self) -> Iterator[tuple[int, array[int], array[int]]]:
        """Of each payload, in its place: raw size, starts of the chunks and end of the last, and their checksums."""
        ends = [*self.first_chunks[1:], len(self.checksums)]
        for number in sorted(range(len(self.places)), key=self.places.__getitem__):
            first, end = self.first_chunks[number], ends[number]
            yield self.raw_sizes[number], self.starts[first : end + 1], self.checksums[first:end]


@dataclass(frozen=True, slots=True)
class SealedArchive:
    """What was written."""

    content_id: str
    file_size: int
    """Bytes of the whole file."""
    file_sha256: str
    """Of the whole file."""


class ArchiveWriter:
    """Writes one archive; a context manager that leaves nothing behind unless :meth:`seal` succeeded.

    Chunks wait in temporary files in the output's directory, one per layer, since the order of the file
    is by layer and the table comes before them. While it is sealed, an archive needs twice its size on disk.
    ``compress_payload`` may run on any thread; the other methods on one at a time.

    Args:
        path: the archive, which must not exist.
        chunk_size: raw bytes of a chunk; a power of two, 4 KiB … 16 MiB.
        effort: how hard :meth:`compress_payload` tries.
        spill_above: raw bytes of a payload beyond which its chunks wait in a temporary file until they are appended.

    Raises:
        OutputExistsError: ``path`` exists.
        StorageError: its directory does not.
        ValueError: ``chunk_size`` is not allowed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        effort: Effort = "default",
        spill_above: int = sys.maxsize,
    ) -> None:
        if not MIN_CHUNK_SIZE <= chunk_size <= MAX_CHUNK_SIZE or chunk_size & (chunk_size - 1):
            raise ValueError(f"chunk_size {chunk_size} is not a power of two, 4 KiB … 16 MiB")
        self.path = Path(path)
        self.chunk_size = chunk_size
        self._effort: Effort = effort
        self._spill_above = spill_above
        self._files: list[FileRecord] = []
        self._file_spool: _Spool | None = None
        self._layer_spools: list[_Spool] = []
        self._closed = False
        if os.path.lexists(self.path):
            raise OutputExistsError("already exists and is never overwritten", place=self.path)
        if not self.path.parent.is_dir():
            raise StorageError("the directory does not exist", place=self.path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the temporary files; a second call does nothing."""
        self._closed = True
        for spool in self._spools():
            spool.file.close()

    def compress_payload(
        self,
        sections: Sequence[Buffer],
        *,
        effort: Effort | None = None,
        spread: Spread = map,
        release: Callable[[], None] | None = None,
    ) -> StoredPayload:
        """The concatenated sections, cut into chunks and compressed; for any thread.

        Args:
            effort: for this payload, if not the writer's.
            spread, release: see :func:`store_payload`.

        Raises:
            StorageError: it is large, and its temporary file cannot be written.
        """
        with _storage(self.path):
            spill = (
                self._temporary_file()
                if sum(len(byte_view(section)) for section in sections) > self._spill_above
                else None
            )
            effort = effort or self._effort
            return store_payload(sections, self.chunk_size, effort, spread=spread, spill=spill, release=release)

    def add_file(self, path: str, *pieces: Buffer) -> FileRecord:
        """``add_file_pieces`` for content that is in memory."""
        return self.add_file_pieces(path, pieces)

    def add_file_pieces(self, path: str, pieces: Iterable[Buffer]) -> FileRecord:
        """Append a side file and return its record for the metadata; in ascending order of ``path``.

        Memory stays at a piece and a chunk. After an error from ``pieces`` the writer can only be closed.

        Raises:
            ValueError: the order is wrong, or the writer is closed.
            StorageError: it cannot be written.
        """
        if self._files and self._files[-1].path >= path:
            raise ValueError(f"side files must be added in ascending order of path: {path!r}")
        self._check_open()
        with _storage(self.path):
            if self._file_spool is None:
                self._file_spool = self._new_spool()
            self._file_spool.begin()
        hasher, waiting, size = TensorHasher(), bytearray(), 0
        for piece in pieces:
            hasher.update(piece)
            waiting += byte_view(piece)
            whole = len(waiting) - len(waiting) % self.chunk_size
            if whole:
                self._extend_file(bytes(waiting[:whole]))
                size += whole
                del waiting[:whole]
        self._extend_file(bytes(waiting))
        record = FileRecord(path, size + len(waiting), hasher.hexdigest())
        self._files.append(record)
        return record

    def _extend_file(self, data: bytes) -> None:
        assert self._file_spool is not None
        part = self.compress_payload([data])
        with _storage(self.path):
            self._file_spool.extend(part)

    @property
    def side_files_size(self) -> int:
        """Stored bytes of the side files so far, with their entries in the chunk table."""
        if self._file_spool is None:
            return 0
        return self._file_spool.stored_size + ENTRY_SIZE * len(self._file_spool.checksums)

    def append(self, layer_index: int, payload: StoredPayload, *, place: int | None = None) -> None:
        """Append the payload of a tensor that has a layer ``layer_index``.

        Args:
            place: of the tensor among all: a number of its own, ascending in the order of tensors. None if the payloads
                of a layer come in that order.

        Raises:
            ValueError: the index is not 0 … 3, or the writer is closed.
            StorageError: it cannot be written.
        """
        if not 0 <= layer_index < MAX_LAYERS:
            raise ValueError(f"layer {layer_index} is not in 0 … {MAX_LAYERS - 1}")
        self._check_open()
        with _storage(self.path):
            while len(self._layer_spools) <= layer_index:
                self._layer_spools.append(self._new_spool())
            spool = self._layer_spools[layer_index]
            spool.begin(place)
            spool.extend(payload)

    def discard_layers(self) -> None:
        """Forget all tensors that were appended, to begin again with the first; side files stay."""
        self._check_open()
        for spool in self._layer_spools:
            spool.file.close()
        self._layer_spools = []

    def seal(self, metadata: Metadata, check: Callable[[Path], None] | None = None) -> SealedArchive:
        """Write the archive, put it on disk and give it its name.

        Args:
            metadata: describes all that was appended.
            check: called with the path of the complete file before it gets its name, while the disk is still writing;
                may raise.

        Raises:
            InvalidError, UnsupportedError: a reader would refuse the metadata, or they do not
                describe what was appended.
            OutputExistsError: the output has appeared meanwhile.
            StorageError: it cannot be written.
            ValueError: the writer is closed.
        """
        self._check_open()
        try:
            raw = serialise_metadata(metadata)
            self._check_metadata(metadata, raw)
        except ArchiveError as error:
            error.at(place=self.path)
            raise
        stored = compress_metadata(raw)
        stored_sizes, checksums = array("I"), array("I")
        for spool in self._spools():
            for _, starts, found in spool.in_order():
                stored_sizes.extend(end - start for start, end in pairwise(starts))
                checksums.extend(found)
        table = build_table(stored_sizes, checksums)
        preamble = Preamble(
            file_size=PREAMBLE_SIZE + len(stored) + len(table) + sum(stored_sizes),
            metadata_stored_size=len(stored),
            metadata_raw_size=len(raw),
            metadata_crc32c=google_crc32c.value(stored),
            table_size=len(table),
            table_crc32c=google_crc32c.value(table),
        )
        parse_table(table, metadata, preamble.chunks_offset, preamble.file_size)
        temporary = temporary_path(self.path.parent)
        with _storage(self.path):
            try:
                with _new_file(temporary) as descriptor, ThreadPoolExecutor(max_workers=1) as disk:
                    file_sha256 = self._write(descriptor, [build_preamble(preamble), stored, table])
                    on_disk = disk.submit(os.fsync, descriptor)
                    if check is not None:
                        check(temporary)
                    on_disk.result()
                publish_file(temporary, self.path)
            finally:
                temporary.unlink(missing_ok=True)
        self.close()
        return SealedArchive(hashlib.sha256(raw).hexdigest(), preamble.file_size, file_sha256)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the writer is closed")

    def _check_metadata(self, metadata: Metadata, raw: bytes) -> None:
        # Whatever this writer seals, a reader must accept: so it is read back.
        if len(raw) > MAX_METADATA_SIZE:
            raise InvalidError(f"metadata of {len(raw)} bytes is over {MAX_METADATA_SIZE}")
        parse_metadata(raw)
        if metadata.chunk_size != self.chunk_size:
            raise InvalidError(f"chunk_size is {metadata.chunk_size}, not {self.chunk_size}")
        appended = [size for spool in self._spools() for size, _, _ in spool.in_order()]
        if list(metadata.files) != self._files or list(payload_sizes(metadata)) != appended:
            raise InvalidError("the metadata do not describe the payloads that were appended")
        if sum(len(spool.checksums) for spool in self._spools()) > MAX_CHUNKS:
            raise InvalidError(f"there are more than {MAX_CHUNKS} chunks")

    def _new_spool(self) -> _Spool:
        return _Spool(self._temporary_file())

    def _temporary_file(self) -> FileIO:
        """Without a name: it vanishes with the process."""
        return tempfile.TemporaryFile(dir=self.path.parent, prefix=".ddct-", buffering=0)

    def _spools(self) -> list[_Spool]:
        """In the order of the file."""
        return ([self._file_spool] if self._file_spool is not None else []) + self._layer_spools

    def _write(self, descriptor: int, head: Sequence[bytes]) -> str:
        """Write the file, and return its SHA-256."""
        hasher = hashlib.sha256()
        for part in head:
            hasher.update(part)
            write_all(descriptor, part)
        for spool in self._spools():
            for _, starts, _ in spool.in_order():
                for start in range(starts[0], starts[-1], _COPY_SIZE):
                    size = min(_COPY_SIZE, starts[-1] - start)
                    piece = os.pread(spool.file.fileno(), size, start)
                    if len(piece) != size:
                        raise OSError(errno.EIO, "a temporary file was truncated")
                    hasher.update(piece)
                    write_all(descriptor, piece)
        return hasher.hexdigest()


@contextmanager
def _new_file(path: Path) -> Iterator[int]:
    """A descriptor for writing."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _storage(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot be written: {error.strerror}", place=place) from error
