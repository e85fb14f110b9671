"""From an archive and its base to a model directory."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from ..backends import get_backend
from ..checkpoint import OutputDirectory, is_training_state, open_checkpoint
from ..errors import ConfigError, StorageError
from ..limits import MAX_LAYERS
from .archive import open_archive
from .chain import decoded_base
from .decoding import Decoder
from .parallel import DEFAULT_MEMORY
from .progress import Progress, Tally

__all__ = ["UnpackReport", "unpack"]


@dataclass(frozen=True, slots=True)
class UnpackReport:
    """What was written.

    Attributes:
        applied: tensors written and compared with their digest; equal to ``tensors``, or nothing was written.
        lossless: whether the output is bit for bit the model that was packed.
        left_out: files of the archive that were not written: training state that nobody asked for.
    """

    output: str
    content_id: str
    target_id: str
    lossless: bool
    applied: int
    tensors: int
    left_out: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def unpack(
    archive: str | os.PathLike[str],
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    lossy: bool = False,
    exact: bool = False,
    training_state: bool = False,
    links: Sequence[str | os.PathLike[str]] = (),
    device: str = "cpu",
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    drop_cache: bool = False,
    progress: Progress | None = None,
) -> UnpackReport:
    """Write the model directory ``out``, which must not exist; it appears whole or not at all.

    Args:
        lossy: decode the first layer of each tensor only. Works on an archive whose end is missing, too, as long as all
            first layers are there.
        exact: refuse an archive that does not restore the very model that was packed.
        memory: bytes of working set; larger tensors go through the output's and temporary files, in bands.
        drop_cache: leave nothing of base and output in the operating system's page cache.
        training_state: write files that may hold pickles, too. Whoever loads them runs what is in them: ask for them
            only if you trust who packed the archive.
        links: archives of earlier checkpoints, in any order, if this one was packed against one of them: they are
            decoded first, one on top of the other, from ``base`` on.

    Raises:
        ConfigError: ``exact`` of an archive that is lossy, or together with ``lossy``; a link is none; too little
            ``memory``.
        OutputExistsError: ``out`` exists.
        ArchiveError: the archive is damaged or breaks the specification.
        BaseMismatchError: ``base`` is not the base it was made for.
        CheckpointError, StorageError: something cannot be read or written.
    """
    started = time.monotonic()
    if lossy and exact:
        raise ConfigError("a model is unpacked either lossy or exact")
    if links:
        with decoded_base(archive, base, links, out, device=device, threads=threads, memory=memory) as direct:
            report = unpack(
                archive,
                direct,
                out,
                lossy=lossy,
                exact=exact,
                training_state=training_state,
                device=device,
                threads=threads,
                memory=memory,
                drop_cache=drop_cache,
                progress=progress,
            )
        return replace(report, seconds=time.monotonic() - started)
    layers = 1 if lossy else MAX_LAYERS
    with (
        open_archive(archive, allow_truncated=lossy) as opened,
        open_checkpoint(base, drop_cache=drop_cache) as base_model,
    ):
        lossless = opened.lossless(layers)
        if exact and not lossless:
            raise ConfigError("an exact model is asked for, and the archive does not hold it", place=opened.place)
        opened.check_base(base_model)
        backend = get_backend(device)
        metadata, records = opened.metadata, opened.tensors
        files = [file for file in metadata.files if training_state or not is_training_state(file.path)]
        needed = sum(record.nbytes for record in records.values()) + sum(file.size for file in files)
        tally = Tally(needed, "unpacking", progress)
        by_shard: list[list[tuple[str, str, tuple[int, ...]]]] = [[] for _ in metadata.shards]
        for record in records.values():
            by_shard[record.shard].append((record.name, record.dtype, record.shape))
        with OutputDirectory(out, drop_cache=drop_cache) as output:
            free = shutil.disk_usage(output.path.parent).free
            if free < needed:
                raise StorageError(f"no space: {needed} bytes are needed, {free} are free", place=out)
            writers = [
                output.shard_writer(shard.path, tensors, shard.metadata)
                for shard, tensors in zip(metadata.shards, by_shard, strict=True)
            ]
            decoder = Decoder(
                opened,
                base_model,
                backend,
                layers=layers,
                threads=threads,
                memory=memory,
                scratch=output.path.parent,
            )
            applied = 0
            for record in decoder.decode_all(writers):
                tally.add(record.nbytes)
                applied += 1
            for file in files:
                output.write_file_pieces(file.path, opened.reader.file_pieces(file.path))
                tally.add(file.size)
            output.commit()
        return UnpackReport(
            output=str(out),
            content_id=opened.content_id,
            target_id=opened.target_id(layers),
            lossless=lossless,
            applied=applied,
            tensors=len(records),
            left_out=tuple(file.path for file in metadata.files if file not in files),
            seconds=time.monotonic() - started,
        )
