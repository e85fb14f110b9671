"""Publishing archives on a hub: data first, pointer last, checked at every step."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ddct_format.errors import HubError, StorageError
from ddct_format.hub.interface import Hub
from ddct_format.hub.notes import Notes, notes_of
from ddct_format.hub.pointer import Pointer, check_name

__all__ = ["annotate_archive", "describe_archive", "publish", "push"]


def describe_archive(archive: Path) -> Pointer:
    """The pointer that a finished archive should be published under.

    Reads the file once. ArchiveError if it is no sound archive, StorageError if it cannot be read.
    """
    from ddct_format.container.reader import ArchiveReader
    from ddct_format.container.source import FileSource

    with ArchiveReader.open(FileSource(archive)) as reader:
        metadata = reader.metadata
        content_id, size = reader.content_id, reader.file_size
    try:
        with archive.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError((error.strerror or str(error)).lower(), place=archive) from error
    return Pointer(
        sha256=sha256,
        size=size,
        content_id=content_id,
        base_id=metadata.base_id,
        target_id=metadata.target_ids[-1],
    )


def annotate_archive(archive: Path) -> Notes:
    """What a hub may tell people about the archive. Errors of ``describe_archive``."""
    from ddct_format.container.reader import ArchiveReader
    from ddct_format.container.source import FileSource

    with ArchiveReader.open(FileSource(archive)) as reader:
        return notes_of(reader.metadata, reader.file_size)


def publish(
    hub: Hub,
    name: str,
    pointer: Pointer,
    archive: Path,
    *,
    replaces: str | None = None,
    notes: Notes | None = None,
) -> Pointer:
    """Publish ``archive`` under ``name``; the hub is the truth about what is already done.

    Safe to repeat after a crash at any moment. If the name already stands for the same content, in
    whatever compression, nothing is sent.

    Args:
        pointer: describes ``archive``.
        replaces: sha256 of the archive that this publisher published under the name before. A name
            that stands for anything else is not overwritten.
        notes: for the hub's page about it, if it has one.

    Returns:
        The pointer that the hub holds afterwards.

    Raises:
        HubError: the name belongs to other content, the file is not what the pointer says, or the
            hub failed.
    """
    there = hub.get_pointer(name)
    if there is not None:
        if there.content_id == pointer.content_id and hub.has_archive(name, there):
            return there
        if there.sha256 != replaces and there.content_id != pointer.content_id:
            raise HubError(
                f"{name!r} already stands for another model (content {there.content_id[:12]}), "
                "which was not published from here",
                place=hub.location,
            )
    hub.put_archive(name, pointer, archive, notes)
    if hub.get_pointer(name) != pointer or not hub.has_archive(name, pointer):
        raise HubError(f"{name!r} was published but the hub does not show it", place=hub.location)
    return pointer


def push(hub: Hub, name: str, archive: Path) -> Pointer:
    """Publish an archive of this disk under ``name``. Errors of ``describe_archive`` and ``publish``."""
    check_name(name)
    return publish(hub, name, describe_archive(archive), archive, notes=annotate_archive(archive))
