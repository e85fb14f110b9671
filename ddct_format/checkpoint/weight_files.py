"""Which files of a directory are the model's weights, and why a directory has none."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddct_format.checkpoint.names import PathSet, path_problem, printable
from ddct_format.checkpoint.storage import open_regular_file, storage_errors
from ddct_format.errors import CheckpointError
from ddct_format.limits import MAX_SHARDS

__all__ = ["PICKLE_SUFFIXES", "WEIGHT_SUFFIXES", "ShardIndex", "WeightFiles", "find_weight_files"]

PICKLE_SUFFIXES = (".bin", ".ckpt", ".distcp", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")
"""Files that may hold pickles: weights, or the state of an optimizer or a trainer."""

WEIGHT_SUFFIXES = (
    *(".ggml", ".gguf", ".h5", ".hdf5", ".keras", ".mlmodel", ".msgpack", ".onnx", ".onnx_data", ".pb"),
    *(".safetensors", ".tflite"),
)
"""Files that hold weights without being pickles."""

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_INDEX_SIZE = 64 << 20
_ADAPTER_NAMES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{1,9})-of-(?P<count>[0-9]{1,9})\.safetensors")
_CONVERT = "ddct never unpickles: convert it to safetensors first"


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """A `model.safetensors.index.json`: which tensor is in which shard."""

    path: Path
    shard_of: dict[str, str]


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The model's safetensors files below `root`, in ascending order, and the index if there is one.

    `is_directory` is false for a single file: the rest of its directory is not known to belong to it.
    """

    root: Path
    paths: tuple[str, ...]
    index: ShardIndex | None = None
    is_directory: bool = True


def find_weight_files(location: Path) -> WeightFiles:
    """Find the safetensors files that make up the model at `location`, without opening them.

    `location` is a safetensors file, or a directory with an index of shards, a `model.safetensors`, or
    any safetensors files at its top level.

    Raises:
        CheckpointError: nothing is there, or no model, or not all of one, or it is not clear which.
        StorageError: the operating system refuses to read it.
    """
    with storage_errors(location):
        if not _exists(location):
            raise CheckpointError("no such file or directory", place=location)
        if location.is_dir():
            names = sorted(os.listdir(location))  # noqa: PTH208 - names, not paths
            return _in_directory(location, names)
    if location.name.endswith(PICKLE_SUFFIXES):
        raise CheckpointError(_CONVERT, place=location)
    if location.name.startswith("adapter_model."):
        raise _is_adapter(location)
    if not location.name.endswith(".safetensors"):
        raise CheckpointError("neither a model directory nor a .safetensors file", place=location)
    _check_paths([location.name], location.parent)
    return WeightFiles(location.parent, (location.name,), is_directory=False)


def _in_directory(root: Path, names: Sequence[str]) -> WeightFiles:
    if any(name in names for name in _ADAPTER_NAMES):
        raise _is_adapter(root)
    if _INDEX in names:
        index = _read_index(root / _INDEX)
        paths = sorted(set(index.shard_of.values()))
        if _SINGLE in names and _SINGLE not in paths:
            raise CheckpointError(
                f"holds both {_SINGLE} and {_INDEX}: remove the one that is not the model", place=root
            )
        for path in paths:
            if not _exists(root / path):
                raise CheckpointError(f"the shard {path} is missing, which {_INDEX} names", place=root)
        _check_paths(paths, root)
        return WeightFiles(root, tuple(paths), index)
    found = [name for name in names if name.endswith(".safetensors") and not name.startswith(".")]
    if _SINGLE in found:
        found = [_SINGLE]
    if not found:
        raise _no_model(root, names)
    _check_paths(found, root)
    _check_numbering(found, root)
    return WeightFiles(root, tuple(found))


def _read_index(path: Path) -> ShardIndex:
    descriptor, state = open_regular_file(path)
    with open(descriptor, "rb") as file, storage_errors(path):  # noqa: PTH123 - a descriptor, not a path
        if state.size > _MAX_INDEX_SIZE:
            raise CheckpointError(f"an index of more than {_MAX_INDEX_SIZE} bytes", place=path)
        raw = file.read(state.size)
    try:
        # Pairs, because a name that is listed twice would otherwise go unnoticed.
        index = json.loads(raw, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"not a JSON file: {error}", place=path) from error
    # An empty object and an empty array look the same here; neither is an index.
    maps = [value for key, value in _pairs(index) if key == "weight_map"]
    if len(maps) != 1 or not _pairs(maps[0]):
        raise CheckpointError("an index without a weight_map", place=path)
    shard_of: dict[str, str] = {}
    for tensor, shard in _pairs(maps[0]):
        if not isinstance(shard, str):
            raise CheckpointError("its shard is not text", place=path, tensor=tensor)
        problem = path_problem(shard)
        if problem is not None:
            raise CheckpointError(f"the shard {shard!r} is refused: {problem}", place=path, tensor=tensor)
        if not shard.endswith(".safetensors"):
            why = f"; {_CONVERT}" if shard.endswith(PICKLE_SUFFIXES) else ""
            raise CheckpointError(f"the shard {shard!r} is not a safetensors file{why}", place=path, tensor=tensor)
        if shard_of.setdefault(tensor, shard) != shard:
            raise CheckpointError("is listed in two shards", place=path, tensor=tensor)
    return ShardIndex(path, shard_of)


def _exists(path: Path) -> bool:
    # Path.exists takes any error for absence, such as a missing permission.
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _pairs(value: object) -> list[tuple[str, object]]:
    """The members of what was a JSON object, or nothing for any other value."""
    if isinstance(value, list) and all(isinstance(item, tuple) for item in value):
        return value
    return []


def _check_paths(paths: Sequence[str], root: Path) -> None:
    if len(paths) > MAX_SHARDS:
        raise CheckpointError(f"{len(paths)} shards are more than {MAX_SHARDS}", place=root)
    accepted = PathSet()
    for path in paths:
        problem = accepted.add(path)
        if problem is not None:
            raise CheckpointError(problem, place=printable(str(root / path)))


def _check_numbering(names: Collection[str], root: Path) -> None:
    """Without an index, the names of numbered shards tell whether all of them are there."""
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match is None:
            continue
        count, width = int(match["count"]), len(match["number"])
        for number in range(1, min(count, MAX_SHARDS) + 1):
            sibling = f"{match['stem']}-{number:0{width}}-of-{match['count']}.safetensors"
            if sibling not in names:
                raise CheckpointError(f"the shard {sibling} is missing", place=root)


def _is_adapter(place: Path) -> CheckpointError:
    return CheckpointError("a PEFT adapter, not a model: merge it into its base first", place=place)


def _no_model(root: Path, names: Sequence[str]) -> CheckpointError:
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        return CheckpointError(f"no safetensors files, but {printable(pickles[0])}; {_CONVERT}", place=root)
    others = [name for name in names if name.endswith(WEIGHT_SUFFIXES) and not name.startswith(".")]
    if others:
        return CheckpointError(f"no safetensors files, but {printable(others[0])}: convert it", place=root)
    for name in names:
        if any((root / name).glob("*.safetensors")):
            return CheckpointError(
                f"no model here, but there is one in its sub-directory {printable(name)}", place=root
            )
    return CheckpointError("not a model directory: no safetensors files", place=root)
