"""Many fine-tunes of one base: it is opened and digested once, and each fine-tune gets its own archive."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import open_checkpoint
from ..checkpoint.storage import storage_errors
from ..errors import ConfigError, DdctError
from .pack import PackReport, pack
from .progress import Progress

__all__ = ["PackOutcome", "archive_names", "pack_many"]


@dataclass(frozen=True, slots=True)
class PackOutcome:
    """What became of one fine-tune: a report, or the refusal."""

    finetuned: str
    archive: str
    report: PackReport | None = None
    error: DdctError | None = None

    def as_dict(self) -> dict[str, object]:
        if self.report is not None:
            return {"finetuned": self.finetuned, **self.report.as_dict()}
        assert self.error is not None
        return {"finetuned": self.finetuned, "archive": self.archive, "error": self.error.as_dict()}


def pack_many(
    base: str | os.PathLike[str],
    finetuned: Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    drop_cache: bool = False,
    **settings: Any,
) -> tuple[PackOutcome, ...]:
    """Write one archive for each fine-tune into a directory, which is made if it is not there.

    A fine-tune that is refused does not keep the others from being packed.

    Args:
        settings: as :func:`pack` takes them, the same for all.

    Returns:
        One outcome for each fine-tune, in the order given.

    Raises:
        ConfigError: two fine-tunes would get the same archive.
        CheckpointError, StorageError: the base or the directory cannot be used; nothing was packed.
    """
    directory = Path(out_dir)
    names = archive_names(finetuned)
    with open_checkpoint(base, drop_cache=drop_cache) as base_model:
        with storage_errors(directory):
            directory.mkdir(exist_ok=True)
        outcomes = []
        for path, name in zip(finetuned, names, strict=True):
            archive = directory / name
            try:
                report = pack(
                    base_model,
                    path,
                    archive,
                    drop_cache=drop_cache,
                    progress=None if progress is None else _named(progress, name),
                    **settings,
                )
                outcomes.append(PackOutcome(str(path), str(archive), report))
            except DdctError as error:
                outcomes.append(PackOutcome(str(path), str(archive), error=error))
    return tuple(outcomes)


def archive_names(finetuned: Sequence[str | os.PathLike[str]]) -> list[str]:
    """A file name for each model, after as much of the end of its path as tells it from the others.

    Raises:
        ConfigError: two paths are the same.
    """
    paths = [Path(os.path.normpath(Path(path).absolute())) for path in finetuned]
    paths = [path.with_suffix("") if path.suffix == ".safetensors" else path for path in paths]
    for length in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = ["-".join(part.strip(os.sep) for part in path.parts[-length:]) + ".ddct" for path in paths]
        if len({name.lower() for name in names}) == len(names):
            return names
    repeated = next((path for path, count in Counter(paths).items() if count > 1), None)
    raise ConfigError("two fine-tunes would get the same archive", place=repeated)


def _named(progress: Progress, name: str) -> Progress:
    return lambda done, total, what: progress(done, total, f"{name}: {what}")
