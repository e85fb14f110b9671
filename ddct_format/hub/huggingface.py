"""The Hugging Face Hub, and services that speak its language.

A repository holds::

    .gitattributes          *.ddct go to large file storage; committed first, because some hubs decide by it alone
    README.md               the model card
    <name>/model.ddct       one commit per checkpoint brings all three
    <name>/ddct.json        the pointer

or, with tags instead of folders, the last two at its root, see ``huggingface_layout``.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ddct_format.errors import HubError
from ddct_format.hub.huggingface_client import Client, Head
from ddct_format.hub.huggingface_layout import Layout, Place, find_layout, place_of, tagged_name
from ddct_format.hub.model_card import forget_checkpoint, has_checkpoint, update_card
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
        options: see ``HubOptions``. Unless ``public``, the service must confirm that the repository is private. A
            repository keeps the layout that its first checkpoint got.
    """

    def __init__(self, repository: str, options: HubOptions) -> None:
        self.location = f"hf://{repository}"
        self._repository = repository
        self._public = options.public
        self._wanted_layout = options.layout
        self._found_layout: Layout | None = None
        self._client = Client(repository, options)
        self._old_commit: str | None = None

    def get_pointer(self, name: str) -> Pointer | None:
        check_name(name)
        layout = self._layout_to_read()
        if layout is None:
            return None
        place = place_of(layout, name)
        raw = self._client.read_small(place.pointer, MAX_POINTER_BYTES, place.revision)
        if raw is None:
            return None
        try:
            return parse_pointer(raw)
        except HubError as error:
            raise error.at(place=f"{self.location}: {name}") from None

    def has_archive(self, name: str, pointer: Pointer) -> bool:
        check_name(name)
        layout = self._layout_to_read()
        if layout is None:
            return False
        place = place_of(layout, name)
        head = self._client.head(place.revision)
        return head is not None and self._archive_digest(place, pointer, head.commit) == pointer.sha256

    def put_archive(self, name: str, pointer: Pointer, path: Path, notes: Notes | None = None) -> None:
        from huggingface_hub import CommitOperationAdd

        raw = serialise_pointer(pointer)
        parse_pointer(raw)
        check_name(name)
        _check_file(path, pointer)
        layout = self._prepare_repository()
        place = place_of(layout, name)

        def operations() -> list[Any]:
            card = update_card(self._card(), self._repository, name, pointer, notes)
            return [
                CommitOperationAdd(place.archive, str(path)),
                CommitOperationAdd(place.pointer, raw),
                CommitOperationAdd("README.md", card.encode()),
            ]

        def is_in(commit: str) -> bool:
            # At the root another name may have brought the same bytes; the card tells whose they are.
            ours = layout == "folders" or has_checkpoint(self._card(commit), name)
            return ours and self._is_published(place, pointer, commit)

        title = f"Publish {name}"
        if layout == "folders":
            self._commit(title, operations, is_in)
            return
        tagged = self._client.head(name)
        if tagged is not None and self._is_published(place, pointer, tagged.commit):
            return
        # After a crash between commit and tag, others may have committed meanwhile.
        known = (commit for commit, told in self._client.recent_commits() if told == title and is_in(commit))
        self._tag(name, next(known, None) or self._commit(title, operations, is_in))

    def read_archive(self, name: str, pointer: Pointer, begin: int, end: int | None = None) -> Iterator[bytes]:
        check_name(name)
        try:
            layout = self._layout_to_read()
            if layout is None:
                raise FileNotFoundError(name)
            place = place_of(layout, name)
            yield from self._client.read(place.archive, place.revision, begin, pointer.size + 1 if end is None else end)
        except FileNotFoundError:
            raise HubError("the hub does not hold this archive", place=f"{self.location}/{name}") from None

    def list_names(self) -> tuple[str, ...]:
        layout = self._layout_to_read()
        if layout is None:
            return ()
        if layout == "tags":
            return tuple(sorted(name for name in self._client.tags() if _is_name(name, tagged_name)))
        head = self._client.head()
        paths = (path.rpartition("/") for path in (head.files if head is not None else ()))
        return tuple(sorted(name for name, _, file in paths if file == "ddct.json" and _is_name(name, check_name)))

    def remove(self, name: str) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        pointer = self.get_pointer(name)
        layout = self._layout_to_read()
        if pointer is None or layout is None:
            return
        place = place_of(layout, name)

        def is_at(commit: str) -> bool:
            return self._client.read_small(place.pointer, MAX_POINTER_BYTES, commit) == serialise_pointer(pointer)

        def operations() -> list[Any]:
            card = forget_checkpoint(self._card(), name)
            # With tags, the newest checkpoint alone is at the root.
            files = (place.archive, place.pointer) if is_at("main") else ()
            deletions = [CommitOperationDelete(path, is_folder=False) for path in files]
            return [*deletions, CommitOperationAdd("README.md", card.encode())]

        def is_in(commit: str) -> bool:
            return not is_at(commit) and not has_checkpoint(self._card(commit), name)

        self._commit(f"Remove {name}", operations, is_in)
        if layout == "tags":
            self._client.remove_tag(name)

    def look_closer(self, name: str, pointer: Pointer) -> tuple[str, ...]:
        head = self._client.head()
        layout = self._layout_to_read()
        if head is None or layout is None:
            raise HubError("the repository is not there any more", place=self.location)
        place = place_of(layout, name)
        told = self._client.file_digest(place.archive, head.commit) == pointer.sha256
        return (
            f"the repository is {'private' if head.private else 'not private'}; checkpoints are kept as {layout}",
            f"uploads go to {'Xet storage' if self._client.uses_xet() else 'large file storage, it has no Xet'}",
            "it tells the digests of files"
            if told
            else "it does not tell the digests of files: each archive is read back once to compare it",
            "it honours ranges: broken downloads go on where they ended"
            if self._client.honours_ranges(place.archive, place.revision)
            else "it ignores ranges: a download that goes on is sent from its beginning again",
            "it refuses commits on top of an older state: two publishers cannot overwrite each other unseen"
            if self._refuses_old_parents(head.commit)
            else "it takes commits on top of an older state: let one publisher alone write to a repository",
        )

    def _refuses_old_parents(self, commit: str) -> bool:
        """Try it, and take it back if it was let through."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        if self._old_commit is None:
            return False
        path = "ddct-check.txt"
        with contextlib.suppress(HubError):
            self._client.commit("Check", [CommitOperationAdd(path, b"may be deleted\n")], self._old_commit)
        after = self._client.head()
        if after is None or after.commit == commit:
            return True
        with contextlib.suppress(HubError):
            self._client.commit("Take it back", [CommitOperationDelete(path, is_folder=False)], after.commit)
        return False

    def remove_leftovers(self) -> int:
        """Nothing: what was uploaded without a commit is the service's to clear."""
        return 0

    def _layout_to_read(self) -> Layout | None:
        """How checkpoints are kept; None if the repository is not there."""
        if self._found_layout is None:
            head = self._client.head()
            if head is None:
                return None
            self._found_layout = find_layout(head.files)
        # A main branch without any checkpoint: if there are some, then under tags.
        return self._found_layout or self._wanted_layout or "tags"

    def _layout_to_write(self, head: Head) -> Layout:
        found = find_layout(head.files)
        if found is None and self._wanted_layout is None:
            with contextlib.suppress(HubError):  # a hub without tags
                first = next((tag for tag in self._client.tags() if _is_name(tag, tagged_name)), None)
                if first and self._client.read_small("ddct.json", MAX_POINTER_BYTES, first) is not None:
                    found = "tags"
        if found and self._wanted_layout and found != self._wanted_layout:
            raise HubError(
                f"this repository keeps its checkpoints as {found}, not as {self._wanted_layout}", place=self.location
            )
        self._found_layout = found or self._wanted_layout or "folders"
        return self._found_layout

    def _prepare_repository(self) -> Layout:
        """The repository is there, is as private as was asked for, and keeps archives out of git; its layout."""
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
        return self._layout_to_write(head)

    def _commit(self, message: str, operations: Callable[[], list[Any]], is_in: Callable[[str], bool]) -> str:
        """Make one commit, exactly once; its id. After any error, what the branch holds decides, not the error."""
        for _ in range(_MAX_RACES):
            head = self._client.head()
            if head is None:
                raise HubError("the repository is not there", place=self.location)
            if is_in(head.commit):
                return head.commit
            self._old_commit = head.commit
            try:
                self._client.commit(message, operations(), head.commit)
                problem = HubError("the commit was accepted, but the hub does not show it", place=self.location)
            except HubError as error:
                problem = error
            after = self._client.head()
            if after is not None and is_in(after.commit):
                return after.commit
            if after is None or after.commit == head.commit or problem.retry_after:
                raise problem
        raise HubError("others commit to this repository all the time", place=self.location)

    def _tag(self, name: str, commit: str) -> None:
        """Let the tag stand for the commit. Here too, what the hub shows decides, not its answer."""
        there = self._client.head(name)
        if there is not None and there.commit != commit:
            self._client.remove_tag(name)
        try:
            self._client.tag(name, commit)
            problem = HubError("the tag was accepted, but the hub does not show it", place=self.location)
        except HubError as error:
            problem = error
        there = self._client.head(name)
        if there is None or there.commit != commit:
            problem.reason = f"the commit is made, its tag {name!r} is not: {problem.reason}"
            raise problem

    def _is_published(self, place: Place, pointer: Pointer, commit: str) -> bool:
        if self._client.read_small(place.pointer, MAX_POINTER_BYTES, commit) != serialise_pointer(pointer):
            return False
        return self._archive_digest(place, pointer, commit) == pointer.sha256

    def _archive_digest(self, place: Place, pointer: Pointer, commit: str) -> str | None:
        """Digest of the archive in a commit, from the hub's word or else from the bytes; None if it has none."""
        told = self._client.file_digest(place.archive, commit)
        if told is not None:
            return told
        hasher, size = hashlib.sha256(), 0
        try:
            for piece in self._client.read(place.archive, commit, 0, pointer.size + 1):
                hasher.update(piece)
                size += len(piece)
        except FileNotFoundError:
            return None
        return hasher.hexdigest() if size == pointer.size else None

    def _card(self, commit: str = "main") -> str:
        return self._text("README.md", commit)

    def _text(self, path: str, commit: str = "main") -> str:
        return (self._client.read_small(path, _MAX_TEXT_BYTES, commit) or b"").decode("utf-8", "replace")


def _is_name(name: str, check: Callable[[str], str]) -> bool:
    try:
        check(name)
    except HubError:
        return False
    return True


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
