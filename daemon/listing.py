"""What is in the watched directory right now: candidates and their files, by stat alone."""

from __future__ import annotations

import enum
import hashlib
import logging
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

__all__ = ["MAX_FILES", "FileStat", "Kind", "Listing", "list_checkpoint", "list_checkpoints"]

_log = logging.getLogger(__name__)

_TRAINER_NAME = re.compile(r"checkpoint-([0-9]{1,15})")
_DEEPSPEED_NAME = re.compile(r"global_step([0-9]{1,15})")
_MEGATRON_NAME = re.compile(r"iter_([0-9]{1,15})")
_SEARCH_DEPTH = 2
"""Runs in a directory of runs, checkpoints in a run."""

MAX_FILES = 100_000
"""Files of a checkpoint that are listed; one with so many is never packed (``completeness``)."""


class Kind(enum.StrEnum):
    """Classes of checkpoints, by who writes them and how they end."""

    TRAINER = "trainer"
    """``checkpoint-N`` of the Hugging Face Trainer, which writes trainer_state.json last."""
    DCP = "dcp"
    """torch.distributed.checkpoint, which writes ``.metadata`` last."""
    DEEPSPEED = "deepspeed"
    """``global_stepN``, after which ``latest`` beside it is written."""
    MEGATRON = "megatron"
    """``iter_N``, after which ``latest_checkpointed_iteration.txt`` beside it is written."""
    LIGHTNING = "lightning"
    """A directory of ``*.ckpt`` files."""
    PLAIN = "plain"
    """A model directory, as ``save_pretrained`` makes it: no end marker. PEFT adapters look the same."""


_STEP_NAMES = {
    Kind.TRAINER: _TRAINER_NAME,
    Kind.DEEPSPEED: _DEEPSPEED_NAME,
    Kind.MEGATRON: _MEGATRON_NAME,
}


@dataclass(frozen=True, slots=True)
class FileStat:
    """One file below a checkpoint, links resolved; ``path`` is relative, with ``/``."""

    path: str
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class Listing:
    """A checkpoint as one pass over its directory saw it.

    Attributes:
        name: path relative to the watched directory; ``.`` for that directory itself.
        path: where it is.
        kind: its class.
        files: sorted by path; nested ``checkpoint-N`` directories are not part of it.
        directories: relative paths of the directories below it.
        marked_unfinished: a ``<name>-unfinished`` stands beside it.
    """

    name: str
    path: Path
    kind: Kind
    files: tuple[FileStat, ...]
    directories: tuple[str, ...] = ()
    marked_unfinished: bool = False

    @property
    def step(self) -> int | None:
        """The N of a name that has one."""
        for kind, pattern in _STEP_NAMES.items():
            if self.kind is kind and (match := pattern.fullmatch(self.path.name)):
                return int(match[1])
        return None

    def same_or_removed(self, later: Listing | None) -> bool:
        """Whether a later listing differs at most by files that were deleted.

        Rotation deletes checkpoints while they are packed, which harms nobody who has them open.
        """
        if later is None:
            return True
        unchanged = (later.kind, later.marked_unfinished) == (self.kind, self.marked_unfinished)
        return unchanged and set(later.files) <= set(self.files) and set(later.directories) <= set(self.directories)

    def is_unchanged_at(self, path: Path) -> bool:
        """Whether ``path``, to which the directory was moved, still holds the same files."""
        files: list[FileStat] = []
        directories: list[str] = []
        _walk(path, "", files, directories)
        return set(files) == set(self.files) and set(directories) == set(self.directories)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two listings if nothing changed in path, size, modification time and inode."""
        lines = [f"{file.path}\0{file.size}\0{file.mtime_ns}\0{file.inode}\n" for file in self.files]
        lines += [f"{directory}/\n" for directory in self.directories]
        lines.append(f"{self.kind} {self.marked_unfinished}")
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def list_checkpoints(root: Path) -> list[Listing]:
    """Every candidate in ``root`` and two levels below, sorted by name.

    A root that is not there (yet) has none. What disappears while it is listed is left out.
    """
    real_root = Path(os.path.realpath(root))
    found = [_list(root, ".", root)]
    found += [_list(path, path.relative_to(root).as_posix(), root) for path in _search(root, real_root, 1)]
    return sorted((listing for listing in found if listing is not None), key=lambda listing: listing.name)


def list_checkpoint(root: Path, name: str) -> Listing | None:
    """The candidate of that name, or None if it is gone or no candidate any more."""
    return _list(root / name, name, root)


def _search(directory: Path, real_root: Path, depth: int) -> Iterator[Path]:
    for entry in _scan(directory):
        if entry.name.startswith(".") or not _is_directory(entry):
            continue
        path = Path(entry.path)
        if not _is_text(path):
            continue
        # "latest -> checkpoint-30": the target is found under its own name.
        if entry.is_symlink() and Path(os.path.realpath(path)).is_relative_to(real_root):
            continue
        yield path
        if depth < _SEARCH_DEPTH and _TRAINER_NAME.fullmatch(entry.name) is None:
            yield from _search(path, real_root, depth + 1)


@cache
def _is_text(path: Path) -> bool:
    """Whether the name is UTF-8: no hub takes any other, nor does the journal. Said once."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        _log.warning("%s and what is in it is left out: its name is not UTF-8", os.fsencode(path))
        return False
    return True


def _list(path: Path, name: str, root: Path) -> Listing | None:
    kind = _kind(None if path == root else path.name, [entry.name for entry in _scan(path)])
    if kind is None:
        return None
    files: list[FileStat] = []
    directories: list[str] = []
    _walk(path, "", files, directories)
    if not _is_directory(path):
        return None
    marked = path != root and os.path.lexists(path.with_name(f"{path.name}-unfinished"))
    files.sort(key=lambda file: file.path)
    return Listing(name, path, kind, tuple(files), tuple(sorted(directories)), marked)


def _kind(name: str | None, entries: list[str]) -> Kind | None:
    """The class of a directory by its own name (None for the watched directory itself) and what is in it."""
    if name is not None and _TRAINER_NAME.fullmatch(name):
        return Kind.TRAINER
    if any(entry == ".metadata" or entry.endswith(".distcp") for entry in entries):
        return Kind.DCP
    for kind in (Kind.DEEPSPEED, Kind.MEGATRON):
        if name is not None and _STEP_NAMES[kind].fullmatch(name):
            return kind
    if any(entry.endswith((".safetensors", ".safetensors.index.json")) for entry in entries):
        return Kind.PLAIN
    return Kind.LIGHTNING if any(entry.endswith(".ckpt") for entry in entries) else None


def _walk(directory: Path, prefix: str, files: list[FileStat], directories: list[str]) -> None:
    for entry in _scan(directory):
        try:
            status = entry.stat()
        except OSError:
            continue
        path = prefix + entry.name
        if stat.S_ISDIR(status.st_mode):
            if _TRAINER_NAME.fullmatch(entry.name) is None and not entry.is_symlink():
                directories.append(path)
                _walk(Path(entry.path), path + "/", files, directories)
        elif stat.S_ISREG(status.st_mode) and len(files) < MAX_FILES:
            files.append(FileStat(path, status.st_size, status.st_mtime_ns, status.st_ino))


def _scan(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:
        return []


def _is_directory(entry: os.DirEntry[str] | Path) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
