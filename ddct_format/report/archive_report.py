"""All that a report shows, collected in one pass over an archive, its base and, if at hand, the fine-tune."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from math import sqrt
from threading import Lock

import numpy as np
import numpy.typing as npt

from ..backends import get_backend
from ..checkpoint import Checkpoint, Region, open_checkpoint, temporary_region
from ..container.digest import model_id
from ..container.records import TensorRecord
from ..errors import CheckpointError
from ..limits import MAX_LAYERS
from ..pipeline.archive import Archive, open_archive
from ..pipeline.decoding import Decoder
from ..pipeline.digests import digest_stored
from ..pipeline.parallel import DEFAULT_MEMORY, default_threads
from ..pipeline.progress import Progress, Tally
from .distortion import Distortion, changes_of, distortion_of
from .importance import importance_map
from .statistics import Moments, ValueHistogram
from .stored_bytes import file_parts, layer_part, layer_parts

__all__ = ["ArchiveReport", "Distribution", "ImportanceMap", "TensorReport", "report_archive"]

_BINS = 81
"""Odd: the middle one is around no change at all."""
_REACH = 4.0
"""Deviations to either side."""
_MAP_SIDE = 192
_SHARES = 4
"""Of a thread's part of the memory, as the decoder has it."""

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
        target_id, lossless: of what was measured.
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
    lossy: bool = False,
    largest: int = 24,
    device: str = "cpu",
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    drop_cache: bool = False,
    progress: Progress | None = None,
) -> ArchiveReport:
    """Decode an archive, tensor by tensor, and measure it.

    Args:
        against: the fine-tune, to compare with.
        memory, drop_cache: as for unpack.
        lossy: measure what the first layer of each tensor decodes to, as unpack does.
        largest: importance maps and histograms are made of so many tensors, those that take the most bytes.

    Raises:
        ArchiveError, BaseMismatchError, CheckpointError, StorageError: as unpack does; CheckpointError also if
            ``against`` lacks a tensor, or has it in another type or shape.
    """
    threads = threads or default_threads()
    with ExitStack() as stack:
        opened = stack.enter_context(open_archive(archive))
        base_model = stack.enter_context(open_checkpoint(base, drop_cache=drop_cache))
        opened.check_base(base_model)
        target = None
        if against is not None:
            target = stack.enter_context(open_checkpoint(against, drop_cache=drop_cache))
            _check_target(opened, target)
        return _collect(
            opened, base_model, target, 1 if lossy else MAX_LAYERS, largest, device, threads, memory, progress
        )


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


def _collect(
    archive: Archive,
    base: Checkpoint,
    target: Checkpoint | None,
    layers: int,
    largest: int,
    device: str,
    threads: int,
    memory: int,
    progress: Progress | None,
) -> ArchiveReport:
    reader, metadata, records = archive.reader, archive.metadata, archive.tensors
    by_size = sorted(records, key=lambda name: (-reader.stored_size(name), name))
    measurer = _Measurer(archive, base, target, set(by_size[:largest]), memory // (_SHARES * threads))
    decoder = Decoder(archive, base, get_backend(device), layers=layers, threads=threads, memory=memory)
    tally = Tally(sum(record.nbytes for record in records.values()), "measuring", progress)
    for record in decoder.decode_all(inspect=measurer.inspect):
        tally.add(record.nbytes)
    tensors = [measurer.tensors[name] for name in records]
    parts = file_parts(reader)
    for tensor in tensors:
        for part, size in tensor.parts.items():
            parts[part] = parts.get(part, 0.0) + size
    distortion = sum((measurer.distortions[name] for name in records), Distortion())
    moments = [sum((of[name] for name in records), Moments()) for of in measurer.moments]
    distributions = _distributions(moments, measurer.histograms, with_histogram=True)
    parameters = sum(tensor.elements for tensor in tensors)
    is_packed = None
    if target is not None:
        entries = ((name, r.dtype, r.shape, measurer.digests[name]) for name, r in records.items())
        is_packed = model_id(entries) == metadata.exact_id
    return ArchiveReport(
        archive=archive.place,
        base=str(base.path),
        against=None if target is None else str(target.path),
        against_is_packed=is_packed,
        content_id=archive.content_id,
        generator=metadata.generator,
        preset=metadata.quality.preset if metadata.quality else None,
        base_id=metadata.base_id,
        base_hint=dict(metadata.base_hint),
        target_id=archive.target_id(layers),
        exact_id=metadata.exact_id,
        lossless=archive.lossless(layers),
        file_size=reader.file_size,
        model_size=sum(record.nbytes for record in records.values()),
        parameters=parameters,
        bits_per_weight=8 * reader.file_size / parameters if parameters else None,
        tensor_bits_per_weight=8 * (reader.file_size - parts["files"]) / parameters if parameters else None,
        stored_error=metadata.quality.error if metadata.quality else None,
        measured_error=None if target is None else distortion.error,
        cosine=None if target is None else distortion.cosine,
        parts=parts,
        original=None if target is None else distributions[1],
        decoded=distributions[0],
        tensors=tensors,
    )


class _Measurer:
    """Measures each tensor on the thread that has decoded it; of weights, only sums are kept.

    Attributes:
        tensors, distortions, digests: by name; digests of the fine-tune's tensors, if there is one.
        moments: of the decoded model and, if there is one, the fine-tune: by name.
        histograms: of the same models, all tensors together.
    """

    def __init__(
        self, archive: Archive, base: Checkpoint, target: Checkpoint | None, detailed: set[str], share: int
    ) -> None:
        self._archive, self._base, self._target = archive, base, target
        self._detailed = detailed
        self._share = share
        self._lock = Lock()
        models = 1 if target is None else 2
        self.tensors: dict[str, TensorReport] = {}
        self.distortions: dict[str, Distortion] = {}
        self.digests: dict[str, str] = {}
        self.moments: list[dict[str, Moments]] = [{} for _ in range(models)]
        self.histograms = [ValueHistogram() for _ in range(models)]

    def inspect(self, record: TensorRecord, decoded: Bytes, region: Region | None) -> None:
        """Measure a decoded tensor; see :data:`~ddct_format.pipeline.decoding.Inspect`."""
        name = record.name
        stored = self._archive.reader.stored_size(name)
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
            self._take_apart(record, index, report)
        self._compare(record, decoded, region, report)
        if self._target is not None:
            self.digests[name] = digest_stored(self._target, name)
        self.tensors[name] = report

    def _take_apart(self, record: TensorRecord, index: int, report: TensorReport) -> None:
        reader = self._archive.reader
        stored = reader.stored_layer_size(record.name, index)
        whole = layer_part(record.layers[index].codec)
        if whole is not None:
            report.parts[whole] = report.parts.get(whole, 0.0) + stored
            return
        found = layer_parts(record, index, self._payload(record, index), stored)
        for part, size in found.parts.items():
            report.parts[part] = report.parts.get(part, 0.0) + size
        if record.name in self._detailed:
            grid = found.params.grid
            values = importance_map(found.params, found.payload, found.class_bits, _MAP_SIDE)
            report.importance = ImportanceMap(grid.rows, grid.cols, grid.patch, values)

    def _payload(self, record: TensorRecord, index: int) -> Bytes:
        """A layer's payload; a large one lies in a file that vanishes with it."""
        size = record.layers[index].size
        region = temporary_region(None, size) if size > self._share else None
        payload = np.empty(size, dtype=np.uint8) if region is None else region.array
        position = 0
        for piece in self._archive.reader.payload_pieces(record.name, index):
            payload[position : position + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            position += len(piece)
        if region is not None:
            region.release()
        return payload

    def _compare(self, record: TensorRecord, decoded: Bytes, region: Region | None, report: TensorReport) -> None:
        moments = [Moments() for _ in self.moments]
        histograms = [ValueHistogram() for _ in self.moments]
        distortion = Distortion()
        for finite, changes in changes_of(record, decoded, region, self._base, self._target):
            report.not_finite += int(finite.size - np.count_nonzero(finite))
            for number, values in enumerate(changes):
                moments[number] += Moments.of(values)
                histograms[number].add(values)
            if len(changes) == 2:
                distortion += distortion_of(*changes)
        if moments[0].count:
            found = _distributions(moments, histograms, with_histogram=record.name in self._detailed)
            report.decoded = found[0]
            if self._target is not None:
                report.original = found[1]
                report.measured_error, report.cosine = distortion.error, distortion.cosine
        self.distortions[record.name] = distortion
        for number, found_moments in enumerate(moments):
            self.moments[number][record.name] = found_moments
        with self._lock:
            for total, histogram in zip(self.histograms, histograms, strict=True):
                total.merge(histogram)


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
