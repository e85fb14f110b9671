"""The Hugging Face Hub, and services that speak its language.

Layout of a repository::

    .gitattributes          *.ddct go to large file storage; committed first, because some hubs decide by it alone
    README.md               the model card
    <name>/model.ddct       one commit per checkpoint brings all three
    <name>/ddct.json        the pointer
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ddct_format.errors import HubError
from ddct_format.hub.huggingface_client import Client
from ddct_format.hub.model_card import forget_checkpoint, update_card
from ddct_format.hub.notes import Notes
from ddct_format.hub.options import HubOptions
from ddct_format.hub.pointer import (
    MAX_POINTER_BYTES,
    Pointer,
    check_name,
    check_sha256,
    parse_pointer,
    serialise_pointer,
)

__all__ = ["HuggingFaceHub"]

_ATTRIBUTES = "*.ddct filter=lfs diff=lfs merge=lfs -text"
_MAX_TEXT_BYTES = 4 << 20
_MAX_RACES = 5
"""Commits of others that may come between a look at the branch and the own commit."""


class HuggingFaceHub:
    """The Hub protocol on one repository; made on the first publication if it is not there.

    Args:
        repository: ``owner/name``.
        options: see ``HubOptions``. Unless ``public``, the service must confirm that the repository is private.
    """

    def __init__(self, repository: str, options: HubOptions) -> None:
        self.location = f"hf://{repository}"
        self._repository = repository
        self._public = options.public
        self._client = Client(repository, options)

    def get_pointer(self, name: str) -> Pointer | None:
        raw = self._client.read_small(_pointer_path(name), MAX_POINTER_BYTES)
        if raw is None:
            return None
        try:
            return parse_pointer(raw)
        except HubError as error:
            raise error.at(place=f"{self.location}/{_pointer_path(name)}") from None

    def has_archive(self, name: str, pointer: Pointer) -> bool:
        check_name(name)
        head = self._client.head()
        return head is not None and self._archive_digest(name, pointer, head.commit) == pointer.sha256

    def put_archive(self, name: str, pointer: Pointer, path: Path, notes: Notes | None = None) -> None:
        from huggingface_hub import CommitOperationAdd

        raw = serialise_pointer(pointer)
        parse_pointer(raw)
        check_name(name)
        _check_file(path, pointer)
        self._prepare_repository()

        def operations() -> list[Any]:
            card = update_card(self._card(), self._repository, name, pointer, notes)
            return [
                CommitOperationAdd(_archive_path(name), str(path)),
                CommitOperationAdd(_pointer_path(name), raw),
                CommitOperationAdd("README.md", card.encode()),
            ]

        self._commit(f"Publish {name}", operations, lambda commit: self._is_published(name, pointer, commit))

    def read_archive(self, name: str, pointer: Pointer, begin: int, end: int | None = None) -> Iterator[bytes]:
        try:
            yield from self._client.read(_archive_path(name), "main", begin, pointer.size + 1 if end is None else end)
        except FileNotFoundError:
            raise HubError("the hub does not hold this archive", place=f"{self.location}/{name}") from None

    def list_names(self) -> tuple[str, ...]:
        head = self._client.head()
        names = []
        for path in head.files if head is not None else ():
            name, _, file = path.rpartition("/")
            with contextlib.suppress(HubError):
                if name and file == "ddct.json":
                    names.append(check_name(name))
        return tuple(sorted(names))

    def remove(self, name: str) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        if self.get_pointer(name) is None:
            return

        def operations() -> list[Any]:
            card = forget_checkpoint(self._card(), name)
            return [
                CommitOperationDelete(_archive_path(name), is_folder=False),
                CommitOperationDelete(_pointer_path(name), is_folder=False),
                CommitOperationAdd("README.md", card.encode()),
            ]

        self._commit(f"Remove {name}", operations, lambda _: self.get_pointer(name) is None)

    def remove_leftovers(self) -> int:
        """Nothing: what was uploaded without a commit is the service's to clear."""
        return 0

    def _prepare_repository(self) -> None:
        """The repository is there, is as private as was asked for, and keeps archives out of git."""
        from huggingface_hub import CommitOperationAdd

        head = self._client.head()
        if head is None:
            self._client.create(private=not self._public)
            head = self._client.head()
            if head is None:
                raise HubError("the repository was made, but the hub does not show it", place=self.location)
        if not self._public and head.private is not True:
            raise HubError(
                "the hub says that this repository is not private; nothing was sent. "
                "Make it private, or configure it as public",
                place=self.location,
            )
        if _ATTRIBUTES not in self._text(".gitattributes").splitlines():

            def operations() -> list[Any]:
                text = self._text(".gitattributes")
                lines = text + ("\n" if text and not text.endswith("\n") else "") + _ATTRIBUTES + "\n"
                return [CommitOperationAdd(".gitattributes", lines.encode())]

            self._commit(
                "Keep .ddct files in large file storage",
                operations,
                lambda _: _ATTRIBUTES in self._text(".gitattributes").splitlines(),
            )

    def _commit(self, message: str, operations: Callable[[], list[Any]], is_in: Callable[[str], bool]) -> None:
        """Make one commit, exactly once. After any error, what the branch holds decides, not the error."""
        for _ in range(_MAX_RACES):
            head = self._client.head()
            if head is None:
                raise HubError("the repository is not there", place=self.location)
            if is_in(head.commit):
                return
            try:
                self._client.commit(message, operations(), head.commit)
                problem = HubError("the commit was accepted, but the hub does not show it", place=self.location)
            except HubError as error:
                problem = error
            after = self._client.head()
            if after is not None and is_in(after.commit):
                return
            if after is None or after.commit == head.commit or problem.retry_after:
                raise problem
        raise HubError("others commit to this repository all the time", place=self.location)

    def _is_published(self, name: str, pointer: Pointer, commit: str) -> bool:
        if self._client.read_small(_pointer_path(name), MAX_POINTER_BYTES, commit) != serialise_pointer(pointer):
            return False
        return self._archive_digest(name, pointer, commit) == pointer.sha256

    def _archive_digest(self, name: str, pointer: Pointer, commit: str) -> str | None:
        """Digest of the archive in a commit, from the hub's word or else from the bytes; None if it has none."""
        path = _archive_path(name)
        told = self._client.file_digest(path, commit)
        if told is not None:
            return told
        hasher, size = hashlib.sha256(), 0
        try:
            for piece in self._client.read(path, commit, 0, pointer.size + 1):
                hasher.update(piece)
                size += len(piece)
        except FileNotFoundError:
            return None
        return hasher.hexdigest() if size == pointer.size else None

    def _card(self) -> str:
        return self._text("README.md")

    def _text(self, path: str) -> str:
        return (self._client.read_small(path, _MAX_TEXT_BYTES) or b"").decode("utf-8", "replace")


def _archive_path(name: str) -> str:
    return f"{check_name(name)}/model.ddct"


def _pointer_path(name: str) -> str:
    return f"{check_name(name)}/ddct.json"


def _check_file(path: Path, pointer: Pointer) -> None:
    check_sha256(pointer.sha256)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        raise HubError(f"cannot be read: {(error.strerror or str(error)).lower()}", place=path) from error
    if (digest, size) != (pointer.sha256, pointer.size):
        raise HubError("the file to publish does not have the expected size and sha256", place=path)
