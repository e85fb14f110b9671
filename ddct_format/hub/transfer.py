"""Archives to and from a hub: data first, pointer last; and back, checked at every step."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ddct_format.errors import BaseMismatchError, DdctError, HubError, OutputExistsError, StorageError
from ddct_format.hub.fetch import Progress, fetch_archive
from ddct_format.hub.interface import Hub
from ddct_format.hub.links import fetch_links
from ddct_format.hub.notes import Notes, notes_of
from ddct_format.hub.pointer import Pointer, check_name

__all__ = ["PullReport", "annotate_archive", "describe_archive", "publish", "pull", "push"]


@dataclass(frozen=True, slots=True)
class PullReport:
    """What ``pull`` brought.

    Attributes:
        name: the published name.
        output: the model directory that was made.
        fetched: bytes that came from the hub; fewer than the archive has if an earlier attempt left some.
        content_id, base_id, target_id: as in the hub's pointer, and checked.
        applied: tensors whose digest was checked after decoding, of ``tensors`` tensors.
        left_out: files of the archive that were not written: training state that nobody asked for.
        seconds: for everything.
    """

    name: str
    output: str
    fetched: int
    content_id: str
    base_id: str
    target_id: str
    applied: int
    tensors: int
    left_out: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """The report as JSON-ready values."""
        return asdict(self)


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


def pull(
    hub: Hub,
    name: str,
    base: Path,
    out: Path,
    *,
    training_state: bool = False,
    progress: Progress | None = None,
) -> PullReport:
    """Fetch the archive that ``name`` stands for and decode it against ``base`` into the new ``out``.

    If it was packed against an earlier checkpoint, that is fetched and decoded first, and so on as far as ``base``.
    Archives are kept beside ``out`` while they are needed and removed afterwards. Only if a transfer breaks, what
    came stays there, and the next pull to ``out`` goes on from it.

    Args:
        training_state: as ``ddct_format.unpack``.

    Raises:
        HubError: no such name, or the hub's bytes are not what its pointer promises.
        OutputExistsError: ``out`` exists; checked before anything is fetched.
        BaseMismatchError, ArchiveError, StorageError, ...: as ``ddct_format.unpack``.
    """
    from ddct_format.pipeline.unpack import unpack

    started = time.monotonic()
    if os.path.lexists(out):
        raise OutputExistsError("exists already", place=out)
    pointer = hub.get_pointer(name)
    if pointer is None:
        raise HubError(f"nothing is published as {name!r}", place=hub.location)

    parts: list[Path] = []

    def part(wanted: Pointer) -> Path:
        parts.append(out.absolute().with_name(f".{out.name}.{wanted.sha256[:16]}.ddct-part"))
        return parts[-1]

    temporary = part(pointer)
    fetched = fetch_archive(hub, name, pointer, temporary, progress=progress)
    broken = False
    try:
        if describe_archive(temporary) != pointer:
            raise HubError(f"the pointer {name!r} does not describe its own archive", place=hub.location)
        try:
            links = fetch_links(hub, temporary, pointer, base, part, progress=progress)
        except HubError:
            broken = True
            raise
        report = unpack(temporary, base, out, links=links.archives, training_state=training_state, progress=progress)
    except DdctError as error:
        if isinstance(error, BaseMismatchError) and links.missing is not None:
            error.reason += f"; {links.missing!r}, which it was packed against, is not on the hub as it was"
        # The temporary file's name means nothing to the user, and it is gone when they read this.
        if error.place == str(temporary):
            error.place = f"{hub.location}: {name}"
        raise
    finally:
        for path in () if broken else parts:
            path.unlink(missing_ok=True)
    return PullReport(
        name=name,
        output=str(out),
        fetched=fetched + links.fetched,
        content_id=report.content_id,
        base_id=pointer.base_id,
        target_id=report.target_id,
        applied=report.applied,
        tensors=report.tensors,
        left_out=report.left_out,
        seconds=time.monotonic() - started,
    )
