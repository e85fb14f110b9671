"""Verification of an archive by who packs it: every layer is decoded once, and the file holds what was decoded.

The encoder decodes lossy layers anyway, for their digest and their error; what it writes without decoding is decoded
here. All of it starts from payloads in memory. Once the file is written, it is read back: its metadata must be those
that were decoded by, and its payloads must have the checksums of those that were decoded. The base's digests are of the
same open files, which have not changed meanwhile; those that a cache told are compared with the bytes
(spec/adr/0605-verified-while-packed.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

from ..backends.interface import Backend
from ..checkpoint import Checkpoint, releasing
from ..codec.registry import apply_layer_bands
from ..container.metadata import serialise_metadata
from ..container.records import Metadata, TensorRecord
from ..encode.pair import TensorData
from ..encode.workspace import Workspace
from ..errors import BaseMismatchError, CorruptError
from .archive import open_archive
from .digests import digest_stored
from .parallel import map_finished
from .progress import Progress, Tally

__all__ = ["check_base_digests", "check_decodes_to", "check_written"]

_PIECE = 4 << 20

Bytes = npt.NDArray[np.uint8]


def check_decodes_to(
    record: TensorRecord,
    index: int,
    sections: Sequence[Bytes],
    before: Bytes | None,
    release_before: Callable[[], None],
    target: TensorData,
    backend: Backend,
    workspace: Workspace,
    result: Bytes | None = None,
) -> None:
    """Decode a layer that is to restore the target bit for bit.

    Args:
        before: the tensor before the layer; None for that of ``replace``.
        release_before: its pages may leave the memory.
        result: where the layer is decoded to, as ``out`` of :func:`apply_layer_bands`; None for memory of its own.

    Raises:
        CorruptError: it does not.
    """
    payload = workspace.join(sections)
    result = workspace.allocate(record.nbytes) if result is None else result

    def let_go() -> None:
        release_before()
        workspace.release()

    compared = 0
    with releasing(let_go) if record.nbytes > workspace.largest else nullcontext():
        # What the codecs of such layers have finished is at the start.
        for finished in apply_layer_bands(record, index, payload, before, backend, result):
            for start in range(compared, finished, _PIECE):
                piece = slice(start, min(start + _PIECE, finished))
                if not _equal(result[piece], target.data[piece]):
                    raise CorruptError(
                        f"layer {index} was encoded wrongly: it decodes to other bytes", tensor=record.name
                    )
                target.release(piece.start, piece.stop)
            compared = finished
            let_go()


def _equal(one: Bytes, other: Bytes) -> bool:
    """As bytes, eight at a time."""
    whole = one.size & -8
    return np.array_equal(one[:whole].view(np.uint64), other[:whole].view(np.uint64)) and np.array_equal(
        one[whole:], other[whole:]
    )


def check_written(
    path: Path,
    metadata: Metadata,
    checksums: Mapping[tuple[str, int], int],
    threads: int,
    progress: Progress | None = None,
) -> None:
    """Read a whole archive back and compare it with what was decoded while it was made.

    Args:
        metadata: that every layer was decoded by.
        checksums: crc32c of each payload that was decoded, by tensor and layer.

    Raises:
        CorruptError: the file holds something else.
        ArchiveError: it breaks the specification.
    """
    with open_archive(path) as written:
        reader = written.reader
        if written.content_id != hashlib.sha256(serialise_metadata(metadata)).hexdigest():
            raise CorruptError("the metadata that were written are others", place=path)
        for file in metadata.files:
            for _ in reader.file_pieces(file.path):
                pass
        payloads = [(record, index) for record in metadata.tensors for index in range(len(record.layers))]
        tally = Tally(sum(record.layers[index].size for record, index in payloads), "reading back", progress)

        def checksum(item: tuple[TensorRecord, int]) -> tuple[TensorRecord, int, int]:
            record, index = item
            found = 0
            for piece in reader.payload_pieces(record.name, index):
                found = google_crc32c.extend(found, piece)
            return record, index, found

        for record, index, found in map_finished(checksum, payloads, threads):
            if found != checksums[record.name, index]:
                raise CorruptError(
                    f"the payload of layer {index} that was written is another", place=path, tensor=record.name
                )
            tally.add(record.layers[index].size)


def check_base_digests(metadata: Metadata, base: Checkpoint, threads: int, progress: Progress | None = None) -> None:
    """Compare the digests of the base that an archive names with the base's bytes, once while the base is open.

    Raises:
        BaseMismatchError: one is another.
    """
    records = [record for record in metadata.tensors if record.base not in (None, base.digests.get(record.name))]
    tally = Tally(sum(record.nbytes for record in records), "checking base", progress)
    for record, found in map_finished(lambda record: (record, digest_stored(base, record.name)), records, threads):
        if found != record.base:
            raise BaseMismatchError("the base tensor has other contents", place=base.path, tensor=record.name)
        base.digests[record.name] = found
        tally.add(record.nbytes)
