"""A model on disk, as tensors and side files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ddct_format.checkpoint.safetensors_file import SafetensorsFile
from ddct_format.checkpoint.side_files import SideFile, SideFiles, SkippedFile
from ddct_format.checkpoint.weight_files import WeightFiles, find_weight_files
from ddct_format.errors import CheckpointError
from ddct_format.limits import MAX_TENSORS

__all__ = ["Checkpoint", "Shard", "TensorInfo", "open_checkpoint"]


@dataclass(frozen=True, slots=True)
class Shard:
    """A weight file: its path in the model directory and its safetensors `__metadata__`."""

    path: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of the model; `shard` is an index into the model's shards, `nbytes` its size."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    nbytes: int


def open_checkpoint(
    path: str | os.PathLike[str], *, training_state: bool = False, drop_cache: bool = False
) -> Checkpoint:
    """Open a model directory or a single .safetensors file, and check that it is whole.

    Links are followed: the directories of a Hugging Face cache are made of them.

    Args:
        training_state: optimizer state and the like are side files, too.
        drop_cache: what `Checkpoint.release` lets go for good leaves the operating system's page cache, too.

    Raises:
        CheckpointError: nothing is there, or no model (a PEFT adapter, pickles, ...), or shards are
            missing, truncated or contradict the index, or a tensor cannot be archived (spec section 5.1).
        StorageError: the operating system refuses to read it.
    """
    location = Path(path)
    weights = find_weight_files(location)
    with ExitStack() as stack:
        files = [
            stack.enter_context(SafetensorsFile(weights.root / shard, drop_cache=drop_cache)) for shard in weights.paths
        ]
        checkpoint = Checkpoint(location, weights, files, training_state=training_state)
        stack.pop_all()
    return checkpoint


class Checkpoint:
    """An open model: every shard is open and mapped until `close`. Made by `open_checkpoint`.

    Attributes:
        path: as given to `open_checkpoint`.
        shards: in ascending order of their paths.
        tensors: by name, in ascending order of the names' UTF-8 bytes.
        nbytes: size of all tensors.
        files: the shards' files, in the order of `shards`.
        digests: of those tensors whose bytes were digested since it was opened, for whoever does that.
    """

    def __init__(
        self, path: Path, weights: WeightFiles, files: Sequence[SafetensorsFile], *, training_state: bool = False
    ) -> None:
        self.path = path
        self._training_state = training_state
        self._weights = weights
        self.files = tuple(files)
        self._sides: SideFiles | None = None
        self.shards = tuple(Shard(shard, file.metadata) for shard, file in zip(weights.paths, files, strict=True))
        self.tensors: Mapping[str, TensorInfo] = self._collect_tensors()
        self._check_index()
        self.digests: dict[str, str] = {}
        self.nbytes = sum(tensor.nbytes for tensor in self.tensors.values())

    def read(self, name: str) -> memoryview:
        """The bytes of a tensor: row-major, little-endian, read-only, not copied, not always aligned.

        The view stays valid after `close`.

        Raises:
            CheckpointError: no tensor of this name.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError("no such tensor", place=self.path, tensor=name)
        return self.files[tensor.shard].read(name)

    def release(self, name: str, start: int = 0, stop: int | None = None, *, done: bool = False) -> None:
        """Let go of the memory that bytes of a tensor occupy; views stay valid, and read them again when asked.

        Args:
            done: they will not be needed again; with `drop_cache` they leave the operating system's cache, too.
        """
        self.files[self.tensors[name].shard].release(name, start, stop, done=done)

    def side_files(self) -> tuple[SideFile, ...]:
        """The files to carry along, in ascending order of their paths; none for a single file.

        Listed at the first call and the same ever after.

        Raises:
            CheckpointError: there are more than an archive can carry.
            StorageError: the operating system refuses to list them.
        """
        return () if self._listed is None else self._listed.files

    @property
    def skipped(self) -> tuple[SkippedFile, ...]:
        """What `side_files` left out of the directory, and why."""
        return () if self._listed is None else self._listed.skipped

    def read_side_file(self, path: str) -> bytes:
        """The content of one of `side_files()`. Errors of `side_file_pieces`."""
        return b"".join(self.side_file_pieces(path))

    def side_file_pieces(self, path: str) -> Iterator[bytes]:
        """The content of one of `side_files()`, a few MiB at a time; what came is valid only if no error followed.

        Raises:
            CheckpointError: no such side file, or it changed since it was listed.
            StorageError: the operating system refuses to read it.
        """
        if self._listed is None:
            raise CheckpointError("not a side file of this model", place=self._weights.root / path)
        return self._listed.pieces(path)

    def check_unchanged(self) -> None:
        """Check that shards and listed side files are what they were at open, by size, time and inode.

        Files that were deleted since count as unchanged: what is open stays readable.

        Raises:
            CheckpointError: naming the first file that was changed or replaced.
        """
        for file in self.files:
            file.check_unchanged()
        if self._sides is not None:
            self._sides.check_unchanged()

    def close(self) -> None:
        """Close all shards; views from `read` stay valid. Closing twice is harmless."""
        for file in self.files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def _listed(self) -> SideFiles | None:
        if self._sides is None and self._weights.is_directory:
            shards = [shard.path for shard in self.shards]
            self._sides = SideFiles(self._weights.root, shards, training_state=self._training_state)
        return self._sides

    def _collect_tensors(self) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for shard, file in enumerate(self.files):
            for stored in file.tensors.values():
                other = tensors.get(stored.name)
                if other is not None:
                    raise CheckpointError(
                        f"stands in two files, {self.shards[other.shard].path} and {self.shards[shard].path}",
                        place=self.path,
                        tensor=stored.name,
                    )
                tensors[stored.name] = TensorInfo(stored.name, stored.dtype, stored.shape, shard, stored.nbytes)
        if len(tensors) > MAX_TENSORS:
            raise CheckpointError(f"{len(tensors)} tensors are more than {MAX_TENSORS}", place=self.path)
        return dict(sorted(tensors.items()))

    def _check_index(self) -> None:
        """An index may list fewer tensors than the shards hold: loaders read all of them regardless."""
        index = self._weights.index
        if index is None:
            return
        for name, shard in index.shard_of.items():
            tensor = self.tensors.get(name)
            if tensor is None or self.shards[tensor.shard].path != shard:
                raise CheckpointError(f"is not in {shard}, where the index has it", place=index.path, tensor=name)
