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
from ..checkpoint import Checkpoint, open_checkpoint
from ..codec.floats import FLOAT_DTYPES
from ..container.dtypes import element_count
from ..errors import ConfigError, DdctError, OutputExistsError, QualityError, StorageError
from ..pipeline.archive import Archive, open_archive
from ..pipeline.guard import Evaluation
from ..pipeline.pack import PackReport, pack
from ..pipeline.parallel import default_threads, map_ordered
from ..pipeline.progress import Progress, Tally
from .distortion import Distortion, measure_distortion
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
    on_row: Callable[[SweepRow], None] | None = None,
    progress: Progress | None = None,
) -> SweepReport:
    """Pack the fine-tune once per scheme, decode each archive and compare it with the fine-tune.

    Works in a temporary directory (``TMPDIR``), which holds one archive at a time and, with an evaluation, one model.

    Args:
        tensors: patterns in the manner of fnmatch: sweep only these tensors. An evaluation gets them decoded, and all
            others as they are in the fine-tune.
        archives: a directory, which must not exist, to leave the archives in.
        on_row: called with each row as soon as it is there.

    Raises:
        ConfigError: no tensor matches, or every scheme is impossible.
        QualityError: the evaluation fails on the fine-tune itself.
        CheckpointError, OutputExistsError, StorageError: something cannot be read or written.
    """
    base, finetuned = Path(base), Path(finetuned)
    threads = threads or default_threads()
    get_backend(device)  # a device that is not there is no problem of a scheme
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ddct-sweep-")))
        except OSError as error:
            raise StorageError(f"no temporary directory: {error.strerror}", place=error.filename) from None
        base_model = stack.enter_context(open_checkpoint(base))
        target = stack.enter_context(open_checkpoint(finetuned))
        names = [name for name in target.tensors if not tensors or any(fnmatchcase(name, p) for p in tensors)]
        if not names:
            raise ConfigError(f"no tensor matches {', '.join(tensors)}", place=finetuned)
        metrics = _own_metrics(base, finetuned, evaluation)
        swept = (base, finetuned)
        if len(names) < len(target.tensors):
            swept = (folder / "base.safetensors", folder / "finetuned.safetensors")
            write_subset(base_model, names, swept[0])
            write_subset(target, names, swept[1])
        kept = None if archives is None else _new_directory(Path(archives))
        runner = _Runner(base_model, target, names, swept, folder, kept, evaluation, device, threads)
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


class _Runner:
    """Runs one scheme after the other on the same pair."""

    def __init__(
        self,
        base: Checkpoint,
        target: Checkpoint,
        names: Sequence[str],
        swept: tuple[Path, Path],
        folder: Path,
        kept: Path | None,
        evaluation: Evaluation | None,
        device: str,
        threads: int,
    ) -> None:
        self._base, self._target = base, target
        self._names = names
        self._swept = swept
        self._folder, self._kept = folder, kept
        self._evaluation = evaluation
        self._device, self._threads = device, threads

    def run(self, number: int, scheme: Scheme, progress: Progress | None) -> SweepRow:
        """Pack, decode and measure. What only this scheme cannot do becomes the row's problem."""
        started = time.monotonic()
        slug = re.sub(r"[^a-z0-9.]+", "-", scheme.name.lower()).strip("-")
        archive = (self._kept or self._folder) / _ARCHIVE.format(number=number, slug=slug)
        try:
            packed = pack(
                *self._swept,
                archive,
                preset=scheme.preset,
                device=self._device,
                threads=self._threads,
                verify=False,
                progress=progress,
            )
        except ConfigError as error:
            return SweepRow(scheme.name, scheme.family, scheme.variant, scheme.settings(), problem=error.reason)
        model = self._folder / "model"
        try:
            with open_archive(archive) as opened:
                distortion = self._decode(opened, model if self._evaluation else None, progress)
            seconds = time.monotonic() - started
            metric, problem = self._measure(model)
        finally:
            shutil.rmtree(model, ignore_errors=True)
            if self._kept is None:
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
            archive=packed.archive if self._kept else None,
            problem=problem,
        )

    def _decode(self, archive: Archive, out: Path | None, progress: Progress | None) -> Distortion:
        """Decode every tensor, whose digests are checked, and compare it; write the model if there is an ``out``."""
        backend = get_backend(self._device)
        selected = set(self._names)
        measured: dict[str, Distortion] = {}

        def decode(name: str) -> npt.NDArray[np.uint8] | None:
            if name not in selected:
                return None
            decoded = archive.decode(name, self._base, backend=backend)
            measured[name] = self._compare(name, decoded)
            return decoded

        if out is not None:
            tally = Tally(self._target.nbytes, "decoding", progress)
            write_with_changes(self._target, decode, out, self._threads, tally.add)
        else:
            tally = Tally(sum(self._target.tensors[name].nbytes for name in self._names), "decoding", progress)
            for size in map_ordered(lambda name: _size(decode(name)), self._names, self._threads):
                tally.add(size)
        return sum((measured[name] for name in self._names), Distortion())

    def _compare(self, name: str, decoded: npt.NDArray[np.uint8]) -> Distortion:
        before, after = self._base.tensors.get(name), self._target.tensors[name]
        if before is None or before.shape != after.shape or not {before.dtype, after.dtype} <= set(FLOAT_DTYPES):
            return Distortion()
        base = np.frombuffer(self._base.read(name), dtype=np.uint8)
        true = np.frombuffer(self._target.read(name), dtype=np.uint8)
        return measure_distortion(base, before.dtype, true, decoded, after.dtype)

    def _measure(self, model: Path) -> tuple[float | None, str | None]:
        if self._evaluation is None:
            return None, None
        try:
            return self._evaluation.measure(model), None
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


def _size(data: npt.NDArray[np.uint8] | None) -> int:
    return 0 if data is None else data.size
