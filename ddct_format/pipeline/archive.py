"""An archive that can be asked for tensors: the container reader plus the codecs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..backends import get_backend
from ..checkpoint import Checkpoint
from ..codec.registry import apply_layer, check_layer, usable_layers
from ..container.reader import ArchiveReader
from ..container.records import Metadata, TensorRecord
from ..container.remote import is_remote, open_remote
from ..container.source import BytesSource, FileSource, Source
from ..errors import ArchiveError, BaseMismatchError, CorruptError, DdctError, TruncatedError
from ..limits import MAX_LAYERS
from ..native.digest import digest as tensor_digest

if TYPE_CHECKING:
    from ..backends.interface import Backend

__all__ = ["Archive", "open_archive"]


def open_archive(location: str | os.PathLike[str] | bytes | Source, *, allow_truncated: bool = False) -> Archive:
    """Open an archive for reading; nothing but its metadata and chunk table is read.

    Args:
        location: a path, the archive's bytes, ``http(s)://…``, ``hf://owner/repository[@revision]/path``, or a source.
        allow_truncated: also open a file that lacks its end, as long as the first layer of every tensor is whole:
            it can be decoded with ``layers=1``.

    Raises:
        HubError: a server refuses or fails.
        ArchiveError: the file is damaged, too new, or breaks the specification.
        StorageError: it cannot be read.
    """
    source = _source(location)
    try:
        reader = ArchiveReader.open(source, check_layer=check_layer, allow_truncated=allow_truncated)
    except TruncatedError as error:
        if not allow_truncated and _has_lossy_part(location):
            error.reason += "; the lossy model is whole, and can be had by asking for it (--lossy)"
        raise
    if reader.layers_present == 0:
        reader.close()
        raise TruncatedError("bytes are missing, and not even the lossy model is whole", place=source.name)
    return Archive(reader, source.name)


def _has_lossy_part(location: str | os.PathLike[str] | bytes | Source) -> bool:
    if not isinstance(location, str | os.PathLike | bytes):
        return False  # a source is closed when it is refused
    try:
        with ArchiveReader.open(_source(location), check_layer=check_layer, allow_truncated=True) as reader:
            return reader.layers_present > 0
    except DdctError:
        return False


def _source(location: str | os.PathLike[str] | bytes | Source) -> Source:
    if isinstance(location, bytes):
        return BytesSource(location)
    if isinstance(location, str) and is_remote(location):
        return open_remote(location)
    return FileSource(location) if isinstance(location, str | os.PathLike) else location


class Archive:
    """An open archive; a context manager. Decoding needs the base's tensors and checks them first.

    Attributes:
        reader: the container: stored bytes, chunks, checksums.
        place: the file's name, for messages.
        tensors: records by name, in the archive's order.
        is_authentic: whether :meth:`authenticate` has vouched for the file.
    """

    def __init__(self, reader: ArchiveReader, place: str) -> None:
        self.is_authentic = False
        self.reader = reader
        self.place = place
        self.tensors: Mapping[str, TensorRecord] = reader.tensors

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.reader.close()

    @property
    def metadata(self) -> Metadata:
        return self.reader.metadata

    @property
    def content_id(self) -> str:
        """sha256 of the metadata: the archive's identity, whatever its compression (spec section 5)."""
        return self.reader.content_id

    def authenticate(self, sha256: str) -> None:
        """Compare the whole file with a digest that the caller has from somebody trusted.

        It is read once, now; that nobody changes it afterwards is the caller's promise. What an archive may do is the
        same either way, but for libraries that must not be given bytes of uncertain origin.

        Args:
            sha256: in hexadecimal.

        Raises:
            CorruptError: it is another file.
            StorageError: it cannot be read.
        """
        hasher, source = hashlib.sha256(), self.reader.source
        for start in range(0, source.size, source.read_size):
            hasher.update(source.read_at(start, min(source.read_size, source.size - start)))
        if hasher.hexdigest() != sha256.lower():
            raise CorruptError(f"the file's SHA-256 is {hasher.hexdigest()}, not {sha256}", place=self.place)
        self.is_authentic = True

    def check_base(self, base: Checkpoint) -> None:
        """Check presence, type and shape of every base tensor that is needed; contents are checked when decoding.

        Raises:
            BaseMismatchError: one is missing or different.
        """
        for record in self.tensors.values():
            self.check_base_tensor(record, base)

    def check_base_contents(self, base: Checkpoint) -> None:
        """Compare every base tensor that is needed with its digest, until one differs.

        Raises:
            BaseMismatchError: one is missing or different.
        """
        for record in self.tensors.values():
            if record.base is not None:
                self._base_bytes(record, base)
                base.release(record.name)

    def lossless(self, layers: int = MAX_LAYERS) -> bool:
        """Whether decoding at most ``layers`` layers of each tensor yields the very model that was packed."""
        complete = all(usable_layers(r) >= min(layers, len(r.layers)) for r in self.tensors.values())
        return complete and self.target_id(layers) == self.metadata.exact_id

    def target_id(self, layers: int = MAX_LAYERS) -> str:
        """The model id of the target decoded with at most ``layers`` layers of each tensor (spec section 5.3)."""
        ids = self.metadata.target_ids
        return ids[min(layers, len(ids)) - 1]

    def decode(
        self,
        name: str,
        base: Checkpoint | None,
        *,
        backend: Backend | None = None,
        layers: int = MAX_LAYERS,
    ) -> npt.NDArray[np.uint8]:
        """The bytes of one tensor, uint8 1-D, reading only its own chunks and its base tensor.

        Args:
            base: the base checkpoint; may be None for tensors that need none.
            backend: who computes; the numpy reference when absent.
            layers: how many layers to apply, at least 1; 1 gives the lossy model.

        Raises:
            BaseMismatchError: the base tensor is not the one that the archive was made for.
            ArchiveError: the archive is damaged or invalid.
        """
        record = self.tensors[name]
        if record.op == "alias":
            assert record.of is not None
            return self.decode(record.of, base, backend=backend, layers=layers)
        data = None
        if record.base is not None:
            data = self._base_bytes(record, base)
        if record.op == "keep":
            assert data is not None
            return data
        backend = backend or get_backend("reference")
        for index in range(min(layers, usable_layers(record))):
            payload = np.frombuffer(self.reader.payload(name, index), dtype=np.uint8)
            try:
                data = apply_layer(record, index, payload, data, backend)
            except ArchiveError as error:
                raise error.at(place=self.place) from None
            if tensor_digest(data) != record.layers[index].digest:
                raise CorruptError(
                    f"layer {index} decodes to other bytes than its digest says",
                    place=self.place,
                    tensor=name,
                )
        assert data is not None
        return data

    def check_base_tensor(self, record: TensorRecord, base: Checkpoint | None) -> None:
        """As :meth:`check_base`, for the base tensor of one record."""
        if record.base is None:
            return
        if base is None:
            raise BaseMismatchError("a base model is needed to decode it", place=self.place, tensor=record.name)
        found = base.tensors.get(record.name)
        if found is None:
            raise BaseMismatchError("the base model lacks this tensor", place=base.path, tensor=record.name)
        wanted = (record.base_dtype or record.dtype, record.shape)
        if (found.dtype, found.shape) != wanted:
            raise BaseMismatchError(
                f"the base tensor is {found.dtype} {list(found.shape)}, the archive was made for "
                f"{wanted[0]} {list(wanted[1])}",
                place=base.path,
                tensor=record.name,
            )

    def base_named(self) -> str:
        """What the archive calls its base, as the end of a sentence; empty if it gives it no name."""
        name = self.metadata.base_hint.get("name")
        return "" if name is None else f", which is called {name!r}"

    def _base_bytes(self, record: TensorRecord, base: Checkpoint | None) -> npt.NDArray[np.uint8]:
        self.check_base_tensor(record, base)
        assert base is not None
        data = np.frombuffer(base.read(record.name), dtype=np.uint8)
        if tensor_digest(data) != record.base:
            raise BaseMismatchError(
                f"the base tensor has other contents than the one that {self.place} was made for{self.base_named()}",
                place=base.path,
                tensor=record.name,
            )
        return data
