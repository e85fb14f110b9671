"""Some tensors of a model as a model of their own, and back in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..checkpoint import Checkpoint, OutputDirectory, SafetensorsWriter

__all__ = ["write_subset", "write_with_changes"]

_PIECE = 4 << 20


def write_subset(model: Checkpoint, names: Sequence[str], path: Path) -> None:
    """Write those of these tensors that the model has as the safetensors file ``path``.

    Raises:
        StorageError: there is no space, or another refusal of the operating system.
    """
    infos = [model.tensors[name] for name in names if name in model.tensors]
    with SafetensorsWriter(path, [(info.name, info.dtype, info.shape) for info in infos], {}) as writer:
        for info in infos:
            _copy(model, info.name, writer)


def write_with_changes(model: Checkpoint, changed: Checkpoint, path: Path, on_tensor: Callable[[int], None]) -> None:
    """Write a copy of a model directory in which the tensors of ``changed`` take the place of its own.

    Args:
        on_tensor: told the size of each tensor that was written.

    Raises:
        StorageError: there is no space, or another refusal of the operating system.
    """
    infos = list(model.tensors.values())
    with OutputDirectory(path) as output:
        writers = [
            output.shard_writer(
                shard.path, [(i.name, i.dtype, i.shape) for i in infos if i.shard == number], shard.metadata
            )
            for number, shard in enumerate(model.shards)
        ]
        for info in infos:
            _copy(changed if info.name in changed.tensors else model, info.name, writers[info.shard])
            on_tensor(info.nbytes)
        for file in model.side_files():
            output.write_file(file.path, model.read_side_file(file.path))
        output.commit()


def _copy(model: Checkpoint, name: str, writer: SafetensorsWriter) -> None:
    data = model.read(name)
    if data.nbytes <= _PIECE:
        writer.write(name, data)
        return
    source = np.frombuffer(data, dtype=np.uint8)
    with writer.region(name) as region:
        for start in range(0, source.size, _PIECE):
            stop = min(start + _PIECE, source.size)
            region.array[start:stop] = source[start:stop]
            region.release(start, stop)
            model.release(name, start, stop)
