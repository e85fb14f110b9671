"""From a published name to a model directory: fetch what is missing, check it, decode it."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ddct_format.errors import BaseMismatchError, DdctError, HubError, InvalidError, OutputExistsError
from ddct_format.hub.fetch import PartialArchive, Progress
from ddct_format.hub.interface import Hub
from ddct_format.hub.links import Links, fetch_links
from ddct_format.hub.pointer import Pointer
from ddct_format.hub.transfer import describe_archive
from ddct_format.pipeline.parallel import DEFAULT_MEMORY

__all__ = ["PullReport", "pull"]


@dataclass(frozen=True, slots=True)
class PullReport:
    """What ``pull`` brought.

    Attributes:
        name: the published name.
        output: the model directory that was made.
        fetched: bytes that came from the hub; fewer than the archive has if an earlier attempt left some.
        missing: bytes of the archive that a lossy pull did without.
        partial: file with what was fetched, from which an exact pull goes on; None if nothing is missing.
        content_id, base_id: as in the hub's pointer, and checked.
        target_id: model id of what was decoded.
        lossless: whether the output is bit for bit the model that was packed.
        applied: tensors whose digest was checked after decoding, of ``tensors`` tensors.
        left_out: files of the archive that were not written: training state that nobody asked for.
        seconds: for everything.
    """

    name: str
    output: str
    fetched: int
    missing: int
    partial: str | None
    content_id: str
    base_id: str
    target_id: str
    lossless: bool
    applied: int
    tensors: int
    left_out: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """The report as JSON-ready values."""
        return asdict(self)


def pull(
    hub: Hub,
    name: str,
    base: Path,
    out: Path,
    *,
    lossy: bool = False,
    training_state: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    drop_cache: bool = False,
    progress: Progress | None = None,
) -> PullReport:
    """Fetch the archive that ``name`` stands for and decode it against ``base`` into the new ``out``.

    If it was packed against an earlier checkpoint, that is fetched and decoded first, and so on as far as ``base``.
    Archives are kept beside ``out`` while they are needed and removed afterwards. Only if a transfer breaks, what
    came stays there, and the next pull of this archive to this place goes on from it.

    Args:
        lossy: fetch and decode the first layer of each tensor only. If the archive has more, what was fetched stays,
            and a pull without ``lossy`` fetches only the rest.
        training_state, device, threads, memory, drop_cache: as ``ddct_format.unpack``.

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
        raise HubError(
            f"nothing is published as {name!r}, or the token may not see it: ddct hub list shows what is there",
            place=hub.location,
        )

    with _Parts(hub, out, progress) as parts:
        wanted, links = parts.open(name, pointer), Links()
        try:
            if lossy:
                wanted.complete_layers(1)
            else:
                wanted.complete()
                _check_description(hub, name, pointer, wanted.path)
            links = fetch_links(hub, wanted.path, pointer, base, parts.open)
            parts.all_fetched = True
            report = unpack(
                wanted.path,
                base,
                out,
                lossy=lossy,
                links=links.archives,
                training_state=training_state,
                device=device,
                threads=threads,
                memory=memory,
                drop_cache=drop_cache,
                progress=progress,
            )
        except DdctError as error:
            if isinstance(error, BaseMismatchError) and links.missing is not None:
                error.reason += f"; {links.missing!r}, which it was packed against, is not on the hub as it was"
            # The temporary file's name means nothing to the user, and it is gone when they read this.
            if error.place == str(wanted.path):
                error.place = f"{hub.location}: {name}"
            raise
        missing = pointer.size - wanted.size
        if missing:
            parts.keep(wanted)
    return PullReport(
        name=name,
        output=str(out),
        fetched=parts.fetched,
        missing=missing,
        partial=str(wanted.path) if missing else None,
        content_id=report.content_id,
        base_id=pointer.base_id,
        target_id=report.target_id,
        lossless=report.lossless,
        applied=report.applied,
        tensors=report.tensors,
        left_out=report.left_out,
        seconds=time.monotonic() - started,
    )


class _Parts:
    """The archives that a pull fetches: hidden files beside its output, removed at the end of the block.

    Attributes:
        all_fetched: unless it was set, a HubError leaves them for the next attempt.
    """

    def __init__(self, hub: Hub, out: Path, progress: Progress | None) -> None:
        self.all_fetched = False
        self._hub, self._directory, self._progress = hub, out.absolute().parent, progress
        self._opened: list[PartialArchive] = []
        self._kept: list[PartialArchive] = []
        self._locks = contextlib.ExitStack()

    def __enter__(self) -> _Parts:
        return self

    def open(self, name: str, pointer: Pointer) -> PartialArchive:
        """The file for a published archive, named by it alone: a lossy and a later exact pull have other outputs."""
        path = self._directory / f".{pointer.sha256[:32]}.ddct-part"
        if any(part.path == path for part in self._opened):
            raise InvalidError(f"its chain leads back to {name!r}", place=self._hub.location)
        part = self._locks.enter_context(PartialArchive(self._hub, name, pointer, path, self._progress))
        self._opened.append(part)
        return part

    def keep(self, part: PartialArchive) -> None:
        """Leave this one."""
        self._kept.append(part)

    @property
    def fetched(self) -> int:
        """Bytes that came from the hub, for all of them."""
        return sum(part.fetched for part in self._opened)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        broken = kind is not None and issubclass(kind, HubError | KeyboardInterrupt) and not self.all_fetched
        for part in self._opened:
            if not broken and part not in self._kept:
                part.remove()
        self._locks.close()


def _check_description(hub: Hub, name: str, pointer: Pointer, archive: Path) -> None:
    if describe_archive(archive) != pointer:
        archive.unlink()
        raise HubError(f"the pointer {name!r} does not describe its own archive", place=hub.location)
