"""What every hub can do. One contract test runs against each implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ddct_format.hub.pointer import Pointer

__all__ = ["Hub"]


class Hub(Protocol):
    """A place for archives: immutable objects, named by their sha256, and pointers, named by users.

    A publisher puts the object first and the pointer last, so that a pointer never leads nowhere.
    Every method may be repeated after a failure or a crash, from any process, with the same outcome.
    Every method raises HubError when the hub refuses, cannot be reached or answers nonsense, and
    for names, digests and pointers that ``ddct_format.hub.pointer`` refuses.
    """

    @property
    def location(self) -> str:
        """Where the hub is, for messages; what ``open_hub`` accepts."""
        ...

    def has_object(self, sha256: str, size: int) -> bool:
        """Whether the hub holds the whole object, as far as it can tell without reading it all."""
        ...

    def put_object(self, sha256: str, size: int, path: Path) -> None:
        """Store the file at ``path`` as the object ``sha256``.

        On return the object is durable, and the bytes that the hub holds have that digest and size.
        If they have not, HubError, and no object appears. An object that is already there whole is
        left alone; one that is damaged is replaced.
        """
        ...

    def fetch_object(self, sha256: str, size: int, to_path: Path) -> None:
        """Write the object to the new file ``to_path``.

        Reads at most ``size`` bytes and checks the digest. On any failure nothing is left at
        ``to_path``. A file that was already there is an OutputExistsError and is left alone; a full
        disk on this side is a StorageError.
        """
        ...

    def get_pointer(self, name: str) -> Pointer | None:
        """The pointer of that name, or None if there is none."""
        ...

    def put_pointer(self, name: str, pointer: Pointer) -> None:
        """Let ``name`` stand for ``pointer``, whatever it stood for. Atomic, and durable on return."""
        ...

    def list_names(self) -> tuple[str, ...]:
        """Every published name, sorted."""
        ...

    def remove_leftovers(self) -> int:
        """Remove what interrupted writers left behind, not what running ones work on; how many."""
        ...
