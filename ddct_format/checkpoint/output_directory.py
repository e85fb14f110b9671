"""A directory that appears under its name complete, or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ddct_format.checkpoint.names import path_problem
from ddct_format.checkpoint.safetensors_file import SafetensorsWriter
from ddct_format.checkpoint.storage import rename_without_replacing, storage_errors
from ddct_format.container.buffers import byte_view
from ddct_format.container.publish import sync_directory, temporary_path, write_all
from ddct_format.errors import CheckpointError, OutputExistsError

if TYPE_CHECKING:
    from ddct_format.container.buffers import Buffer

__all__ = ["OutputDirectory", "owner_of_temporary"]

_TEMPORARY = re.compile(r"\.ddct-(?P<pid>[1-9][0-9]{0,9})-[0-9a-f]{16}\.tmp")


def owner_of_temporary(name: str) -> int | None:
    """The process that made the temporary file or directory of this name; None for any other name.

    If that process is dead, it is what a kill or a power cut left, and may be removed. Process ids mean
    something on one machine only: this says nothing in a directory that several machines share.
    """
    match = _TEMPORARY.fullmatch(name)
    return None if match is None else int(match["pid"])


class OutputDirectory:
    """Write a directory beside its final place and give it its name at `commit`.

    As a context manager it makes a temporary directory in the same parent, and removes it unless
    `commit` was reached. Files and directories get the modes that the umask leaves.

    Args:
        path: of the directory to be; its parent must exist.
        drop_cache: see `SafetensorsWriter`.

    Raises:
        OutputExistsError: the path exists, be it an empty directory or a dangling link.
        StorageError: the temporary directory cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], *, drop_cache: bool = False) -> None:
        self.path = Path(path)
        self._drop_cache = drop_cache
        self._temporary = temporary_path(self.path.parent)
        self._writers: list[SafetensorsWriter] = []
        self._committed = False

    def __enter__(self) -> Self:
        with storage_errors(self.path):
            if os.path.lexists(self.path):
                raise OutputExistsError("already exists and is not overwritten", place=self.path)
            self._temporary.mkdir()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._committed:
            return
        for writer in self._writers:
            writer.discard()
        # Errors are ignored: they would hide the reason why nothing was committed.
        shutil.rmtree(self._temporary, ignore_errors=True)

    def shard_writer(
        self, path: str, tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> SafetensorsWriter:
        """Start a safetensors file at the relative path; `commit` closes it if the caller has not.

        Raises:
            CheckpointError: the path breaks spec section 5.4, or see `SafetensorsWriter`.
            StorageError: the operating system refuses, or the path is taken.
        """
        writer = SafetensorsWriter(self._place(path), tensors, metadata, drop_cache=self._drop_cache)
        self._writers.append(writer)
        return writer

    def write_file(self, path: str, *pieces: Buffer) -> None:
        """``write_file_pieces`` for content that is in memory."""
        self.write_file_pieces(path, pieces)

    def write_file_pieces(self, path: str, pieces: Iterable[Buffer]) -> None:
        """Write a whole file at the relative path, durably.

        Raises:
            CheckpointError: the path breaks spec section 5.4.
            StorageError: the operating system refuses, or the path is taken.
        """
        place = self._place(path)
        with storage_errors(self.path / path):
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                for piece in pieces:
                    write_all(descriptor, byte_view(piece))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def commit(self) -> None:
        """Make everything durable, then give the directory its name.

        Raises:
            OutputExistsError: the path has come into being since; it is left as it is.
            StorageError: the operating system could not store or rename it.
            ValueError: a tensor of a shard was not written.
        """
        for writer in self._writers:
            writer.close()
        with storage_errors(self.path):
            for directory, _, _ in os.walk(self._temporary, onerror=_raise):
                sync_directory(Path(directory))
            rename_without_replacing(self._temporary, self.path)
            self._committed = True
            sync_directory(self.path.parent)

    def _place(self, path: str) -> Path:
        problem = path_problem(path)
        if problem is not None:
            raise CheckpointError(f"the file {path!r} is refused: {problem}", place=self.path)
        place = self._temporary / path
        with storage_errors(self.path / path):
            place.parent.mkdir(parents=True, exist_ok=True)
        return place


def _raise(error: OSError) -> None:
    raise error
