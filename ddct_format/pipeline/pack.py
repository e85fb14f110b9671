"""From a base and a fine-tune to one archive."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TypeVar

from .. import __version__
from ..backends import get_backend
from ..checkpoint import Checkpoint, default_cache, open_checkpoint
from ..container.digest import model_id
from ..container.metadata import compress_metadata, serialise_metadata
from ..container.preamble import PREAMBLE_SIZE
from ..container.records import FileRecord, Metadata, Quality, ShardRecord, TensorRecord, target_ids
from ..container.writer import ArchiveWriter
from ..encode.presets import DEFAULT_PRESET, KEEP_PRESETS, Preset, get_preset
from ..errors import BaseMismatchError, ConfigError, DdctError
from .blas import one_blas_thread
from .digests import digest_model
from .encoding import Encoding, check_memory
from .guard import Evaluation, check_errors
from .parallel import DEFAULT_MEMORY, default_threads
from .progress import Progress, Tally
from .search import choose_steps
from .self_check import check_base_digests, check_written

__all__ = ["PackReport", "pack"]

_MOST_PASSES = 4
"""One is the rule; more where a target was missed that was searched for on samples."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class PackReport:
    """What was written.

    Attributes:
        file_sha256: of the whole file: what a hub stores it under.
        original_size: bytes of the fine-tune's tensors.
        parameters: their elements.
        bits_per_weight: 8 · file_size / parameters: everything counted, side files too.
        tensor_bits_per_weight: the same without the bytes of side files: what a target in bits counts.
        error: relative squared error over all tensors that are stored as a change; None if there are none.
        side_files: bytes of the files that are carried beside the tensors.
        counts: tensors by operation (``add``, ``replace``, ``keep``, ``alias``).
        skipped: files of the fine-tune that are not carried, with the reason.
        metric: what the caller's evaluation measured on the decoded model; None without one.
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
    tensor_bits_per_weight: float
    error: float | None
    side_files: int
    counts: dict[str, int]
    tensors: int
    skipped: dict[str, str]
    verified: bool
    metric: float | None
    seconds: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@one_blas_thread()
def pack(
    base: str | os.PathLike[str] | Checkpoint,
    finetuned: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    preset: str | Preset = DEFAULT_PRESET,
    exact: bool = False,
    bits: float | None = None,
    error: float | None = None,
    keep: Sequence[tuple[str, str]] = (),
    max_error: float | None = None,
    evaluation: Evaluation | None = None,
    device: str = "cpu",
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    drop_cache: bool = False,
    training_state: bool = False,
    verify: bool = True,
    base_hint: Mapping[str, str] | None = None,
    cache: bool = True,
    progress: Progress | None = None,
) -> PackReport:
    """Write the archive ``out``, which must not exist; it appears whole and verified, or not at all.

    Meanwhile numpy's matrix products take one thread each, in all of the process (:mod:`~ddct_format.pipeline.blas`).

    Args:
        base: a model's path, or an open model, whose tensors are then digested once for any number of fine-tunes.
        preset: a name, or settings of one's own, which take neither ``bits`` nor ``error``.
        exact: after the preset's lossy layer, add one that restores the fine-tune bit for bit.
        bits, error: a target instead of the preset's: bits per weight (side files not counted, met from below within
            2 %), or relative squared error.
        keep: (pattern, preset) for single tensors, in the manner of fnmatch, the first match counting; each
            pattern must match one. ``raw`` carries bytes. Tensors of one preset meet its target by themselves.
        max_error: refuse if any tensor's relative squared error is above.
        evaluation: refuse if the decoded model measures worse.
        memory: bytes of working set, beside what Python and its libraries take; 256 MiB are the least.
        drop_cache: leave nothing of the models in the operating system's page cache; an open base has its own setting.
        training_state: carry optimizer state, DCP shards and other pickles, too, as bytes that are never looked into.
        verify: decode every payload against the base and compare the written file with what was decoded before it gets
            its name.
        base_hint: ``repo``, ``revision`` or ``name`` of the base: where a reader might find it.
        cache: the base's digests may come from the user's cache and are left there; only with ``verify``, which
            compares them with the base's bytes.

    Raises:
        OutputExistsError: ``out`` exists.
        CheckpointError: a model cannot be used, or changed while it was read.
        ConfigError: the settings contradict each other, a pattern matches nothing, a target cannot be met, or there is
            too little ``memory``.
        QualityError: the archive would be worse than ``max_error`` or ``evaluation`` allow.
        StorageError: something cannot be read or written.
    """
    started = time.monotonic()
    check_memory(memory)
    settings = get_preset(preset, bits=bits, error=error) if isinstance(preset, str) else preset
    backend = get_backend(device)
    kept = [(pattern, _keep_preset(name)) for pattern, name in keep]
    threads = threads or default_threads()
    digest_cache = default_cache() if cache and verify else None
    with (
        nullcontext(base)
        if isinstance(base, Checkpoint)
        else open_checkpoint(base, drop_cache=drop_cache) as base_model,
        open_checkpoint(finetuned, training_state=training_state, drop_cache=drop_cache) as target_model,
        ArchiveWriter(out, spill_above=memory // 16) as writer,
    ):
        _check_patterns(target_model, keep)
        files = [
            writer.add_file_pieces(file.path, target_model.side_file_pieces(file.path))
            for file in target_model.side_files()
        ]
        base_digests = digest_model(base_model, threads, "reading base", progress, cache=digest_cache)
        base_is_guessed = base_model.digests.keys() != base_digests.keys()
        target_digests = digest_model(target_model, threads, "reading fine-tune", progress)
        encoding = Encoding(
            base_model,
            target_model,
            base_digests,
            target_digests,
            settings,
            kept,
            backend,
            writer,
            threads,
            memory=memory,
            exact=exact,
            verify=verify,
        )

        def describe(records: Sequence[TensorRecord], noise: float = 0.0, energy: float = 0.0) -> Metadata:
            return _metadata(encoding, settings.name, records, files, base_hint, noise / energy if energy else 0.0)

        def head_size(records: Sequence[TensorRecord]) -> int:
            return PREAMBLE_SIZE + len(compress_metadata(serialise_metadata(describe(records))))

        forecast = choose_steps(encoding, head_size, progress)
        places = {name: place for place, name in enumerate(encoding.presets)}
        for _ in range(_MOST_PASSES):
            writer.discard_layers()
            checksums: dict[tuple[str, int], int] = {}
            tally = Tally(target_model.nbytes, "packing", progress)
            for item in forecast.encode_all():
                for layer, payload in enumerate(item.payloads):
                    writer.append(layer, payload, place=places[item.record.name])
                    checksums[item.record.name, layer] = payload.raw_crc32c
                tally.add(item.record.nbytes)
            if not forecast.missed():
                break
        else:
            if forecast.must_be_met:
                raise ConfigError(f"{settings.name} cannot be met: no steps were found", place=target_model.path)
        finished = forecast.finished()
        records = [item.record for item in finished]
        noise = energy = 0.0
        for item in finished:  # one by one, for sum() rounds otherwise from Python 3.12 on
            noise, energy = noise + item.noise, energy + item.energy
        if max_error is not None:
            _at(out, lambda: check_errors(records, max_error))
        metadata = describe(records, noise, energy)
        if base_is_guessed:
            assert digest_cache is not None
            try:
                check_base_digests(metadata, base_model, threads, progress)
            except BaseMismatchError as error:
                digest_cache.forget(base_model)
                error.reason += "; cached digests of the base were wrong and are forgotten: try again"
                raise
        target_model.check_unchanged()
        base_model.check_unchanged()

        metrics: list[float] = []

        def check(path: Path) -> None:
            if verify:
                check_written(path, metadata, checksums, threads, progress)
            if evaluation is not None:
                measure = partial(evaluation.check, path, base_model.path, device=device, threads=threads)
                metrics.append(_at(out, measure))

        sealed = writer.seal(metadata, check)
        parameters = sum(record.elements for record in records)
        return PackReport(
            archive=str(out),
            preset=settings.name,
            content_id=sealed.content_id,
            base_id=metadata.base_id,
            target_id=metadata.target_ids[-1],
            exact_id=metadata.exact_id,
            file_size=sealed.file_size,
            file_sha256=sealed.file_sha256,
            original_size=target_model.nbytes,
            parameters=parameters,
            bits_per_weight=8 * sealed.file_size / max(parameters, 1),
            tensor_bits_per_weight=8 * (sealed.file_size - writer.side_files_size) / max(parameters, 1),
            error=metadata.quality.error if metadata.quality else None,
            side_files=sum(file.size for file in files),
            counts=dict(sorted(Counter(record.op for record in records).items())),
            tensors=len(records),
            skipped={file.path: file.reason for file in target_model.skipped},
            verified=verify,
            metric=metrics[0] if metrics else None,
            seconds=time.monotonic() - started,
        )


def _metadata(
    encoding: Encoding,
    preset: str,
    records: Sequence[TensorRecord],
    files: Sequence[FileRecord],
    base_hint: Mapping[str, str] | None,
    error: float,
) -> Metadata:
    return Metadata(
        generator=f"ddct {__version__}",
        chunk_size=encoding.writer.chunk_size,
        base_id=_model_id(encoding.base, encoding.base_digests),
        base_hint=dict(base_hint or {}),
        target_ids=target_ids(records),
        exact_id=_model_id(encoding.target, encoding.target_digests),
        shards=tuple(ShardRecord(shard.path, shard.metadata) for shard in encoding.target.shards),
        files=tuple(files),
        tensors=tuple(records),
        quality=Quality(preset, error),
    )


def _keep_preset(name: str) -> Preset:
    if name not in KEEP_PRESETS:
        raise ConfigError(f"unknown preset {name!r}; a tensor can be given {', '.join(KEEP_PRESETS)}")
    return KEEP_PRESETS[name]


def _check_patterns(model: Checkpoint, keep: Sequence[tuple[str, str]]) -> None:
    """A pattern that meets nothing is a typing error, and the tensor that it meant would silently be coarse."""
    for pattern, _ in keep:
        if not any(fnmatchcase(name, pattern) for name in model.tensors):
            raise ConfigError(f"no tensor is named like {pattern!r}, which is to be kept", place=model.path)


def _at(out: str | os.PathLike[str], work: Callable[[], Result]) -> Result:
    """Run a check whose refusals are about the output."""
    try:
        return work()
    except DdctError as error:
        raise error.at(place=out) from None


def _model_id(model: Checkpoint, digests: Mapping[str, str]) -> str:
    return model_id((info.name, info.dtype, info.shape, digests[info.name]) for info in model.tensors.values())
