"""Some tensors of a model as a model of their own, and back in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..checkpoint import Checkpoint, OutputDirectory, SafetensorsWriter
from ..pipeline.parallel import map_ordered

__all__ = ["write_subset", "write_with_changes"]


def write_subset(model: Checkpoint, names: Sequence[str], path: Path) -> None:
    """Write those of these tensors that the model has as the safetensors file ``path``.

    Raises:
        StorageError: there is no space, or another refusal of the operating system.
    """
    infos = [model.tensors[name] for name in names if name in model.tensors]
    with SafetensorsWriter(path, [(info.name, info.dtype, info.shape) for info in infos], {}) as writer:
        for info in infos:
            writer.write(info.name, model.read(info.name))


def write_with_changes(
    model: Checkpoint,
    changed: Callable[[str], npt.NDArray[np.uint8] | None],
    path: Path,
    threads: int,
    on_tensor: Callable[[int], None],
) -> None:
    """Write a copy of a model directory in which some tensors have other bytes.

    Args:
        changed: the bytes of a tensor, by name; None for the model's own. Called on several threads.
        on_tensor: told the size of each tensor that was written.

    Raises:
        StorageError: there is no space, or another refusal of the operating system.
    """

    def content(name: str) -> npt.NDArray[np.uint8]:
        found = changed(name)
        return np.frombuffer(model.read(name), dtype=np.uint8) if found is None else found

    infos = list(model.tensors.values())
    with OutputDirectory(path) as output:
        writers = [
            output.shard_writer(
                shard.path, [(i.name, i.dtype, i.shape) for i in infos if i.shard == number], shard.metadata
            )
            for number, shard in enumerate(model.shards)
        ]
        for info, data in zip(infos, map_ordered(content, [info.name for info in infos], threads), strict=True):
            writers[info.shard].write(info.name, data.data)
            on_tensor(info.nbytes)
        for file in model.side_files():
            output.write_file(file.path, model.read_side_file(file.path))
        output.commit()
