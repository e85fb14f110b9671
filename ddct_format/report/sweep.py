"""Many schemes on one fine-tune: each writes a real archive, which is decoded and compared."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..backends import get_backend
from ..checkpoint import Checkpoint, Region, SafetensorsWriter, open_checkpoint
from ..container.dtypes import element_count
from ..container.records import TensorRecord
from ..errors import ConfigError, DdctError, OutputExistsError, QualityError, StorageError
from ..pipeline.archive import Archive, open_archive
from ..pipeline.decoding import Decoder
from ..pipeline.encoding import check_memory
from ..pipeline.guard import Evaluation
from ..pipeline.pack import PackReport, pack
from ..pipeline.parallel import DEFAULT_MEMORY
from ..pipeline.progress import Progress, Tally
from .distortion import Distortion, changes_of, distortion_of
from .schemes import Scheme
from .subset import write_subset, write_with_changes

__all__ = ["SweepReport", "SweepRow", "sweep"]

_ARCHIVE = "{number:02}-{slug}.ddct"


@dataclass(frozen=True, slots=True)
class SweepRow:
    """What one scheme came to.

    Attributes:
        bits_per_weight: all bytes of the archive but those of side files, times 8, over the weights.
        error: relative squared error over all floating-point weights; None where nothing changed.
        cosine: between the true and the decoded change; None where one of them is nothing.
        metric: what the caller's evaluation measured on the decoded model; None without one.
        seconds: packing and checking what was packed.
        problem: why there are no numbers, or no metric; None if there is none.
    """

    scheme: str
    family: str
    variant: str
    settings: dict[str, object]
    file_size: int | None = None
    bits_per_weight: float | None = None
    error: float | None = None
    cosine: float | None = None
    metric: float | None = None
    seconds: float | None = None
    archive: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class SweepReport:
    """All rows, and what they are to be compared with.

    Attributes:
        tensors, parameters: how many were swept.
        base_metric, finetuned_metric: what the evaluation measures on the two models themselves; None without one, or
            for a base that it cannot run on.
    """

    base: str
    finetuned: str
    tensors: int
    parameters: int
    base_metric: float | None
    finetuned_metric: float | None
    rows: tuple[SweepRow, ...]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def sweep(
    base: str | os.PathLike[str],
    finetuned: str | os.PathLike[str],
    schemes: Sequence[Scheme],
    *,
    tensors: Sequence[str] = (),
    evaluation: Evaluation | None = None,
    archives: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    drop_cache: bool = False,
    on_row: Callable[[SweepRow], None] | None = None,
    progress: Progress | None = None,
) -> SweepReport:
    """Pack the fine-tune once per scheme, decode each archive and compare it with the fine-tune.

    Works in a temporary directory (``TMPDIR``), which holds one archive at a time and, with an evaluation, two copies
    of the model.

    Args:
        tensors: patterns in the manner of fnmatch: sweep only these tensors. An evaluation gets them decoded, and all
            others as they are in the fine-tune.
        archives: a directory, which must not exist, to leave the archives in.
        memory, drop_cache: as for pack.
        on_row: called with each row as soon as it is there.

    Raises:
        ConfigError: no tensor matches, every scheme is impossible, or there is too little ``memory``.
        QualityError: the evaluation fails on the fine-tune itself.
        CheckpointError, OutputExistsError, StorageError: something cannot be read or written.
    """
    check_memory(memory)
    base, finetuned = Path(base), Path(finetuned)
    get_backend(device)  # a device that is not there is no problem of a scheme
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ddct-sweep-")))
        except OSError as error:
            raise StorageError(f"no temporary directory: {error.strerror}", place=error.filename) from None
        base_model = stack.enter_context(open_checkpoint(base, drop_cache=drop_cache))
        target = stack.enter_context(open_checkpoint(finetuned, drop_cache=drop_cache))
        names = [name for name in target.tensors if not tensors or any(fnmatchcase(name, p) for p in tensors)]
        if not names:
            raise ConfigError(f"no tensor matches {', '.join(tensors)}", place=finetuned)
        metrics = _own_metrics(base, finetuned, evaluation)
        swept_base, swept = base_model, finetuned
        if len(names) < len(target.tensors):
            swept = folder / "finetuned.safetensors"
            write_subset(target, names, swept)
            write_subset(base_model, names, folder / "base.safetensors")
            swept_base = stack.enter_context(open_checkpoint(folder / "base.safetensors"))
        kept = None if archives is None else _new_directory(Path(archives))
        runner = _Runner(swept_base, target, swept, folder, kept, evaluation, device, threads, memory, drop_cache)
        rows = []
        for number, scheme in enumerate(schemes, start=1):
            rows.append(runner.run(number, scheme, _labelled(progress, f"{number}/{len(schemes)} {scheme.name}")))
            if on_row is not None:
                on_row(rows[-1])
        if rows and all(row.bits_per_weight is None for row in rows):
            raise ConfigError(f"no scheme could be packed; the last: {rows[-1].problem}", place=finetuned)
        return SweepReport(
            base=str(base),
            finetuned=str(finetuned),
            tensors=len(names),
            parameters=sum(element_count(target.tensors[name].shape) for name in names),
            base_metric=metrics[0],
            finetuned_metric=metrics[1],
            rows=tuple(rows),
        )


@dataclass(frozen=True, slots=True)
class _Runner:
    """Runs one scheme after the other on the same pair.

    Attributes:
        base: what is swept of it, open: its tensors are digested once for all schemes.
        target: the whole fine-tune; ``swept`` is the path of what is swept of it.
    """

    base: Checkpoint
    target: Checkpoint
    swept: Path
    folder: Path
    kept: Path | None
    evaluation: Evaluation | None
    device: str
    threads: int | None
    memory: int
    drop_cache: bool

    def run(self, number: int, scheme: Scheme, progress: Progress | None) -> SweepRow:
        """Pack, decode and measure. What only this scheme cannot do becomes the row's problem."""
        started = time.monotonic()
        slug = re.sub(r"[^a-z0-9.]+", "-", scheme.name.lower()).strip("-")
        archive = (self.kept or self.folder) / _ARCHIVE.format(number=number, slug=slug)
        try:
            packed = pack(
                self.base,
                self.swept,
                archive,
                preset=scheme.preset,
                device=self.device,
                threads=self.threads,
                memory=self.memory,
                drop_cache=self.drop_cache,
                verify=False,
                progress=progress,
            )
        except ConfigError as error:
            return SweepRow(scheme.name, scheme.family, scheme.variant, scheme.settings(), problem=error.reason)
        model = self.folder / "model"
        try:
            with open_archive(archive) as opened:
                distortion = self._decode(opened, model, progress)
            seconds = time.monotonic() - started
            metric, problem = self._measure(model)
        finally:
            shutil.rmtree(model, ignore_errors=True)
            if self.kept is None:
                archive.unlink(missing_ok=True)
        return self._row(scheme, packed, distortion, metric, problem, seconds)

    def _row(
        self,
        scheme: Scheme,
        packed: PackReport,
        distortion: Distortion,
        metric: float | None,
        problem: str | None,
        seconds: float,
    ) -> SweepRow:
        return SweepRow(
            scheme=scheme.name,
            family=scheme.family,
            variant=scheme.variant,
            settings=scheme.settings(),
            file_size=packed.file_size,
            bits_per_weight=packed.tensor_bits_per_weight,
            error=distortion.error,
            cosine=distortion.cosine,
            metric=metric,
            seconds=seconds,
            archive=packed.archive if self.kept else None,
            problem=problem,
        )

    def _decode(self, archive: Archive, model: Path, progress: Progress | None) -> Distortion:
        """Decode every tensor, whose digests are checked, and compare it; write a model if one will be evaluated."""
        measured: dict[str, Distortion] = {}

        def inspect(record: TensorRecord, decoded: npt.NDArray[np.uint8], region: Region | None) -> None:
            blocks = changes_of(record, decoded, region, self.base, self.target)
            measured[record.name] = sum((distortion_of(d, t) for _, (d, t) in blocks), Distortion())

        backend = get_backend(self.device)
        decoder = Decoder(archive, self.base, backend, threads=self.threads, memory=self.memory, scratch=self.folder)
        tally = Tally(sum(record.nbytes for record in archive.tensors.values()), "decoding", progress)
        path = self.folder / "decoded.safetensors"
        with ExitStack() as stack:
            writers = None
            if self.evaluation is not None:
                stack.callback(path.unlink, missing_ok=True)
                layout = [(record.name, record.dtype, record.shape) for record in archive.tensors.values()]
                writers = [SafetensorsWriter(path, layout, {})] * len(archive.metadata.shards)
                stack.callback(writers[0].discard)
            for record in decoder.decode_all(writers, inspect):
                tally.add(record.nbytes)
            if writers is not None:
                writers[0].close()
                tally = Tally(self.target.nbytes, "writing", progress)
                with open_checkpoint(path) as decoded:
                    write_with_changes(self.target, decoded, model, tally.add)
        return sum((measured[name] for name in archive.tensors), Distortion())

    def _measure(self, model: Path) -> tuple[float | None, str | None]:
        if self.evaluation is None:
            return None, None
        try:
            return self.evaluation.measure(model), None
        except QualityError as error:
            return None, error.reason


def _own_metrics(base: Path, finetuned: Path, evaluation: Evaluation | None) -> tuple[float | None, float | None]:
    """The metrics of base and fine-tune; a command that fails on the fine-tune is of no use to anybody."""
    if evaluation is None:
        return None, None
    try:
        own = evaluation.measure(finetuned)
    except DdctError as error:
        raise error.at(place=finetuned) from None
    try:
        return evaluation.measure(base), own
    except QualityError:
        return None, own


def _new_directory(path: Path) -> Path:
    try:
        path.mkdir()
    except FileExistsError:
        raise OutputExistsError("already exists and is not overwritten", place=path) from None
    except OSError as error:
        raise StorageError(f"the directory cannot be made: {error.strerror}", place=path) from None
    return path


def _labelled(progress: Progress | None, label: str) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, what: progress(done, total, f"{label}: {what}")
