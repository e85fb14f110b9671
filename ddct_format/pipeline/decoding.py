"""Decoding all tensors of an archive within a working set that depends on neither the model's size nor a tensor's.

What is small is decoded in memory that each thread keeps for the next tensor. What is larger than a share of the
working set is decoded band by band into mapped regions of files, the output's own or temporary ones, whose pages are
let go behind; the base is always read so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ..backends.interface import Backend
from ..checkpoint import Checkpoint, Region, SafetensorsWriter, releasing, temporary_region
from ..codec.raw import place_piece
from ..codec.registry import apply_layer_bands, brought_in, raw_planes, usable_layers
from ..container.records import TensorRecord
from ..errors import ArchiveError, BaseMismatchError, ConfigError, CorruptError
from ..limits import MAX_LAYERS
from ..native.digest import tensor_hasher
from .archive import Archive
from .digests import digest_stored
from .parallel import DEFAULT_MEMORY, default_threads, map_finished

__all__ = ["MIN_MEMORY", "Decoder", "Inspect"]

MIN_MEMORY: Final = 1 << 20
"""Bytes; a working set below that is refused."""

_SHARES: Final = 4
"""Of a thread's part of the memory: the result, the payload, pages of files, and what the backend works with."""
_PIECE: Final = 4 << 20

Bytes = npt.NDArray[np.uint8]

Inspect = Callable[[TensorRecord, Bytes, Region | None], None]
"""Shown each decoded tensor, on the thread that decoded it and only for as long: its record, its bytes, and the region
that they are mapped in, if they are, whose pages may be let go."""


class Decoder:
    """Decodes an archive's tensors, on several threads, each straight to its place; every digest is checked.

    Args:
        layers: how many layers of each tensor to apply, at least 1.
        memory: bytes of working set, beside the interpreter, its libraries and the archive's metadata.
        scratch: a directory for temporary files; None for the usual place of the system.

    Raises:
        ConfigError: ``memory`` is below :data:`MIN_MEMORY`.
    """

    def __init__(
        self,
        archive: Archive,
        base: Checkpoint,
        backend: Backend,
        *,
        layers: int = MAX_LAYERS,
        threads: int | None = None,
        memory: int = DEFAULT_MEMORY,
        scratch: Path | None = None,
    ) -> None:
        if memory < MIN_MEMORY:
            raise ConfigError(f"a working set of {memory} bytes is too small: {MIN_MEMORY} are the least")
        self._archive = archive
        self._base = base
        self._backend = backend
        self._layers = layers
        self._memory = memory
        self._threads = threads or default_threads()
        self._share = memory // (_SHARES * self._threads)
        self._scratch = scratch
        self._kept = threading.local()

    def decode_all(
        self, writers: Sequence[SafetensorsWriter] | None = None, inspect: Inspect | None = None
    ) -> Iterator[TensorRecord]:
        """Decode every tensor and write it with its shard's writer, or drop it; yields each record once it is done.

        Raises:
            BaseMismatchError, ArchiveError, StorageError: as :meth:`Archive.decode` does.
        """

        def work(record: TensorRecord) -> TensorRecord:
            self._decode_to(record, None if writers is None else writers[record.shard], inspect)
            return record

        return map_finished(work, self._archive.tensors.values(), self._threads, cost=self._cost, budget=self._memory)

    def _cost(self, record: TensorRecord) -> int:
        """Bytes that decoding a tensor holds at a time."""
        record = record if record.of is None else self._archive.tensors[record.of]
        payload = max((layer.size for layer in record.layers), default=0)
        return min(record.nbytes, self._share) + min(payload, self._share) + min(2 * record.nbytes, 2 * self._share)

    def _decode_to(self, record: TensorRecord, writer: SafetensorsWriter | None, inspect: Inspect | None) -> None:
        inspect = inspect or _ignore
        if record.nbytes <= self._share:
            out = self._kept_buffer("result", record.nbytes)
            self._decode(record, out, None)
            inspect(record, out, None)
            if writer is not None:
                writer.write(record.name, out.data)
        elif writer is not None:
            with writer.region(record.name) as region:
                self._decode(record, region.array, region)
                inspect(record, region.array, region)
        else:
            region = temporary_region(self._scratch, record.nbytes)
            self._decode(record, region.array, region)
            inspect(record, region.array, region)

    def _decode(self, record: TensorRecord, out: Bytes, region: Region | None) -> None:
        """Fill ``out``, which lies in ``region`` if that is not None."""
        if record.op == "alias":
            assert record.of is not None
            record = self._archive.tensors[record.of]
        before = None
        if record.base is not None:
            self._archive.check_base_tensor(record, self._base)
            before = np.frombuffer(self._base.read(record.name), dtype=np.uint8)
        if record.op == "keep":
            assert before is not None
            self._check_base(record, _digest(self._copied(record, before, out, region)))
            return
        if record.base is not None:
            self._check_base(record, digest_stored(self._base, record.name, done=False))
        for index in range(min(self._layers, usable_layers(record))):
            # The second layer and those after it are of a codec that may work in place.
            self._apply(record, index, before if index == 0 else out, out, region)
            if _digest(self._pieces(out, region)) != record.layers[index].digest:
                raise CorruptError(
                    f"layer {index} decodes to other bytes than its digest says",
                    place=self._archive.place,
                    tensor=record.name,
                )
        if record.base is not None:
            self._base.release(record.name, done=True)

    def _check_base(self, record: TensorRecord, digest: str) -> None:
        if digest != record.base:
            raise BaseMismatchError(
                f"the base tensor has other contents than the one that {self._archive.place} was made for"
                f"{self._archive.base_named()}",
                place=self._base.path,
                tensor=record.name,
            )

    def _apply(self, record: TensorRecord, index: int, before: Bytes | None, out: Bytes, region: Region | None) -> None:
        planes = raw_planes(record, index)
        if planes is not None and region is not None:
            position = released = 0
            for piece in self._archive.reader.payload_pieces(record.name, index):
                place_piece(np.frombuffer(piece, dtype=np.uint8), position, planes, out)
                position += len(piece)
                if position - released >= min(self._share, _PIECE):
                    region.release()
                    released = position
            return
        with self._payload(record, index) as (payload, spilled):
            released, large = 0, out.size > self._share // 2
            touched = brought_in(record, index, payload) if large else int

            def let_go() -> None:
                # Rows with keys are scattered over the tensor: so it is everything.
                if record.base is not None:
                    self._base.release(record.name)
                for mapped in (region, spilled):
                    if mapped is not None:
                        mapped.release()

            try:
                with releasing(let_go) if out.size > self._share else nullcontext():  # opening a layer reads all of it
                    for finished in apply_layer_bands(record, index, payload, before, self._backend, out):
                        if touched(finished) - released >= self._share // 2 or finished == out.size:
                            released = touched(finished)
                            let_go()
            except ArchiveError as error:
                raise error.at(place=self._archive.place) from None

    @contextmanager
    def _payload(self, record: TensorRecord, index: int) -> Iterator[tuple[Bytes, Region | None]]:
        size = record.layers[index].size
        region = temporary_region(self._scratch, size) if size > self._share else None
        payload = self._kept_buffer("payload", size) if region is None else region.array
        position = released = 0
        for piece in self._archive.reader.payload_pieces(record.name, index):
            payload[position : position + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            position += len(piece)
            if region is not None and position - released >= _PIECE:
                region.release(released, position)
                released = position
        yield payload, region

    def _copied(self, record: TensorRecord, before: Bytes, out: Bytes, region: Region | None) -> Iterator[Bytes]:
        """Copy the base's bytes in pieces, which the caller digests."""
        for start in range(0, out.size, _PIECE):
            part = slice(start, start + _PIECE)
            out[part] = before[part]
            self._base.release(record.name, start, start + _PIECE, done=True)
            yield out[part]
            if region is not None:
                region.release(start, min(start + _PIECE, out.size))

    def _pieces(self, out: Bytes, region: Region | None) -> Iterator[Bytes]:
        if region is None:
            yield out
            return
        for start in range(0, out.size, _PIECE):
            yield out[start : start + _PIECE]
            region.release(start, min(start + _PIECE, out.size))

    def _kept_buffer(self, use: str, nbytes: int) -> Bytes:
        """Memory of the calling thread, of which each use has one piece: new pages cost more than most decoding."""
        buffer: Bytes | None = getattr(self._kept, use, None)
        if buffer is None or buffer.size < nbytes:
            setattr(self._kept, use, None)  # the old one goes first
            buffer = np.empty(nbytes, dtype=np.uint8)
            setattr(self._kept, use, buffer)
        return buffer[:nbytes]


def _ignore(record: TensorRecord, out: Bytes, region: Region | None) -> None:
    """For who wants tensors written, or only checked."""


def _digest(pieces: Iterator[Bytes]) -> str:
    hasher = tensor_hasher()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()
