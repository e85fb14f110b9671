"""From a base and a fine-tune to one archive."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .. import __version__
from ..backends import get_backend
from ..backends.interface import Backend
from ..checkpoint import Checkpoint, open_checkpoint
from ..container.digest import model_id, tensor_digest
from ..container.payload import StoredPayload
from ..container.records import FileRecord, Layer, Metadata, Quality, ShardRecord, TensorRecord, target_ids
from ..container.writer import ArchiveWriter
from ..encode.exact_tensor import encode_exactly
from ..encode.presets import Preset, get_preset
from ..encode.tensor import TensorData, encode_tensor
from .archive import open_archive
from .parallel import default_threads, map_ordered
from .progress import Progress, Tally
from .verify import check_decoding

__all__ = ["PackReport", "pack"]


@dataclass(frozen=True, slots=True)
class PackReport:
    """What was written.

    Attributes:
        file_sha256: of the whole file: what a hub stores it under.
        original_size: bytes of the fine-tune's tensors.
        parameters: their elements.
        bits_per_weight: 8 · file_size / parameters: everything counted, side files too.
        error: relative squared error over all tensors that are stored as a change; None if there are none.
        counts: tensors by operation (``add``, ``replace``, ``keep``, ``alias``).
        skipped: files of the fine-tune that are not carried, with the reason.
    """

    archive: str
    preset: str
    content_id: str
    base_id: str
    target_id: str
    exact_id: str
    file_size: int
    file_sha256: str
    original_size: int
    parameters: int
    bits_per_weight: float
    error: float | None
    counts: dict[str, int]
    tensors: int
    skipped: dict[str, str]
    verified: bool
    seconds: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A tensor ready to be written: its record, and its payloads layer by layer."""

    record: TensorRecord
    payloads: tuple[StoredPayload, ...] = ()
    noise: float = 0.0
    energy: float = 0.0


def pack(
    base: str | os.PathLike[str],
    finetuned: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    preset: str = "paper",
    exact: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    verify: bool = True,
    base_hint: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> PackReport:
    """Write the archive ``out``, which must not exist; it appears whole and verified, or not at all.

    Args:
        exact: after the preset's lossy layer, add one that restores the fine-tune bit for bit.
        verify: decode the written file against the base before it gets its name.
        base_hint: ``repo``, ``revision`` or ``name`` of the base: where a reader might find it.

    Raises:
        OutputExistsError: ``out`` exists.
        CheckpointError: a model cannot be used, or changed while it was read.
        StorageError: something cannot be read or written.
    """
    started = time.monotonic()
    settings, backend = get_preset(preset), get_backend(device)
    threads = threads or default_threads()
    with (
        open_checkpoint(base) as base_model,
        open_checkpoint(finetuned) as target_model,
        ArchiveWriter(out) as writer,
    ):
        files = [
            writer.add_file(file.path, target_model.read_side_file(file.path)) for file in target_model.side_files()
        ]
        base_digests = _digests(base_model, threads, "reading base", progress)
        target_digests = _digests(target_model, threads, "reading fine-tune", progress)
        encoded = []
        tally = Tally(target_model.nbytes, "packing", progress)
        work = _Work(base_model, target_model, base_digests, target_digests, settings, backend, writer, exact)
        for item in map_ordered(work.encode, sorted(target_model.tensors, key=str.encode), threads):
            for layer, payload in enumerate(item.payloads):
                writer.append(layer, payload)
            encoded.append(_Encoded(item.record, noise=item.noise, energy=item.energy))
            tally.add(item.record.nbytes)
        metadata = _metadata(work, encoded, files, base_hint)
        target_model.check_unchanged()
        base_model.check_unchanged()

        def check(path: Path) -> None:
            with open_archive(path) as written:
                written.reader.verify_chunks()
                check_decoding(written, base_model, device=device, threads=threads, progress=progress)

        sealed = writer.seal(metadata, check if verify else None)
        parameters = sum(item.record.elements for item in encoded)
        return PackReport(
            archive=str(out),
            preset=preset,
            content_id=sealed.content_id,
            base_id=metadata.base_id,
            target_id=metadata.target_ids[-1],
            exact_id=metadata.exact_id,
            file_size=sealed.file_size,
            file_sha256=sealed.file_sha256,
            original_size=target_model.nbytes,
            parameters=parameters,
            bits_per_weight=8 * sealed.file_size / parameters if parameters else 0.0,
            error=metadata.quality.error if metadata.quality else None,
            counts=dict(sorted(Counter(item.record.op for item in encoded).items())),
            tensors=len(encoded),
            skipped={file.path: file.reason for file in target_model.skipped},
            verified=verify,
            seconds=time.monotonic() - started,
        )


class _Work:
    """What every tensor's encoding needs to know."""

    def __init__(
        self,
        base: Checkpoint,
        target: Checkpoint,
        base_digests: Mapping[str, str],
        target_digests: Mapping[str, str],
        preset: Preset,
        backend: Backend,
        writer: ArchiveWriter,
        exact: bool,
    ) -> None:
        self.base = base
        self.target = target
        self.base_digests = base_digests
        self.target_digests = target_digests
        self.preset = preset
        self.backend = backend
        self.exact = exact
        self._writer = writer
        self._first = _first_of_equals(target, target_digests)

    def encode(self, name: str) -> _Encoded:
        info = self.target.tensors[name]
        digest = self.target_digests[name]
        found = self.base.tensors.get(name)
        if (
            found is not None
            and (found.dtype, found.shape) == (info.dtype, info.shape)
            and self.base_digests[name] == digest
        ):
            return _Encoded(TensorRecord(name, info.dtype, info.shape, info.shard, "keep", base=digest))
        first = self._first[name]
        if first != name:
            return _Encoded(TensorRecord(name, info.dtype, info.shape, info.shard, "alias", of=first))
        base = None if found is None else _tensor_data(self.base, name)
        target = _tensor_data(self.target, name)
        lossy = None if self.preset.exact else encode_tensor(base, target, self.preset, self.backend)
        result = encode_exactly(base, target, lossy, self.backend) if lossy is None or self.exact else lossy
        added = result.op == "add"
        assert not added or found is not None
        payloads = tuple(self._writer.compress_payload(layer.sections) for layer in result.layers)
        record = TensorRecord(
            name,
            info.dtype,
            info.shape,
            info.shard,
            result.op,
            base=self.base_digests[name] if added else None,
            base_dtype=found.dtype if added and found is not None and found.dtype != info.dtype else None,
            layers=tuple(
                Layer(layer.codec, layer.params, payload.raw_size, tensor_digest(layer.result))
                for layer, payload in zip(result.layers, payloads, strict=True)
            ),
            error=_ratio(result.noise, result.energy) if added else None,
        )
        return _Encoded(record, payloads, result.noise, result.energy)


def _metadata(
    work: _Work, encoded: list[_Encoded], files: list[FileRecord], base_hint: Mapping[str, str] | None
) -> Metadata:
    records = tuple(item.record for item in encoded)
    added = any(record.op == "add" for record in records)
    error = _ratio(sum(item.noise for item in encoded), sum(item.energy for item in encoded)) if added else 0.0
    return Metadata(
        generator=f"ddct {__version__}",
        chunk_size=work._writer.chunk_size,
        base_id=_model_id(work.base, work.base_digests),
        base_hint=dict(base_hint or {}),
        target_ids=target_ids(records),
        exact_id=_model_id(work.target, work.target_digests),
        shards=tuple(ShardRecord(shard.path, shard.metadata) for shard in work.target.shards),
        files=tuple(files),
        tensors=records,
        quality=Quality(work.preset.name, error),
    )


def _first_of_equals(model: Checkpoint, digests: Mapping[str, str]) -> dict[str, str]:
    """For every tensor the first one, by name, with the same bytes, type and shape: tied weights are stored once."""
    first: dict[tuple[str, tuple[int, ...], str], str] = {}
    result = {}
    for name in sorted(model.tensors, key=str.encode):
        info = model.tensors[name]
        result[name] = first.setdefault((info.dtype, info.shape, digests[name]), name)
    return result


def _digests(model: Checkpoint, threads: int, what: str, progress: Progress | None) -> dict[str, str]:
    tally = Tally(model.nbytes, what, progress)
    digests = {}
    names = list(model.tensors)
    for name, digest in zip(names, map_ordered(lambda n: tensor_digest(model.read(n)), names, threads), strict=True):
        digests[name] = digest
        tally.add(model.tensors[name].nbytes)
    return digests


def _model_id(model: Checkpoint, digests: Mapping[str, str]) -> str:
    return model_id((info.name, info.dtype, info.shape, digests[info.name]) for info in model.tensors.values())


def _tensor_data(model: Checkpoint, name: str) -> TensorData:
    info = model.tensors[name]
    return TensorData(info.dtype, info.shape, np.frombuffer(model.read(name), dtype=np.uint8))


def _ratio(noise: float, energy: float) -> float:
    return noise / energy if energy else 0.0
