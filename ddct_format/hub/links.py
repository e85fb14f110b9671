"""Fetching from a hub what a published archive was packed against, if that is another published archive.

Names are hints; what makes a link is that one archive's target has the digest that the other asks of its base.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ddct_format.errors import HubError
from ddct_format.hub.fetch import PartialArchive
from ddct_format.hub.interface import Hub
from ddct_format.hub.pointer import Pointer, check_name

__all__ = ["Links", "fetch_links", "named_link"]


@dataclass(frozen=True, slots=True)
class Links:
    """Attributes:
    archives: what was fetched, from the wanted archive towards the base.
    missing: the name of a link that the hub does not hold, or not as it was; None if none is missing.
    """

    archives: tuple[Path, ...] = ()
    missing: str | None = None


def named_link(archive: Path) -> str | None:
    """The name that an archive, of which the end may be missing, gives to its base, if it can be a published one.

    Errors of ``ArchiveReader.open``.
    """
    from ddct_format.container.reader import ArchiveReader
    from ddct_format.container.source import FileSource

    with ArchiveReader.open(FileSource(archive), allow_truncated=True) as reader:
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
    open_part: Callable[[str, Pointer], PartialArchive],
) -> Links:
    """Fetch all that lies between ``base`` and ``archive``; nothing if ``base`` is what it was packed against.

    Args:
        archive: the wanted one, of which the end may be missing.
        pointer: describes it.
        open_part: gives the file to fetch a published archive to, which may hold its beginning already.

    Raises:
        HubError: the hub fails, or the chain is longer than any that ddct packs.
        ArchiveError, CheckpointError, StorageError: something cannot be read.
    """
    from ddct_format.pipeline.chain import MAX_LINKS, fits_base

    archives: list[Path] = []
    name = named_link(archive)
    if name is None or fits_base(archive, base):
        return Links()
    while name is not None:
        found = hub.get_pointer(name)
        if found is None or found.target_id != pointer.base_id:
            return Links(tuple(archives), missing=name)
        if len(archives) == MAX_LINKS:
            raise HubError(f"its chain has more than {MAX_LINKS} links", place=hub.location)
        part = open_part(name, found)
        part.complete()
        archive, pointer = part.path, found
        archives.append(archive)
        name = named_link(archive)
    return Links(tuple(archives))
