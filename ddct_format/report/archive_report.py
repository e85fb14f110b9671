"""All that a report shows, collected in one pass over an archive, its base and, if at hand, the fine-tune."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from math import sqrt

import numpy as np
import numpy.typing as npt

from ..backends import get_backend
from ..backends.interface import Backend
from ..checkpoint import Checkpoint, open_checkpoint
from ..codec.floats import FLOAT_DTYPES
from ..container.digest import model_id, tensor_digest
from ..container.records import TensorRecord
from ..errors import CheckpointError
from ..pipeline.archive import Archive, open_archive
from ..pipeline.parallel import default_threads, map_ordered
from ..pipeline.progress import Progress, Tally
from .distortion import Distortion, block_distortion, change_blocks
from .importance import importance_map
from .statistics import Moments, ValueHistogram
from .stored_bytes import file_parts, layer_parts

__all__ = ["ArchiveReport", "Distribution", "ImportanceMap", "TensorReport", "report_archive"]

_BINS = 81
"""Odd: the middle one is around no change at all."""
_REACH = 4.0
"""Deviations to either side."""
_MAP_SIDE = 192

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Distribution:
    """How a change is distributed over weights.

    Attributes:
        kurtosis: excess; 0 is that of a normal distribution.
        histogram: counts in equal bins between −reach and +reach; empty where it was not asked for.
    """

    count: int
    mean: float
    variance: float | None
    skewness: float | None
    kurtosis: float | None
    reach: float
    histogram: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ImportanceMap:
    """Bits per coefficient over the tensor's view, [height][width], averaged to at most 192 a side."""

    rows: int
    cols: int
    patch: int
    values: npt.NDArray[np.float64]


@dataclass(slots=True)
class TensorReport:
    """One tensor.

    Attributes:
        parts: its stored bytes by part (:data:`~ddct_format.report.stored_bytes.PARTS`).
        stored_error: what the archive says; measured_error, cosine: what the comparison with the fine-tune gave.
        not_finite: weights without a number in one of the models, which statistics leave out.
    """

    name: str
    op: str
    dtype: str
    shape: tuple[int, ...]
    codecs: tuple[str, ...]
    elements: int
    stored: int
    bits_per_weight: float | None
    stored_error: float | None
    measured_error: float | None = None
    cosine: float | None = None
    not_finite: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    original: Distribution | None = None
    decoded: Distribution | None = None
    importance: ImportanceMap | None = None


@dataclass(slots=True)
class ArchiveReport:
    """A whole archive.

    Attributes:
        against_is_packed: whether the fine-tune compared with is, bit for bit, the one that was packed.
        tensor_bits_per_weight: without side files, as targets count.
        parts: the file's bytes by part; they add up to ``file_size``.
        original, decoded: changes of all floating-point weights that the base has, too.
    """

    archive: str
    base: str
    against: str | None
    against_is_packed: bool | None
    content_id: str
    generator: str
    preset: str | None
    base_id: str
    base_hint: dict[str, str]
    target_id: str
    exact_id: str
    lossless: bool
    file_size: int
    model_size: int
    parameters: int
    bits_per_weight: float | None
    tensor_bits_per_weight: float | None
    stored_error: float | None
    measured_error: float | None
    cosine: float | None
    parts: dict[str, float]
    original: Distribution | None
    decoded: Distribution | None
    tensors: list[TensorReport]

    def as_dict(self) -> dict[str, object]:
        """For JSON; importance maps are pictures, and left out."""
        values = asdict(self)
        for tensor in values["tensors"]:
            del tensor["importance"]
        return values


def report_archive(
    archive: str | os.PathLike[str],
    base: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    *,
    largest: int = 24,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> ArchiveReport:
    """Decode an archive, tensor by tensor, and measure it.

    Args:
        against: the fine-tune, to compare with.
        largest: importance maps and histograms are made of so many tensors, those that take the most bytes.

    Raises:
        ArchiveError, BaseMismatchError, CheckpointError, StorageError: as unpack does; CheckpointError also if
            ``against`` lacks a tensor, or has it in another type or shape.
    """
    threads = threads or default_threads()
    with open_archive(archive) as opened, open_checkpoint(base) as base_model:
        opened.check_base(base_model)
        if against is None:
            return _collect(opened, base_model, None, largest, device, threads, progress)
        with open_checkpoint(against) as target:
            _check_target(opened, target)
            return _collect(opened, base_model, target, largest, device, threads, progress)


def _check_target(archive: Archive, target: Checkpoint) -> None:
    for record in archive.tensors.values():
        found = target.tensors.get(record.name)
        if found is None or (found.dtype, found.shape) != (record.dtype, record.shape):
            what = "lacks it" if found is None else f"has it as {found.dtype} {list(found.shape)}"
            raise CheckpointError(
                f"the archive holds it as {record.dtype} {list(record.shape)}, this model {what}",
                place=target.path,
                tensor=record.name,
            )


@dataclass(slots=True)
class _Measured:
    """What a thread found of one tensor; merged in order."""

    report: TensorReport
    distortion: Distortion
    moments: tuple[Moments, ...]
    histograms: tuple[ValueHistogram, ...]
    digest: str | None


def _collect(
    archive: Archive,
    base: Checkpoint,
    target: Checkpoint | None,
    largest: int,
    device: str,
    threads: int,
    progress: Progress | None,
) -> ArchiveReport:
    reader, metadata, records = archive.reader, archive.metadata, archive.tensors
    by_size = sorted(records, key=lambda name: (-reader.stored_size(name), name))
    measurer = _Measurer(archive, base, target, set(by_size[:largest]), get_backend(device))
    tally = Tally(sum(record.nbytes for record in records.values()), "measuring", progress)
    parts = file_parts(reader)
    distortion = Distortion()
    models = 1 if target is None else 2
    moments = [Moments() for _ in range(models)]
    histograms = [ValueHistogram() for _ in range(models)]
    tensors: list[TensorReport] = []
    digests: list[tuple[str, str, tuple[int, ...], str]] = []
    for found in map_ordered(measurer.measure, records, threads):
        tensor = found.report
        tensors.append(tensor)
        for part, size in tensor.parts.items():
            parts[part] = parts.get(part, 0.0) + size
        distortion += found.distortion
        for number in range(len(found.moments)):
            moments[number] += found.moments[number]
            histograms[number].merge(found.histograms[number])
        if found.digest is not None:
            digests.append((tensor.name, tensor.dtype, tensor.shape, found.digest))
        tally.add(records[tensor.name].nbytes)
    parameters = sum(tensor.elements for tensor in tensors)
    distributions = _distributions(moments, histograms, with_histogram=True)
    return ArchiveReport(
        archive=archive.place,
        base=str(base.path),
        against=None if target is None else str(target.path),
        against_is_packed=None if target is None else model_id(digests) == metadata.exact_id,
        content_id=archive.content_id,
        generator=metadata.generator,
        preset=metadata.quality.preset if metadata.quality else None,
        base_id=metadata.base_id,
        base_hint=dict(metadata.base_hint),
        target_id=metadata.target_ids[-1],
        exact_id=metadata.exact_id,
        lossless=metadata.lossless,
        file_size=reader.file_size,
        model_size=sum(record.nbytes for record in records.values()),
        parameters=parameters,
        bits_per_weight=8 * reader.file_size / parameters if parameters else None,
        tensor_bits_per_weight=8 * (reader.file_size - parts["files"]) / parameters if parameters else None,
        stored_error=metadata.quality.error if metadata.quality else None,
        measured_error=None if target is None else distortion.error,
        cosine=None if target is None else distortion.cosine,
        parts=parts,
        original=distributions[1] if models == 2 else None,
        decoded=distributions[0],
        tensors=tensors,
    )


class _Measurer:
    """Measures single tensors; on several threads at once."""

    def __init__(
        self, archive: Archive, base: Checkpoint, target: Checkpoint | None, detailed: set[str], backend: Backend
    ) -> None:
        self._archive, self._base, self._target = archive, base, target
        self._detailed = detailed
        self._backend = backend

    def measure(self, name: str) -> _Measured:
        record = self._archive.tensors[name]
        reader = self._archive.reader
        stored = reader.stored_size(name)
        report = TensorReport(
            name=name,
            op=record.op,
            dtype=record.dtype,
            shape=record.shape,
            codecs=tuple(layer.codec for layer in record.layers),
            elements=record.elements,
            stored=stored,
            bits_per_weight=8 * stored / record.elements if record.elements else None,
            stored_error=record.error,
        )
        for index in range(len(record.layers)):
            self._look_at_layer(record, index, report)
        decoded = self._archive.decode(name, self._base, backend=self._backend)
        models, digest = [decoded], None
        if self._target is not None:
            true = np.frombuffer(self._target.read(name), dtype=np.uint8)
            models.append(true)
            digest = tensor_digest(true)
        return self._compare(report, record, models, digest)

    def _look_at_layer(self, record: TensorRecord, index: int, report: TensorReport) -> None:
        reader = self._archive.reader
        payload = np.frombuffer(reader.payload(record.name, index), dtype=np.uint8)
        found = layer_parts(record, index, payload, reader.stored_layer_size(record.name, index))
        for part, size in found.parts.items():
            report.parts[part] = report.parts.get(part, 0.0) + size
        if record.name in self._detailed and found.params is not None and found.payload is not None:
            grid = found.params.grid
            values = importance_map(found.params, found.payload, found.class_bits, _MAP_SIDE)
            report.importance = ImportanceMap(grid.rows, grid.cols, grid.patch, values)

    def _compare(
        self, report: TensorReport, record: TensorRecord, models: list[Bytes], digest: str | None
    ) -> _Measured:
        moments = [Moments() for _ in models]
        histograms = [ValueHistogram() for _ in models]
        distortion = Distortion()
        before = self._base.tensors.get(record.name)
        changed = (
            before is not None and before.shape == record.shape and {before.dtype, record.dtype} <= set(FLOAT_DTYPES)
        )
        if before is None or not changed:
            return _Measured(report, distortion, (), (), digest)
        base = np.frombuffer(self._base.read(record.name), dtype=np.uint8)
        for finite, changes in change_blocks(base, before.dtype, record.dtype, *models):
            report.not_finite += int(finite.size - np.count_nonzero(finite))
            for number, values in enumerate(changes):
                moments[number] += Moments.of(values)
                histograms[number].add(values)
            if len(changes) == 2:
                distortion += block_distortion(changes[1], changes[0])
        found = _distributions(moments, histograms, with_histogram=record.name in self._detailed)
        report.decoded = found[0]
        if len(models) == 2:
            report.original = found[1]
            report.measured_error, report.cosine = distortion.error, distortion.cosine
        return _Measured(report, distortion, tuple(moments), tuple(histograms), digest)


def _distributions(
    moments: list[Moments], histograms: list[ValueHistogram], *, with_histogram: bool
) -> list[Distribution]:
    """Of the same tensors in all models; one axis for all, by the widest."""
    reach = _REACH * sqrt(max((m.variance or 0.0) for m in moments))
    edges = np.linspace(-reach, reach, _BINS + 1)
    return [
        Distribution(
            count=found.count,
            mean=found.mean,
            variance=found.variance,
            skewness=found.skewness,
            kurtosis=found.kurtosis,
            reach=reach,
            histogram=tuple(histogram.between(edges).tolist()) if with_histogram and reach > 0 else (),
        )
        for found, histogram in zip(moments, histograms, strict=True)
    ]
