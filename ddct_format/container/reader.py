"""Reading an archive: all checks of spec section 9 that need neither codecs nor the base model."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import google_crc32c

from ddct_format.container.buffers import byte_view
from ddct_format.container.chunk_table import ChunkTable, chunk_count, parse_table
from ddct_format.container.collector import collector_paused
from ddct_format.container.digest import TensorHasher
from ddct_format.container.metadata import parse_metadata
from ddct_format.container.preamble import PREAMBLE_SIZE, Preamble, parse_preamble
from ddct_format.container.records import FileRecord, Metadata, TensorRecord
from ddct_format.container.source import FileSource, Source
from ddct_format.container.zstd_frame import decompress
from ddct_format.errors import BudgetError, CorruptError, DdctError
from ddct_format.limits import MAX_LAYERS

if TYPE_CHECKING:
    from ddct_format.container.buffers import Buffer

    Inflate = Callable[[Buffer, Sequence[int], Sequence[int], int, Buffer], bool]
    InflatePayloads = Callable[[int, Buffer, Buffer, Sequence[tuple[int, int, int]], int, Buffer, int], bytes]
    ReadStored = InflatePayloads

__all__ = ["DEFAULT_BUDGET", "ArchiveReader", "LayerCheck", "OnChunk"]

DEFAULT_BUDGET: Final = 8 << 30
"""Bytes that opening an archive, or reading one payload, may allocate unless the caller says otherwise."""

LayerCheck = Callable[[TensorRecord, int], bool]
"""Checks one layer of one tensor against its codec; raises UnsupportedError or InvalidError. False: it is skipped.

What it says of a tensor it says of all that differ in nothing but name and digests: it is asked about one of them.
"""

OnChunk = Callable[[int, int], None]
"""Told how many chunks are done, and how many there are."""


class ArchiveReader:
    """An open archive. Methods that read may be called from several threads at once.

    Attributes:
        preamble: what the first 64 bytes say.
        metadata: the checked metadata.
        content_id: sha256 of the raw metadata, which recompression does not change.
        file_size: bytes of the whole file.
        tensors: records by name, in the order of the file.
        source: where the bytes come from.
    """

    def __init__(
        self,
        source: Source,
        preamble: Preamble,
        metadata: Metadata,
        content_id: str,
        table: ChunkTable,
        budget: int,
    ) -> None:
        """Use :meth:`open`."""
        self.preamble = preamble
        self.metadata = metadata
        self.content_id = content_id
        self.file_size = preamble.file_size
        self.source = source
        self._table = table
        self._budget = budget
        self.tensors: Mapping[str, TensorRecord] = {tensor.name: tensor for tensor in metadata.tensors}
        self._files = {file.path: file for file in metadata.files}

    @classmethod
    def open(
        cls,
        source: Source,
        *,
        check_layer: LayerCheck | None = None,
        budget: int = DEFAULT_BUDGET,
        allow_truncated: bool = False,
    ) -> Self:
        """Read and check everything but the chunks: spec section 9, steps 1 to 9.

        Args:
            source: owned by the reader from here on; closed with it, and when it is refused.
            check_layer: called for every layer, tensor by tensor, as step 8.
            budget: bytes that may be allocated, here and for each payload that is asked for.
            allow_truncated: accept a file that lacks chunks at its end; :attr:`layers_present` says what it has.

        Raises:
            TruncatedError, CorruptError, UnsupportedError, InvalidError: as section 9 says.
            BudgetError: metadata and chunk table need more than ``budget``.
            StorageError: the source cannot be read.
        """
        try:
            with _located(source.name), collector_paused():
                head = source.read_at(0, min(PREAMBLE_SIZE, source.size))
                preamble = parse_preamble(head, source.size, allow_truncated=allow_truncated)
                _check_budget(preamble.chunks_offset + preamble.metadata_raw_size, budget, "opening it")
                raw, table_bytes = _read_regions(source, preamble)
                content_id = hashlib.sha256(raw).hexdigest()
                metadata = parse_metadata(raw)
                if check_layer is not None:
                    _check_layers(metadata, check_layer)
                table = parse_table(table_bytes, metadata, preamble.chunks_offset, preamble.file_size)
                return cls(source, preamble, metadata, content_id, table, budget)
        except BaseException:
            source.close()
            raise

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
        """Close the source; a second call does nothing."""
        self.source.close()

    @property
    def layers_present(self) -> int:
        """How many layers, from the first, are there for every tensor; 0 too if a side file is incomplete."""
        for layers in range(len(self.metadata.target_ids), 0, -1):
            if self.prefix_size(layers) <= self.source.size:
                return layers
        return 0

    def prefix_size(self, layers: int) -> int:
        """Bytes from the start of the file that hold the side files and the first ``layers`` layers of every tensor."""
        return self._table.offsets[self._chunks_before(layers)]

    def _chunks_before(self, layers: int) -> int:
        """Chunks of the side files and of the first ``layers`` layers of every tensor."""
        chunk_size = self.metadata.chunk_size
        count = sum(chunk_count(file.size, chunk_size) for file in self.metadata.files)
        for tensor in self.metadata.tensors:
            count += sum(chunk_count(layer.size, chunk_size) for layer in tensor.layers[:layers])
        return count

    def tensor(self, name: str) -> TensorRecord:
        """The record of a tensor; KeyError if the archive has none of that name."""
        return self.tensors[name]

    def payload(self, name: str, layer: int) -> bytes:
        """The raw payload of a tensor's layer, every chunk of it checked.

        Raises:
            KeyError, IndexError: there is no such tensor or layer.
            CorruptError, TruncatedError, InvalidError: section 9, step 11.
            BudgetError: it is larger than the reader's budget.
            StorageError: the source cannot be read.
        """
        return self.payload_range(name, layer, 0, self.tensors[name].layers[layer].size)

    def payload_range(self, name: str, layer: int, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` (exclusive) of a raw payload; only their chunks are read.

        Raises:
            ValueError: the range does not lie in the payload.
            As :meth:`payload` does, for the chunks that hold the range.
        """
        size = self.tensors[name].layers[layer].size
        if not 0 <= start <= stop <= size:
            raise ValueError(f"bytes {start} to {stop} are not in a payload of {size} bytes")
        if start == stop:
            return b""
        chunk_size = self.metadata.chunk_size
        begin, end = start // chunk_size, chunk_count(stop, chunk_size)
        with _located(self.source.name, name):
            _check_budget(min(end * chunk_size, size) - begin * chunk_size, self._budget, "its payload")
            raw = b"".join(self._chunks(self._table.layers[layer][name], size, begin, end))
        skipped = begin * chunk_size
        return raw[start - skipped : stop - skipped]

    def payload_into(self, name: str, layer: int, out: Buffer, inflate: Inflate | None = None) -> None:
        """The raw payload of a tensor's layer into memory of the caller's, every chunk of it checked.

        Args:
            out: writable, contiguous, exactly as long as the payload.
            inflate: does many chunks at once, where it can: see ``native/inflate.py``.

        Raises:
            As :meth:`payload` does, but never BudgetError.
        """
        size = self.tensors[name].layers[layer].size
        target = byte_view(out)
        if len(target) != size:
            raise ValueError(f"a payload of {size} bytes does not fit into {len(target)}")
        chunk_size, first = self.metadata.chunk_size, self._table.layers[layer][name]
        offsets, checksums = self._table.offsets, self._table.checksums
        position, stop = first, first + chunk_count(size, chunk_size)
        with _located(self.source.name, name):
            while position < stop:
                after = self._read_until(position, stop)
                stored = self.source.read_at(offsets[position], offsets[after] - offsets[position])
                begin = (position - first) * chunk_size
                part = target[begin : min(size, (after - first) * chunk_size)]
                where, sums = offsets[position : after + 1], checksums[position:after]
                if inflate is None or not inflate(stored, where, sums, chunk_size, part):
                    for raw in self._chunks(first, size, position - first, after - first):
                        target[begin : begin + len(raw)] = raw
                        begin += len(raw)
                position = after

    def payloads_into(
        self,
        wanted: Sequence[tuple[str, int, int]],
        out: Buffer,
        inflate: InflatePayloads,
        threads: int,
    ) -> None:
        """Raw payloads into memory of the caller's, every chunk of them checked.

        Args:
            wanted: tensor, layer, and where in ``out`` the payload begins.
            out: writable, contiguous.
            inflate: does all at once, from a file: see ``native/inflate.py``; what it cannot do is read one by one.

        Raises:
            As :meth:`payload` does, but never BudgetError.
        """
        target = byte_view(out)
        payloads = [
            (self._table.layers[layer][name], place, self.tensors[name].layers[layer].size)
            for name, layer, place in wanted
        ]
        good = bytes(len(payloads))
        if isinstance(self.source, FileSource):
            table = self._table
            good = inflate(
                self.source.descriptor, table.offsets, table.checksums, payloads, self.metadata.chunk_size, out, threads
            )
        for (name, layer, place), (_, _, size), is_good in zip(wanted, payloads, good, strict=True):
            if not is_good:
                self.payload_into(name, layer, target[place : place + size])

    def stored_into(
        self,
        wanted: Sequence[tuple[str, int, int]],
        out: Buffer,
        read: ReadStored,
        threads: int,
    ) -> list[array[int] | None]:
        """Payloads as they are stored, chunk after chunk, into memory of the caller's: checked, but not decompressed.

        Args:
            wanted: tensor, layer, and where in ``out`` its chunks begin.
            out: writable, contiguous.
            read: does all at once, from a file: see ``native/inflate.py``.

        Returns:
            Of each payload where in the file its chunks begin, and where the last one ends; or None if a chunk is not
            plainly right, or the source is no file: what is in ``out`` is undefined then.
        """
        if not isinstance(self.source, FileSource):
            return [None] * len(wanted)
        table, chunk_size, payloads = self._table, self.metadata.chunk_size, []
        for name, layer, place in wanted:
            payloads.append((table.layers[layer][name], place, self.tensors[name].layers[layer].size))
        good = read(self.source.descriptor, table.offsets, table.checksums, payloads, chunk_size, out, threads)
        return [
            table.offsets[first : first + chunk_count(size, chunk_size) + 1] if is_good else None
            for (first, _, size), is_good in zip(payloads, good, strict=True)
        ]

    def payload_pieces(self, name: str, layer: int) -> Iterator[bytes]:
        """The raw payload of a tensor's layer, chunk by chunk in order, each checked. Memory stays at a few MiB.

        Raises:
            As :meth:`payload` does, but never BudgetError.
        """
        size = self.tensors[name].layers[layer].size
        with _located(self.source.name, name):
            first = self._table.layers[layer][name]
            yield from self._chunks(first, size, 0, chunk_count(size, self.metadata.chunk_size))

    def stored_size(self, name: str) -> int:
        """Stored bytes of all chunks of all layers of a tensor."""
        return sum(self.stored_layer_size(name, index) for index in range(len(self.tensors[name].layers)))

    def stored_layer_size(self, name: str, layer: int) -> int:
        """Stored bytes of all chunks of one layer of a tensor."""
        offsets, first = self._table.offsets, self._table.layers[layer][name]
        size = self.tensors[name].layers[layer].size
        return offsets[first + chunk_count(size, self.metadata.chunk_size)] - offsets[first]

    def file(self, path: str) -> bytes:
        """The bytes of a side file, its digest checked; KeyError if the archive has none of that path.

        Raises:
            As :meth:`payload` does.
            CorruptError: the digest does not match.
        """
        record = self._files[path]
        with _located(self.source.name):
            _check_budget(record.size, self._budget, f"the side file {path!r}")
            return b"".join(self._file_chunks(record))

    def file_pieces(self, path: str) -> Iterator[bytes]:
        """The bytes of a side file, chunk by chunk: sound only if no error followed. Errors of :meth:`file`."""
        with _located(self.source.name):
            yield from self._file_chunks(self._files[path])

    def verify_chunks(self, on_chunk: OnChunk | None = None, *, layers: int = MAX_LAYERS) -> int:
        """Check every chunk and every side file, in the order of the file; the number of chunks.

        With ``layers``, no chunk beyond these first layers of each tensor is read.

        Memory stays at a few MiB, whatever the archive's size.

        Raises:
            CorruptError, TruncatedError, InvalidError: section 9, steps 11 and 12.
            StorageError: the source cannot be read.
        """
        total = self._chunks_before(layers)
        for done, _ in enumerate(self._all_chunks(layers), start=1):
            if on_chunk is not None:
                on_chunk(done, total)
        return total

    def _all_chunks(self, layers: int) -> Iterator[bytes]:
        with _located(self.source.name):
            for file in self.metadata.files:
                yield from self._file_chunks(file)
        for index, starts in enumerate(self._table.layers[:layers]):
            for name, first in starts.items():
                size = self.tensors[name].layers[index].size
                with _located(self.source.name, name):
                    yield from self._chunks(first, size, 0, chunk_count(size, self.metadata.chunk_size))

    def _file_chunks(self, file: FileRecord) -> Iterator[bytes]:
        hasher = TensorHasher()
        count = chunk_count(file.size, self.metadata.chunk_size)
        for raw in self._chunks(self._table.files[file.path], file.size, 0, count):
            hasher.update(raw)
            yield raw
        if hasher.hexdigest() != file.digest:
            raise CorruptError(f"the digest of the side file {file.path!r} does not match")

    def _chunks(self, first: int, size: int, begin: int, end: int) -> Iterator[bytes]:
        """Raw chunks ``begin`` to ``end`` of the payload of ``size`` bytes that starts at chunk ``first``."""
        offsets, checksums = self._table.offsets, self._table.checksums
        chunk_size = self.metadata.chunk_size
        position, stop = first + begin, first + end
        while position < stop:
            start = offsets[position]
            after = self._read_until(position, stop)
            stored = self.source.read_at(start, offsets[after] - start)
            for chunk in range(position, after):
                piece = stored[offsets[chunk] - start : offsets[chunk + 1] - start]
                if google_crc32c.value(piece) != checksums[chunk]:
                    raise CorruptError(f"the checksum of chunk {chunk} does not match")
                with _chunk_named(chunk):
                    raw = decompress(piece, min(chunk_size, size - (chunk - first) * chunk_size))
                yield raw
            position = after

    def _read_until(self, position: int, stop: int) -> int:
        """The end of a read that begins with chunk ``position``: as many chunks as fit, and at least one."""
        offsets = self._table.offsets
        reach = offsets[position] + self.source.read_size
        return max(position + 1, bisect_right(offsets, reach, position, stop + 1) - 1)


def _read_regions(source: Source, preamble: Preamble) -> tuple[bytes, bytes]:
    """Raw metadata and chunk table: spec section 9, step 5."""
    regions = source.read_at(PREAMBLE_SIZE, preamble.chunks_offset - PREAMBLE_SIZE)
    stored, table = regions[: preamble.metadata_stored_size], regions[preamble.metadata_stored_size :]
    if google_crc32c.value(stored) != preamble.metadata_crc32c:
        raise CorruptError("the metadata's checksum does not match")
    if google_crc32c.value(table) != preamble.table_crc32c:
        raise CorruptError("the chunk table's checksum does not match")
    try:
        return decompress(stored, preamble.metadata_raw_size), table
    except DdctError as error:
        error.reason = f"metadata: {error.reason}"
        raise


def _check_layers(metadata: Metadata, check_layer: LayerCheck) -> None:
    # Parameters that are the same object are the same (usual_form.py), and live as long as the metadata do.
    good: set[tuple[object, ...]] = set()
    for tensor in metadata.tensors:
        layers = [(layer.codec, id(layer.params), layer.size, layer.must_understand) for layer in tensor.layers]
        form = (tensor.op, tensor.dtype, tensor.base_dtype, tensor.shape, *layers)
        if form in good:
            continue
        for index in range(len(tensor.layers)):
            try:
                if not check_layer(tensor, index):
                    break
            except DdctError as error:
                error.at(tensor=tensor.name)
                raise
        good.add(form)


def _check_budget(needed: int, budget: int, what: str) -> None:
    if needed > budget:
        raise BudgetError(f"{what} needs {needed} bytes of memory, more than the {budget} allowed")


@contextmanager
def _located(place: str, tensor: str | None = None) -> Iterator[None]:
    try:
        yield
    except DdctError as error:
        error.at(place=place, tensor=tensor)
        raise


@contextmanager
def _chunk_named(chunk: int) -> Iterator[None]:
    try:
        yield
    except DdctError as error:
        error.reason = f"chunk {chunk}: {error.reason}"
        raise
