"""Fetching from a hub what a published archive was packed against, if that is another published archive.

Names are hints; what makes a link is that one archive's target has the digest that the other asks of its base.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ddct_format.errors import HubError
from ddct_format.hub.fetch import Progress, fetch_archive
from ddct_format.hub.interface import Hub
from ddct_format.hub.pointer import Pointer, check_name

__all__ = ["Links", "fetch_links", "named_link"]


@dataclass(frozen=True, slots=True)
class Links:
    """Attributes:
    archives: what was fetched, from the wanted archive towards the base.
    fetched: bytes that came from the hub now.
    missing: the name of a link that the hub does not hold, or not as it was; None if none is missing.
    """

    archives: tuple[Path, ...] = ()
    fetched: int = 0
    missing: str | None = None


def named_link(archive: Path) -> str | None:
    """The name that an archive gives to its base, if something could be published under it.

    Errors of ``ArchiveReader.open``.
    """
    from ddct_format.container.reader import ArchiveReader
    from ddct_format.container.source import FileSource

    with ArchiveReader.open(FileSource(archive)) as reader:
        name = reader.metadata.base_hint.get("name", "")
    try:
        return check_name(name)
    except HubError:
        return None


def fetch_links(
    hub: Hub,
    archive: Path,
    pointer: Pointer,
    base: Path,
    part: Callable[[Pointer], Path],
    *,
    progress: Progress | None = None,
) -> Links:
    """Fetch all that lies between ``base`` and ``archive``; nothing if ``base`` is what it was packed against.

    Args:
        pointer: describes ``archive``.
        part: where to fetch an archive to; such a file may hold its beginning already.

    Raises:
        HubError: the hub fails, or the chain is longer than any that ddct packs.
        ArchiveError, CheckpointError, StorageError: something cannot be read.
    """
    from ddct_format.pipeline.chain import MAX_LINKS, fits_base

    archives: list[Path] = []
    fetched = 0
    name = named_link(archive)
    if name is None or fits_base(archive, base):
        return Links()
    while name is not None:
        found = hub.get_pointer(name)
        if found is None or found.target_id != pointer.base_id:
            return Links(tuple(archives), fetched, missing=name)
        if len(archives) == MAX_LINKS:
            raise HubError(f"its chain has more than {MAX_LINKS} links", place=hub.location)
        archive, pointer = part(found), found
        archives.append(archive)
        fetched += fetch_archive(hub, name, found, archive, progress=progress)
        name = named_link(archive)
    return Links(tuple(archives), fetched)
