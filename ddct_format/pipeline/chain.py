"""Archives whose base is what another archive decodes to: a checkpoint packed against an earlier one.

Nothing in the format knows of chains. An archive names its base by digest, and another archive's target may have
that very digest. Each link is decoded and compared like any other model, so that a chain is as safe as its parts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..checkpoint import open_checkpoint
from ..checkpoint.storage import storage_errors
from ..container.publish import temporary_path
from ..errors import BaseMismatchError, ConfigError
from .archive import Archive, open_archive

__all__ = ["MAX_LINKS", "decoded_base", "fits_base", "order_links"]

MAX_LINKS = 16
"""Archives that may have to be decoded before the one that is wanted."""


def order_links(archive: Archive, links: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """``links`` in the order of decoding, from the base to the one that ``archive`` was packed against.

    Raises:
        ConfigError: one of them is no link of this chain, or there are more than ``MAX_LINKS``.
        ArchiveError, StorageError: one of them cannot be read.
    """
    if len(links) > MAX_LINKS:
        raise ConfigError(f"{len(links)} links are more than {MAX_LINKS}", place=archive.place)
    targets = {}
    for link in links:
        with open_archive(link) as opened:
            targets[opened.target_id()] = (Path(link), opened.metadata.base_id)
    ordered, wanted = [], archive.metadata.base_id
    while wanted in targets:
        path, wanted = targets.pop(wanted)
        ordered.append(path)
    if targets:
        path = next(iter(targets.values()))[0]
        raise ConfigError(f"{path} is no link of its chain", place=archive.place)
    return ordered[::-1]


@contextmanager
def decoded_base(
    archive: str | os.PathLike[str],
    base: str | os.PathLike[str],
    links: Sequence[str | os.PathLike[str]],
    beside: str | os.PathLike[str],
    *,
    device: str,
    threads: int | None,
    memory: int,
) -> Iterator[Path]:
    """The directory that ``archive`` was packed against: ``base`` with all links applied; gone afterwards.

    Args:
        beside: the output, in whose parent the models in between are decoded, at most two at a time.

    Raises:
        As ``order_links``, and as ``unpack`` does for every link.
    """
    from .unpack import unpack

    with open_archive(archive, allow_truncated=True) as opened:  # whoever decodes it decides what may be missing
        ordered = order_links(opened, links)
    current, temporary = Path(base), temporary_path(Path(beside).absolute().parent)
    with storage_errors(temporary):
        temporary.mkdir()
    try:
        for number, link in enumerate(ordered):
            unpack(link, current, temporary / str(number), device=device, threads=threads, memory=memory)
            if number:
                shutil.rmtree(current, ignore_errors=True)
            current = temporary / str(number)
        yield current
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fits_base(archive: str | os.PathLike[str], base: str | os.PathLike[str]) -> bool:
    """Whether ``base`` itself, without any link, is what the archive was packed against: all of it is compared."""
    with open_archive(archive, allow_truncated=True) as opened, open_checkpoint(base) as model:
        try:
            opened.check_base(model)
            opened.check_base_contents(model)
        except BaseMismatchError:
            return False
    return True
