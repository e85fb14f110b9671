"""What every hub can do. One contract test runs against each implementation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from ddct_format.hub.notes import Notes
from ddct_format.hub.pointer import Pointer

__all__ = ["Hub"]


class Hub(Protocol):
    """A place for archives, each under a name that users chose.

    A name stands for a pointer, and the pointer for the bytes of one archive. Bytes come first and the
    pointer last, or both in one atomic step, so that a pointer never leads nowhere. Every method may be
    repeated after a failure or a crash, from any process, with the same outcome. Every method raises
    HubError when the hub refuses, cannot be reached or answers nonsense, and for names, digests and
    pointers that ``ddct_format.hub.pointer`` refuses.
    """

    @property
    def location(self) -> str:
        """Where the hub is, for messages; what ``open_hub`` accepts."""
        ...

    def get_pointer(self, name: str) -> Pointer | None:
        """What ``name`` stands for, or None if nothing is published under it."""
        ...

    def has_archive(self, name: str, pointer: Pointer) -> bool:
        """Whether the hub holds the whole archive of ``name``, as far as it can tell without reading it all."""
        ...

    def put_archive(self, name: str, pointer: Pointer, path: Path, notes: Notes | None = None) -> None:
        """Store the file at ``path`` and let ``name`` stand for ``pointer``, whatever it stood for.

        On return both are durable, and the bytes that the hub holds have the pointer's digest and size.
        If the file has not, HubError, and nothing appears. Bytes that are there already are not sent
        again; damaged ones are replaced.

        Args:
            notes: what a hub with a page for people may show there.
        """
        ...

    def read_archive(self, name: str, pointer: Pointer, begin: int, end: int | None = None) -> Iterator[bytes]:
        """The archive's bytes from ``begin`` to before ``end``, in pieces, unchecked.

        Nothing beyond ``end`` is asked for. Without it all is sent, and one more byte if the archive is too long.

        HubError may come after some pieces; the caller then asks again from where they ended.
        """
        ...

    def list_names(self) -> tuple[str, ...]:
        """Every published name, sorted."""
        ...

    def remove(self, name: str) -> None:
        """Forget ``name``, and its bytes unless another name needs them; nothing happens if it is not there."""
        ...

    def look_closer(self, name: str, pointer: Pointer) -> tuple[str, ...]:
        """What a user should know about this hub before trusting it, one plain sentence each; for ``check``.

        Tries things out on ``name``, which stands for ``pointer`` before and afterwards.
        """
        ...

    def remove_leftovers(self) -> int:
        """Remove what interrupted writers left behind, not what running ones work on; how many."""
        ...
