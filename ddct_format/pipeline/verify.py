"""Is an archive whole, and does it decode against this base to what it promises?"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ..backends import get_backend
from ..checkpoint import Checkpoint, open_checkpoint
from .archive import Archive, open_archive
from .decoding import Decoder
from .parallel import DEFAULT_MEMORY
from .progress import Progress, Tally

__all__ = ["VerifyReport", "check_decoding", "verify"]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was checked.

    Attributes:
        chunks: chunks whose checksum and frame were checked: all of them.
        tensors: tensors in the archive.
        decoded: tensors that were decoded and compared with their digest; 0 without a base.
    """

    archive: str
    content_id: str
    target_id: str
    lossless: bool
    chunks: int
    tensors: int
    decoded: int
    seconds: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def verify(
    archive: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    *,
    device: str = "cpu",
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    drop_cache: bool = False,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check every stored byte of an archive, and with a base every decoded byte too. Writes nothing.

    Args:
        memory: bytes of working set; larger tensors go through temporary files in the system's usual place.
        drop_cache: leave nothing of the base in the operating system's page cache.

    Raises:
        ConfigError: too little ``memory``.
        ArchiveError: the archive is damaged or breaks the specification.
        BaseMismatchError: ``base`` is not the base it was made for.
        CheckpointError, StorageError: something cannot be read.
    """
    started = time.monotonic()
    with open_archive(archive) as opened:
        size = opened.reader.file_size

        def on_chunk(done: int, chunks: int) -> None:
            if progress is not None:
                progress(size * done // chunks, size, "checksums")

        chunks = opened.reader.verify_chunks(on_chunk)
        decoded = 0
        if base is not None:
            with open_checkpoint(base, drop_cache=drop_cache) as base_model:
                decoded = check_decoding(
                    opened, base_model, device=device, threads=threads, memory=memory, progress=progress
                )
        return VerifyReport(
            archive=opened.place,
            content_id=opened.content_id,
            target_id=opened.metadata.target_ids[-1],
            lossless=opened.metadata.lossless,
            chunks=chunks,
            tensors=len(opened.tensors),
            decoded=decoded,
            seconds=time.monotonic() - started,
        )


def check_decoding(
    archive: Archive,
    base: Checkpoint,
    *,
    device: str = "cpu",
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> int:
    """Decode every tensor and drop it; the digests in the metadata decide. Returns the number of tensors.

    Args:
        memory, scratch: see :class:`~ddct_format.pipeline.decoding.Decoder`.
    """
    archive.check_base(base)
    decoder = Decoder(archive, base, get_backend(device), threads=threads, memory=memory, scratch=scratch)
    tally = Tally(sum(record.nbytes for record in archive.tensors.values()), "decoding", progress)
    decoded = 0
    for record in decoder.decode_all():
        tally.add(record.nbytes)
        decoded += 1
    return decoded
