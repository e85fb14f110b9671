"""The files beside the weights, which an archive carries: configuration, tokenizer, and training state if asked."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ddct_format.checkpoint.names import PathSet, printable
from ddct_format.checkpoint.storage import FileState, open_regular_file, storage_errors
from ddct_format.checkpoint.weight_files import PICKLE_SUFFIXES, WEIGHT_SUFFIXES
from ddct_format.errors import CheckpointError
from ddct_format.limits import MAX_FILES

__all__ = ["SideFile", "SideFiles", "SkippedFile", "is_training_state"]

_MAX_SIZE = 64 << 20
_PIECE = 4 << 20
_DCP_INDEX = ".metadata"
"""torch.distributed.checkpoint's own: its shards cannot be read without."""
_LOG_PREFIX = "events.out.tfevents"


@dataclass(frozen=True, slots=True)
class SideFile:
    """A file to carry: its path in the model directory, `/`-separated, and its size in bytes."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file or directory (`/` at the end) that is left out, and why."""

    path: str
    reason: str


class SideFiles:
    """The side files below a directory, listed once.

    Left out, each with a reason in `skipped`: hidden names, `checkpoint-*` sub-directories, linked
    directories (links to files are followed), weights and pickles, training logs, files above
    64 MiB, and files whose path an archive cannot carry (spec section 5.4).

    Args:
        root: the model directory.
        shards: paths of the model's own weight files.
        training_state: pickles of any size are not left out: bytes, which nobody here looks into.

    Attributes:
        files: in ascending order of their paths.
        skipped: in ascending order of their paths.

    Raises:
        CheckpointError: more than 4096 files: hardly a model directory.
        StorageError: the operating system refuses to list them.
    """

    def __init__(self, root: Path, shards: Collection[str], *, training_state: bool = False) -> None:
        self._root = root
        self._training_state = training_state
        self._shards = frozenset(shards)
        self._accepted = PathSet()
        for path in shards:
            self._accepted.add(path)
        self._states: dict[str, FileState] = {}
        self._skipped: list[SkippedFile] = []
        with storage_errors(root):
            self._scan()
        self.files = tuple(SideFile(path, state.size) for path, state in sorted(self._states.items()))
        self.skipped = tuple(sorted(self._skipped, key=lambda skipped: skipped.path))

    def pieces(self, path: str) -> Iterator[bytes]:
        """The content of a listed side file, a few MiB at a time; what came is valid only if no error followed.

        Raises:
            CheckpointError: not a listed file, or it is gone, or no longer what was listed.
            StorageError: the operating system refuses to read it.
        """
        place = self._root / path
        if path not in self._states:
            raise CheckpointError("not a side file of this model", place=place)
        descriptor, state = open_regular_file(place)
        with open(descriptor, "rb") as file, storage_errors(place):  # noqa: PTH123 - a descriptor
            left = state.size
            while piece := file.read(min(left, _PIECE)):
                left -= len(piece)
                yield piece
            after = FileState.of(os.fstat(file.fileno()))
        if self._states[path] != state or after != state or left:
            raise CheckpointError("was changed while it was being read", place=place)

    def check_unchanged(self) -> None:
        """Check that the files are what they were when they were listed; deleted ones count as unchanged.

        Raises:
            CheckpointError: a file has another size or modification time, or is another file.
        """
        for path, state in self._states.items():
            place = self._root / path
            with storage_errors(place):
                try:
                    now = FileState.of(place.stat())
                except (FileNotFoundError, NotADirectoryError):
                    continue
            if now != state:
                raise CheckpointError("was changed while the model was being read", place=place)

    def _scan(self) -> None:
        pending = [""]
        while pending:
            prefix = pending.pop()
            with os.scandir(self._root / prefix) as entries:
                # Sorted, so that of two paths that differ only in case always the same one is kept.
                for entry in sorted(entries, key=lambda entry: entry.name):
                    path = prefix + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if entry.name.startswith("."):
                            self._skip(path + "/", "hidden")
                        elif entry.name.startswith("checkpoint-"):
                            self._skip(path + "/", "a checkpoint of its own")
                        else:
                            pending.append(path + "/")
                    elif path not in self._shards:
                        self._consider(path, entry)

    def _consider(self, path: str, entry: os.DirEntry[str]) -> None:
        try:
            status = entry.stat()
        except OSError as error:
            return self._skip(path, f"cannot be read: {error.strerror}")
        reason = _reason_to_skip(entry.name, status, self._training_state) or self._accepted.add(path)
        if reason is not None:
            return self._skip(path, reason)
        self._states[path] = FileState.of(status)
        if len(self._states) > MAX_FILES:
            raise CheckpointError(f"more than {MAX_FILES} files: hardly a model directory", place=self._root)
        return None

    def _skip(self, path: str, reason: str) -> None:
        self._skipped.append(SkippedFile(printable(path), reason))


def is_training_state(path: str) -> bool:
    """Whether a side file may hold pickles, by its name: such files are carried and restored only on request."""
    return path.endswith(PICKLE_SUFFIXES) or path.rpartition("/")[2] == _DCP_INDEX


def _reason_to_skip(name: str, status: os.stat_result, training_state: bool) -> str | None:
    if training_state and stat.S_ISREG(status.st_mode) and is_training_state(name):
        return None
    if name.startswith("."):
        return "hidden"
    if stat.S_ISDIR(status.st_mode):
        return "a link to a directory"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if name.endswith(WEIGHT_SUFFIXES):
        return "weights that are not part of the model"
    if name.endswith(PICKLE_SUFFIXES):
        return "a pickle, or the state of an optimizer or a trainer"
    if name.startswith(_LOG_PREFIX):
        return "a training log"
    if status.st_size > _MAX_SIZE:
        return f"larger than {_MAX_SIZE >> 20} MiB"
    return None
